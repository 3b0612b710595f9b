"""eliminate-dead, fold-constants and fold-batchnorm against ONNX Runtime on the same feeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from secateur.ir.io import load_model, to_proto
from secateur.passes.base import Pass, PassContext, PassResult, clone_model
from secateur.passes.eliminate_dead import EliminateDead
from secateur.passes.fold_batchnorm import FoldBatchNorm
from secateur.passes.fold_constants import FoldConstants

from .graphs import GRAPHS, INFO, feeds

Array = npt.NDArray[Any]


def build(
    text: str, opset: int = 18, ir_version: int = 10, header: str = "", **weights: Array
) -> onnx.ModelProto:
    model = parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}{header}]>\n{text}'
    )
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    if ir_version < 4:
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(
                n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape
            )
            for n, a in weights.items()
        )
    onnx.checker.check_model(model)
    return model


def apply(p: Pass, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, PassResult]:
    """Run a pass on a clone; the caller's model must not change, and a second run do nothing."""
    mine = load_model(proto)
    before = to_proto(mine).SerializeToString(deterministic=True)
    result = p.run(clone_model(mine), PassContext())
    assert to_proto(mine).SerializeToString(deterministic=True) == before
    new = to_proto(result.model)
    onnx.checker.check_model(new)
    changed = new.SerializeToString(deterministic=True) != before
    assert result.modified == changed
    assert not p.run(result.model, PassContext()).modified
    return new, result


