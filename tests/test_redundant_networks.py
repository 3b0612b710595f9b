"""``remove-redundant`` on networks as they are trained: dead channels behind norms, in residual
streams, concatenations, depthwise and grouped convolutions, gates and transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from .graph_builder import bn, build, net, norm
from .pass_runs import Array, normal
from .redundant_runs import array, causes, reduced, shapes

IMAGE = "(float[N, 3, 8, 8] x) => (float[N, 10] y)"
HEAD = "p = GlobalAveragePool(%s) f = Flatten(p) y = Gemm<transB = 1>(f, wy)"


def network(
    signature: str,
    body: str,
    kill: dict[str, tuple[int, list[int]]] | None = None,
    **weights: Any,
) -> onnx.ModelProto:
    """A model in which coordinates (axis, indices) of some weights are zero."""
    model = build("net", net(signature, body, **weights), 20, "initializers")
    for name, (axis, indices) in (kill or {}).items():
        change(model, name, axis, indices, 0.0)
    return model


def change(
    model: onnx.ModelProto, name: str, axis: int, indices: list[int], value: float | None
) -> None:
    """Sets coordinates of a weight; None copies the coordinate that comes first to the others."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    copy = numpy_helper.to_array(tensor).copy()
    rows = np.moveaxis(copy, axis, 0)
    rows[indices] = rows[indices[0]] if value is None else value
    tensor.CopyFrom(numpy_helper.from_array(copy, name))


def test_residual_network() -> None:
    """Scales of zero kill channels inside a block; in the stream, both ends must be dead."""
    model = network(
        IMAGE,
        "a = Conv3(x, w1)" + bn("a", "an", "n1") + "s = Relu(an)"
        "b = Conv3(s, w2)" + bn("b", "bn", "n2") + "br = Relu(bn)"
        "c = Conv3(br, w3)" + bn("c", "cn", "n3") + "t = Add(cn, s) r = Relu(t)" + HEAD % "r",
        w1=(8, 3, 3, 3), w2=(12, 8, 3, 3), w3=(8, 12, 3, 3), wy=(10, 8),
        **norm("n1", 8), **norm("n2", 12), **norm("n3", 8),
        kill={"n1_s": (0, [1, 2]), "n2_s": (0, [3, 4, 5]), "n3_s": (0, [1])},
    )  # fmt: skip
    for name, dead in (("n1_b", [1, 2]), ("n2_b", [3, 4]), ("n3_b", [1])):
        change(model, name, 0, dead, -0.25)
    change(model, "n2_b", 0, [5], 0.25)  # alive at the border of the padded convolution behind it
    new, result = reduced(model, dims={"N": 2}, tolerance=2e-6)
    assert causes(result) == {"zero": 3}
    assert shapes(new)["w2"] == (10, 7, 3, 3) and shapes(new)["w3"] == (7, 10, 3, 3)
    assert shapes(new)["wy"] == (10, 7)


def test_dense_network() -> None:
    """Each layer reads all before it: dead channels go from every reader."""
    model = network(
        IMAGE,
        "a = Conv3(x, w1) ar = Relu(a) b = Conv3(ar, w2, b2) br = Relu(b) "
        "d = Concat<axis = 1>(ar, br) c = Conv3(d, w3) cr = Relu(c) e = Concat<axis = 1>(d, cr)"
        + HEAD % "e",
        w1=(6, 3, 3, 3), w2=(4, 6, 3, 3), b2=4, w3=(4, 10, 3, 3), wy=(10, 14),
        kill={"w1": (0, [5]), "w2": (0, [0, 2]), "b2": (0, [0]), "w3": (0, [3])},
    )  # fmt: skip
    change(model, "b2", 0, [2], -1.0)
    new, result = reduced(model, dims={"N": 2}, tolerance=2e-6)
    assert causes(result) == {"zero": 4}
    assert shapes(new)["w3"] == (3, 7, 3, 3) and shapes(new)["wy"] == (10, 10)


