"""Making the scores of groups comparable, against numpy; the order within a group stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np
import pytest

from secateur.ir.analysis import Analysis
from secateur.passes.criteria import criteria, score_units
from secateur.passes.scoring import Normalize, Scores

from .criteria_models import Array, analysis
from .pass_runs import normal


def normalised(found: Analysis, scores: Scores, normalize: Normalize) -> list[Scores]:
    """The scores of every group, given scores normalised."""
    criteria().add(f"{normalize}-given", "tests", lambda: lambda analysis: scores)
    result = score_units(found, f"{normalize}-given", normalize=normalize)
    return [result[g.units] for g in found.groups]


@pytest.fixture(autouse=True)
def _own_registry() -> Iterator[None]:
    yield
    criteria.cache_clear()


@pytest.mark.parametrize("normalize", get_args(Normalize))
def test_normalisation(normalize: Normalize) -> None:
    found = analysis("concat")
    scores = normal(9).astype(np.float64) ** 2 * np.repeat([1.0, 50.0], [5, 4])
    got = normalised(found, scores, normalize)
    if normalize == "gauss":
        z = [(s - s.mean()) / s.std() for s in (scores[:5], scores[5:])]
        wanted = [s - min(z[0].min(), z[1].min()) for s in z]
        assert min(g.min() for g in got) == 0
    else:
        divisors: dict[str, Callable[[Array], Array]] = {
            "auto": np.mean, "mean": np.mean, "max": np.max, "sum": np.sum, "none": np.ones_like
        }  # fmt: skip
        wanted = [s / divisors[normalize](s) for s in (scores[:5], scores[5:])]
    for mine, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
        assert np.array_equal(np.argsort(mine), np.argsort(theirs))


@pytest.mark.parametrize("normalize", get_args(Normalize))
def test_normalisation_of_zeros_equal_and_negative_scores(normalize: Normalize) -> None:
    found = analysis("concat")
    for first in (np.zeros(5), np.full(5, 0.1), -np.arange(5.0)):
        got = normalised(found, np.r_[first, [3.0, 1.0, 2.0, 4.0]], normalize)
        criteria.cache_clear()
        assert np.isfinite(np.concatenate(got)).all()
        order = [np.argsort(g, kind="stable").tolist() for g in got]
        assert order == [np.argsort(first, kind="stable").tolist(), [1, 2, 0, 3]]
