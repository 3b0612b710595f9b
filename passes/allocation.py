"""Allocation: how many units each group keeps, under a target.

Within a group the least important units go first, so an allocation is one number per group.
``local`` takes the same share from every group; ``global`` ranks all units by their scores, which
`score_units` has normalised. For a MACs or parameter target the least cut that meets it is found by
bisection, then units are given back as long as the target still holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..ir.analysis import Analysis
from ..ir.coupling import Flags
from ..ir.errors import TargetError
from ..ir.units import Group
from ..runtime.cost import CostModel, Products

Counts = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """What to reach: ``kind`` is "ratio" (share of units removed) or "macs" or "params" (share of
    the original that may stay)."""

    kind: Literal["ratio", "macs", "params"]
    value: float


@dataclass(frozen=True)
class Limits:
    """What an allocation must respect.

    ``max_ratio`` is the largest share of units that a group may lose; ``round_to`` makes kept
    channel counts multiples of a number; ``inexact`` admits inexact groups.
    """

    max_ratio: float = 1.0
    round_to: int = 1
    inexact: bool = False


def allocate(
    analysis: Analysis,
    scores: Scores,
    target: Target,
    limits: Limits,
    scope: Literal["local", "global"] = "local",
) -> Flags:
    """bool[unit_count]: the units to remove. Raises TargetError when nothing can be pruned or the
    target is out of reach."""
    allocation = _Allocation(analysis, scores, limits)
    if not allocation.room.any():
        raise TargetError(_nothing_prunable(analysis, limits))
    path = allocation.shares if scope == "local" else allocation.ranking
    if target.kind == "ratio":
        counts = path(target.value)
        if not counts.any():
            raise TargetError(
                f"a ratio of {target.value:g} removes no unit from any of the "
                f"{int((allocation.room > 0).sum())} prunable groups; ask for more"
            )
        return allocation.flags(counts)
    return allocation.flags(_meet(allocation, path, target))


class _Allocation:
    """The groups that take part, with their room and step."""

    def __init__(self, analysis: Analysis, scores: Scores, limits: Limits) -> None:
        self.analysis = analysis
        groups = analysis.groups
        self.size = np.array([len(g.units) for g in groups], np.int64)
        contracted = analysis.statements.producers | analysis.statements.consumers
        steps = [_step(analysis, g, contracted, limits.round_to) for g in groups]
        self.step = np.array(steps, np.int64)
        eligible = np.array([g.exact or limits.inexact for g in groups], np.bool_)
        cap = np.floor(self.size * limits.max_ratio + 1e-9).astype(np.int64)
        room = np.minimum(cap, self.size - 1) * eligible
        self.room = self.aligned(np.maximum(room, 0))
        self.order = [g.units[np.argsort(scores[g.units], kind="stable")] for g in groups]
        self.scores = scores

    def aligned(self, removed: Counts) -> Counts:
        """Removes fewer units where that makes the kept count a multiple of the step."""
        kept = -(-(self.size - removed) // self.step) * self.step
        result: Counts = np.maximum(self.size - np.minimum(kept, self.size), 0)
        return result

    def shares(self, ratio: float) -> Counts:
        """The same share of every group, to the nearest unit."""
        wanted = np.floor(self.size * ratio + 0.5).astype(np.int64)
        return self.aligned(np.minimum(wanted, self.room))

    def ranking(self, ratio: float) -> Counts:
        """The least important share of all units that have room to go."""
        ranked, groups = self._ranked
        total = int(self.size[self.room > 0].sum())
        gone = groups[ranked[: round(ratio * total)]]
        counts = np.bincount(gone, minlength=len(self.size)).astype(np.int64)
        return self.aligned(np.minimum(counts, self.room))

    @cached_property
    def _ranked(self) -> tuple[Counts, Counts]:
        found: list[Scores] = []
        owner: list[Counts] = []
        for g, order in enumerate(self.order):
            removable = order[: self.room[g]]
            found.append(self.scores[removable])
            owner.append(np.full(len(removable), g, np.int64))
        return np.argsort(np.concatenate(found), kind="stable"), np.concatenate(owner)

    def flags(self, counts: Counts) -> Flags:
        removed = np.zeros(self.analysis.unit_count, np.bool_)
        for order, count in zip(self.order, counts, strict=True):
            removed[order[:count]] = True
        return removed


def _step(analysis: Analysis, group: Group, contracted: set[int], round_to: int) -> int:
    """How many units make the kept channels of every contraction multiples of ``round_to``."""
    axes = [a for a in group.axes if a in contracted] or group.axes[:1]
    step = 1
    for root in {analysis.coupling.root(a) for a in axes}:
        units = analysis.units_of(root)
        assert units is not None
        channels = int(np.isin(units, group.units).sum()) // max(len(group.units), 1)
        step = math.lcm(step, round_to // math.gcd(round_to, max(channels, 1)))
    return step


def _meet(allocation: _Allocation, path: Callable[[float], Counts], target: Target) -> Counts:
    """The smallest cut along ``path`` that meets the target, then units given back.

    The search works on products of mean sizes. They are exact unless units of one group differ,
    or layers that share a vector keep different parts of it; then the search aims lower until
    the exact costs meet the target too.
    """
    costs = CostModel(allocation.analysis)
    products = costs.macs if target.kind == "macs" else costs.parameters

    def exact(counts: Counts) -> float:
        found = costs.costs(allocation.flags(counts))
        return float(found.macs if target.kind == "macs" else found.parameters)

    whole = exact(np.zeros_like(allocation.size))
    goal = whole * target.value
    least = exact(allocation.room)
    if least > goal * (1 + 1e-12):
        what = "MACs" if target.kind == "macs" else "parameters"
        raise TargetError(
            f"{what} cannot go down to {target.value:g} of the original: "
            f"at best {_rounded_up(least / whole)} can be reached under these limits"
        )
    limit = goal
    while True:
        counts = _search(allocation, path, products, limit)
        excess = exact(counts) - goal
        if excess <= goal * 1e-12:
            break
        limit -= max(excess, whole * 1e-4)
    return counts if limit == goal else _give_back_exactly(allocation, counts, exact, goal)


def _search(
    allocation: _Allocation, path: Callable[[float], Counts], products: Products, limit: float
) -> Counts:
    """The smallest cut along ``path`` whose cost is at most ``limit``; all room if none is."""
    low, high = 0.0, 1.0
    if products.total(path(high)) > limit:
        return _give_back(allocation, allocation.room.copy(), products, limit)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if products.total(path(middle)) <= limit else (middle, high)
    return _give_back(allocation, path(high), products, limit)


def _give_back_exactly(
    allocation: _Allocation, counts: Counts, exact: Callable[[Counts], float], goal: float
) -> Counts:
    """As `_give_back`, with exact costs: slow, for the rare models that need it."""
    while True:
        best, found = exact(counts), None
        for g in np.flatnonzero(counts > 0):
            trial = counts.copy()
            trial[g] = max(trial[g] - allocation.step[g], 0)
            cost = exact(trial)
            if best < cost <= goal:
                best, found = cost, trial
        if found is None:
            return counts
        counts = found


def _give_back(allocation: _Allocation, counts: Counts, products: Products, limit: float) -> Counts:
    """Restores the largest step that still fits, again and again."""
    counts, fits = counts.copy(), np.ones(len(counts), np.bool_)
    while True:
        back = np.minimum(allocation.step, counts)
        gains = products.gains(counts, back)
        # Costs only grow, so what does not fit now never will.
        fits &= products.total(counts) + gains <= limit
        best = int(np.argmax(np.where(fits, gains, -1.0)))
        if not fits[best] or gains[best] <= 0:
            return counts
        counts[best] -= back[best]


def _rounded_up(share: float) -> str:
    """Four significant digits, never less than the share itself."""
    unit = 10.0 ** (math.floor(math.log10(share)) - 3)
    return f"{math.ceil(share / unit - 1e-9) * unit:.4g}"


def _nothing_prunable(analysis: Analysis, limits: Limits) -> str:
    inexact = sum(not g.exact and len(g.units) > 1 for g in analysis.groups)
    hint = "run 'secateur inspect' to see what is pinned and why"
    if inexact and not limits.inexact:
        hint = f"{inexact} groups are inexact: allow them with --inexact"
        sites = [analysis.sites[i.site] for i in analysis.statements.inexact]
        if any(all(o.constant for o in site.inputs if o is not None) for site in sites):
            hint += ", or compute normalised weights first, with the pass fold-constants"
    elif any(len(g.units) > 1 for g in analysis.groups):
        hint = "the limits (--max-ratio, --round-to) leave no room"
    elif analysis.warnings:
        hint = analysis.warnings[0]
    return f"nothing in this model can be pruned; {hint}"
