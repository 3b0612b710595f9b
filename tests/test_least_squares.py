"""Ridge least squares from sums over rows: against numpy on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.runtime.grams import LayerRows
from secateur.runtime.least_squares import Gram, fit

from .pass_runs import Array, build
from .test_linear import only

WEIGHT = np.random.default_rng(1).standard_normal((4, 2)).astype(np.float32)


def data(rows: int = 400, groups: int = 2, noise: float = 0.0) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, groups, 6)) + 0.5
    weights = rng.standard_normal((groups, 7, 3))
    t = np.einsum("rgk,gkm->rgm", x, weights[:, :-1]) + weights[:, -1]
    return x, t + noise * rng.standard_normal(t.shape), weights


def gram(x: Array, t: Array, parts: int = 3) -> Gram:
    found = Gram.empty(x.shape[1], x.shape[2], t.shape[2])
    wide = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2).transpose(1, 0, 2)
    for some in np.array_split(np.arange(len(x)), parts):
        found.add(wide[:, some], t[some].transpose(1, 0, 2))
    return found


def test_no_noise_gives_the_weights_back() -> None:
    x, t, weights = data()
    found = gram(x, t).solve(np.zeros_like(weights), 1e-12)
    np.testing.assert_allclose(found, weights, atol=1e-7)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
def test_the_ridge_pulls_towards_the_start(ridge: float) -> None:
    """The stacked system of the penalised problem, solved by numpy."""
    x, t, weights = data(noise=0.3)
    start = weights + 0.5
    found = gram(x, t).solve(start, ridge)
    for g in range(x.shape[1]):
        wide = np.concatenate([x[:, g], np.ones((len(x), 1))], axis=1)
        strength = np.sqrt(ridge * np.square(x[:, g]).sum(axis=0).mean())
        penalty = strength * np.eye(7)[:6]
        stacked = np.concatenate([wide, penalty])
        wanted = np.concatenate([t[:, g], penalty @ start[g]])
        np.testing.assert_allclose(found[g], np.linalg.lstsq(stacked, wanted)[0], atol=1e-8)


def test_without_a_bias_its_row_stays() -> None:
    x, t, weights = data()
    start = np.zeros_like(weights)
    start[:, -1] = weights[:, -1]
    found = gram(x, t).solve(start, 1e-12, bias=False)
    np.testing.assert_array_equal(found[:, -1], start[:, -1])
    np.testing.assert_allclose(found, weights, atol=1e-7)


def test_error_and_variance_are_those_of_the_rows() -> None:
    x, t, weights = data(noise=0.5)
    other = weights + 0.1
    residual = np.einsum("rgk,gkm->rgm", x, other[:, :-1]) + other[:, -1] - t
    sums = gram(x, t)
    assert sums.error(other) == pytest.approx(np.square(residual).sum(axis=(1, 2)).mean())
    assert sums.variance == pytest.approx(t.var(axis=0).sum())
    assert sums.share(other) == pytest.approx(sums.error(other) / sums.variance)


def test_held_out_rows_choose_the_ridge() -> None:
    """Ten rows of noise cannot teach six columns more than a start that is nearly right knows; many
    rows can."""
    x, t, weights = data(2000, noise=2.0)
    start = weights + 0.01
    few = fit(gram(x[:10], t[:10]), gram(x[1000:], t[1000:]), start)
    assert few[1] >= 1.0  # the strongest, or none at all
    start = weights + 1.0
    many = fit(gram(x[:1000], t[:1000]), gram(x[1000:], t[1000:]), start)
    assert many[1] < 0.1 and np.abs(many[0] - weights).max() < 0.3
    assert many[2] < gram(x[1000:], t[1000:]).share(start)


def test_a_start_that_is_best_is_kept() -> None:
    x, t, weights = data()
    found, ridge, share = fit(gram(x[:10], t[:10] + 1), gram(x[10:], t[10:]), weights)
    assert ridge == np.inf and share < 1e-12
    np.testing.assert_array_equal(found, weights)


@pytest.mark.parametrize("counts, held_out", [([1], 7), ([2, 2], 28), ([3, 0, 3], 35)])
def test_a_fifth_is_held_out_of_samples_or_of_rows(counts: list[int], held_out: int) -> None:
    """Rows, where there are fewer than five samples; of six samples one, with its 35 rows."""
    model = build("g (float[N, 35, 4] x) => (float[N, 35, 2] y) { y = MatMul(x, w) }", w=WEIGHT)
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((n, 35, 4)).astype(np.float32) for n in counts]
    rows = LayerRows(only(model), x, [a @ WEIGHT for a in x], seed=[0])
    train, held = rows.sums()
    assert held.rows == held_out and train.rows + held.rows == 35 * sum(counts)
    wide = np.concatenate(x).reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose((train + held).g[0, :4, :4], wide.T @ wide)


@pytest.mark.parametrize("again", [False, True])
def test_feeds_of_one_sample_are_summed_together(again: bool) -> None:
    """The same sums as of all samples in one feed, with and without offsets and kept rows."""
    model = build("g (float[N, 35, 4] x) => (float[N, 35, 2] y) { y = MatMul(x, w) }", w=WEIGHT)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 35, 4)).astype(np.float32)
    offset = rng.standard_normal((100, 35, 2)).astype(np.float32)
    weights = np.concatenate([WEIGHT, np.ones((1, 2))])[None]
    found: list[Gram] = []
    for parts in (1, 100):
        inputs, offsets = (np.array_split(array, parts) for array in (x, offset))
        targets = [a @ WEIGHT for a in inputs]
        rows = LayerRows(only(model), inputs, targets, offsets, seed=[0], again=again)
        assert len(rows.parts) <= 2
        for sums in (rows.sums(), rows.sums(weights)):
            found += sums
    for one, other in zip(found[:4], found[4:], strict=True):
        assert one.rows == other.rows
        for name in ("g", "c", "t"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name))