def run(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    outputs: list[Array] = session.run(None, feed)
    return outputs


def compare(old: onnx.ModelProto, new: onnx.ModelProto, tolerance: float = 0.0, **x: Array) -> None:
    """Same interface, same outputs; ``tolerance`` is relative to the largest element."""
    for kind in ("input", "output"):
        assert list(getattr(old.graph, kind)) == list(getattr(new.graph, kind))
    for a, b in zip(run(old, x), run(new, x), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = a.astype(np.float64), b.astype(np.float64)
        assert np.isfinite(a).all() and a.size
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max()


def ops(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    return [node.op_type for node in nodes]


def stored(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


PASSES: list[Callable[[], Pass]] = [EliminateDead, FoldConstants, FoldBatchNorm]


@pytest.mark.parametrize("make", PASSES)
@pytest.mark.parametrize("name", [n for n in GRAPHS if INFO[n].runnable and not INFO[n].deprecated])
def test_proof_graphs_keep_their_outputs(name: str, make: Callable[[], Pass]) -> None:
    old = GRAPHS[name]()
    new, _ = apply(make(), old)
    tolerance = 2e-3 if name == "fp16" else 2e-6
    compare(old, new, tolerance if make is FoldBatchNorm else 0.0, **feeds(old))


# --- eliminate-dead ---


def test_dead_nodes_weights_and_functions_go() -> None:
    old = build(
        """
        g (float[N,4] x, float[4] default) => (float[N,4] y) {
            a = MatMul (x, w)
            y = Relu (a)
            b = MatMul (a, dead1)
            c = my.twice (b)
        }
        <domain: "my", opset_import: ["": 18]> twice (v) => (r) { unused = Neg (v) r = Add (v, v) }
        <domain: "my", opset_import: ["": 18]> other (v) => (r) { r = Neg (v) }
        """,
        header=', "my": 1, "extra": 7',
        w=normal(4, 4),
        dead1=normal(4, 4),
        dead2=normal(3),
        default=normal(4),
    )
    new, result = apply(EliminateDead(), old)
    assert ops(new.graph.node) == ["MatMul", "Relu"]
    assert set(stored(new)) == {"w", "default"}
    assert not new.functions
    assert list(new.opset_import) == list(old.opset_import)
    assert dict(result.statistics) == {
        "nodes-removed": 2,
        "initializers-removed": 2,
        "functions-removed": 2,
    }
    compare(old, new, x=normal(2, 4))


def test_dead_nodes_inside_a_live_function_go() -> None:
    old = build(
        """
        g (float[N,4] x) => (float[N,4] y) { y = my.twice (x) }
        <domain: "my", opset_import: ["": 18]> twice (v) => (r) { unused = Neg (v) r = Add (v, v) }
        """,
        header=', "my": 1',
    )
    new, _ = apply(EliminateDead(), old)
    assert ops(new.functions[0].node) == ["Add"]
    compare(old, new, x=normal(2, 4))


IF = """
    g (float[N,4] x, bool c) => (float[N,4] y) {{
        kept = Mul (x, w)
        freed = Mul (x, v)
        {name} = If (c) <
            then_branch = t () => (float[N,4] t0) {{ gone = Neg (freed) t0 = Relu (kept) }},
            else_branch = e () => (float[N,4] e0) {{ e0 = Neg (kept) }}
        >
        {last}
    }}
"""


def test_captured_values_are_uses_and_dead_captures_are_not() -> None:
    old = build(IF.format(name="y", last=""), w=normal(4), v=normal(4))
    new, result = apply(EliminateDead(), old)
    assert ops(new.graph.node) == ["Mul", "If"]
    assert list(stored(new)) == ["w"]
    assert result.statistics["nodes-removed"] == 2
    for c in (True, False):
        compare(old, new, x=normal(2, 4), c=np.array(c))


def test_a_dead_if_frees_what_it_captured() -> None:
    old = build(IF.format(name="unused", last="y = Neg (x)"), w=normal(4), v=normal(4))
    new, _ = apply(EliminateDead(), old)
    assert ops(new.graph.node) == ["Neg"]
    assert not stored(new)
    compare(old, new, x=normal(2, 4), c=np.array(True))


def test_an_unknown_operator_is_kept() -> None:
    old = build(
        "g (float[4] x) => (float[4] y) { a = lab.Log (x) b = Neg (a) y = Relu (x) }",
        header=', "lab": 1',
    )
    new, _ = apply(EliminateDead(), old)
    assert ops(new.graph.node) == ["Log", "Relu"]


def test_scales_of_a_quantization_annotation_are_kept() -> None:
    old = build("g (float[4] x) => (float[4] y) { y = Relu (x) }", s=normal(1), t=normal(1))
    entry = old.graph.quantization_annotation.add(tensor_name="y")
    entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    new, _ = apply(EliminateDead(), old)
    assert list(stored(new)) == ["s"]
    assert list(new.graph.quantization_annotation) == list(old.graph.quantization_annotation)


# --- fold-constants ---


def test_a_constant_chain_becomes_one_initializer_of_the_same_name() -> None:
    old = build(
        """
        g (float[N,4] x) => (float[N,4] y) {
            t = Transpose <perm = [1, 0]> (w)
            two = Constant <value = float {2.0}> ()
            scaled = Mul (t, two)
            y = MatMul (x, scaled)
        }
        """,
        w=normal(4, 4),
    )
    old.graph.node[2].name = "scale"
    new, result = apply(FoldConstants(), old)
    assert ops(new.graph.node) == ["MatMul"]
    np.testing.assert_array_equal(stored(new)["scaled"], normal(4, 4).T * np.float32(2))
    assert result.statistics["nodes-folded"] == 3 and result.statistics["tensors-stored"] == 1
    compare(old, new, x=normal(2, 4))


def test_an_initializer_that_may_be_overridden_is_not_constant() -> None:
    text = "g (float[4] x{}) => (float[4] y) {{ a = Neg (w) y = Add (x, a) }}"
    old = build(text.format(", float[4] w"), w=normal(4))
    new, result = apply(FoldConstants(), old)
    assert not result.modified and ops(new.graph.node) == ["Neg", "Add"]
    compare(old, new, x=normal(4), w=normal(4, seed=1))
    # Below IR version 4 every initializer had to be an input; ONNX Runtime lets nobody feed it.
    old = build(text.format(""), opset=8, ir_version=3, w=normal(4))
    new, _ = apply(FoldConstants(), old)
    assert ops(new.graph.node) == ["Constant", "Add"]
    compare(old, new, x=normal(4))


def test_what_is_random_stays_random() -> None:
    old = build(
        """
        g (float[4] x) => (float[4] y) {
            shape = Constant <value_ints = [4]> ()
            r = RandomNormal <shape = [4], seed = 1.0> ()
            like = RandomUniformLike (w)
            b = Bernoulli (w)
            s = Add (r, like)
            u = Add (s, b)
            y = Add (x, u)
        }
        """,
        w=np.full(4, 0.5, np.float32),
    )
    new, _ = apply(FoldConstants(), old)
    assert ops(new.graph.node) == [o for o in ops(old.graph.node) if o != "Constant"]


def test_quantised_weights_stay_quantised() -> None:
    old = build(
        """
        g (float[N,4] x) => (float[N,4] y) {
            q = QuantizeLinear (w, s, z)
            d = DequantizeLinear (q, s, z)
            y = MatMul (x, d)
        }
        """,
        w=normal(4, 4),
        s=np.float32(0.1) * np.ones((), np.float32),
        z=np.zeros((), np.int8),
    )
    new, _ = apply(FoldConstants(), old)
    assert ops(new.graph.node) == ["DequantizeLinear", "MatMul"]
    assert stored(new)["q"].dtype == np.int8
    compare(old, new, x=normal(2, 4))


GROW = """
    g (float[N,K] x) => (float[N,K] y) {
        one = Constant <value_int = 1> ()
        size = Concat <axis = 0> (rows, cols)
        big = Expand (w, size)
        t = Transpose (big)
        small = ReduceMax <keepdims = 0> (t)
        y = Add (x, small)
    }
"""


def test_results_that_grow_too_much_are_not_computed() -> None:
    huge = np.array([1 << 40], np.int64)  # terabytes: computing it would fail
    old = build(GROW, w=normal(1, 1), rows=huge, cols=huge)
    new, result = apply(FoldConstants(), old)
    assert ops(new.graph.node) == ["Expand", "Transpose", "ReduceMax", "Add"]
    assert result.statistics["nodes-left"] == 3
    side = np.array([16], np.int64)
    old = build(GROW, w=normal(1, 1), rows=side, cols=side)
    new, _ = apply(FoldConstants(max_bytes=16 * 16 * 4), old)
    assert ops(new.graph.node) == ["Add"]
    compare(old, new, x=normal(2, 3))
    new, _ = apply(
        FoldConstants(max_bytes=16 * 16 * 4 - 21),  # 20 bytes of weights go
        old,
    )
    assert ops(new.graph.node) == ["Expand", "Transpose", "ReduceMax", "Add"]


def test_a_weight_used_elsewhere_is_not_doubled() -> None:
    text = "g (float[N,64] x) => (float[N,64] y) {{ t = Transpose (w) a = MatMul (x, t) {} }}"
    tied = build(text.format("y = MatMul (a, w)"), w=normal(64, 64))
    _, result = apply(FoldConstants(max_bytes=0), tied)
    assert not result.modified
    alone = build(text.format("y = Neg (a)"), w=normal(64, 64))
    new, _ = apply(FoldConstants(max_bytes=0), alone)
    assert ops(new.graph.node) == ["MatMul", "Neg"]
    compare(alone, new, x=normal(2, 64))


def test_sizes_that_depend_on_constant_values() -> None:
    old = build(
        """
        g (float[N] x) => (float[N] y) {
            where = NonZero (mask)
            n = Shape (where)
            last = Slice (n, one, two)
            zeros = ConstantOfShape <value = float[1] {3.0}> (last)
            total = ReduceSum <keepdims = 0> (zeros)
            y = Add (x, total)
        }
        """,
        mask=np.array([1, 0, 1, 1, 0, 1, 1], np.float32),
        one=np.array([1], np.int64),
        two=np.array([2], np.int64),
    )
    new, _ = apply(FoldConstants(), old)
    assert ops(new.graph.node) == ["Add"]
    assert stored(new)["total"] == 15.0
    compare(old, new, x=normal(3))


def test_a_node_without_a_kernel_is_left_and_the_rest_folded() -> None:
    old = build(
        """
        g (float[N,2] x) => (float[N,2] y) {
            a = Neg (w)
            b = BitwiseNot (bits)
            c = Cast <to = 1> (b)
            d = Add (a, a)
            e = Add (d, c)
            y = Add (x, e)
        }
        """,
        w=normal(2),
        bits=np.array([1, 2], np.uint8),
    )
    proto = onnx.ModelProto()
    proto.CopyFrom(old)
    proto.graph.node[1].op_type = "Det"  # (2,) is no matrix: the operator fails when it runs
    proto.graph.node[1].input[0] = "w"
    new, result = apply(FoldConstants(), proto)
    assert ops(new.graph.node) == ["Det", "Cast", "Add", "Add"]
    assert set(stored(new)) >= {"d"} and result.statistics["nodes-left"] == 3
    compare(old, apply(FoldConstants(), old)[0], x=normal(2, 2))


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float64, np.int32, np.bool_, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn],
)
def test_types_are_kept_bit_for_bit(dtype: npt.DTypeLike) -> None:
    values = np.arange(1500).reshape(2, 750) % 7
    old = build(
        "g (float[N] x) => (float[N] y) { t = Transpose (w) f = Cast <to = 1> (t) "
        "s = ReduceMax <keepdims = 0> (f) y = Add (x, s) z = my.Keep (t) }",
        opset=21,
        header=', "my": 1',
        w=values.astype(dtype),
    )
    new, _ = apply(FoldConstants(), old)
    assert stored(new)["t"].dtype == np.dtype(dtype)
    assert stored(new)["t"].tobytes() == values.astype(dtype).T.tobytes()


def test_a_constant_graph_output_keeps_name_type_and_producer() -> None:
    old = build(
        "g (float[4] x) => (float[M] k, float[4] y) { k = Neg (w) y = Add (x, k) }", w=normal(4)
    )
    new, _ = apply(FoldConstants(), old)
    assert ops(new.graph.node) == ["Constant", "Add"]
    compare(old, new, x=normal(4))


def test_constants_in_subgraphs_fold_where_they_are() -> None:
    old = build(
        """
        g (float[4] x, bool c) => (float[4] y) {
            outer = Neg (w)
            y = If (c) <
                then_branch = t () => (float[4] t0) { a = Mul (outer, w) t0 = Add (x, a) },
                else_branch = e () => (float[4] e0) { e0 = Neg (w) }
            >
        }
        """,
        w=normal(4),
    )
    new, _ = apply(FoldConstants(), old)
    assert ops(new.graph.node) == ["If"]
    bodies = {a.name: a.g for a in new.graph.node[0].attribute}
    assert ops(bodies["then_branch"].node) == ["Add"]
    assert [t.name for t in bodies["then_branch"].initializer] == ["a"]
    assert ops(bodies["else_branch"].node) == ["Constant"]
    for c in (True, False):
        compare(old, new, x=normal(4), c=np.array(c))


def test_metadata_of_a_folded_value_is_kept() -> None:
    old = build("g (float[4] x) => (float[4] y) { a = Neg (w) y = Add (x, a) }", w=normal(4))
    info = old.graph.value_info.add()
    info.CopyFrom(onnx.helper.make_tensor_value_info("a", 1, [4], doc_string="negated"))
    info.metadata_props.add(key="k", value="v")
    new, _ = apply(FoldConstants(), old)
    (kept,) = [v for v in new.graph.value_info if v.name == "a"]
    assert kept.doc_string == "negated" and kept.metadata_props[0].key == "k"


# --- fold-batchnorm ---


def randoms(shapes: dict[str, Any]) -> dict[str, Any]:
    return {name: normal(*shape, seed=3) for name, shape in shapes.items()}


def norm_weights(channels: int, dtype: npt.DTypeLike = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    return {
        "gamma": rng.uniform(0.5, 2, channels).astype(dtype),
        "beta": rng.standard_normal(channels).astype(dtype),
        "mean": rng.standard_normal(channels).astype(dtype),
        "var": rng.uniform(0.1, 3, channels).astype(dtype),
    }


BN = "BatchNormalization <epsilon = 0.01> (c, gamma, beta, mean, var)"


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("Conv <pads = [1,1,1,1]> (x, w, b)", {"w": (6, 4, 3, 3), "b": (6,)}),
        ("Conv <group = 2> (x, w)", {"w": (6, 2, 1, 1)}),
        ("ConvTranspose <strides = [2,2]> (x, w, b)", {"w": (4, 6, 2, 2), "b": (6,)}),
        ("ConvTranspose <group = 2> (x, w)", {"w": (4, 3, 2, 2)}),
    ],
)
def test_batchnorm_folds_into_convolutions(text: str, weights: dict[str, Any]) -> None:
    old = build(
        f"g (float[N,4,5,5] x) => (float[N,6,H,W] y) {{ c = {text} y = {BN} }}",
        **randoms(weights),
        **norm_weights(6),
    )
    new, result = apply(FoldBatchNorm(), old)
    assert len(new.graph.node) == 1 and result.statistics["folded"] == 1
    compare(old, new, 2e-6, x=normal(2, 4, 5, 5))


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, 18])
@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("Gemm <alpha = 0.5, beta = 2.0> (x, w, b)", {"w": (4, 6), "b": (6,)}),
        ("Gemm <transB = 1, beta = 3.0> (x, w, b)", {"w": (6, 4), "b": (1, 6)}),
        ("Gemm <transB = 1> (x, w, b)", {"w": (6, 4), "b": ()}),
        ("Gemm <transA = 1> (x, w, b)", {"w": (2, 6), "b": (4, 1)}),
    ],
)
def test_batchnorm_folds_into_gemm(opset: int, text: str, weights: dict[str, Any]) -> None:
    old = build(
        f"g (float[2,4] x) => (float[R,6] y) {{ c = {text} y = {BN} }}",
        opset=opset,
        **randoms(weights),
        **norm_weights(6),
    )
    new, _ = apply(FoldBatchNorm(), old)
    assert ops(new.graph.node) == ["Gemm"]
    compare(old, new, 2e-6, x=normal(2, 4))


