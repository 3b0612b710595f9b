"""Drift against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as oir
import pytest

from secateur.ir.io import load_model
from secateur.runtime.output_drift import drift

from .pass_runs import build


def test_drift_is_the_largest_relative_change() -> None:
    text = "g (float[N,2] x) => (float[N,2] y, float[N,2] z, int64[N] k) {"
    text += " y = Mul(x, a) z = Mul(x, b) k = ArgMax<axis=1, keepdims=0>(y) }"
    x = np.array([[1, 2], [3, 1], [0, 5]], np.float32)

    def model(a: list[float], b: float) -> oir.Model:
        return load_model(build(text, a=np.array(a, np.float32), b=np.array(b, np.float32)))

    old = model([1, 1], 2)
    assert drift(old, old, [{"x": x}]) == 0
    moved = drift(old, model([1, 1], 2.5), [{"x": x}])
    assert moved == pytest.approx(0.25)
    chosen = drift(old, model([1, -1], 2), [{"x": x[:2]}, {"x": x[2:]}])
    assert chosen == pytest.approx(2 * np.sqrt(30 / 40))
