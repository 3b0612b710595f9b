"""Improving an allocation: units come back where there is slack, and groups exchange steps.

Moves that take steps from one group and moves that give steps to another are paired. The change
of every quantity under a pair is first estimated as the sum of the two changes, which ignores
that they may share a layer; the pairs that promise most are evaluated exactly, and the best that
fits is taken, until none is left.
"""

from __future__ import annotations

import numpy as np

from ..runtime.products import Counts, Sizes
from .gauges import Bounds, moves, over
from .room import Room

_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)
_TRIED, _TIGHTEST, _MOST_MOVES = 256, 8, 600


def fill(room: Room, bounds: Bounds, counts: Counts, *, largest: bool = False) -> Counts:
    """Gives steps back, those of the highest score first (or with ``largest`` those that cost
    most), until none fits."""
    counts, fits = counts.copy(), counts > 0
    while True:
        groups = np.flatnonzero(fits & (counts > 0))
        if not len(groups):
            return counts
        back = room.shallower(counts, 1)[groups]
        shares = bounds.after(counts, groups, back)
        # Costs only grow, so what does not fit now never will.
        possible = over(shares) <= 0
        fits[groups[~possible]] = False
        if possible.any():
            gains = room.losses_of(groups, counts[groups]) - room.losses_of(groups, back)
            worth = shares.sum(axis=1) if largest else gains
            best = int(np.argmax(np.where(possible, worth, -np.inf)))
            counts[groups[best]] = back[best]


def exchange(room: Room, bounds: Bounds, counts: Counts, rounds: int = 200) -> Counts:
    """A better allocation within the same limits, found from one that keeps them."""
    counts = fill(room, bounds, counts)
    for _ in range(min(rounds, 20_000 // len(counts) + 1)):
        better = _best_pair(room, bounds, counts)
        if better is None:
            return counts
        counts = fill(room, bounds, better)
    return counts


def _best_pair(room: Room, bounds: Bounds, counts: Counts) -> Counts | None:
    down, up = _all_moves(room, counts, deeper=True), _all_moves(room, counts, deeper=False)
    if not len(down[0]) or not len(up[0]):
        return None
    here, lost = bounds.shares(counts[None])[0], float(room.lost(counts))
    tight = np.argsort(-here, kind="stable")[:_TIGHTEST]
    taken, given = (_worthwhile(room, bounds, counts, *move, tight) for move in (down, up))
    (take, falls, losses), (give, rises, gains) = taken, given
    net = -gains[None, :] - losses[:, None]  # what comes back counts as a negative loss
    worst = np.full(net.shape, -np.inf)
    for k, at in enumerate(here[tight]):
        both = falls[:, k, None] + rises[None, :, k]
        shared = falls[:, k, None] * rises[None, :, k] / max(float(at), 1e-9)
        worst = np.maximum(worst, at + both + 2 * shared - 1)
    promising = (net > 1e-12 * max(abs(lost), 1e-300)) & (worst <= 0)
    promising &= take[0][:, None] != give[0][None, :]
    pairs = np.flatnonzero(promising)
    if not len(pairs):
        return None
    chosen = pairs[np.argsort(-net.ravel()[pairs], kind="stable")[:_TRIED]]
    first, second = np.unravel_index(chosen, net.shape)
    trials = moves(counts, take[0][first], take[1][first])
    trials[np.arange(len(trials)), give[0][second]] = give[1][second]
    fits = bounds.excess(trials) <= 0
    return trials[int(np.argmax(fits))] if fits.any() else None


def _worthwhile(
    room: Room, bounds: Bounds, counts: Counts, group: Counts, count: Counts, tight: Counts
) -> tuple[tuple[Counts, Counts], Sizes, Sizes]:
    """Moves, their changes of the tightest quantities and of what is lost; of very many those of
    the best price."""
    changes = bounds.after(counts, group, count)[:, tight] - bounds.shares(counts[None])[0, tight]
    losses = room.losses_of(group, count) - room.losses_of(group, counts[group])
    if len(group) > _MOST_MOVES:
        # Low losses for much saved come first, and high gains (negative losses) for little cost.
        price = losses / np.maximum(np.abs(changes.sum(axis=1)), 1e-300)
        best = np.argsort(price, kind="stable")[:_MOST_MOVES]
        group, count, changes, losses = group[best], count[best], changes[best], losses[best]
    return (group, count), changes, losses


def _all_moves(room: Room, counts: Counts, *, deeper: bool) -> tuple[Counts, Counts]:
    """Moves of single groups by some steps: group numbers and counts after it."""
    groups, after = [], []
    move = room.deeper if deeper else room.shallower
    last = counts
    for steps in _STEPS[: max(2 * _MOST_MOVES // len(counts), 1)]:
        now = move(counts, steps)
        changed = np.flatnonzero(now != last)
        groups.append(changed)
        after.append(now[changed])
        last = now
    return np.concatenate(groups), np.concatenate(after)