def test_mobile_network() -> None:
    """A dead channel leaves the bias of the depthwise layer, which the projection takes over."""
    model = network(
        IMAGE,
        "a = Conv(x, w1, b1) e = Clip(a, zero, six)"
        "d = Conv<pads = [1,1,1,1], group = 8>(e, w2, b2) r = Clip(d, zero, six) q = Conv(r, w3)"
        + HEAD % "q",
        w1=(8, 3, 1, 1), b1=8, w2=(8, 1, 3, 3), b2=8, w3=(6, 8, 1, 1), wy=(10, 6),
        zero=0.0, six=6.0,
        kill={"w1": (0, [2, 6]), "b1": (0, [2, 6])},
    )  # fmt: skip
    change(model, "b2", 0, [2], 0.5)
    change(model, "b2", 0, [6], -0.5)
    before = array(model, "w3")
    new, result = reduced(model, dims={"N": 2}, tolerance=2e-6)
    assert causes(result) == {"constant": 1, "zero": 1}
    assert shapes(new)["w1"] == (6, 3, 1, 1) and shapes(new)["w2"] == (6, 1, 3, 3)
    np.testing.assert_allclose(array(new, "q_bias"), 0.5 * before[:, 2, 0, 0], rtol=1e-6)


def test_a_depthwise_layer_sees_the_border_of_a_constant() -> None:
    model = network(
        IMAGE,
        "a = Conv(x, w1, b1) e = Relu(a) d = Conv<pads = [1,1,1,1], group = 8>(e, w2)"
        "q = Conv(d, w3)" + HEAD % "q",
        w1=(8, 3, 1, 1), b1=8, w2=(8, 1, 3, 3), w3=(6, 8, 1, 1), wy=(10, 6),
        kill={"w1": (0, [2])},
    )  # fmt: skip
    change(model, "b1", 0, [2], 0.5)
    assert causes(reduced(model, dims={"N": 2})[1]) == {}


def test_squeeze_and_excite() -> None:
    """A gate of half leaves a channel; a dead channel takes its gate along."""
    model = network(
        IMAGE,
        "a = Conv3(x, w1) r = Relu(a) g = GlobalAveragePool(r) s = Conv(g, w2, b2) t = Relu(s)"
        "u = Conv(t, w3, b3) v = Sigmoid(u) m = Mul(r, v) q = Conv(m, w4)" + HEAD % "q",
        w1=(8, 3, 3, 3), w2=(6, 8, 1, 1), b2=6, w3=(8, 6, 1, 1), b3=8, w4=(4, 8, 1, 1), wy=(10, 4),
        kill={"w1": (0, [1, 4]), "w2": (0, [0, 3]), "w3": (0, [5]), "b3": (0, [5])},
    )  # fmt: skip
    change(model, "b2", 0, [0], -0.1)
    change(model, "b2", 0, [3], 0.1)
    new, result = reduced(model, dims={"N": 2}, tolerance=2e-6)
    assert causes(result) == {"zero": 3, "constant": 1}
    assert shapes(new)["w4"] == (4, 6, 1, 1) and shapes(new)["w3"] == (6, 4, 1, 1)


def test_a_gate_that_is_off_for_good() -> None:
    model = network(
        IMAGE,
        "a = Conv3(x, w1) g = GlobalAveragePool(a) s = Conv(g, w2, b2) v = HardSigmoid(s)"
        "m = Mul(a, v) q = Conv(m, w3)" + HEAD % "q",
        w1=(8, 3, 3, 3), w2=(8, 8, 1, 1), b2=8, w3=(4, 8, 1, 1), wy=(10, 4),
        kill={"w2": (0, [6])},
    )  # fmt: skip
    change(model, "w2", 1, [6], 0.0)  # what the other gates see of it
    change(model, "b2", 0, [6], -2.6)  # 0.2 x + 0.5 < 0
    assert causes(reduced(model, dims={"N": 2}, tolerance=2e-6)[1]) == {"zero": 1}
    change(model, "b2", 0, [6], -2.4)
    assert causes(reduced(model, dims={"N": 2}, tolerance=2e-6)[1]) == {}


