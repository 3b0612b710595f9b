"""Sensitivity: how far the outputs move when one group alone loses a share of its units.

For every group and share, the least important units by a criterion would go; what is left of the
model is its masked original (see `secateur.runtime.candidates`). Li et al. 2017, "Pruning Filters
for Efficient ConvNets", section 3.2, plot the same against accuracy; here it needs no labels.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.analysis import Analysis
from ..ir.coupling import Flags
from ..ir.errors import TargetError, UsageError
from ..ir.naming import output_name
from ..ir.reference import reference_points
from ..ir.registry import suggest
from ..ir.units import Group
from ..runtime.candidates import Candidate, Measured
from ..runtime.cost import CostModel
from ..runtime.drift import Drift, worst
from .criteria import score_units
from .proof import facts_types
from .room import Limits, nothing_prunable


@dataclass(frozen=True)
class Sweep:
    """Which groups lose which shares: ``ratios`` are more than 0 and less than 1, ``groups`` are
    globs of group names (none: all), ``inexact`` admits groups that a normalisation looks across.
    """

    ratios: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    criterion: str = "l2"
    inexact: bool = False
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ratios:
            raise ValueError("`ratios` needs at least one share")
        for ratio in self.ratios:
            if not 0 < ratio < 1:
                raise ValueError(f"`ratios` must be more than 0 and less than 1, not {ratio:g}")
        if len(set(self.ratios)) != len(self.ratios):
            raise ValueError("`ratios` has a share twice")


@dataclass(frozen=True)
class Case:
    """One group and one share. ``removed`` units would go, possibly none; at least one stays.
    ``macs`` and ``parameters`` are the shares of the whole model that go with them, where units of
    a group differ on average."""

    group: Group
    ratio: float
    removed: int
    macs: float
    parameters: float
    candidate: Candidate


@dataclass(frozen=True)
class Row:
    """One line of the table: a case and the drift that was measured, the worst of all outputs.

    ``number`` and ``group`` are the group's number and name; names need not be unique.
    """

    number: int
    group: str
    exact: bool
    units: int
    ratio: float
    removed: int
    macs: float
    parameters: float
    drift: Drift
    outputs: Mapping[str, Drift]
    failure: str | None = None


def cases(analysis: Analysis, sweep: Sweep) -> list[Case]:
    """All cases, by group and share.

    Raises TargetError when nothing can be pruned, UsageError for an unknown criterion or a glob
    that fits no group.
    """
    groups = _groups(analysis, sweep)
    scores = score_units(analysis, sweep.criterion)
    costs = CostModel(analysis)
    none = np.zeros(len(analysis.groups), np.int64)
    types = facts_types(analysis.facts)
    values = {
        output_name(site.node): [str(v.name) for v in (*site.node.inputs, *site.node.outputs) if v]
        for site in analysis.sites
    }

    def candidate(removed: Flags) -> Candidate:
        masks, compactions = reference_points(analysis, removed)
        nodes = {*(m.output for m in masks), *(c.output for c in compactions)}
        names = {name for node in nodes for name in values[node]}
        known = tuple((name, types[name]) for name in sorted(names & types.keys()))
        return Candidate(tuple(masks), tuple(compactions), known)

    found = []
    for group in groups:
        order = group.units[np.argsort(scores[group.units], kind="stable")]
        for ratio in sorted(sweep.ratios):
            count = min(int(np.floor(len(order) * ratio + 0.5)), len(order) - 1)
            removed = np.zeros(analysis.unit_count, np.bool_)
            removed[order[:count]] = True
            counts = none.copy()
            counts[group.number] = count
            macs, parameters = (
                _saved(products.total(none), products.total(counts))
                for products in (costs.macs, costs.parameters)
            )
            found.append(Case(group, ratio, count, macs, parameters, candidate(removed)))
    return found


def _saved(before: float, after: float) -> float:
    return round(1 - after / before, 6) + 0.0 if before else 0.0


def _groups(analysis: Analysis, sweep: Sweep) -> list[Group]:
    chosen = [g for g in analysis.groups if len(g.units) > 1 and (g.exact or sweep.inexact)]
    if not chosen:
        raise TargetError(nothing_prunable(analysis, Limits(inexact=sweep.inexact)))
    for glob in sweep.groups:
        names = [g.name for g in chosen]
        if not any(_fits(name, glob) for name in names):
            raise UsageError(f"`groups` '{glob}' fits no prunable group{suggest(glob, names)}")
    return [g for g in chosen if not sweep.groups or any(_fits(g.name, p) for p in sweep.groups)]


def _fits(name: str, glob: str) -> bool:
    """Names end in an axis such as ``[0]``, which a glob would take for a set of characters."""
    return (
        name == glob
        or fnmatch.fnmatchcase(name, glob)
        or fnmatch.fnmatchcase(name.rpartition("[")[0], glob)
    )


def rows(entries: Sequence[Case], measured: Mapping[str, Measured], metric: str) -> list[Row]:
    """The table, the most sensitive group first: by its largest drift, then by name.

    ``measured`` has a result for the key of every candidate.
    """
    made = []
    for case in entries:
        result = measured[case.candidate.key]
        made.append(
            Row(
                case.group.number,
                case.group.name,
                case.group.exact,
                len(case.group.units),
                case.ratio,
                case.removed,
                case.macs,
                case.parameters,
                worst(result.outputs.values()),
                result.outputs,
                result.failure,
            )
        )
    largest: dict[int, float] = {}
    for row in made:
        value = getattr(row.drift, metric)
        value = np.inf if value is None else value
        largest[row.number] = max(largest.get(row.number, 0.0), value)
    return sorted(made, key=lambda row: (-largest[row.number], row.group, row.number, row.ratio))
