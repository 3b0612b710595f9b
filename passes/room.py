"""How far each group can go: room, steps, and what is lost on the way.

Within a group the least important units go first, so an allocation is one count per group, and
what it loses is the sum of the scores of the units that go. Scores ascend within a group: what a
group loses is a convex function of its count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..ir.analysis import PROTECTED, Analysis
from ..ir.coupling import Flags, Pin
from ..ir.units import Group
from ..runtime.products import Counts, Sizes

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """What an allocation must respect.

    ``max_ratio`` is the largest share of units that a group may lose, ``min_channels`` the least
    number of units that it keeps; ``round_to`` makes kept channel counts multiples of a number,
    ``alignment`` (one per group) of a number of the group's own as well; ``inexact`` admits
    inexact groups.
    """

    max_ratio: float = 1.0
    round_to: int = 1
    inexact: bool = False
    min_channels: int = 1
    alignment: tuple[int, ...] | None = None


class Room:
    """The groups of an analysis with their units in the order in which they go.

    ``size``, ``step`` and ``room``, int64[groups]: units, units per step, and the most units that
    may go. Kept counts are multiples of the step, or the whole group.
    """

    def __init__(self, analysis: Analysis, scores: Scores, limits: Limits) -> None:
        self.analysis, self.limits = analysis, limits
        groups = analysis.groups
        self.size = np.array([len(g.units) for g in groups], np.int64)
        contracted = analysis.statements.producers | analysis.statements.consumers
        alignment = limits.alignment or (1,) * len(groups)
        self.step = np.array(
            [
                _step(analysis, g, contracted, math.lcm(limits.round_to, own))
                for g, own in zip(groups, alignment, strict=True)
            ],
            np.int64,
        )
        eligible = np.array([g.exact or limits.inexact for g in groups], np.bool_)
        cap = np.floor(self.size * limits.max_ratio + 1e-9).astype(np.int64)
        room = np.minimum(cap, self.size - max(limits.min_channels, 1)) * eligible
        self.room = self.aligned(np.maximum(room, 0))
        self.order = [g.units[np.argsort(scores[g.units], kind="stable")] for g in groups]
        self.scores = [scores[order] for order in self.order]
        self._losses = np.concatenate(
            [np.empty(0), *(np.concatenate([[0.0], np.cumsum(s)]) for s in self.scores)]
        )
        self._offsets = np.cumsum(self.size + 1) - (self.size + 1)

    def lost(self, removed: Counts) -> Sizes:
        """float64[n]: the sum of the scores that go in each of n allocations, int64[n, groups]."""
        total: Sizes = self.losses(removed).sum(axis=-1)
        return total

    def losses(self, removed: Counts) -> Sizes:
        """What every group loses by itself, in the shape of ``removed``."""
        found: Sizes = self._losses[self._offsets + removed]
        return found

    def losses_of(self, group: Counts, count: Counts) -> Sizes:
        """What ``group[k]`` loses by itself when ``count[k]`` of its units go."""
        found: Sizes = self._losses[self._offsets[group] + count]
        return found

    def lost_share(self, counts: Counts) -> float:
        """The share of all scores that goes under an allocation."""
        total = float(self.lost(self.size))
        return float(self.lost(counts)) / total if total else 0.0

    def aligned(self, removed: Counts) -> Counts:
        """Removes fewer units where that makes the kept count a multiple of the step."""
        kept = -(-(self.size - removed) // self.step) * self.step
        result: Counts = np.maximum(self.size - np.minimum(kept, self.size), 0)
        return result

    def deeper(self, counts: Counts, steps: int) -> Counts:
        """Every group's count after so many steps more, at most its room."""
        kept = -(-(self.size - counts) // self.step) * self.step - steps * self.step
        return np.maximum(np.minimum(self.size - kept, self.room), counts)

    def shallower(self, counts: Counts, steps: int) -> Counts:
        """Every group's count after so many steps back, at least none."""
        kept = (self.size - counts) // self.step * self.step + steps * self.step
        return np.minimum(np.maximum(self.size - kept, 0), counts)

    def flags(self, counts: Counts) -> Flags:
        """bool[unit_count]: the units that go under an allocation."""
        removed = np.zeros(self.analysis.unit_count, np.bool_)
        for order, count in zip(self.order, counts, strict=True):
            removed[order[:count]] = True
        return removed

    def counts(self, removed: Flags) -> Counts:
        """The allocation of such flags."""
        return np.array([removed[g.units].sum() for g in self.analysis.groups], np.int64)


def _step(analysis: Analysis, group: Group, contracted: set[int], round_to: int) -> int:
    """How many units make the kept channels of every contraction multiples of ``round_to``."""
    step = 1
    for channels in channels_per_unit(analysis, group, contracted):
        step = math.lcm(step, round_to // math.gcd(round_to, max(channels, 1)))
    return step


def channels_per_unit(analysis: Analysis, group: Group, contracted: set[int]) -> Sequence[int]:
    """How many channels a unit has in each class of contracted axes that the group touches."""
    axes = [a for a in group.axes if a in contracted] or group.axes[:1]
    found = []
    for root in sorted({analysis.coupling.root(a) for a in axes}):
        units = analysis.units_of(root)
        assert units is not None
        found.append(int(np.isin(units, group.units).sum()) // max(len(group.units), 1))
    return found


def nothing_prunable(analysis: Analysis, limits: Limits) -> str:
    """Why no group has room, and what would help."""
    several = [g for g in analysis.groups if len(g.units) > 1]
    inexact = sum(not g.exact for g in several)
    if inexact and not limits.inexact:
        hint = f"{inexact} groups are inexact: allow them with `inexact`"
        if inexact == 1:
            hint = "1 group is inexact: allow it with `inexact`"
        sites = [analysis.sites[i.site] for i in analysis.statements.inexact]
        if any(all(o.constant for o in site.inputs if o is not None) for site in sites):
            hint += ", or compute normalised weights first, with the pass fold-constants"
    elif several:
        hint = "the limits (`max_ratio`, `round_to`) leave no room"
        if limits.min_channels > 1:
            hint = "the limits (`max_ratio`, `round_to`, `min_channels`) leave no room"
    else:
        held = _protected(analysis)
        hints = [f"what could go is {' and '.join(held)}: narrow `protect`"] if held else []
        hints += analysis.warnings[:1]
        hint = "; ".join(hints) or "run 'secateur inspect' to see what is pinned and why"
    return f"nothing in this model can be pruned; {hint}"


def _protected(analysis: Analysis) -> list[str]:
    """By which globs axes are protected that no other pin holds, nor one linked to them."""
    pins: dict[int, list[Pin]] = {}
    for pin in analysis.coupling.pins:
        pins.setdefault(analysis.coupling.root(pin.axis), []).append(pin)
    alone = [held for held in pins.values() if all(pin.site == PROTECTED for pin in held)]
    return list(dict.fromkeys(pin.reason for held in alone for pin in held))
