"""The commands that only show: inspect, explain, bench and passes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from .cli_runs import CALIBRATION, invoke, macs, prune, shapes
from .graphs import GRAPHS

pytestmark = pytest.mark.usefixtures("example_folder")


def test_inspect() -> None:
    data = json.loads(invoke("inspect", "m.onnx", "--json").stdout)
    assert data["macs"] == macs("m.onnx")
    assert data["parameters"] == sum(int(np.prod(s)) for s in shapes("m.onnx").values())
    assert sum(g["units"] for g in data["groups"]) == data["units"]
    (group,) = (g for g in data["groups"] if g["name"] == "stage1.conv1.weight[0]")
    assert [(w["tensor"], w["axis"], w["role"]) for w in group["weights"]] == [
        ("stage1.conv1.weight", 0, "producer"),
        ("stage1.conv1.bias", 0, "coupled"),
        ("stage1.conv2.weight", 1, "consumer"),
    ]
    text = invoke("inspect", "m.onnx").stdout
    for group in data["groups"]:
        assert group["name"] in text
    assert "an output of the model" in text
    kept = json.loads(invoke("inspect", "m.onnx", "--protect", "*", "--json").stdout)
    assert kept["groups"] == []


def test_explain() -> None:
    text = invoke("explain", "m.onnx", "stem.weight").stdout
    assert "stem.weight axis 0 (size 16): can be pruned" in text
    assert "stem.weight axis 1 (size 1): must stay" in text
    assert "an input of the model" in text
    data = json.loads(invoke("explain", "m.onnx", "head.weight:0", "--json").stdout)
    (axis,) = data["axes"]
    assert (axis["tensor"], axis["axis"], axis["free"]) == ("head.weight", 0, 0)
    assert "an output of the model" in axis["reason"]
    assert axis["path"][-1]["value"] == "logits"
    protected = invoke("explain", "m.onnx", "stem.weight:0", "--protect", "stem.weight").stdout
    assert "protected by 'stem.weight'" in protected
    onnx.save(GRAPHS["efficient_channel_attention"](), "gated.onnx")
    gated = invoke("explain", "gated.onnx", "w1:0").stdout
    assert "inexact: needs --inexact" in gated and "looked across by Conv 'k'" in gated


def test_bench() -> None:
    prune("--macs", "0.5")
    few = ["--runs", "5", "--seconds", "0", "--threads", "1"]
    data = json.loads(invoke("bench", "m.onnx", "o.onnx", *few, "--json").stdout)
    for name, path in {"original": "m.onnx", "pruned": "o.onnx"}.items():
        row = data[name]
        assert row["macs"] == macs(path)
        assert row["runs"] >= 5
        assert 0 < row["p25_ms"] <= row["p50_ms"] <= row["p75_ms"]
    assert 0 < data["speedup"]["low"] <= data["speedup"]["ratio"] <= data["speedup"]["high"]
    assert data["macs_ratio"] == pytest.approx(macs("m.onnx") / macs("o.onnx"))
    text = invoke(
        *("bench", "m.onnx", "o.onnx", *few, "--calibration", str(CALIBRATION), "--dim", "batch=8")
    ).stdout
    assert "speed-up" in text and "MACs ratio" in text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("float[batch, 4]", ""),
        ("float[N, 5]", "input x is float[N, 4] in one, float[N, 5] in one"),
        ("double[N, 4]", "input x is float[N, 4] in one, double[N, 4] in one"),
    ],
)
def test_bench_of_models_with_other_inputs(kind: str, said: str) -> None:
    """Names of sizes may differ, sizes and types may not."""
    for name, form in (("one.onnx", "float[N, 4]"), ("other.onnx", kind)):
        text = (
            f'<ir_version: 8, opset_import: ["": 17]> g ({form} x) => ({form} y) {{ y = Neg(x) }}'
        )
        onnx.save(onnx.parser.parse_model(text), name)
    few = ["--runs", "5", "--seconds", "0"]
    assert said in invoke("bench", "one.onnx", "other.onnx", *few, code=2 if said else 0).stderr


def test_passes() -> None:
    data = json.loads(invoke("passes", "--json").stdout)
    found = {row["name"]: row for row in data["passes"]}
    assert {"fold-constants", "fold-batchnorm", "eliminate-dead", "prune"} <= found.keys()
    assert found["prune"]["contract"] == "masks"
    assert all(row["provider"] for row in data["passes"])
    assert {"l1", "l2"} <= {row["name"] for row in data["criteria"]}
    operators = {name for row in data["rules"] for name in row["operators"]}
    assert {"Conv", "Gemm", "Reshape", "LayerNormalization"} <= operators
    text = invoke("passes").stdout
    for name in found:
        assert name in text
