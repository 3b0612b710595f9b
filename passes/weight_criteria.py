"""Criteria from the weights that a unit owns: ``l1``, ``l2``, ``lamp``; and ``random``.

With W_m the weights of member m of a unit (all its coordinates on one weight axis):

    l1      sum over m of |W_m|_1
    l2      sqrt(sum over m of |W_m|^2), the norm of all that the unit owns
    lamp    n_u / (sum over the units v of the group with n_v >= n_u of n_v),  n_u = l2^2

The sum over members is a mean or maximum where the scoring says so (`members`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..ir.analysis import Analysis
from .members import Partial, along, combined, owned_weights, per_unit
from .scoring import DEFAULT, Scores, Scoring, describe
from .stored_weights import Numbers


def l1(analysis: Analysis, scoring: Scoring = DEFAULT) -> Scores:
    """Sum of absolute values over all weights of contractions that the unit owns
    (Li et al. 2017, "Pruning Filters for Efficient ConvNets", extended to whole units)."""
    return combined(_sums(analysis, np.abs), analysis.unit_count, scoring.combine)


def l2(analysis: Analysis, scoring: Scoring = DEFAULT) -> Scores:
    """Euclidean norm over all weights of contractions that the unit owns
    (He et al. 2018, "Soft Filter Pruning", extended to whole units)."""
    squares = _sums(analysis, np.square)
    if scoring.combine == "mean":
        norms = (Partial(p.role, p.units, np.sqrt(p.scores)) for p in squares)
        return combined(norms, analysis.unit_count, "mean")
    return np.sqrt(combined(squares, analysis.unit_count, scoring.combine))


@describe(normalize="none")
def lamp(analysis: Analysis, scoring: Scoring = DEFAULT) -> Scores:
    """Squared norm of the unit over the squared norms of all units of its group that are no
    smaller (Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", with units
    for weights): a group's largest unit has 1, and groups compare as they are."""
    squares = _sums(analysis, np.square)
    norms = combined(squares, analysis.unit_count, scoring.combine)
    result = np.zeros_like(norms)
    for group in analysis.groups:
        own = norms[group.units]
        largest = float(own.max(initial=0.0))
        if not 0 < largest < np.inf:
            result[group.units] = own
            continue
        own = own / largest  # the sum of finite numbers may be infinite
        ranked = np.sort(own)
        remaining = np.cumsum(ranked[::-1])[::-1]
        result[group.units] = own / remaining[np.searchsorted(ranked, own, side="left")]
    return result


@describe(normalize="none")
def random(analysis: Analysis, scoring: Scoring = DEFAULT) -> Scores:
    """Numbers in [0, 1) drawn from the seed: what any other criterion should beat."""
    return np.random.default_rng(scoring.context.seed).random(analysis.unit_count)


def _sums(analysis: Analysis, power: Callable[[Numbers], Numbers]) -> Iterator[Partial]:
    """For every member, the sums of ``power(weight)`` per unit."""
    for array, members in owned_weights(analysis):
        with np.errstate(over="ignore"):  # an infinite score is refused later
            powers = power(array)
        for member in members:
            yield per_unit(member.role, member.units, along(powers, member.index))
