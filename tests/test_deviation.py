"""How far outputs are apart: against numpy, and what is compared of models without floats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from secateur.runtime.deviation import compared, deviation, showing

from .pass_runs import Array, build, run


def arrays(seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, 3)) for n in (4, 2)]


def test_it_is_the_error_in_deviations() -> None:
    a, b = arrays(), arrays(1)
    whole = np.concatenate(a), np.concatenate(b)
    wanted = np.sqrt(np.square(whole[0] - whole[1]).mean() / whole[0].var())
    assert deviation({"y": a}, {"y": b}) == pytest.approx(wanted)
    assert deviation({"y": a}, {"y": a}) == 0


def test_masks_do_not_count_and_what_is_not_finite_is_infinitely_far() -> None:
    a, b = arrays(), arrays(1)
    a[0][0], b[0][0] = -np.inf, -np.inf
    rest = [np.concatenate([x[0][1:], x[1]]) for x in (a, b)]
    wanted = np.sqrt(np.square(rest[0] - rest[1]).mean() / rest[0].var())
    assert deviation({"y": a}, {"y": b}) == pytest.approx(wanted)
    b[1][0] = np.nan
    assert deviation({"y": a}, {"y": b}) == math.inf


def test_another_shape_is_as_good_as_the_mean() -> None:
    a = arrays()
    assert deviation({"y": a}, {"y": [x[:1] for x in a]}) == pytest.approx(1.0)


def test_integers_are_compared_by_what_they_are_made_of() -> None:
    model = build(
        "g (float[N, 4] x) => (int64[N] y) { a = MatMul(x, w) y = ArgMax<axis=1, keepdims=0>(a) }",
        w=np.eye(4, dtype=np.float32),
    )
    assert compared(model) == ["a"]
    x = arrays()[0][:, [0, 1, 2, 0]].astype(np.float32)
    np.testing.assert_array_equal(run(showing(model, ["a"]), {"x": x})[1], x)


def test_floats_are_compared_as_they_are() -> None:
    model = build(
        "g (float[N, 4] x) => (float[N, 4] a, int64[N] y)"
        "{ a = Relu(x) y = ArgMax<axis = 1, keepdims = 0>(a) }"
    )
    assert compared(model) == ["a"]
