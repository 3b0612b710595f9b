"""The measures of drift against numpy on whole arrays."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.runtime.drift import Drift, drift, worst

from .pass_runs import Array, normal


def one(a: Array, b: Array) -> Drift:
    return drift([({"y": a}, {"y": b})])["y"]


def test_numbers_over_several_feeds() -> None:
    a, b = normal(12, 5, seed=1), normal(12, 5, seed=2)
    got = drift(({"y": a[k : k + 4]}, {"y": b[k : k + 4]}) for k in (0, 4, 8))["y"]
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert got.error == pytest.approx(np.sqrt(np.mean((y - x) ** 2) / np.mean(x**2)), rel=1e-5)
    assert got.mse == pytest.approx(np.mean((y - x) ** 2), rel=1e-5)
    cosine = 1 - np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y)
    assert got.cosine == pytest.approx(cosine, rel=1e-5)
    assert got.top1 == pytest.approx(np.mean(x.argmax(1) != y.argmax(1)), rel=1e-5)
    assert got.top1 is not None and 0 < got.top1 < 1


def test_scaled_by_two() -> None:
    a = normal(3, 4)
    got = one(a, 2 * a)
    assert (got.error, got.cosine, got.top1) == (1.0, 0.0, 0.0)
    assert got.mse == pytest.approx(np.mean(a**2), rel=1e-5)


def test_the_same() -> None:
    assert one(normal(3, 4), normal(3, 4)) == Drift(0.0, 0.0, 0.0, 0.0)


def test_opposite_directions() -> None:
    a = np.array([[1.0, 2.0]])
    assert one(a, -a) == Drift(2.0, 10.0, 2.0, 1.0)


def test_decisions_are_of_tables_only() -> None:
    for shape in ((6,), (6, 1), (2, 3, 4)):
        assert one(normal(*shape, seed=1), normal(*shape, seed=2)).top1 is None


def test_integers_are_decisions() -> None:
    got = one(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4]))
    assert got == Drift(top1=0.25)


def test_a_zero_output_has_no_relative_error() -> None:
    got = one(np.zeros(4), np.ones(4))
    assert (got.error, got.mse, got.cosine) == (None, 1.0, 1.0)
    assert one(np.zeros(4), np.zeros(4)).error == 0.0


def test_infinities_of_the_original_do_not_count() -> None:
    a, b = np.array([-np.inf, 1.0, 2.0]), np.array([-np.inf, 1.0, 3.0])
    assert one(a, b).mse == 0.5
    assert one(a[1:], np.array([np.nan, 2.0])) == Drift()
    assert one(a[1:], np.array([np.inf, 2.0])) == Drift()


def test_outputs_that_cannot_be_compared() -> None:
    assert one(np.ones((2, 3)), np.ones((2, 2))) == Drift()
    assert drift([({"y": np.ones(2)}, {})]) == {"y": Drift()}


def test_half_precision_is_summed_in_double() -> None:
    a = np.full(1 << 12, 300.0, np.float16)
    assert one(a, a + np.float16(30)).error == pytest.approx(0.1)


def test_the_worst_of_several_outputs() -> None:
    entries = [Drift(0.1, None, 0.3, None), Drift(0.2, 5.0, 0.1, None)]
    assert worst(entries) == Drift(0.2, 5.0, 0.3, None)
    assert worst([]) == Drift()
