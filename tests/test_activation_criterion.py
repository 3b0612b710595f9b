"""``activation`` against numpy over values that ONNX Runtime computes, and what a unit's removal
costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import onnx
import pytest

import secateur
from secateur.ir.analysis import Analysis
from secateur.ir.errors import CertificateError, DataError, ModelError, UsageError
from secateur.passes.base import PassContext
from secateur.passes.criteria import score_units
from secateur.passes.scoring import Combine, Scores, Scoring

from .criteria_models import Array, analysis, model, samples, units, weights
from .graphs import GRAPHS, feeds
from .pass_runs import build, normal, run
from .pruning_checks import analysis as graph_analysis
from .pruning_checks import dims

COMBINE: tuple[Combine, ...] = get_args(Combine)


def raw(found: Analysis, x: dict[str, Array], combine: Combine = "sum") -> Scores:
    scoring = Scoring(PassContext(calibration=x, threads=1), combine)
    return score_units(found, "activation", scoring, "none")


def energy(proto: onnx.ModelProto, x: dict[str, Array], name: str, axis: int) -> Array:
    """Mean and variance of a value along an axis, as the mean of squares."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    value = run(copy, x)[-1].astype(np.float64)
    others = tuple(k for k in range(value.ndim) if k != axis)
    result: Array = np.square(value.mean(axis=others)) + value.var(axis=others)
    return result


def square(array: Array, axis: int) -> Array:
    """Sums of squares over all other axes."""
    others = tuple(k for k in range(array.ndim) if k != axis)
    result: Array = np.square(array.astype(np.float64)).sum(axis=others)
    return result


Sinks = dict[tuple[str, int], list[Array]]


def by_hand(name: str, w: dict[str, Array]) -> tuple[Sinks, Sinks]:
    """By the weight axis that makes a group: what its units score at every sink, and at every
    place where a weight writes them."""
    proto, x = model(name, w), samples(name)
    e: Callable[..., Array] = lambda value, axis=1: energy(proto, x, value, axis)  # noqa: E731
    match name:
        case "residual":
            stem = [e("b") * square(w["w1"], 1), e("f") * square(w["w3"], 1)]
            read = {("w0", 0): stem, ("w1", 0): [e("d") * square(w["w2"], 1)]}
            return read, {("w0", 0): [e("a"), e("e")], ("w1", 0): [e("c")]}
        case "concat":
            read_by = e("c") * square(w["wc"], 1)
            read = {("wa", 0): [read_by[:5]], ("wb", 0): [read_by[5:]]}
            return read, {("wa", 0): [e("a")], ("wb", 0): [e("b")]}
        case "depthwise":
            return {("w0", 0): [e("c") * square(w["w1"], 1)]}, {("w0", 0): [e("a"), e("b")]}
        case "grouped":
            # Each column of wg meets channel i of either group: its share of both is taken alike.
            first = e("a").reshape(2, 4).mean(axis=0) * square(w["wg"], 1)
            second = (e("c") * square(w["w1"], 1)).reshape(2, 6).sum(axis=0)
            made = [e(k).reshape(2, -1).sum(axis=0) for k in "ab"]
            read = {("w0", 0): [first], ("wg", 0): [second]}
            return read, {("w0", 0): made[:1], ("wg", 0): made[1:]}
        case "heads":
            read = {("wq", 1): [(e("r", 2) * square(w["wo"], 0)).reshape(3, 4).sum(axis=1)]}
            return read, {("wq", 1): [e(k, 2).reshape(3, 4).sum(axis=1) for k in "qkv"]}
        case "shared":
            rows = square(w["w"], 0)
            read_at = [e("a") * rows, e("c") * rows, e("e") * square(w["v"], 0)]
            return {("u", 1): read_at}, {("u", 1): [e("a"), e("b"), e("d")]}
    raise ValueError(name)