def test_gemm_without_a_bias_gets_one() -> None:
    old = build(
        f"g (float[2,4] x) => (float[2,6] y) {{ c = Gemm (x, w) y = {BN} }}",
        w=normal(4, 6),
        c_bias=normal(1),  # the name is taken
        **norm_weights(6),
    )
    new, _ = apply(FoldBatchNorm(), old)
    assert len(new.graph.node[0].input) == 3 and new.graph.node[0].input[2] != "c_bias"
    compare(old, new, 2e-6, x=normal(2, 4))


def test_the_folded_weights_are_computed_in_float64() -> None:
    weight, norm = normal(6, 4, 1, 1), norm_weights(6)
    old = build(
        f"g (float[N,4,5,5] x) => (float[N,6,5,5] y) {{ c = Conv (x, w) y = {BN} }}",
        w=weight,
        **norm,
    )
    new, _ = apply(FoldBatchNorm(), old)
    wide = {k: v.astype(np.float64) for k, v in norm.items()}
    scale = wide["gamma"] / np.sqrt(wide["var"] + np.float64(np.float32(0.01)))
    expected = (weight.astype(np.float64) * scale.reshape(6, 1, 1, 1)).astype(np.float32)
    np.testing.assert_array_equal(stored(new)["w"], expected)
    bias = stored(new)[new.graph.node[0].input[2]]
    np.testing.assert_array_equal(bias, (wide["beta"] - wide["mean"] * scale).astype(np.float32))


