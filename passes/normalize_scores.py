"""Making scores of different groups comparable, without changing the order within a group.

With s the scores of one group:

    none    s
    mean    s / mean |s|
    max     s / max |s|
    sum     s / sum |s|
    gauss   (s - mean s) / std s, then the same number added to all groups so that the least is 0

A group whose divisor is 0 stays as it is under the first three, and is 0 standard deviations from
its mean under ``gauss``. ``sum`` makes units of large groups cheap; the others do not depend on
how many units a group has. ``gauss`` counts in standard deviations, so that groups whose scores
lie close together lose as many units as others; the shift keeps scores non-negative and leaves the
ranking of all units as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..ir.coupling import Indices
from .scoring import Normalize, Scores

_DIVISORS: dict[str, Callable[[Scores], float]] = {
    "mean": lambda s: float(np.abs(s).mean()),
    "max": lambda s: float(np.abs(s).max()),
    "sum": lambda s: float(np.abs(s).sum()),
}


def normalized(scores: Scores, groups: Iterable[Indices], how: Normalize) -> Scores:
    """float64[unit_count]: the scores after normalisation of each group (an array of its units)."""
    result = scores.copy()
    for units in groups:
        own = scores[units]
        if how in _DIVISORS:
            result[units] = own / (_DIVISORS[how](own) or 1.0)
        elif how == "gauss":
            result[units] = (own - own.mean()) / (_deviation(own) or 1.0)
    if how == "gauss" and result.size:
        result -= result.min()
    return result


def _deviation(own: Scores) -> float:
    """The standard deviation; 0 when all scores are equal, whatever their mean was rounded to."""
    return 0.0 if np.ptp(own) == 0 else float(own.std())
