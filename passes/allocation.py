"""Allocation: how many units each group keeps, under all targets at once.

Within a group the least important units go first, so an allocation is one number per group.
``local`` takes the same share from every group. ``global`` keeps the highest total score that the
targets allow: with s the scores and c the costs, it looks for counts n that minimise

    sum over groups g of (s_g1 + ... + s_g,n_g)    subject to    c_k(n) <= goal_k for all k.

The costs are sums of products of axis sizes, so what a unit saves depends on what else is kept.
A threshold on score per cost saved, found by search, gives a first answer (`threshold`), which
exchanges of steps between groups improve (`exchange`). How far from the best it can end is
bounded from below by `relaxation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ..ir.analysis import Analysis
from ..ir.coupling import Flags
from ..ir.errors import TargetError
from ..ir.wording import counted
from ..runtime.products import Counts
from .exchange import exchange, fill
from .gauges import Bounds, Gauge, exact_gauges
from .room import Limits, Room, Scores, nothing_prunable
from .targets import NOUNS, Target
from .threshold import least_share, lowest, same_share, threshold

__all__ = ["Limits", "Room", "Scores", "Target", "allocate", "by_ratio", "solve"]

Scope = Literal["local", "global"]
EXACT = 1e-12
"""The relative rounding error of a goal."""


def allocate(
    analysis: Analysis,
    scores: Scores,
    targets: Target | Sequence[Target],
    limits: Limits,
    scope: Scope = "local",
) -> Flags:
    """bool[unit_count]: the units to remove. Raises TargetError when nothing can be pruned or a
    target is out of reach."""
    targets = [targets] if isinstance(targets, Target) else list(targets)
    room = Room(analysis, scores, limits)
    if targets[0].kind == "ratio":
        return room.flags(by_ratio(room, targets[0].value, scope))
    return room.flags(solve(room, exact_gauges(analysis, targets), scope))


def by_ratio(room: Room, ratio: float, scope: Scope) -> Counts:
    """The allocation that removes a share of the units: of every group, or of all."""
    if not room.room.any():
        raise TargetError(nothing_prunable(room.analysis, room.limits))
    counts = same_share(room, ratio) if scope == "local" else lowest(room, ratio)
    if not counts.any():
        raise TargetError(
            f"a ratio of {ratio:g} removes no unit from any of "
            f"{counted(int((room.room > 0).sum()), 'prunable group')}; ask for more"
        )
    return counts


def solve(room: Room, gauges: Sequence[Gauge], scope: Scope) -> Counts:
    """The allocation that keeps most under the goals of all gauges.

    The search works on predictions. Where the exact cost is higher (units of one group differ,
    layers that share a vector keep different parts of it, a file has more than weights), it aims
    lower until that meets the goal too.
    """
    if not room.room.any():
        raise TargetError(nothing_prunable(room.analysis, room.limits))
    check_reachable(room, gauges)
    limits = [g.goal for g in gauges]
    while True:
        counts = search(room, Bounds(len(room.size), gauges, limits), scope)
        flags = room.flags(counts)
        excess = [g.exact(flags) - g.goal for g in gauges]
        over = [k for k, e in enumerate(excess) if e > gauges[k].goal * EXACT]
        if not over:
            break
        if (counts == room.room).all():
            raise TargetError(
                _out_of_reach(gauges[over[0]], excess[over[0]] + gauges[over[0]].goal)
            )
        for k in over:
            predicted = float(gauges[k].predict(counts[None]).max(initial=0.0))
            limits[k] = min(limits[k], predicted) - excess[k]
    lowered = any(limit != g.goal for limit, g in zip(limits, gauges, strict=True))
    if lowered and all(g.cheap for g in gauges):
        return _fill_exactly(room, counts, gauges)
    return counts


def search(room: Room, bounds: Bounds, scope: Scope) -> Counts:
    """The allocation that keeps most within limits on predicted costs; all room if none fits.

    The search for the global one starts from the threshold and from the same share of every
    group: each has cases that it ends better in. Costs that fall in stairs take longer to evaluate
    and are measured, so less is spent on them: one start, fewer exchanges.
    """
    if bounds.excess(room.room[None])[0] > 0:
        return room.room.copy()
    if scope == "local":
        return fill(room, bounds, least_share(room, bounds), largest=True)
    if not bounds.smooth:
        return exchange(room, bounds, threshold(room, bounds), rounds=80)
    starts = (threshold(room, bounds), least_share(room, bounds))
    found = [exchange(room, bounds, start) for start in starts]
    return min(found, key=lambda counts: float(room.lost(counts)))


def check_reachable(room: Room, gauges: Sequence[Gauge]) -> None:
    """Raises TargetError when all room together does not meet a goal."""
    least = room.flags(room.room)
    for gauge in gauges:
        predicted = float(gauge.predict(room.room[None]).max(initial=0.0))
        if gauge.cheap or predicted > 0.99 * gauge.goal:
            reached = gauge.exact(least)
            if reached > gauge.goal * (1 + EXACT):
                raise TargetError(_out_of_reach(gauge, reached))


def _out_of_reach(gauge: Gauge, reached: float) -> str:
    target = gauge.target
    asked = f"{target.value:g} of the original" if target.is_share else f"{target.value:g}"
    return (
        f"{NOUNS[target.kind]} cannot go down to {asked}: at best "
        f"{target.amount(reached, gauge.whole).removesuffix(' of the original')} can be reached "
        "under these limits"
    )


def _fill_exactly(room: Room, counts: Counts, gauges: Sequence[Gauge]) -> Counts:
    """As `fill`, with exact costs: slow, for the rare models that need it."""
    fits: Callable[[Counts], bool] = lambda trial: all(  # noqa: E731
        g.exact(room.flags(trial)) <= g.goal * (1 + EXACT) for g in gauges
    )
    while True:
        back = room.shallower(counts, 1)
        gains = room.losses(counts) - room.losses(back)
        for g in np.argsort(-np.where(back < counts, gains, -np.inf), kind="stable"):
            trial = counts.copy()
            trial[g] = back[g]
            if back[g] < counts[g] and fits(trial):
                counts = trial
                break
        else:
            return counts