TWO = """
    g (float[N,4,5,5] x) => (float[N,6,5,5] y, float[N,6,5,5] z) {{
        {constants}
        c = Conv (x, w, b)
        y = {bn}
        z = Conv (x, w, b)
    }}
"""


@pytest.mark.parametrize("ir_version", [3, 10])
def test_shared_weights_are_cloned(ir_version: int) -> None:
    weights = randoms({"w": (6, 4, 1, 1), "b": (6,)})
    opset = 8 if ir_version == 3 else 18
    text = TWO.format(constants="", bn=BN)
    old = build(text, opset, ir_version, **weights, **norm_weights(6))
    new, _ = apply(FoldBatchNorm(), old)
    np.testing.assert_array_equal(stored(new)["w"], weights["w"])
    assert new.graph.node[-1].input[1] == "w" and "BatchNormalization" not in ops(new.graph.node)
    compare(old, new, 2e-6, x=normal(2, 4, 5, 5))


def test_weights_in_constant_nodes() -> None:
    numbers = ", ".join(str(v) for v in normal(24).tolist())
    constants = f"w = Constant <value = float[6,4,1,1] {{{numbers}}}> ()"
    for text in (TWO, TWO.replace("z = Conv (x, w, b)", "z = Neg (y)")):
        old = build(text.format(constants=constants, bn=BN), b=normal(6), **norm_weights(6))
        new, _ = apply(FoldBatchNorm(), old)
        assert "BatchNormalization" not in ops(new.graph.node)
        compare(old, new, 2e-6, x=normal(2, 4, 5, 5))


