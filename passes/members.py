"""Members: the weight axes that units own, and how the scores of a unit's members become one.

A weight axis with coordinates of a unit is a *member* of it, a producer or a consumer where a
contraction makes or reads channels along it, else coupled (biases, scales of normalisations). A
constant that several nodes read is a member once for every class of axes that its uses lie on.

Coupled vectors shift or rescale what a contraction computes; their size is no measure of it. They
count for units that own nothing else. With ``producers``, producers count alone where there are
any, and the members are summed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..ir.analysis import Analysis
from ..ir.constants import constants
from ..ir.coupling import Indices
from ..ir.external import release
from ..ir.roles import roles_of_axes
from .scoring import Combine, Scores
from .stored_weights import Numbers, numbers


@dataclass(frozen=True)
class Member:
    """Axis ``index`` of a weight; ``units`` has the unit of every coordinate, -1 where it stays."""

    index: int
    role: str
    units: Indices


@dataclass(frozen=True)
class Partial:
    """Scores that one member gives to ``units``, which are unique."""

    role: str
    units: Indices
    scores: Scores


def owned_weights(analysis: Analysis) -> Iterator[tuple[Numbers, list[Member]]]:
    """Every weight that units own: its real numbers (read once; large) and its members."""
    places = _places(analysis)
    values = {str(v.name): (v, tensor) for v, tensor in constants(analysis.model.graph)}
    for weight in analysis.weights:
        if weight.name in places:
            value, tensor = values[weight.name]
            yield numbers(value), places[weight.name]
            release(tensor)


def _places(analysis: Analysis) -> dict[str, list[Member]]:
    """The members of every weight, by its name."""
    roles = roles_of_axes(analysis)
    found: dict[str, dict[tuple[int, int], str]] = defaultdict(dict)
    for operand in analysis.operands.values():
        if operand.name in analysis.weight_names:
            for index, axis in enumerate(operand.axes):
                key = index, analysis.coupling.root(axis)
                if found[operand.name].get(key, "coupled") == "coupled":
                    found[operand.name][key] = roles.get(axis, "coupled")
    result: dict[str, list[Member]] = {}
    for name, axes in found.items():
        units = ((index, role, analysis.units_of(root)) for (index, root), role in axes.items())
        members = [Member(index, role, own) for index, role, own in units if own is not None]
        if members:
            result[name] = members
    return result


def along(array: Numbers, index: int) -> Scores:
    """float64[size of the axis]: the sums over all other axes."""
    others = tuple(k for k in range(array.ndim) if k != index)
    sums: Scores = array.sum(axis=others, dtype=np.float64)
    return sums


def per_unit(role: str, units: Indices, values: Scores) -> Partial:
    """The sums over the coordinates of each unit; ``units`` is -1 where none owns one."""
    inside = units >= 0
    owners, place = np.unique(units[inside], return_inverse=True)
    sums = np.bincount(place, values[inside], len(owners)).astype(np.float64)
    return Partial(role, owners, sums)


def combined(partials: Iterable[Partial], unit_count: int, how: Combine) -> Scores:
    """float64[unit_count]: for every unit the sum, mean or maximum over the members that count
    (see the module); 0 for units without any."""
    ranks = {"producer": 0, "consumer": 1 if how == "producers" else 0, "coupled": 2}
    total, most, count = (np.zeros((3, unit_count)) for _ in range(3))
    for partial in partials:
        rank, units = ranks[partial.role], partial.units
        total[rank, units] += partial.scores
        most[rank, units] = np.maximum(most[rank, units], partial.scores)
        count[rank, units] += 1
    first = np.argmax(count > 0, axis=0), np.arange(unit_count)
    result: Scores = (most if how == "max" else total)[first]
    return result / np.maximum(count[first], 1) if how == "mean" else result