def test_grouped_convolution() -> None:
    """The same place in every group, in front of the groups and behind them."""
    model = network(
        IMAGE,
        "a = Conv(x, w1) r = Relu(a) b = Conv<group = 3>(r, w2) c = Relu(b) q = Conv(c, w3)"
        + HEAD % "q",
        w1=(12, 3, 1, 1), w2=(12, 4, 3, 3), w3=(6, 12, 1, 1), wy=(10, 6),
        kill={"w1": (0, [1, 5, 9]), "w2": (0, [3, 7, 11])},
    )  # fmt: skip
    new, result = reduced(model, dims={"N": 2}, tolerance=2e-6)
    assert causes(result) == {"zero": 2}
    assert shapes(new)["w2"] == (9, 3, 3, 3)


def test_twins_in_every_group() -> None:
    model = network(
        IMAGE,
        "a = Conv(x, w1) r = Relu(a) b = Conv<group = 3>(r, w2) q = Conv(b, w3)" + HEAD % "q",
        w1=(12, 3, 1, 1), w2=(12, 4, 3, 3), w3=(6, 12, 1, 1), wy=(10, 6),
    )  # fmt: skip
    for group in range(3):
        change(model, "w1", 0, [4 * group, 4 * group + 2], None)
    new, result = reduced(model, dims={"N": 2}, tolerance=2e-6)
    assert causes(result) == {"duplicate": 1}
    assert shapes(new)["w1"][0] == 9 and shapes(new)["w2"] == (12, 3, 3, 3)


def test_twins_in_one_group_alone_stay() -> None:
    model = network(
        IMAGE,
        "a = Conv(x, w1) r = Relu(a) b = Conv<group = 3>(r, w2) q = Conv(b, w3)" + HEAD % "q",
        w1=(12, 3, 1, 1), w2=(12, 4, 3, 3), w3=(6, 12, 1, 1), wy=(10, 6),
    )  # fmt: skip
    change(model, "w1", 0, [4, 6], None)
    assert causes(reduced(model, dims={"N": 2})[1]) == {}


SEQUENCE = "(float[N, T, 6] x) => (float[N, T, 3] y)"


def test_transformer_perceptron() -> None:
    """The hidden layer of a transformer, with GELU written out."""
    model = network(
        SEQUENCE,
        "n = LayerNormalization(x, s) h0 = MatMul(n, w1) h = Add(h0, b1) d = Div(h, root)"
        "e = Erf(d) p = Add(e, one) m = Mul(h, p) a = Mul(m, half) o = MatMul(a, w2)"
        "ob = Add(b2, o) r = Add(ob, x) y = MatMul(r, wy)",
        s=6, w1=(6, 12), b1=12, w2=(12, 6), b2=6, wy=(6, 3), root=2**0.5,
        one=1.0, half=0.5,
        kill={"w1": (1, [2, 7, 9]), "b1": (0, [2])},
    )  # fmt: skip
    change(model, "b1", 0, [7], 1.5)
    change(model, "b1", 0, [9], -30.0)
    change(model, "w1", 1, [4, 5], None)
    change(model, "b1", 0, [4, 5], None)
    new, result = reduced(model, dims={"N": 2, "T": 3}, tolerance=2e-6)
    assert causes(result) == {"zero": 1, "constant": 2, "duplicate": 1}
    assert shapes(new)["w1"] == (6, 8) and len(new.graph.node) == len(model.graph.node)