@pytest.mark.parametrize(
    ("dtype", "text", "tolerance"),
    [("float16", "Conv (x, w)", 4e-3), ("double", "Gemm (x, w)", 1e-14)],
)
def test_other_float_types(dtype: str, text: str, tolerance: float) -> None:
    numpy_type = np.float16 if dtype == "float16" else np.float64
    shape = "N,4,5,5" if dtype == "float16" else "N,4"
    old = build(
        f"g ({dtype}[{shape}] x) => ({dtype}[{shape.replace('4', '6')}] y)"
        f"{{ c = {text} y = {BN} }}",
        w=normal(*((6, 4, 1, 1) if dtype == "float16" else (4, 6))).astype(numpy_type),
        **norm_weights(6, numpy_type),
    )
    new, _ = apply(FoldBatchNorm(), old)
    assert len(new.graph.node) == 1 and stored(new)["w"].dtype == numpy_type
    x = normal(*((2, 4, 5, 5) if dtype == "float16" else (2, 4))).astype(numpy_type)
    compare(old, new, tolerance, x=x)


def test_two_norms_in_a_row_and_metadata() -> None:
    old = build(
        f"""
        g (float[N,4,5,5] x) => (float[N,6,5,5] y) {{
            c = Conv (x, w)
            d = {BN}
            y = {BN.replace("(c", "(d")}
        }}
        """,
        w=normal(6, 4, 1, 1),
        **norm_weights(6),
    )
    new, result = apply(FoldBatchNorm(), old)
    assert ops(new.graph.node) == ["Conv"] and result.statistics["folded"] == 2
    compare(old, new, 4e-6, x=normal(2, 4, 5, 5))


