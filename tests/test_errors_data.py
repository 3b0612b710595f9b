"""Calibration files and reports that do not fit."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from .failing_runs import HALF, Fails


def images(
    count: int = 4, channels: int = 1, size: int = 8
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).random((count, channels, size, size)).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "no array for input 'image'"),
        ({"images": images()}, "no array for input 'image'"),
        ({"image": images(), "label": np.zeros(4)}, "array 'label' is no input"),
        ({"image": images(channels=3)}, "size 3, not 1"),
        ({"image": images(size=9)}, "size 9, not 8"),
        ({"image": images()[0, 0]}, "ranks do not fit"),
        ({"image": images()[None, None]}, "ranks do not fit"),
        ({"image": images(0)}, "sample"),
        ({"image": (images() * 255).astype(np.uint8)}, "is uint8, not float32"),
        ({"image": images().astype(np.complex64)}, "complex64"),
        ({"image": np.full_like(images(), np.nan)}, "NaN or infinity"),
        ({"image": np.full_like(images(), np.inf)}, "NaN or infinity"),
        ({"image": images().astype(object)}, "Python objects"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_calibration_arrays(fails: Fails, arrays: dict[str, object], words: str) -> None:
    np.savez("c.npz", **arrays)  # type: ignore[arg-type]
    assert words in fails(6, *HALF, "--calibration", "c.npz")


def test_calibration_arrays_of_two_inputs_have_one_count(fails: Fails) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,2] x, float[N,2] z) => (float[N,2] y) {
          h = MatMul(x, a)
          k = MatMul(h, b)
          y = Add(k, z)
        }"""
    )
    for name, shape in {"a": (2, 6), "b": (6, 2)}.items():
        tensor = numpy_helper.from_array(np.ones(shape, np.float32), name)
        model.graph.initializer.append(tensor)
    onnx.save(model, "m.onnx")
    np.savez("c.npz", x=np.ones((4, 2), np.float32), z=np.ones((5, 2), np.float32))
    line = fails(6, *HALF, "--calibration", "c.npz")
    assert "4" in line and "5" in line


def test_calibration_files_that_are_none(fails: Fails) -> None:
    Path("text").write_text("text")
    Path("folder").mkdir()
    with zipfile.ZipFile("wrong.npz", "w") as archive:
        archive.writestr("image.npy", b"not an array")
    np.save("array.npy", images())
    np.savez("cut.npz", image=images(500))
    Path("cut.npz").write_bytes(Path("cut.npz").read_bytes()[:-1000])
    for name in ("text", "folder", "none.npz", "wrong.npz", "array.npy", "cut.npz", "m.onnx"):
        for command in (HALF, ["inspect", "m.onnx"], ["bench", "m.onnx", "m.onnx"]):
            assert name in fails(6, *command, "--calibration", name)


def test_reports_that_are_none(fails: Fails) -> None:
    Path("text").write_text("text")
    Path("folder").mkdir()
    Path("list").write_text("[]")
    Path("other").write_text('{"schema_version": 99}')
    Path("deep").write_text("[" * 200_000)
    Path("bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("text", "folder", "none", "list", "other", "deep", "bytes"):
        assert name in fails(6, "verify", "m.onnx", "m.onnx", "--report", name)
