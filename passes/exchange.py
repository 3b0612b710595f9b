"""Improving an allocation: units come back where there is slack, and groups exchange steps.

Moves that take steps from one group and moves that give steps to another are paired. The change
of every quantity under a pair is first estimated as the sum of the two changes, which ignores
that they may share a layer; the pairs that promise most are evaluated exactly, and the best that
fits is taken, until none is left.
"""

from __future__ import annotations

import numpy as np

from ..runtime.products import Counts
from .gauges import Bounds
from .room import Room

_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)
_TRIED = 256
_TIGHTEST = 8


def fill(room: Room, bounds: Bounds, counts: Counts, *, largest: bool = False) -> Counts:
    """Gives steps back, those of the highest score first (or with ``largest`` those that cost
    most), until none fits."""
    counts, fits = counts.copy(), counts > 0
    while True:
        groups = np.flatnonzero(fits & (counts > 0))
        if not len(groups):
            return counts
        moves = _moves(counts, groups, room.shallower(counts, 1)[groups])
        # Costs only grow, so what does not fit now never will.
        possible = bounds.excess(moves) <= 0
        fits[groups[~possible]] = False
        if possible.any():
            moves = moves[possible]
            gains = bounds.shares(moves).sum(axis=1) if largest else -room.lost(moves)
            counts = moves[int(np.argmax(gains))]


def exchange(room: Room, bounds: Bounds, counts: Counts, rounds: int = 200) -> Counts:
    """A better allocation within the same limits, found from one that keeps them."""
    counts = fill(room, bounds, counts)
    for _ in range(rounds):
        better = _best_pair(room, bounds, counts)
        if better is None:
            return counts
        counts = fill(room, bounds, better)
    return counts


def _best_pair(room: Room, bounds: Bounds, counts: Counts) -> Counts | None:
    down, up = _all_moves(room, counts, deeper=True), _all_moves(room, counts, deeper=False)
    if not len(down[0]) or not len(up[0]):
        return None
    here, lost = bounds.shares(counts[None])[0], room.lost(counts)
    tight = np.argsort(-here, kind="stable")[:_TIGHTEST]
    takes, gives = (_moves(counts, *move) for move in (down, up))
    falls, rises = (bounds.shares(m)[:, tight] - here[tight] for m in (takes, gives))
    net = (lost - room.lost(gives))[None, :] - (room.lost(takes) - lost)[:, None]
    worst = np.full(net.shape, -np.inf)
    for k, at in enumerate(here[tight]):
        both = falls[:, k, None] + rises[None, :, k]
        shared = falls[:, k, None] * rises[None, :, k] / max(float(at), 1e-9)
        worst = np.maximum(worst, at + both + 2 * shared - 1)
    promising = (net > 1e-12 * max(abs(float(lost)), 1e-300)) & (worst <= 0)
    promising &= down[0][:, None] != up[0][None, :]
    pairs = np.flatnonzero(promising)
    if not len(pairs):
        return None
    chosen = pairs[np.argsort(-net.ravel()[pairs], kind="stable")[:_TRIED]]
    first, second = np.unravel_index(chosen, net.shape)
    trials = takes[first] + gives[second] - counts
    fits = bounds.excess(trials) <= 0
    return trials[int(np.argmax(fits))] if fits.any() else None


def _all_moves(room: Room, counts: Counts, *, deeper: bool) -> tuple[Counts, Counts]:
    """Moves of single groups by some steps: group numbers and counts after it."""
    groups, after = [], []
    move = room.deeper if deeper else room.shallower
    last = counts
    for steps in _STEPS:
        now = move(counts, steps)
        changed = np.flatnonzero(now != last)
        groups.append(changed)
        after.append(now[changed])
        last = now
    return np.concatenate(groups), np.concatenate(after)


def _moves(counts: Counts, groups: Counts, after: Counts) -> Counts:
    """Every move as a whole allocation."""
    moves = np.repeat(counts[None], len(groups), axis=0)
    moves[np.arange(len(groups)), groups] = after
    return moves