CONV = "g (float[N,4,5,5] x{inputs}) => (float[N,6,5,5] y{outputs}) {{ {body} }}"
CASES = {
    "training": ("", "", f"c = Conv (x, w) y, m, v = {BN.replace('<', '<training_mode = 1, ')}"),
    "used twice": (
        "",
        "",
        f"c = Conv (x, w) n = {BN} y = Add (n, c)",
    ),
    "an output": ("", ", float[N,6,5,5] c", f"c = Conv (x, w) y = {BN}"),
    "weight may be overridden": (", float[6,4,1,1] w", "", f"c = Conv (x, w) y = {BN}"),
    "scale may be overridden": (", float[6] gamma", "", f"c = Conv (x, w) y = {BN}"),
    "bias at run time": (", float[6] b", "", f"c = Conv (x, w, b) y = {BN}"),
    "activation between": ("", "", f"d = Conv (x, w) c = Relu (d) y = {BN}"),
}


@pytest.mark.parametrize("name", CASES)
def test_pairs_that_must_be_left_alone(name: str) -> None:
    inputs, outputs, body = CASES[name]
    old = build(
        CONV.format(inputs=inputs, outputs=outputs, body=body),
        w=normal(6, 4, 1, 1),
        **norm_weights(6),
    )
    new, result = apply(FoldBatchNorm(), old)
    assert not result.modified and dict(result.statistics) == {"folded": 0, "left": 1}
    assert "BatchNormalization" in ops(new.graph.node)