ATTENTION = (
    "q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv)"
    "q1 = Reshape(q0, split) k1 = Reshape(k0, split) v1 = Reshape(v0, split)"
    "q = Transpose<perm = [0,2,1,3]>(q1) k = Transpose<perm = [0,2,3,1]>(k1)"
    "v = Transpose<perm = [0,2,1,3]>(v1) m = MatMul(q, k) a = Softmax(m) o = MatMul(a, v)"
    "t = Transpose<perm = [0,2,1,3]>(o) f = Reshape(t, join) y = MatMul(f, wo)"
)


def attention() -> onnx.ModelProto:
    """Three heads of four."""
    return network(
        SEQUENCE, ATTENTION, wq=(6, 12), wk=(6, 12), wv=(6, 12), wo=(12, 3),
        split=[0, 0, 3, 4], join=[0, 0, 12],
    )  # fmt: skip


def test_heads_without_values() -> None:
    model = attention()
    change(model, "wv", 1, [4, 5, 6, 7], 0.0)
    new, result = reduced(model, dims={"N": 2, "T": 3}, tolerance=3e-6)
    assert causes(result) == {"zero": 1}
    assert {shapes(new)[w] for w in ("wq", "wk", "wv")} == {(6, 8)}


def test_heads_that_nobody_reads() -> None:
    model = attention()
    change(model, "wo", 0, [8, 9, 10, 11], 0.0)
    assert causes(reduced(model, dims={"N": 2, "T": 3}, tolerance=3e-6)[1]) == {"unread": 1}


def test_twin_heads() -> None:
    model = attention()
    for name in ("wq", "wk", "wv"):
        for place in range(4):
            change(model, name, 1, [place, 8 + place], None)
    before = array(model, "wo")
    new, result = reduced(model, dims={"N": 2, "T": 3}, tolerance=3e-6)
    assert causes(result) == {"duplicate": 1}
    np.testing.assert_array_equal(array(new, "wo")[:4], before[:4] + before[8:])


def test_heads_with_the_same_values_that_look_elsewhere() -> None:
    model = attention()
    for place in range(4):
        change(model, "wv", 1, [place, 8 + place], None)
    assert causes(reduced(model, dims={"N": 2, "T": 3}, tolerance=3e-6)[1]) == {}


def test_places_inside_heads() -> None:
    """A place that is zero in every head; of queries and keys, one side is enough."""
    model = attention()
    change(model, "wv", 1, [1, 5, 9], 0.0)
    change(model, "wk", 1, [2, 6, 10], 0.0)
    new, result = reduced(model, dims={"N": 2, "T": 3}, tolerance=3e-6)
    assert sum(causes(result).values()) == 2
    assert shapes(new)["wv"] == (6, 9) and shapes(new)["wq"] == shapes(new)["wk"] == (6, 9)


def test_recurrent_layers_read_nothing_from_zeros() -> None:
    model = network(
        "(float[T, N, 6] x) => (float[T, N, 3] y)",
        "h = MatMul(x, w1) r = Relu(h) o, last = GRU<hidden_size = 5>(r, w, u, b)"
        "s = Squeeze(o, axes) y = MatMul(s, wy)",
        w1=(6, 8), w=(1, 15, 8), u=(1, 15, 5), b=(1, 30), wy=(5, 3), axes=[1],
        kill={"w1": (1, [2, 3])},
    )  # fmt: skip
    new, result = reduced(model, dims={"N": 2, "T": 3}, tolerance=3e-6)
    assert causes(result) == {"zero": 2}
    assert shapes(new)["w"] == (1, 15, 6)


# -- control flow and functions -------------------------------------------------------------------


def test_consumers_in_a_branch() -> None:
    """Zeros go from there, constants stay: their bias would be inside."""
    body = """
        h = Gemm(x, w1, b1) a = Relu(h)
        y = If(c) <then_branch = yes () => (float[N, 3] p) { p = MatMul(a, w2) },
                   else_branch = no () => (float[N, 3] q) { q = MatMul(a, w3) }>"""
    model = network(
        "(float[N, 6] x, bool c) => (float[N, 3] y)", body,
        w1=(6, 8), b1=8, w2=(8, 3), w3=(8, 3), kill={"w1": (1, [2, 3]), "b1": (0, [2])},
    )  # fmt: skip
    change(model, "b1", 0, [3], 0.5)
    assert causes(reduced(model, dims={"N": 2})[1]) == {"zero": 1}