@pytest.mark.parametrize("name", ["residual", "concat", "depthwise", "grouped", "heads", "shared"])
def test_energies_of_activations_times_weights(name: str) -> None:
    w = weights(name)
    found = analysis(name, w)
    read, made = by_hand(name, w)
    reduce: dict[Combine, Callable[[list[Array]], Array]] = {
        "sum": lambda s: np.sum(s, axis=0),
        "mean": lambda s: np.mean(s, axis=0),
        "max": lambda s: np.max(s, axis=0),
        "producers": lambda s: np.sum(s, axis=0),
    }
    for combine in COMBINE:
        scores = raw(found, samples(name), combine)
        for (weight, axis), parts in (made if combine == "producers" else read).items():
            own = units(found, weight, axis)[:: 4 if name == "heads" else 1][: len(parts[0])]
            np.testing.assert_allclose(scores[own], reduce[combine](parts), rtol=1e-5)


def test_the_score_is_what_the_output_loses() -> None:
    """With one consumer and one coordinate for each unit there is nothing left to estimate: the
    score is the mean square of the change of the outputs when the unit is multiplied by zero."""
    text = "g (float[N,3] x) => (float[N,4] y) { a = MatMul(x, u) b = Relu(a) y = MatMul(b, v) }"
    u, v, x = normal(3, 6), normal(6, 4, seed=1), {"x": normal(50, 3, seed=2)}
    found = secateur.analyze(build(text, u=u, v=v))
    (whole,) = run(build(text, u=u, v=v), x)
    losses = []
    for unit in range(6):
        rest = v.copy()
        rest[unit] = 0
        (left,) = run(build(text, u=u, v=rest), x)
        losses.append(np.square(whole - left).sum(axis=1).mean())
    np.testing.assert_allclose(raw(found, x)[units(found, "v", 0)], losses, rtol=1e-4)
    plan = secateur.plan(found, ratio=1 / 6, criterion="activation", calibration=x)
    assert np.flatnonzero(plan.removed[units(found, "v", 0)]) == [np.argmin(losses)]


@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_batches_make_no_difference(batch: int) -> None:
    found = secateur.analyze(model("residual"), dims={"N": batch})
    wanted = raw(analysis("residual"), samples("residual"))
    np.testing.assert_allclose(raw(found, samples("residual")), wanted, rtol=1e-5)


# ---- sinks of other kinds -----------------------------------------------------------------------


def test_a_sum_and_a_product_of_activations_weigh_one() -> None:
    """The first group ends in a sum over its axis, the second in a product of q and k."""
    text = """g (float[N,3] x) => (float[N,1] y) {
        a = MatMul(x, u)  b = Abs(a)  c = ReduceSum<keepdims=1>(b, i)
        q = MatMul(x, wq)  k = MatMul(x, wk)  t = Transpose<perm=[1,0]>(k)  m = MatMul(q, t)
        n = ReduceSum<keepdims=1>(m, i)  y = Add(c, n)
    }"""
    w = {"u": normal(3, 5), "wq": normal(3, 4, seed=1), "wk": normal(3, 4, seed=2)}
    proto = build(text, u=w["u"], wq=w["wq"], wk=w["wk"], i=np.array([1]))
    found, x = secateur.analyze(proto, dims={"N": 8}), {"x": normal(8, 3, seed=3)}
    scores = raw(found, x)
    np.testing.assert_allclose(scores[units(found, "u", 1)], energy(proto, x, "b", 1), rtol=1e-5)
    np.testing.assert_allclose(scores[units(found, "wk", 1)], energy(proto, x, "q", 1), rtol=1e-5)


