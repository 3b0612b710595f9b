"""Criteria: how important a unit is, from the weights it owns.

A criterion is a function ``score(analysis) -> float64[unit_count]``; larger is more important.
Scores are compared within a group, and between groups after division by the group's mean.
Others' criteria arrive through the entry points ``secateur.criteria``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..ir.analysis import Analysis, Weight
from ..ir.constants import constant_tensor
from ..ir.errors import UsageError
from ..ir.registry import Registry
from ..ir.roles import roles_of_axes

Scores = npt.NDArray[np.float64]
Criterion = Callable[[Analysis], Scores]


def l1(analysis: Analysis) -> Scores:
    """Sum of absolute values over all weights of contractions that the unit owns
    (Li et al. 2017, "Pruning Filters for Efficient ConvNets", extended to whole units)."""
    return _sums(analysis, lambda w: np.abs(w))


def l2(analysis: Analysis) -> Scores:
    """Euclidean norm over all weights of contractions that the unit owns
    (He et al. 2018, "Soft Filter Pruning", extended to whole units)."""
    return np.sqrt(_sums(analysis, np.square))


def _sums(analysis: Analysis, power: Callable[[Scores], Scores]) -> Scores:
    """For every unit, the sum of ``power(weight)`` over the weights it owns.

    Producers and consumers count; units that own neither are scored by whatever they own.
    """
    total, other = (np.zeros(analysis.unit_count) for _ in range(2))
    owned = np.zeros(analysis.unit_count, np.bool_)
    roles = roles_of_axes(analysis)
    values = {str(v.name): v for v in analysis.model.graph.initializers.values()}
    values |= {str(o.name): o for n in analysis.model.graph for o in n.outputs}
    for weight in analysis.weights:
        owning = _owned_axes(analysis, weight, roles)
        if not owning:
            continue
        tensor = constant_tensor(values[weight.name])
        assert tensor is not None
        with np.errstate(over="ignore"):  # an infinite score is refused later
            powers = power(_float(np.asarray(tensor.numpy())))  # large: read and raised once
        for axis, role, units in owning:
            others = tuple(k for k in range(powers.ndim) if k != axis)
            sums = powers.sum(axis=others, dtype=np.float64)
            inside = units >= 0
            contraction = role != "coupled"
            np.add.at(total if contraction else other, units[inside], sums[inside])
            if contraction:
                owned[units[inside]] = True
    return np.where(owned, total, other)


def _owned_axes(
    analysis: Analysis, weight: Weight, roles: dict[int, str]
) -> list[tuple[int, str, npt.NDArray[np.int64]]]:
    found = []
    for index, axis in enumerate(weight.axes[0]):
        units = analysis.units_of(axis)
        if units is not None:
            found.append((index, roles.get(axis, "coupled"), units))
    return found


def _float(array: npt.NDArray[np.generic]) -> Scores:
    """Narrow and integer types as float32; the rest as it is."""
    kind = np.float64 if array.dtype == np.float64 else np.float32
    return array.astype(kind, copy=False)


def _check(name: str, loaded: object) -> Criterion:
    if not callable(loaded):
        raise UsageError(f"criterion '{name}' is not a function of an analysis")
    return loaded


@lru_cache(maxsize=1)
def criteria() -> Registry[Criterion]:
    """All criteria by name."""
    builtins = {"l1": "criteria:l1", "l2": "criteria:l2"}
    return Registry("criterion", "secateur.criteria", "secateur.passes", builtins, _check)


def score_units(analysis: Analysis, criterion: str) -> Scores:
    """float64[unit_count] from the named criterion. Raises UsageError when the name is unknown
    or a third party's criterion returns something else."""
    scores = np.asarray(criteria().get(criterion)(analysis), np.float64)
    if scores.shape != (analysis.unit_count,) or not np.isfinite(scores).all():
        raise UsageError(
            f"criterion '{criterion}' must give one finite score for each of the "
            f"{analysis.unit_count} units"
        )
    return scores