def test_producers_that_branches_share() -> None:
    body = """
        y = If(c) <then_branch = yes () => (float[N, 3] p) { h = MatMul(x, w1) p = MatMul(h, w2) },
                   else_branch = no () => (float[N, 3] q) { q = MatMul(x, w3) }>"""
    model = network(
        "(float[N, 6] x, bool c) => (float[N, 3] y)", body, w1=(6, 8), w2=(8, 3), w3=(6, 3),
        kill={"w1": (1, [2])},
    )  # fmt: skip
    assert causes(reduced(model, dims={"N": 2})[1]) == {"zero": 1}


def called(function: str, **weights: Any) -> onnx.ModelProto:
    """A call of ``function``, which is given all weights in order."""
    call = f"y = m.f(x, {', '.join(weights)})"
    parts = net("(float[N, 6] x) => (float[N, 3] y)", call, **weights)
    text = f'<domain: "m", opset_import: ["": 20]> f {function}'
    return build("called", parts, 20, "initializers", functions=text)


def test_consumers_in_a_function() -> None:
    """Zeros go; constants and duplicates stay, since the call's other operands are no place for
    them."""
    model = called(
        "(x, v, b, w) => (y) { h = Gemm(x, v, b) a = Relu(h) y = Gemm(a, w) }",
        w1=(6, 8), b1=8, w2=(8, 3),
    )  # fmt: skip
    for name, axis, constant in (("w1", 1, 0.0), ("b1", 0, 0.5)):
        change(model, name, axis, [2], 0.0)
        change(model, name, axis, [3], constant)
        change(model, name, axis, [5, 6], None)
    new, result = reduced(model, dims={"N": 2})
    assert causes(result) == {"zero": 1}
    assert [node.op_type for node in new.graph.node] == ["f"]


@pytest.mark.parametrize(("read", "size", "found"), [("p", 5, 2), ("q", 3, 4)])
def test_parts_in_a_function_do_not_become_empty(read: str, size: int, found: int) -> None:
    """What a call brings back keeps all outputs of Split, and so one channel that nobody reads."""
    model = called(
        "(x, v, s, w) => (y) { h = MatMul(x, v) p, q = Split<axis = 1>(h, s)"
        f"y = MatMul({read}, w) }}",
        w1=(6, 8), sizes=np.array([5, 3]), w2=(size, 3),
    )  # fmt: skip
    assert causes(reduced(model, dims={"N": 2})[1]) == {"unread": found}


# -- number formats -------------------------------------------------------------------------------


def half(**changed: Array) -> onnx.ModelProto:
    weights: dict[str, Any] = {
        "w1": normal(4, 6),
        "b1": normal(6, seed=1),
        "w2": normal(6, 2, seed=2),
    }
    weights = {k: v.astype(np.float16) for k, v in (weights | changed).items()}
    return network(
        "(float16[3, 4] x) => (float16[3, 2] y)",
        "h = Gemm(x, w1, b1) a = Relu(h) y = Gemm(a, w2, b2)",
        **weights, b2=np.array([0.5, 0.25], np.float16),
    )  # fmt: skip


def test_half_precision_takes_what_is_exact() -> None:
    first, bias, last = normal(4, 6), normal(6, seed=1), normal(6, 2, seed=2)
    first[:, [1, 2]] = 0
    bias[1], bias[2] = -1, 0.5
    last[2] = 0.25
    assert causes(reduced(half(w1=first, b1=bias, w2=last), tolerance=2e-3)[1]) == {
        "zero": 1,
        "constant": 1,
    }
    last[2] = 0.3  # times 0.5, it does not fit onto the grid of the bias
    assert causes(reduced(half(w1=first, b1=bias, w2=last), tolerance=2e-3)[1]) == {"zero": 1}


