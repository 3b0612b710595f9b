"""The criterion reconstruction: against least squares solved anew for every set of units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import secateur
from secateur.ir.analysis import Analysis
from secateur.ir.errors import ModelError
from secateur.passes.base import PassContext
from secateur.passes.criteria import score_units
from secateur.passes.downdates import Consumer, growth, unit_columns
from secateur.passes.scoring import Scoring

from .pass_runs import Array, build, run
from .test_linear import only
from .test_recover import FORMS, correlated, residual, samples


def consumer(taps: int = 1, groups: int = 1) -> tuple[Consumer, Array, Array]:
    """A convolution, with rows that were drawn for it and its weights with the bias."""
    rng = np.random.default_rng(0)
    model = build(
        f"g (float[1, 8, 9] x) => (float[1, 6, a] y) {{ y = Conv<group = {groups}>(x, w, b) }}",
        w=rng.standard_normal((6, 8 // groups, taps)).astype(np.float32),
        b=rng.standard_normal(6).astype(np.float32),
    )
    layer = only(model)
    width = layer.columns + 1
    mixing = rng.standard_normal((layer.columns, layer.columns)) * 0.5 + np.eye(layer.columns)
    rows = rng.standard_normal((500, groups, layer.columns)) @ mixing + 1.0
    wide = np.concatenate([rows, np.ones((500, groups, 1))], axis=2)
    weights = rng.standard_normal((groups, width, 6 // groups))
    gram = np.einsum("rgk,rgl->gkl", wide, wide) / len(rows)
    units = np.arange(8) % (8 // groups)
    columns = unit_columns(layer, units, np.arange(8 // groups))
    assert columns is not None
    return Consumer(layer, columns, np.linalg.inv(gram), weights.copy(), 1.0), wide, weights


def lost(wide: Array, weights: Array, gone: Array) -> float:
    """The error of the best weights without some columns of the flattened (group, column) axis."""
    total, width = 0.0, wide.shape[2]
    for group in range(wide.shape[1]):
        own = set(gone[gone // width == group] % width)
        kept = [k for k in range(width) if k not in own]
        target = wide[:, group] @ weights[group]
        fitted = np.linalg.lstsq(wide[:, group][:, kept], target)[0]
        total += np.square(target - wide[:, group][:, kept] @ fitted).sum() / len(wide)
    return total


@pytest.mark.parametrize("taps, groups", [(1, 1), (3, 1), (3, 2)])
def test_costs_are_what_least_squares_loses(taps: int, groups: int) -> None:
    made, wide, weights = consumer(taps, groups)
    units = np.arange(8 // groups)
    wanted = [lost(wide, weights, made.columns[unit].ravel()) for unit in units]
    np.testing.assert_allclose(made.costs(units), wanted, rtol=1e-6)


@pytest.mark.parametrize("taps, groups", [(1, 1), (3, 1), (3, 2)])
def test_units_go_one_by_one_the_cheapest_first(taps: int, groups: int) -> None:
    made, wide, weights = consumer(taps, groups)
    count = 8 // groups
    gone: list[int] = []
    before = 0.0
    highest = 0.0
    for unit, cost in growth([made], count):
        options = {
            u: lost(wide, weights, made.columns[[*gone, u]].ravel())
            for u in range(count)
            if u not in gone
        }
        assert unit == min(options, key=options.__getitem__)
        highest = max(highest, options[unit] - before)
        assert cost == pytest.approx(highest, rel=1e-6)
        before = options[unit]
        gone.append(unit)
    assert sorted(gone) == list(range(count))


def test_the_weights_that_are_left_are_refitted() -> None:
    made, wide, weights = consumer(3)
    order = growth([made], 8)
    first = next(order)[0]
    gone = made.columns[first]
    kept = np.setdiff1d(np.arange(wide.shape[2]), gone)
    fitted = np.linalg.lstsq(wide[:, 0][:, kept], wide[:, 0] @ weights[0])[0]
    np.testing.assert_allclose(made.weights[0][kept], fitted, atol=1e-8)
    assert not made.weights[0][gone].any()


def scores(model: Any, data: Array, z: Array | None = None) -> tuple[Analysis, Array]:
    analysis = secateur.analyze(model)
    given = {"x": data} if z is None else {"x": data, "z": z}
    context = PassContext(calibration=given, threads=1)
    return analysis, score_units(analysis, "reconstruction", Scoring(context))


def test_a_copy_costs_nothing() -> None:
    """Two equal filters, and one that is twice another: least squares does without them."""
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((12, 3, 3, 3)), rng.standard_normal((5, 12, 1, 1))
    b = 0.1 * rng.standard_normal(12)
    w[7], b[7] = w[2], b[2]
    w[9], b[9] = 2 * w[4], 2 * b[4]
    weights: dict[str, Any] = {n: a.astype(np.float32) for n, a in {"w": w, "v": v, "b": b}.items()}
    model = build(
        "g (float[N, 3, 8, 8] x) => (float[N, 5, 6, 6] y) {"
        " a = Conv(x, w, b) c = Relu(a) y = Conv(c, v) }",
        **weights,
    )
    _, found = scores(model, samples())
    cheap = set(np.argsort(found)[:2].tolist())
    assert len(cheap & {2, 7}) == 1 and len(cheap & {4, 9}) == 1
    assert found[sorted(cheap)].max() < 1e-3 * np.median(found)


def test_scores_are_shares_of_the_outputs_variance() -> None:
    """The third of a group that goes first: scores add up to what the outputs lose when it goes
    and the consumer is refitted, here by numpy."""
    text, shapes, shape = FORMS["no bias"]
    weights: dict[str, Any] = {n: correlated(s, k) for k, (n, s) in enumerate(shapes.items())}
    model, x = build(text, **weights), samples(128, 0, shape)
    _, found = scores(model, x)
    third = np.argsort(found, kind="stable")[:6]
    hidden = np.tanh(x.reshape(-1, 8) @ weights["w"]).astype(np.float64)
    wanted = run(model, {"x": x})[0].reshape(-1, 4)
    kept = np.setdiff1d(np.arange(16), third)
    fitted = np.linalg.lstsq(hidden[:, kept], wanted)[0]
    share = np.square(wanted - hidden[:, kept] @ fitted).mean() / wanted.var()
    assert found[third].sum() == pytest.approx(share, rel=0.1)


def test_every_group_is_scored_and_residual_streams_count_their_readers() -> None:
    analysis, found = scores(residual(), samples())
    assert len(analysis.groups) == 2 and (found > 0).all()
    assert np.isfinite(found).all()


def test_heads_that_no_linear_layer_reads_are_measured() -> None:
    """Channels that only a product of two activations contracts have scores, too."""
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        n: rng.standard_normal((8, 12)).astype(np.float32) for n in ("w", "v")
    }
    model = build(
        "g (float[N, 5, 8] x) => (float[N, 5, 5] y) {"
        " a = MatMul(x, w) b = MatMul(x, v) t = Transpose<perm = [0, 2, 1]>(b)"
        " y = MatMul(a, t) }",
        **weights,
    )
    data = samples(64, 0, (5, 8))
    analysis, found = scores(model, data)
    assert len(found) == 12 and (found > 0).all()
    order = np.argsort(found)
    hidden = (x := data.reshape(-1, 8)) @ weights["w"], x @ weights["v"]
    energy = np.square(hidden[0]).mean(axis=0) * np.square(hidden[1]).mean(axis=0)
    assert energy[order[:4]].mean() < energy[order[-4:]].mean()
    assert analysis.unit_count == 12


def test_layers_that_share_a_weight_are_one_consumer() -> None:
    """Units cost what they cost in one layer that is given the rows of both."""
    rng = np.random.default_rng(4)
    sizes = {"w": (8, 12), "v": (12, 5)}
    arrays: dict[str, Any] = {
        name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()
    }
    one = "{0} = MatMul({1}, w) {0}r = Relu({0}) {2} = MatMul({0}r, v)"
    both = build(
        f"g (float[N, 8] x, float[N, 8] z) => (float[N, 5] y, float[N, 5] u)"
        f" {{ {one.format('a', 'x', 'y')} {one.format('b', 'z', 'u')} }}",
        **arrays,
    )
    alone = build(
        f"g (float[N, 8] x) => (float[N, 5] y) {{ {one.format('a', 'x', 'y')} }}", **arrays
    )
    x, z = rng.standard_normal((2, 64, 8)).astype(np.float32)
    _, wanted = scores(alone, np.concatenate([x, z]))
    _, found = scores(both, x, z)
    np.testing.assert_allclose(found / found.sum(), wanted / wanted.sum(), rtol=1e-4)


def test_it_keeps_more_than_norms_do() -> None:
    """With the same recovery behind it."""
    from .test_recover import error, pruned

    original, fresh, data = residual(), samples(64, seed=1), {"x": samples()}
    errors = [
        error(
            pruned(
                original, f"prune{{macs=0.5 scope=global criterion={c}}},recover", calibration=data
            ).model,
            original,
            fresh,
        )
        for c in ("reconstruction", "l2", "random")
    ]
    assert errors[0] < 0.9 * errors[1] and errors[0] < 0.9 * errors[2]


def test_models_that_put_out_integers_are_measured_by_what_these_are_made_of() -> None:
    """Channels that are copies cost less than the others, though no class changes."""
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((8, 12)), rng.standard_normal((12, 5))
    w[:, 7] = w[:, 2]
    text = "a = MatMul(x, w) c = Relu(a) d = MatMul(c, v)"
    arrays: dict[str, Any] = {n: a.astype(np.float32) for n, a in {"w": w, "v": v}.items()}
    plain, classes = (
        build(f"g (float[N, 8] x) => ({out}) {{ {text} {last} }}", **arrays)
        for out, last in (
            ("float[N, 5] d", ""),
            ("int64[N] y", "y = ArgMax<axis = 1, keepdims = 0>(d)"),
        )
    )
    data = samples(64, 0, (8,))
    _, wanted = scores(plain, data)
    _, found = scores(classes, data)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert np.argmin(found) in (2, 7)


def test_units_that_cost_nothing_do_not_scale_the_others() -> None:
    """Half of the channels are dead: what their removal costs is rounding, and says nothing."""
    text, shapes, shape = FORMS["no bias"]
    weights: dict[str, Any] = {n: correlated(s, k) for k, (n, s) in enumerate(shapes.items())}
    weights["w"][:, ::2] = 0
    _, found = scores(build(text, **weights), samples(128, 0, shape))
    fewer = build(text, w=weights["w"][:, 1::2], v=weights["v"][1::2])
    _, alone = scores(fewer, samples(128, 0, shape))
    assert found[::2].max() < 0.1 * found[1::2].min()
    assert found[1::2].sum() == pytest.approx(alone.sum(), rel=0.3)


def test_activations_that_are_not_finite_are_refused() -> None:
    text, shapes, shape = FORMS["no bias"]
    weights: dict[str, Any] = {n: correlated(s, k) for k, (n, s) in enumerate(shapes.items())}
    model = build(text.replace("Tanh", "Log"), **weights)
    with pytest.raises(ModelError, match="'c' is not finite"):
        scores(model, samples(16, 0, shape))
