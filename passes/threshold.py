"""The first allocation that meets all limits: the same share of every group, or a threshold.

The threshold is a price: score lost per excess saved. Units go while theirs is below it, and it
rises until all limits hold. What a unit saves depends on what else is kept, so it is computed
anew after every rise, for what is left; the rise halves when it would overshoot.
"""

from __future__ import annotations

import numpy as np

from ..runtime.products import Counts
from .gauges import Bounds, moves, over
from .room import Room

_RISE, _LEAST_RISE = 0.1, 1e-3
_AHEAD = (1, 2, 4, 8)
"""Steps looked ahead where costs fall in stairs."""


def same_share(room: Room, ratio: float) -> Counts:
    """The same share of the units of every group, to the nearest unit."""
    wanted = np.floor(room.size * ratio + 0.5).astype(np.int64)
    return room.aligned(np.minimum(wanted, room.room))


def least_share(room: Room, bounds: Bounds) -> Counts:
    """The smallest same share of every group that meets the limits; all room if none does."""
    low, high = 0.0, 1.0
    if bounds.excess(same_share(room, high)[None])[0] > 0:
        return room.room.copy()
    for _ in range(40):
        middle = (low + high) / 2
        fits = bounds.excess(same_share(room, middle)[None])[0] <= 0
        low, high = (low, middle) if fits else (middle, high)
    return same_share(room, high)


def lowest(room: Room, ratio: float) -> Counts:
    """The share of all units in groups with room that has the lowest scores."""
    owner = np.repeat(np.arange(len(room.size)), room.room)
    scores = [s[:r] for s, r in zip(room.scores, room.room, strict=True)]
    ranked = np.argsort(np.concatenate([np.empty(0), *scores]), kind="stable")
    total = int(room.size[room.room > 0].sum())
    gone = owner[ranked[: round(ratio * total)]]
    counts = np.bincount(gone, minlength=len(room.size)).astype(np.int64)
    return room.aligned(np.minimum(counts, room.room))


def threshold(room: Room, bounds: Bounds) -> Counts:
    """Units removed by score over excess saved until the limits are met; all room if they cannot
    be."""
    counts = np.zeros_like(room.size)
    excess, rise = float(bounds.excess(counts[None])[0]), _RISE
    while excess > 0:
        group, after = _steps(room, counts, (1,) if bounds.smooth else _AHEAD)
        if not len(group):
            return counts
        saved = excess - over(bounds.after(counts, group, after))
        lost = room.losses_of(group, after) - room.losses_of(group, counts[group])
        price = np.full(len(group), np.inf)
        np.divide(lost, saved, out=price, where=saved > TINY)
        best = int(np.argmin(price))
        if not np.isfinite(price[best]):  # nothing helps by itself: several must go together
            counts = room.deeper(counts, 1)
        else:
            rise = max(rise, _LEAST_RISE)
            while True:
                limit = price[best] + rise * abs(price[best])
                below = np.flatnonzero(price <= limit)
                trial = counts.copy()
                for move in below:
                    g, count = group[move], after[move]
                    each = limit * saved[move] / (count - counts[g])
                    further = np.searchsorted(room.scores[g], each, side="right")
                    trial[g] = max(trial[g], count, min(further, room.room[g]))
                trial = np.maximum(room.aligned(trial), counts)
                trial[group[best]] = max(trial[group[best]], after[best])
                if bounds.excess(trial[None])[0] > 0:
                    break
                if rise < _LEAST_RISE:
                    trial = moves(counts, group[[best]], after[[best]])[0]
                    break
                rise /= 4
            counts = trial
        excess = float(bounds.excess(counts[None])[0])
    return counts


TINY = 1e-15


def _steps(room: Room, counts: Counts, ahead: tuple[int, ...]) -> tuple[Counts, Counts]:
    """Every single-group move so many steps deeper: group numbers and counts after it."""
    groups = np.flatnonzero(counts < room.room)
    after = [room.deeper(counts, steps)[groups] for steps in ahead]
    return np.tile(groups, len(ahead)), np.concatenate(after)