def test_half_precision_merges_what_is_exact() -> None:
    first, bias, last = normal(4, 6), normal(6, seed=1), normal(6, 2, seed=2)
    first[:, 3], bias[3] = first[:, 0], bias[0]
    last[0], last[3] = 0.5, 0.25
    assert causes(reduced(half(w1=first, b1=bias, w2=last), tolerance=2e-3)[1]) == {"duplicate": 1}
    last[0], last[3] = 100, 0.3
    assert causes(reduced(half(w1=first, b1=bias, w2=last), tolerance=2e-3)[1]) == {}


def test_sums_that_would_overflow_stay_apart() -> None:
    big = 2.0**127
    model = network(
        "(float[3, 4] x) => (float[3, 2] y)",
        "h = MatMul(x, w1) t = Tanh(h) s = Mul(t, small) y = MatMul(s, w2)",
        w1=(4, 6), w2=(6, 2), small=2.0**-120,
    )  # fmt: skip
    change(model, "w1", 1, [1, 3], None)
    change(model, "w2", 0, [1, 3], big)
    assert causes(reduced(model)[1]) == {}
    change(model, "w2", 0, [1, 3], big / 4)
    assert causes(reduced(model)[1]) == {"duplicate": 1}


def quantised(bias: int) -> onnx.ModelProto:
    """A perceptron with quantised weights and activations; unit 2 is its bias, in steps of 1/64."""
    weights = {"w1": normal(6, 4), "w2": normal(2, 6, seed=1)}
    integers: dict[str, Any] = {
        k: np.clip(np.round(v * 64), -128, 127).astype(np.int8) for k, v in weights.items()
    }
    integers["w1"][2] = 0
    steps: dict[str, Any] = {f"s{k}": s for k, s in (("x", 1 / 16), ("w", 1 / 64), ("b", 1 / 1024))}
    return network(
        "(float[3, 4] x) => (float[3, 2] y)",
        "xq = QuantizeLinear(x, sx, zx) xd = DequantizeLinear(xq, sx, zx)"
        "w1d = DequantizeLinear(w1, sw) bd = DequantizeLinear(b1, sb)"
        "h = Gemm<transB = 1>(xd, w1d, bd) r = Relu(h)"
        "rq = QuantizeLinear(r, sx, zx) rd = DequantizeLinear(rq, sx, zx)"
        "w2d = DequantizeLinear(w2, sw) y = Gemm<transB = 1>(rd, w2d)",
        **integers, **steps, zx=np.array(128, np.uint8),
        b1=np.array([5, -70, 16 * bias, 200, -5, 0], np.int32),
    )  # fmt: skip


def test_quantised_weights() -> None:
    """What is zero stays zero between integers; a bias in floats has no place there."""
    for bias, found in ((0, {"zero": 1}), (-9, {"zero": 1}), (1, {"zero": 1}), (2, {}), (9, {})):
        assert causes(reduced(quantised(bias), tolerance=0)[1]) == found
    assert shapes(reduced(quantised(0), tolerance=0)[0])["w1"] == (5, 4)


# -- interface ------------------------------------------------------------------------------------


def test_scalars_that_stay_scalars() -> None:
    model = network(
        "(float[N, 4] x) => (float[N, 2] y)",
        "h = MatMul(x, w1) s = Sigmoid(h) o = MatMul(s, w2) y = Add(o, b)",
        w1=(4, 6), w2=(6, 2), b=0.5, kill={"w1": (1, [4])},
    )  # fmt: skip
    new, result = reduced(model, dims={"N": 2})
    assert causes(result) == {"constant": 1}
    assert shapes(new)["b"] == (2,)
