"""Symbolic dimensions that the model itself ties to one size.

A position table fixes the sequence length, a flattening with a constant fixes the image: such a
dimension cannot be doubled to see what moves, and counts as static, while others still move.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import secateur
from secateur.ir import shapes
from secateur.ir.bindings import moved_together
from secateur.ir.io import to_proto

from .graphs import GRAPHS
from .pruning_checks import SOME, at_random, dims, run


def build(signature: str, body: str, **weights: tuple[int, ...] | list[int]) -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g {signature} {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        array = (
            np.array(shape, np.int64)
            if isinstance(shape, list)
            else rng.standard_normal(shape).astype(np.float32)
        )
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def test_a_position_table_fixes_the_sequence_but_not_the_batch() -> None:
    model = build(
        "(float[N,T,10] x) => (float[N,T,4] y)",
        "h = MatMul(x, w) p = Add(h, table) y = MatMul(p, w2)",
        w=(10, 12), table=(1, 6, 12), w2=(12, 4),
    )  # fmt: skip
    result = secateur.prune(model, ratio=0.5, dims={"T": 6}, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert list(result.certificate.bindings) == [{"N": 1, "T": 6}, {"N": 2, "T": 6}]


def test_a_batch_of_a_fixed_size() -> None:
    model = build(
        "(float[N,10] x) => (float[N,4] y)",
        "s = Add(x, table) h = MatMul(s, w) y = MatMul(h, w2)",
        table=(3, 10), w=(10, 8), w2=(8, 4),
    )  # fmt: skip
    result = secateur.prune(model, ratio=0.5, dims={"N": 3}, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert list(result.certificate.bindings) == [{"N": 3}]


def test_past_new_and_all_tokens_move_together_though_the_batch_does_not() -> None:
    model = build(
        "(float[N,S,8] x, float[N,P,8] past, float[N,1,U] mask) => (float[N,S,4] y)",
        """s = Add(x, table) q = MatMul(s, wq) k0 = MatMul(s, wk) k1 = MatMul(past, wk)
        k = Concat<axis=1>(k1, k0) t = Transpose<perm=[0,2,1]>(k) a = MatMul(q, t)
        b = Add(a, mask) p = Softmax(b) c = MatMul(p, k) y = MatMul(c, wo)""",
        table=(3, 1, 8), wq=(8, 12), wk=(8, 12), wo=(12, 4),
    )  # fmt: skip
    first = {"N": 3, "S": 2, "P": 4, "U": 6}
    result = secateur.prune(model, ratio=0.5, dims=first, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert list(result.certificate.bindings) == [first, {"N": 3, "S": 4, "P": 8, "U": 12}]


TABLE = """int64[1] zero = {0}, int64[1] one = {1}, int64 first = {0}, int64 step = {1},
    int64 tokens = {1}"""
SLICED = """s = Shape(ids) t = Gather(s, one) p = Slice(table, zero, t) e = Gather(words, ids)
    h = Add(e, p) y = MatMul(h, w)"""
LOOKED_UP = """s = Shape(ids) t = Gather(s, tokens) r = Range(first, t, step) p = Gather(table, r)
    e = Gather(words, ids) h = Add(e, p) y = MatMul(h, w)"""


@pytest.mark.parametrize("body", [SLICED, LOOKED_UP])
@pytest.mark.parametrize(("size", "other"), [(12, 6), (3, 2), (5, 10)])
def test_a_position_table_that_ends_with_the_sequence(body: str, size: int, other: int) -> None:
    """Longer sequences do not run, shorter ones do: they are what is seen to move."""
    model = build(
        f"(int64[N,T] ids) => (float[N,T,4] y) <{TABLE}>", body,
        table=(12 if size == 5 else size, 8), words=(20, 8), w=(8, 4),
    )  # fmt: skip
    result = secateur.prune(model, ratio=0.5, dims={"T": size}, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert list(result.certificate.bindings) == [{"N": 1, "T": size}, {"N": 2, "T": other}]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, 4, 8, 12), (2, 2, 4, 6)),
        ((1, 2, 10, 12), (2, 2, 9, 11)),
        ((2, 2, 10, 12), (4, 2, 9, 11)),
        ((1, 1, 11, 12), (2, 1, 5, 6)),
        ((1, 1, 10, 11), (2, 1, 9, 10)),
    ],
)
def test_a_cached_decoder_whose_cache_is_full(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    """Past, new and all tokens (the mask's) add up at the other sizes, too."""
    model = build(
        "(float[N,S,8] x, float[N,P,8] past, float[N,1,U] mask) => (float[N,S,4] y)"
        " <int64[1] zero = {0}, int64[1] one = {1}>",
        """all = Concat<axis=1>(past, x) s = Shape(all) u = Gather(s, one)
        p = Slice(table, zero, u) k0 = MatMul(all, wk) k = Add(k0, p) q = MatMul(x, wq)
        t = Transpose<perm=[0,2,1]>(k) a = MatMul(q, t) m = Add(a, mask) b = Softmax(m)
        c = MatMul(b, k) y = MatMul(c, wo)""",
        table=(first[3], 12), wq=(8, 12), wk=(8, 12), wo=(12, 4),
    )  # fmt: skip
    sizes, other = (dict(zip("NSPU", part, strict=True)) for part in (first, second))
    result = secateur.prune(model, ratio=0.5, dims=sizes, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert list(result.certificate.bindings) == [sizes, other]


@pytest.mark.parametrize("fixed", [{}, {"S": 2}])
def test_a_batch_of_two_moves_where_the_sequence_only_shrinks(fixed: dict[str, int]) -> None:
    """Attention that lays batch and heads together: the pruned model runs at other batches too.
    ``S`` cannot move."""
    model = build(
        f"(float[N,T,8] x{', float[S,4] z' if fixed else ''}) => (float[N,T,4] y)"
        " <int64[1] zero = {0}, int64[1] one = {1}, int64[1] four = {4}, int64[1] rest = {-1},"
        "int64[1] eight = {8}>",
        f"""h = MatMul(x, up) s = Shape(x) n = Gather(s, zero) t = Gather(s, one)
        b = Mul(n, four) split = Concat<axis=0>(t, b, four) swapped = Transpose<perm=[1,0,2]>(h)
        heads = Reshape(swapped, split) r = Relu(heads) joined = Concat<axis=0>(t, n, rest)
        u = Reshape(r, joined) v = Transpose<perm=[1,0,2]>(u) o = MatMul(v, down)
        p = Slice(table, zero, t) shape = Concat<axis=0>(one, t, four) q = Reshape(p, shape)
        {"k = Reshape(z, eight)" if fixed else "k = Neg(one_more)"} m = ReduceMean<keepdims=0>(k)
        a = Add(o, m) y = Add(a, q)""",
        up=(8, 16), down=(16, 4), table=(6, 4), one_more=(8,),
    )  # fmt: skip
    sizes = {"N": 2, "T": 6, **fixed}
    result = secateur.prune(model, ratio=0.5, dims=sizes, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert list(result.certificate.bindings) == [sizes, {**sizes, "N": 4, "T": 3}]
    batch = {"x": np.ones((3, 6, 8), np.float32)}
    batch |= {"z": np.ones((2, 4), np.float32)} if fixed else {}
    assert run(to_proto(result.model), batch)["y"].shape == (3, 6, 4)


@pytest.mark.parametrize("size", [4, 8])
def test_a_flattening_that_means_something_else_at_another_size_is_pinned(size: int) -> None:
    columns = 8 * size * size
    model = build(
        "(float[N,3,H,W] x) => (float[M,4] y)",
        "h = Conv<pads=[1,1,1,1]>(x, w) r = Reshape(h, rows) y = MatMul(r, w2)",
        w=(8, 3, 3, 3), rows=[-1, columns], w2=(columns, 4),
    )  # fmt: skip
    with pytest.raises(secateur.TargetError):
        secateur.prune(model, ratio=0.5, dims={"H": size, "W": size}, bench=False)
    analysis = secateur.analyze(model, dims={"H": size, "W": size})
    reasons = {pin.reason for pin in analysis.coupling.pins}
    assert "reshaped differently when a dynamic size changes" in reasons


@pytest.mark.parametrize("name", [*SOME])
def test_shorter_sizes_show_what_longer_ones_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pruned model is the same, whichever other sizes were looked at."""
    model, sizes = GRAPHS[name](), dims(name, 8)
    longer = secateur.analyze(model, dims=sizes)
    monkeypatch.setattr(shapes, "moved_together", lambda binding: moved_together(binding)[1:])
    shorter = secateur.analyze(model, dims=sizes)
    assert all(longer.facts[1].binding[d] > 8 > shorter.facts[1].binding[d] for d in sizes)
    removed = at_random(longer, 0.5, 0)
    one, other = (secateur.rewrite(secateur.Plan(a, removed)).model for a in (longer, shorter))
    assert to_proto(one) == to_proto(other)