def test_units_that_reach_nothing_are_worth_nothing() -> None:
    text = """g (float[N,3] x) => (float[N,2] y) {
        a = MatMul(x, u)  b = Slice(a, i, j, i)  y = MatMul(b, v)
    }"""
    u, v, i, j = normal(3, 6), normal(3, 2), np.array([1]), np.array([4])
    found = secateur.analyze(build(text, u=u, v=v, i=i, j=j))
    own = raw(found, {"x": normal(5, 3)})[units(found, "u", 1)]
    assert own[[0, 4, 5]].tolist() == [0, 0, 0] and own[1:4].min() > 0


def quantised(array: Array) -> tuple[Array, Array]:
    """Numbers from -127 to 127, and the scale that they have."""
    scale = np.float32(np.abs(array).max() / 127)
    return np.round(array / scale).astype(np.int8), np.array(scale)


def test_dequantised_weights_count_as_what_they_stand_for() -> None:
    text = """g (float[N,3] x) => (float[N,4] y) {
        a = MatMul(x, u)  b = Relu(a)  r = DequantizeLinear(v, s)  y = MatMul(b, r)
    }"""
    v, s = quantised(normal(6, 4, seed=1))
    proto = build(text, u=normal(3, 6), v=v, s=s)
    found, x = secateur.analyze(proto), {"x": normal(9, 3, seed=2)}
    wanted = energy(proto, x, "b", 1) * square(v * s, 0)
    np.testing.assert_allclose(raw(found, x)[units(found, "v", 0)], wanted, rtol=1e-5)


def test_quantised_activations_count_as_what_they_stand_for() -> None:
    """A zero point is not mistaken for energy, nor a step for the number of steps."""
    text = """g (float[N,3] x) => (float[N,4] y) {
        a = QuantizeLinear(x, xs, xz)
        b = QLinearMatMul(a, xs, xz, u, us, n, bs, bz)
        c = QLinearMatMul(b, bs, bz, v, vs, n, ys, n)
        y = DequantizeLinear(c, ys, n)
    }"""
    (u, us), (v, vs) = quantised(normal(3, 6)), quantised(normal(6, 4, seed=1))
    x = {"x": normal(9, 3, seed=2)}
    steps = {k: np.array(s, np.float32) for k, s in (("xs", 0.05), ("bs", 0.1), ("ys", 0.2))}
    zeros = {k: np.array(z, np.int8) for k, z in (("n", 0), ("xz", 4), ("bz", -8))}
    weights: dict[str, Any] = {"u": u, "us": us, "v": v, "vs": vs, **steps, **zeros}
    proto = build(text, **weights)
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.append(onnx.ValueInfoProto(name="b"))
    real = (run(copy, x)[-1].astype(np.float64) + 8) * 0.1
    found = secateur.analyze(proto)
    own = raw(found, x)[units(found, "v", 0)]
    np.testing.assert_allclose(own, np.square(real).mean(axis=0) * square(v * vs, 0), rtol=1e-5)


def test_activations_are_seen_in_front_of_the_quantiser() -> None:
    text = """g (float[N,3] x) => (int32[N,4] y) {
        a = MatMul(x, u)  b = Relu(a)
        q, s, z = DynamicQuantizeLinear(b)  y = MatMulInteger(q, v, z)
    }"""
    v, _ = quantised(normal(6, 4, seed=1))
    proto = build(text, u=normal(3, 6), v=v)
    found, x = secateur.analyze(proto), {"x": normal(9, 3, seed=2)}
    wanted = energy(proto, x, "b", 1) * square(v, 0)
    np.testing.assert_allclose(raw(found, x)[units(found, "v", 0)], wanted, rtol=1e-5)


SOME = ["experts_operator_gated", "experts_4bits", "encoder_fused", "decoder_fused", "qdq",
        "rotary_fused", "variants_opset13", "loop_of_steps", "split_to_sequence", "shared_layers",
        "computed_attention", "channel_shuffle", "conv_transpose_grouped"]  # fmt: skip


