"""One of a thing is in the singular, wherever a person reads it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from secateur.ir.wording import counted

from .cli_runs import invoke

ONE = re.compile(
    r"(?<![\w.])1 (?:more |interleaved )?"
    r"(?:units|groups|samples|runs|seeds|sizes|parameters|MACs|coordinates|candidates|weights)\b"
)


def mlp() -> onnx.ModelProto:
    """One group: the hidden layer, of two units."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 3] x) => (float[1, 3] y) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }"""
    )
    for name, shape in {"a": (3, 2), "b": (2, 3)}.items():
        array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def test_counted() -> None:
    assert [counted(n, "unit") for n in (0, 1, 2)] == ["0 units", "1 unit", "2 units"]
    assert [counted(n, "axis", "axes") for n in (1, 3)] == ["1 axis", "3 axes"]
    assert counted(1200, "MAC", shown="1.2 k") == "1.2 k MACs"


def test_one_of_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(mlp(), "m.onnx")
    np.save("x.npy", np.ones((1, 3)))
    made = invoke("calibrate", "x.npy", "--model", "m.onnx", "-o", "c.npz").stdout
    assert "wrote 1 sample to" in made
    shown = invoke("inspect", "m.onnx").stdout
    assert "1 group, 2 units; 12 MACs, 12 parameters" in shown
    line = ["prune", "m.onnx", "-o", "o.onnx", "--ratio", "0.5", "--report", "r.json"]
    pruned = invoke(*line, "--no-recover").stdout
    assert "removed 1 unit from 1 of 1 group\n" in pruned
    left = invoke("inspect", "o.onnx").stdout
    one = ["sensitivity", "m.onnx", "--calibration", "c.npz", "--ratios", "0.5", "--jobs", "1"]
    swept = invoke(*one).stdout
    assert "on 1 sample\n" in swept and "1 candidate measured" in swept
    for text in (made, shown, pruned, left, swept, invoke("explain", "m.onnx", "h").stdout):
        assert ONE.findall(text) == []
