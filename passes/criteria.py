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
import onnx_ir as oir

from ..ir.analysis import Analysis, Weight
from ..ir.constants import constant_tensor, constants
from ..ir.errors import ModelError, UsageError
from ..ir.external import release
from ..ir.registry import Registry, one_line
from ..ir.roles import roles_of_axes
from .stored_weights import numbers

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
    values = {str(v.name): v for v, _ in constants(analysis.model.graph)}
    for weight in analysis.weights:
        owning = _owned_axes(analysis, weight, roles)
        if not owning:
            continue
        with np.errstate(over="ignore"):  # an infinite score is refused later
            powers = power(numbers(values[weight.name]))  # large: read and raised once
        for axis, role, units in owning:
            others = tuple(k for k in range(powers.ndim) if k != axis)
            sums = powers.sum(axis=others, dtype=np.float64)
            inside = units >= 0
            contraction = role != "coupled"
            np.add.at(total if contraction else other, units[inside], sums[inside])
            if contraction:
                owned[units[inside]] = True
        release(_tensor(values[weight.name]))
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


def _tensor(value: oir.Value) -> oir.TensorProtocol:
    tensor = constant_tensor(value)
    assert tensor is not None
    return tensor


def _check(name: str, loaded: object) -> Criterion:
    if not callable(loaded):
        raise UsageError(f"criterion '{name}' is not a function of an analysis")
    return loaded


@lru_cache(maxsize=1)
def criteria() -> Registry[Criterion]:
    """All criteria by name."""
    builtins = {"l1": "criteria:l1", "l2": "criteria:l2"}
    return Registry("criterion", "secateur.criteria", "secateur.passes", builtins, _check)


def _infinite_weight(analysis: Analysis) -> str:
    """The first weight that is not finite; the sum of finite ones may overflow, too."""
    for value, tensor in constants(analysis.model.graph):
        if value.name in analysis.weight_names:
            array = np.asarray(tensor.numpy()).astype(np.float64)
            if not np.isfinite(array).all():
                return str(value.name)
    return "?"


def score_units(analysis: Analysis, criterion: str) -> Scores:
    """float64[unit_count] from the named criterion. Raises UsageError when the name is unknown
    or a third party's criterion fails or returns something else."""
    registry = criteria()
    score, provider = registry.get(criterion), registry.provider(criterion)
    try:
        scores = np.asarray(score(analysis), np.float64)
    except Exception as error:
        if provider == "secateur":
            raise
        raise UsageError(
            f"criterion '{criterion}' of '{provider}' failed ({type(error).__name__}: "
            f"{one_line(error)}); repair or uninstall '{provider}'"
        ) from error
    if provider == "secateur" and not np.isfinite(scores).all():
        raise ModelError(f"weight '{_infinite_weight(analysis)}' holds NaN or infinity; mend it")
    if scores.shape != (analysis.unit_count,) or not np.isfinite(scores).all():
        raise UsageError(
            f"criterion '{criterion}' of '{provider}' must give one finite score for each of the "
            f"{analysis.unit_count} units; are all weights finite?"
        )
    return scores
