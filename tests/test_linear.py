"""Linear layers as rows times a matrix: against what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from secateur.ir.io import load_model
from secateur.ir.linear import LinearLayer, linear_layers
from secateur.passes.layers import start_weights, stored_weights
from secateur.runtime.unfold import Rows, Unfolded, row_sizes, target_rows

from .pass_runs import Array, build, run

CONVOLUTIONS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ("Conv", (2, 4, 9), (6, 4, 3), {}),
    "padded": ("Conv", (2, 4, 9, 8), (6, 4, 3, 2), {"pads": [1, 0, 2, 1]}),
    "strided": ("Conv", (2, 4, 9, 8), (6, 4, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 3]}),
    "skips the end": ("Conv", (2, 4, 10, 8), (6, 4, 2, 3), {"strides": [3, 2]}),
    "dilated": ("Conv", (1, 4, 9, 8), (6, 4, 3, 2), {"dilations": [2, 3], "pads": [2, 1, 2, 1]}),
    "grouped": ("Conv", (2, 6, 9, 8), (4, 3, 3, 3), {"group": 2}),
    "depthwise": ("Conv", (2, 6, 9, 8), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    "volume": ("Conv", (1, 2, 5, 4, 6), (3, 2, 2, 3, 2), {"pads": [0, 1, 0, 1, 1, 1]}),
    "same upper": ("Conv", (2, 3, 8, 7), (4, 3, 2, 4), {"auto_pad": "SAME_UPPER"}),
    "same lower": (
        "Conv",
        (2, 3, 8, 7),
        (4, 3, 2, 4),
        {"auto_pad": "SAME_LOWER", "strides": [1, 2]},
    ),
    "valid": ("Conv", (2, 3, 8, 7), (4, 3, 2, 4), {"auto_pad": "VALID"}),
    "transposed": ("ConvTranspose", (2, 4, 5), (4, 6, 3), {}),
    "transposed, strided": (
        "ConvTranspose",
        (2, 4, 5, 4),
        (4, 6, 3, 2),
        {"strides": [2, 3], "pads": [1, 0, 1, 1]},
    ),
    "transposed, more": (
        "ConvTranspose",
        (2, 4, 5, 4),
        (4, 6, 3, 3),
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    "transposed, dilated": ("ConvTranspose", (1, 4, 5, 4), (4, 6, 3, 2), {"dilations": [2, 1]}),
    "transposed, grouped": (
        "ConvTranspose",
        (1, 4, 5, 4),
        (4, 3, 3, 2),
        {"group": 2, "pads": [2, 1, 0, 1]},
    ),
    "transposed, same upper": (
        "ConvTranspose",
        (1, 2, 5, 4),
        (2, 3, 3, 4),
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
    ),
    "transposed, same lower": (
        "ConvTranspose",
        (1, 2, 5, 4),
        (2, 3, 3, 3),
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    ),
}


def random(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def convolution(name: str, bias: bool) -> tuple[onnx.ModelProto, Array]:
    op, shape, weight, attributes = CONVOLUTIONS[name]
    group = attributes.get("group", 1)
    outputs = weight[0] if op == "Conv" else weight[1] * group
    node = helper.make_node(op, ["x", "w", *(["b"] if bias else [])], ["y"], **attributes)
    weights = {"w": random(weight, 1)} | ({"b": random((outputs,), 2)} if bias else {})
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), (
        random(shape)
    )


def only(model: onnx.ModelProto) -> LinearLayer:
    (layer,) = linear_layers(load_model(model).graph)
    return layer


def check(layer: LinearLayer, x: Array, y: Array) -> None:
    """All rows, drawn in another order, give the output; the stored form comes back as it was."""
    sizes = row_sizes(layer, y)
    order = np.random.default_rng(0).permutation(int(np.prod(sizes)))
    rows = Rows.of(order, sizes)
    weights = start_weights(layer)
    matrix = Unfolded(layer, x, y).rows(rows).astype(np.float64)
    matrix = matrix.reshape(len(order), layer.groups, -1)
    found = np.einsum("rgk,gkm->rgm", matrix, weights[:, :-1]) + weights[:, -1]
    wanted = target_rows(layer, y, rows)
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=0, atol=2e-5)
    for value in (layer.weight, layer.bias if layer.has_own_bias else None):
        if value is not None:
            assert value.const_value is not None
            same = stored_weights(layer, weights)[str(value.name)]
            np.testing.assert_allclose(same, value.const_value.numpy(), rtol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, bias: bool) -> None:
    model, x = convolution(name, bias)
    check(only(model), x, run(model, {"x": x})[0])


@pytest.mark.parametrize(
    "text",
    [
        "y = Gemm(x, w, b)",
        "y = Gemm<transB = 1>(x, v, b)",
        "y = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, v, b)",
        "y = MatMul(x, w)",
        "z = MatMul(x, w) y = Add(z, b)",
        "z = MatMul(x, w) y = Add(b, z)",
    ],
)
def test_products(text: str) -> None:
    weights: dict[str, Any] = {"w": random((5, 3), 1), "v": random((3, 5), 1), "b": random((3,), 2)}
    used = {n: a for n, a in weights.items() if f" {n}" in text or f"({n}" in text}
    model = build(f"g (float[7, 5] x) => (float[7, 3] y) {{ {text} }}", **used)
    x = random((7, 5))
    check(only(model), x, run(model, {"x": x})[0])


def test_a_product_of_matrices_in_a_stack() -> None:
    model = build(
        "g (float[2, 4, 5] x) => (float[2, 4, 3] y) { y = MatMul(x, w) }", w=random((5, 3))
    )
    x = random((2, 4, 5))
    check(only(model), x, run(model, {"x": x})[0])


def test_what_a_recurrent_layer_adds_to_its_state() -> None:
    """Without a recurrent weight and with a single step, an RNN is the tanh of that."""
    model = build(
        "g (float[1, 4, 5] x) => (float[1, 1, 4, 3] y) { y = RNN<hidden_size = 3>(x, w, r, b) }",
        w=random((1, 3, 5)),
        r=np.zeros((1, 3, 3), np.float32),
        b=np.concatenate([random((1, 3), 1), np.zeros((1, 3), np.float32)], axis=1),
    )
    layer = only(model)
    assert layer.is_recurrent
    x = 0.1 * random((1, 4, 5))
    y = run(model, {"x": x})[0].reshape(1, 4, 3)
    check(layer, x, np.arctanh(y.astype(np.float64)))


def test_weights_behind_dequantize_linear() -> None:
    rng = np.random.default_rng(0)
    model = build(
        """g (float[2, 4, 6, 6] x) => (float[2, 3, 4, 4] y) {
            w = DequantizeLinear<axis = 0>(q, s, z)
            b = DequantizeLinear(p, t)
            y = Conv(x, w, b)
        }""",
        q=rng.integers(-128, 127, (3, 4, 3, 3)).astype(np.int8),
        s=np.array([0.01, 0.02, 0.03], np.float32),
        z=np.array([0, 3, -2], np.int8),
        p=rng.integers(-1000, 1000, 3).astype(np.int32),
        t=np.array(0.001, np.float32),
    )
    x = random((2, 4, 6, 6))
    layer = only(model)
    assert (layer.weight.name, layer.bias and layer.bias.name) == ("q", "p")
    check(layer, x, run(model, {"x": x})[0])


@pytest.mark.parametrize(
    "text",
    [
        "y = Gemm<transA = 1>(x, w)",
        "y = MatMul(x, x)",
        "y = MatMul(w, x)",
        "v = Relu(w) y = MatMul(x, v)",
    ],
)
def test_what_is_no_linear_layer(text: str) -> None:
    used: dict[str, Any] = {"w": random((5, 5))} if "w" in text else {}
    model = build(f"g (float[5, 5] x) => (float[5, 5] y) {{ {text} }}", **used)
    assert linear_layers(load_model(model).graph) == []


def test_a_sum_that_somebody_else_reads_too_has_no_bias() -> None:
    model = build(
        "g (float[7, 5] x) => (float[7, 3] y, float[7, 3] u)"
        "{ z = MatMul(x, w) y = Add(z, b) u = Relu(z) }",
        w=random((5, 3)),
        b=random((3,)),
    )
    layer = only(model)
    assert layer.bias is None and layer.output.name == "z"


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1)])
def test_a_bias_that_is_added_behind_a_convolution(shape: tuple[int, ...]) -> None:
    model = build(
        "g (float[2, 3, 6, 6] x) => (float[2, 4, 4, 4] y) { z = Conv(x, w) y = Add(z, b) }",
        w=random((4, 3, 3, 3)),
        b=random(shape, 1),
    )
    layer, x = only(model), random((2, 3, 6, 6))
    assert layer.output.name == "y"
    check(layer, x, run(model, {"x": x})[0])


def test_what_is_added_along_another_axis_is_no_bias() -> None:
    model = build(
        "g (float[2, 3, 6, 6] x) => (float[2, 4, 4, 4] y) { z = Conv(x, w) y = Add(z, b) }",
        w=random((4, 3, 3, 3)),
        b=random((4,), 1),
    )
    assert only(model).bias is None


def test_constants_by_another_name_and_shared_ones() -> None:
    model = build(
        "g (float[2, 3, 6, 6] x) => (float[2, 3, 4, 4] y, float[2, 3, 4, 4] z) {"
        " c = Identity(b) y = Conv(x, w, b) v = Identity(u) z = Conv(x, v, c) }",
        w=random((3, 3, 3, 3)),
        u=random((3, 3, 3, 3), 1),
        b=random((3,), 2),
    )
    x = random((2, 3, 6, 6))
    layers = linear_layers(load_model(model).graph)
    assert [(layer.weight.name, layer.alone) for layer in layers] == [
        ("w", (True, False)),
        ("u", (True, False)),
    ]
    for layer, y in zip(layers, run(model, {"x": x}), strict=True):
        assert not layer.has_own_bias
        check(layer, x, y)


@pytest.mark.parametrize(
    "text, shape",
    [
        ("float[7, 3] y) { y = Gemm(x, w, b) }", (1,)),
        ("float[1, 7, 3] y) { z = MatMul(x, w) y = Add(z, b) }", (1, 1, 3)),
    ],
)
def test_what_fits_by_repeating_is_no_bias(text: str, shape: tuple[int, ...]) -> None:
    model = build(f"g (float[7, 5] x) => ({text}", w=random((5, 3)), b=random(shape))
    assert all(layer.bias is None for layer in linear_layers(load_model(model).graph))


def test_what_a_branch_adds_is_no_bias() -> None:
    model = build(
        """g (float[7, 5] x, bool c) => (float[7, 3] y) {
            z = MatMul(x, w)
            y = If(c) <
                then_branch = t () => (float[7, 3] p) { p = Add(z, b) },
                else_branch = e () => (float[7, 3] q) { q = Expand(b, s) }
            >
        }""",
        w=random((5, 3)),
        b=random((3,)),
        s=np.array([7, 3]),
    )
    layer = only(model)
    assert layer.bias is None and layer.output.name == "z"