def test_weights_that_would_overflow_are_left_alone() -> None:
    weights = norm_weights(6, np.float16)
    weights["var"][:] = 0
    old = build(
        "g (float16[N,4,5,5] x) => (float16[N,6,5,5] y) { c = Conv (x, w) "
        "y = BatchNormalization <epsilon = 1e-12> (c, gamma, beta, mean, var) }",
        w=normal(6, 4, 1, 1).astype(np.float16),
        **weights,
    )
    assert not apply(FoldBatchNorm(), old)[1].modified


def test_training_outputs_before_opset_14_mean_training() -> None:
    old = build(
        "g (float[N,4,5,5] x) => (float[N,6,5,5] y) { c = Conv (x, w) "
        "y, m, v, sm, sv = BatchNormalization (c, gamma, beta, mean, var) }",
        opset=9,
        w=normal(6, 4, 1, 1),
        **norm_weights(6),
    )
    assert not apply(FoldBatchNorm(), old)[1].modified


def test_a_norm_in_a_branch_does_not_change_the_convolution_outside() -> None:
    old = build(
        f"""
        g (float[N,4,5,5] x, bool k) => (float[N,6,5,5] y) {{
            c = Conv (x, w)
            y = If (k) <
                then_branch = t () => (float[N,6,5,5] t0) {{ t0 = {BN} }},
                else_branch = e () => (float[N,6,5,5] e0) {{ e0 = Conv (x, w) }}
            >
        }}
        """,
        w=normal(6, 4, 1, 1),
        **norm_weights(6),
    )
    assert not apply(FoldBatchNorm(), old)[1].modified


def test_a_pair_inside_a_branch_folds_there() -> None:
    old = build(
        f"""
        g (float[N,4,5,5] x, bool k) => (float[N,6,5,5] y) {{
            y = If (k) <
                then_branch = t () => (float[N,6,5,5] t0) {{ c = Conv (x, w) t0 = {BN} }},
                else_branch = e () => (float[N,6,5,5] e0) {{ e0 = Conv (x, w) }}
            >
        }}
        """,
        w=normal(6, 4, 1, 1),
        **norm_weights(6),
    )
    new, result = apply(FoldBatchNorm(), old)
    assert result.statistics["folded"] == 1
    for k in (True, False):
        compare(old, new, 2e-6, x=normal(2, 4, 5, 5), k=np.array(k))


def test_clones_share_weights() -> None:
    model = load_model(build("g (float[4] x) => (float[4] y) { y = Add (x, w) }", w=normal(4)))
    copy = clone_model(model)
    assert copy.graph.initializers["w"] is not model.graph.initializers["w"]
    assert copy.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    assert isinstance(copy, oir.Model)
