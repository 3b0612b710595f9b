"""fold-constants against ONNX Runtime on the same feeds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import parser

import secateur
from secateur.passes.fold_constants import FoldConstants

from .pass_runs import apply, build, compare, normal, ops, stored


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


def test_weights_that_only_folded_nodes_read_go() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 3] y)
        <float[3] a = {1, 2, 3}, float[3] b = {4, 5, 6}, float[3] unread = {7, 8, 9}>
        { c = Mul(a, b)  d = Add(x, c)  y = Add(d, b) }"""
    )
    folded = secateur.run(model, "fold-constants", bench=False).model
    assert sorted(folded.graph.initializers) == ["b", "c", "unread"]
