"""The model and the data that ship in examples/."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

EXAMPLES = Path(__file__).parent.parent / "examples"
MODEL = EXAMPLES / "digits.onnx"
CALIBRATION = EXAMPLES / "digits_calibration.npz"
TEST = EXAMPLES / "digits_test.npz"
EVALUATE = EXAMPLES / "evaluate.py"
INNER = ["stage1", "stage2a", "stage2b", "stage3"]


def array(path: Path, name: str) -> NDArray[np.float32]:
    with np.load(path) as data:
        return np.asarray(data[name])


def top1(model: bytes) -> float:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": array(TEST, "image")})
    return float((logits.argmax(1) == array(TEST, "label")).mean())


def without_weakest_inner_channels(share: float) -> bytes:
    """digits.onnx with the inner channels of least L2 norm set to zero in every block."""
    model = onnx.load(MODEL)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for block in INNER:
        weight = numpy_helper.to_array(tensors[f"{block}.conv1.weight"]).copy()
        bias = numpy_helper.to_array(tensors[f"{block}.conv1.bias"]).copy()
        norms = np.sqrt((weight**2).sum((1, 2, 3)))
        weakest = norms.argsort()[: round(share * len(norms))]
        weight[weakest] = 0
        bias[weakest] = 0
        for name, value in (("weight", weight), ("bias", bias)):
            full = f"{block}.conv1.{name}"
            tensors[full].CopyFrom(numpy_helper.from_array(value, full))
    return bytes(model.SerializeToString())


def run_evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EVALUATE), *arguments], capture_output=True, text=True, check=False
    )


def test_model_is_valid_small_and_clean() -> None:
    model = onnx.load(MODEL)
    onnx.checker.check_model(model, full_check=True)
    content = MODEL.read_bytes()
    assert len(content) < 300_000
    for absolute in (b"/home/", b"/opt/", b"/root/", b"/tmp/", b"/usr/", b"/work/", b".py"):
        assert absolute not in content
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    batch, *rest = image.type.tensor_type.shape.dim
    assert batch.dim_param == "batch"
    assert [dim.dim_value for dim in rest] == [1, 8, 8]
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)


@pytest.mark.parametrize("batch", [1, 7])
def test_batch_size_is_free(batch: int) -> None:
    session = ort.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": array(TEST, "image")[:batch]})
    assert logits.shape == (batch, 10)


def test_data_files_share_no_image() -> None:
    with np.load(CALIBRATION) as calibration, np.load(TEST) as test:
        assert calibration.files == ["image"]
        assert set(test.files) == {"image", "label"}
    images = [array(CALIBRATION, "image"), array(TEST, "image")]
    for image, count in zip(images, (256, 360), strict=True):
        assert image.dtype == np.float32
        assert image.shape == (count, 1, 8, 8)
        assert image.min() == 0
        assert image.max() == 1
    seen, held_out = ({sample.tobytes() for sample in image} for image in images)
    assert len(seen) == 256
    assert len(held_out) == 360
    assert seen.isdisjoint(held_out)
    assert np.bincount(array(TEST, "label").astype(np.int64), minlength=10).min() >= 30


def test_accuracy() -> None:
    assert top1(MODEL.read_bytes()) >= 0.97


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_dropping_weak_inner_channels_costs_little(share: float) -> None:
    assert top1(without_weakest_inner_channels(share)) >= 0.97


def test_evaluate_agrees_with_a_direct_measurement(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(without_weakest_inner_channels(0.8))
    expected = [top1(MODEL.read_bytes()), top1(damaged.read_bytes())]
    assert expected[1] < expected[0]

    accuracy = runpy.run_path(str(EVALUATE))["accuracy"]
    assert accuracy(MODEL, TEST) == pytest.approx(expected[0], abs=1e-12)

    result = run_evaluate(str(TEST), str(MODEL), str(damaged), "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [row["accuracy"] for row in rows] == pytest.approx(expected, abs=1e-12)
    assert rows[0]["agreement"] == 1
    # Where both are right they agree, and they are both wrong on at most the rest.
    assert sum(expected) - 1 <= rows[1]["agreement"] < 1
    assert [row["bytes"] for row in rows] == [MODEL.stat().st_size, damaged.stat().st_size]

    table = run_evaluate(str(TEST), str(MODEL), str(damaged)).stdout.splitlines()
    assert len(table) == 3
    assert f"{expected[1]:.2%}" in table[2]


@pytest.mark.parametrize("data", [CALIBRATION, EXAMPLES / "absent.npz"])
def test_evaluate_reports_bad_data_in_one_line(data: Path) -> None:
    result = run_evaluate(str(data), str(MODEL))
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert data.name in result.stderr
