"""Small models for the tests of comparisons and certificates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

Array = np.ndarray[Any, np.dtype[Any]]


def parse(body: str, weights: Mapping[str, Array], opset: int = 17) -> onnx.ModelProto:
    ir_version = 8 if opset < 19 else 10
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> {body}')
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return model


QDQ = """g (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y) {
    q = QuantizeLinear(x, sx, zx)  d = DequantizeLinear(q, sx, zx)
    dw = DequantizeLinear <axis=0> (w, sw, zw)
    h = Conv(d, dw)  r = Relu(h)
    qr = QuantizeLinear(r, sr, zr)  dr = DequantizeLinear(qr, sr, zr)
    dv = DequantizeLinear <axis=0> (v, sv, zv)
    y = Conv(dr, dv) }"""


def quantised_weights(removed: tuple[int, ...] = ()) -> dict[str, Array]:
    rng = np.random.default_rng(2)
    kept = [c for c in range(8) if c not in removed]
    return {
        "sx": np.array(0.02, np.float32),
        "zx": np.array(128, np.uint8),
        "sr": np.array(0.07, np.float32),
        "zr": np.array(3, np.uint8),
        "w": rng.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8)[kept],
        "sw": rng.uniform(0.003, 0.01, 8).astype(np.float32)[kept],
        "zw": np.zeros(8, np.int8)[kept],
        "v": rng.integers(-127, 128, (4, 8, 1, 1)).astype(np.int8)[:, kept],
        "sv": np.full(4, 0.005, np.float32),
        "zv": np.zeros(4, np.int8),
    }