@pytest.mark.parametrize("name", SOME)
def test_every_group_of_other_graphs_has_scores(name: str) -> None:
    """Operators that hold several layers, control flow, sequences: seen or not, units compare."""
    x = {k: v[None] for k, v in feeds(GRAPHS[name](), **dims(name)).items()}  # whole feeds
    found = graph_analysis(name)
    for combine in COMBINE:
        scores = raw(found, x, combine)
        assert scores.shape == (found.unit_count,) and (scores >= 0).all()
        reached = {u for s in found.statements.sinks for u in units_at(found, s.axis)}
        assert (scores[sorted(reached)] > 0).mean() > 0.8, "only units that Relu shuts have zero"


def units_at(found: Analysis, axis: int) -> list[int]:
    own = found.units_of(axis)
    return [] if own is None else own[own >= 0].tolist()


# ---- control flow -------------------------------------------------------------------------------

BRANCHES = """g (float[N,3] x, bool c) => (float[N,4] y) {
    a = MatMul(x, u)
    b = Relu(a)
    y = If (c) <
        then_branch = t () => (float[N,4] p) { p = MatMul(b, v) },
        else_branch = e () => (float[N,4] q) { h = MatMul(x, w) k = Relu(h) q = MatMul(k, z) }
    >
}"""


def test_what_a_branch_reads_is_seen_and_what_it_computes_is_not() -> None:
    w: dict[str, Any] = {"u": normal(3, 6), "v": normal(6, 4), "w": normal(3, 5), "z": normal(5, 4)}
    proto = build(BRANCHES, **w)
    x = {"x": normal(7, 3, seed=2), "c": np.array(True)}
    found = secateur.analyze(proto, dims={"N": 7})
    scores = raw(found, x)
    wanted = energy(proto, x, "b", 1) * square(w["v"], 0)
    np.testing.assert_allclose(scores[units(found, "v", 0)], wanted, rtol=1e-5)
    inside = square(w["w"], 1) + square(w["z"], 0)
    np.testing.assert_allclose(scores[units(found, "z", 0)], inside, rtol=1e-5)
    normalised = score_units(found, "activation", Scoring(PassContext(calibration=x)))
    for group in found.groups:
        np.testing.assert_allclose(normalised[group.units].mean(), 1)


def test_units_of_which_nothing_is_seen_at_all() -> None:
    text = BRANCHES.replace("b = Relu(a)", "").replace("a = MatMul(x, u)", "")
    proto = build(text.replace("MatMul(b, v)", "MatMul(x, v)"),
                  v=normal(3, 4), w=normal(3, 5), z=normal(5, 4))  # fmt: skip
    found = secateur.analyze(proto, dims={"N": 7})
    with pytest.raises(UsageError, match=r"sees none of the units .* choose another criterion"):
        raw(found, {"x": normal(7, 3), "c": np.array(True)})


# ---- errors -------------------------------------------------------------------------------------


def test_without_calibration_data() -> None:
    words = r"'activation' scores units by calibration data: give --calibration FILE"
    with pytest.raises(UsageError, match=words):
        score_units(analysis("residual"), "activation")
    with pytest.raises(UsageError, match=words):
        secateur.plan(analysis("residual"), ratio=0.5, criterion="activation")
    with pytest.raises(UsageError, match=words):
        secateur.prune(model("residual"), ratio=0.5, criterion="activation", bench=False)


def test_activations_that_are_not_finite_are_named() -> None:
    w = weights("residual")
    w["w1"] *= np.float32(1e30)
    x = {"x": np.float32(1e15) * samples("residual")["x"]}
    with pytest.raises(ModelError, match="'d' is not finite on the calibration data"):
        raw(analysis("residual", w), x)


def test_data_that_does_not_fit() -> None:
    with pytest.raises(DataError, match="no array for input 'x'"):
        secateur.plan(analysis("heads"), ratio=0.4, criterion="activation", calibration={})
    with pytest.raises(CertificateError, match="cannot run"):
        raw(analysis("heads"), {"x": normal(4, 7, 9)})
