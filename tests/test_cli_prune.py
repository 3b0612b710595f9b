"""`secateur prune`: targets, limits and what its options reach."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from .cli_runs import CALIBRATION, invoke, macs, outputs, prune, shapes, widths

pytestmark = pytest.mark.usefixtures("example_folder")


def test_prune_prints_a_summary_and_writes_a_model_that_runs() -> None:
    result = invoke("prune", "m.onnx", "-o", "o.onnx", "--macs", "0.5")
    for words in ("MACs", "parameters", "peak activations", "latency (P50)", "speed-up"):
        assert words in result.stdout
    assert re.search("certificate: equals the masked original.*relative error", result.stdout)
    assert "wrote o.onnx" in result.stdout
    assert all("note: " in line for line in result.stderr.splitlines()), "advice on the timing"
    onnx.checker.check_model("o.onnx", full_check=True)
    for batch in (1, 5):
        assert outputs("o.onnx", batch).shape == (batch, 10)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_macs_are_met_from_above(share: float, scope: str) -> None:
    report = prune("--macs", str(share), "--scope", scope)
    whole, left = macs("m.onnx"), macs("o.onnx")
    assert left <= share * whole
    assert left > (share - 0.05) * whole
    assert report["totals"]["macs"]["before"] == whole
    assert report["totals"]["macs"]["after"] == left


def test_parameters_are_met_from_above() -> None:
    report = prune("--params", "0.6")
    whole, left = (sum(map(np.prod, shapes(p).values())) for p in ("m.onnx", "o.onnx"))
    assert 0.58 * whole < left <= 0.6 * whole
    assert report["totals"]["parameters"]["before"] == whole
    assert report["totals"]["parameters"]["after"] == left


def test_ratio_takes_the_same_share_of_every_group() -> None:
    before = widths("m.onnx")
    report = prune("--ratio", "0.25")
    assert widths("o.onnx") == [n - round(n / 4) for n in before]
    assert {g["removed"] * 4 for g in report["groups"]} == {g["units"] for g in report["groups"]}


def test_criteria_choose_differently() -> None:
    weight = numpy_helper.to_array(
        next(t for t in onnx.load("m.onnx").graph.initializer if t.name == "stage1.conv1.weight")
    )
    after = numpy_helper.to_array(
        next(t for t in onnx.load("m.onnx").graph.initializer if t.name == "stage1.conv2.weight")
    )
    for criterion, power in {"l1": 1, "l2": 2}.items():
        report = prune("--ratio", "0.25", "--criterion", criterion, "--protect", "stem.weight")
        norm = (abs(weight) ** power).sum((1, 2, 3)) + (abs(after) ** power).sum((0, 2, 3))
        (gone,) = (
            r["indices"]
            for r in report["removed"]
            if (r["tensor"], r["axis"]) == ("stage1.conv1.weight", 0)
        )
        assert gone == sorted(np.argsort(norm)[: len(gone)].tolist())


def test_limits() -> None:
    before = widths("m.onnx")
    prune("--macs", "0.5", "--round-to", "8")
    assert all(n % 8 == 0 for n in widths("o.onnx"))
    assert widths("o.onnx") != before
    prune("--ratio", "0.9", "--max-ratio", "0.5")
    assert widths("o.onnx") == [n - n // 2 for n in before]
    prune("--ratio", "0.999")
    assert widths("o.onnx") == [1] * len(before), "a group never falls below one unit"


def test_protected_names_stay_whole() -> None:
    before = shapes("m.onnx")
    prune("--ratio", "0.5", "--protect", "stage1.conv1.*", "--protect", "/stage3/conv2/Conv")
    after = shapes("o.onnx")
    for name in ("stage1.conv1.weight", "stage3.conv2.weight"):
        assert after[name] == before[name]
    assert after["stage2a.conv1.weight"][0] == before["stage2a.conv1.weight"][0] // 2


def test_inexact_groups_are_pruned_when_asked() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,4] x) => (float[N,3] y) {
          h = MatMul(x, a)
          n = LayerNormalization(h, s)
          y = MatMul(n, b)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"a": (4, 8), "s": (8,), "b": (8, 3)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, "m.onnx")
    refused = invoke("prune", "m.onnx", "-o", "o.onnx", "--ratio", "0.5", code=4)
    assert "--inexact" in refused.stderr
    report = prune("--ratio", "0.5", "--inexact")
    assert shapes("o.onnx") == {"a": (4, 4), "s": (4,), "b": (4, 3)}
    assert [g["exact"] for g in report["groups"]] == [False]
    assert report["certificate"]["compactions"]


def test_calibration_seed_threads_and_sizes_are_used() -> None:
    report = prune(
        *("--ratio", "0.5", "--calibration", str(CALIBRATION), "--seed", "5"),
        *("--threads", "1", "--dim", "batch=4"),
    )
    with np.load(CALIBRATION) as data:
        assert report["calibration"] == {"image": list(data["image"].shape)}
    certificate = report["certificate"]
    assert certificate["calibrated"] and certificate["seeds"] == [5, 6, 7]
    labels = {entry["label"] for entry in certificate["runs"]}
    assert {"seed 5, batch=4", "calibration 0"} <= labels
    assert (report["seed"], report["threads"], report["dims"]) == (5, 1, {"batch": 4})


def test_carriers() -> None:
    """Heads or the sizes within them: the two ways to cut the width of an attention."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,6,8] x) => (float[N,6,8] y)
        <int64[4] split = {0, 6, 4, 8}, int64[3] joined = {0, 6, 32}> {
          q = MatMul(x, wq)
          k = MatMul(x, wk)
          v = MatMul(x, wv)
          q4 = Reshape(q, split)
          k4 = Reshape(k, split)
          v4 = Reshape(v, split)
          qh = Transpose<perm = [0, 2, 1, 3]>(q4)
          kh = Transpose<perm = [0, 2, 3, 1]>(k4)
          vh = Transpose<perm = [0, 2, 1, 3]>(v4)
          s = MatMul(qh, kh)
          p = Softmax<axis = -1>(s)
          o = MatMul(p, vh)
          ot = Transpose<perm = [0, 2, 1, 3]>(o)
          oj = Reshape(ot, joined)
          y = MatMul(oj, wo)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"wq": (8, 32), "wk": (8, 32), "wv": (8, 32), "wo": (32, 8)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, "m.onnx")
    heads = prune("--ratio", "0.25")
    assert [(g["units"], g["removed"]) for g in heads["groups"]] == [(4, 1)]
    sizes = prune("--ratio", "0.25", "--carrier", "head-dim")
    assert {(g["units"], g["removed"]) for g in sizes["groups"]} == {(8, 2)}


def test_targets_that_hold_already_are_said_to() -> None:
    text = invoke("prune", "m.onnx", "-o", "o.onnx", "--macs", "1", "--no-bench")
    assert "note: nothing was removed: the model meets the targets as it is" in text.stderr
    assert "chosen by weight norms" not in text.stderr
