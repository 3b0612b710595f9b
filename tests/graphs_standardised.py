"""Graphs whose weights are computed from constants: standardised or normalised, as exporters write
that. Not in the collection: what is pruned of them is not what is stored in the file.

`FORMS` builds each: an input, a plain layer ``w0``, a layer whose weight is computed, and a plain
head ``w2``. `STORED` names the values that have to be stored, and `CHANNELS` those of their axes
that then lose half of their coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from .graph_builder import Weight, draw

IMAGE = "(float[N,3,6,6] x) => (float[N,4] y)"
ROWS = "(float[N,6] x) => (float[N,4] y)"
MEANS = """m = ReduceMean<axes=[1,2,3]>({0}) d = Sub({0}, m) q = Mul(d, d)
    v = ReduceMean<axes=[1,2,3]>(q) e = Add(v, eps) r = Sqrt(e) n = Div(d, r)
    """
HEAD = """p = GlobalAveragePool(g) f = Flatten(p) y = Gemm<transB=1>(f, w2)"""
CONVS: dict[str, Weight] = {"w0": (8, 3, 3, 3), "w1": (12, 8, 3, 3), "w2": (4, 12), "eps": 1e-4}


def conv(weight: str, name: str) -> str:
    """Two convolutions, the second with the computed weight ``name``."""
    return f"""{weight} h = Conv<pads=[1,1,1,1]>(x, w0) a = Relu(h)
        c = Conv<pads=[1,1,1,1]>(a, {name}) g = Relu(c) {HEAD}"""


def reshaped(norm: str) -> str:
    """The weight as one row per output channel, normalised, and put back."""
    return f"flat = Reshape(w1, to_rows) {norm} k = Reshape(n, back)"


ROWS_OF_W1: dict[str, Weight] = {
    "to_rows": [1, 12, -1],
    "back": [12, 8, 3, 3],
    "one_s": np.ones(12, np.float32),
    "zero_b": np.zeros(12, np.float32),
}

TEXTS: dict[str, tuple[str, str, dict[str, Weight]]] = {
    "means": (IMAGE, conv(MEANS.format("w1") + "k = Mul(n, gain)", "k"),
              CONVS | {"gain": (12, 1, 1, 1)}),
    "batch_norm": (
        IMAGE,
        conv(
            reshaped(
                """n, mean, var = BatchNormalization<training_mode=1, momentum=0.0>(
                flat, gain_s, zero_b, mean0, var0_v)"""
            ),
            "k",
        ),
        CONVS | ROWS_OF_W1 | {"gain_s": 12, "mean0": 12, "var0_v": 12},
    ),
    "instance_norm": (
        IMAGE,
        conv(reshaped("n = InstanceNormalization(flat, one_s, zero_b)"), "k"),
        CONVS | ROWS_OF_W1,
    ),
    "weight_norm": (
        IMAGE,
        conv("l = ReduceL2<axes=[1,2,3]>(w1) n = Div(w1, l) k = Mul(n, gain)", "k"),
        CONVS | {"gain": (12, 1, 1, 1)},
    ),
    "transposed": (
        ROWS,
        """m = ReduceMean<axes=[1]>(w1) k = Sub(w1, m) t = Transpose<perm=[1,0]>(k)
        h = MatMul(x, w0) a = Relu(h) b = MatMul(a, t) g = Relu(b)
        c = MatMul(g, k) d = MatMul(c, t) y = MatMul(d, w2)""",
        {"w0": (6, 8), "w1": (12, 8), "w2": (12, 4)},
    ),
    "expanded": (
        IMAGE,
        conv("m = ReduceMean<axes=[0,2,3]>(w1) s = Sub(w1, m) k = Expand(s, wide)", "k"),
        CONVS | {"w1": (12, 1, 3, 3), "wide": [12, 8, 3, 3]},
    ),
    "quantised": (
        IMAGE,
        conv("w = DequantizeLinear(wq, scale) " + MEANS.format("w") + "k = Identity(n)", "k"),
        CONVS
        | {
            "wq": np.random.default_rng(1).integers(-99, 99, (12, 8, 3, 3)).astype(np.int8),
            "scale": 0.02,
        },
    ),
    "in_constants": (IMAGE, conv(MEANS.format("w1"), "n"), CONVS),
}  # fmt: skip
STORED: dict[str, list[str]] = {
    "means": ["k"], "batch_norm": ["k"], "instance_norm": ["k"], "weight_norm": ["k"],
    "transposed": ["k"], "expanded": ["s"], "quantised": ["m", "r"], "in_constants": ["n"],
    "in_a_function": ["k"], "halves": ["k"],
}  # fmt: skip
CHANNELS: dict[str, tuple[int, ...]] = {
    "transposed": (0, 1), "expanded": (0,), "quantised": (0,),
}  # fmt: skip
"""Of the first stored value; in the others both channels of a convolution."""


def _text(name: str) -> onnx.ModelProto:
    signature, body, weights = TEXTS[name]
    model: onnx.ModelProto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g {signature} {{ {body} }}'
    )
    rng = np.random.default_rng(len(name))
    used = {i for node in model.graph.node for i in node.input}
    for key, weight in weights.items():
        if key in used:
            tensor = numpy_helper.from_array(draw(rng, key, weight, np.float32), key)
            model.graph.initializer.append(tensor)
    return model


def in_constants() -> onnx.ModelProto:
    """The means again, all weights in Constant nodes."""
    model = _text("in_constants")
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    del model.graph.initializer[:]
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def in_a_function() -> onnx.ModelProto:
    """The weight is standardised by a local function, which the call gives its constants."""
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "local": 1]> g {IMAGE} {{
            h = Conv<pads=[1,1,1,1]>(x, w0) a = Relu(h) k = local.Std(w1, eps)
            c = Conv<pads=[1,1,1,1]>(a, k) g = Relu(c) {HEAD} }}
        <domain: "local", opset_import: ["": 17]> Std (w, eps) => (n) {{ {MEANS.format("w")} }}"""
    )
    (call,) = (node for node in model.graph.node if node.op_type == "Std")
    call.name = "std"
    rng = np.random.default_rng(5)
    for key, weight in CONVS.items():
        array = draw(rng, key, weight, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, key))
    return model


def halves() -> onnx.ModelProto:
    """The means in half precision."""
    model = _text("means")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{name: partial(_text, name) for name in TEXTS},
    "in_constants": in_constants,
    "in_a_function": in_a_function,
    "halves": halves,
}
