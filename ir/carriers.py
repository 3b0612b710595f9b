"""Choosing carriers: which of several alternatives lets pruning save most.

An alternative ties coordinates together, and so do those of the choices next to it: groups of a
convolution and the places inside them after a channel shuffle may leave one unit of all. Choices
that share axes are therefore tried together, on the classes of axes round them: every coordinate
there bears the label of its component, and taking an alternative joins labels and pins axes. The
search keeps the best few combinations of the choices decided so far (a beam) and is bounded, so
that the time grows with the number of choices.

Combinations are compared by the multiply-accumulates that are left once half of what can go on
every axis round them is gone: places inside the groups of a convolution shrink its weight along
two axes, whole groups along one. What goes exactly counts first, then what goes at all. Of equals,
the one that leaves most units is the finest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .moving import Flags, Indices

if TYPE_CHECKING:
    from .coupling import Coupling

BEAM = 6
"""Combinations that are kept while choices are added."""

WINDOW = 8
"""Choices that are tried together at most."""

_CLASSES, _LINKS, _COORDINATES = 96, 256, 1 << 18


@dataclass(frozen=True, eq=False)
class Alternative:
    """One way to form units along a factored axis.

    ``needs`` are the axes that must not be pinned; ``digits`` gives, for each axis it links,
    which unit every coordinate would fall into (the numbers are common to all of them); ``hint``
    axes mark it as preferred when one of them is a batch axis of a matrix product; ``apply``
    records its links and pins; ``rank`` orders alternatives before the number of units does;
    ``stops`` are axes that it pins.
    """

    name: str
    needs: tuple[int, ...]
    digits: tuple[tuple[int, Indices], ...]
    apply: Callable[[], None]
    hint: tuple[int, ...] = ()
    rank: int = 0
    stops: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Choice:
    """Exclusive alternatives of one node; ``otherwise`` runs when none is possible."""

    site: int
    alternatives: tuple[Alternative, ...]
    otherwise: Callable[[], None]

    @property
    def axes(self) -> set[int]:
        """All axes that some alternative needs, links or pins."""
        return {
            axis
            for a in self.alternatives
            for axis in (*a.needs, *a.stops, *(axis for axis, _ in a.digits))
        }


@dataclass(frozen=True)
class _State:
    """What a combination of alternatives makes of the coordinates of a scene."""

    labels: Indices
    pinned: Flags
    taken: tuple[Alternative | None, ...]
    score: tuple[float, ...] = ()


class Scene:
    """The classes of axes round some open choices, the first of which is ``first``.

    ``numbers`` are the choices seen, nearest first, and ``whole`` says that there are no others
    in reach.
    """

    def __init__(
        self, coupling: Coupling, first: int, neighbours: Callable[[int], Sequence[int]]
    ) -> None:
        self.coupling = coupling
        self.numbers = [first]
        self.whole = True
        self._base: dict[int, int] = {}
        self._total = 0
        self._links: list[tuple[Indices, Indices]] = []
        self._explore(neighbours)
        self._work = _Work(coupling, self._base)
        rows = [self._row(root) for root in self._base if coupling.is_inexact(root)]
        self._across = np.concatenate([np.empty(0, np.int64), *(np.r_[row] for row in rows)])

    def best(
        self, possible: Sequence[Sequence[Alternative]], wanted: Callable[[Alternative], bool]
    ) -> list[Alternative | None]:
        """An alternative for each of ``numbers`` (None: nothing is left), out of ``possible``.

        Ranks count first, then the ``wanted`` alternatives, then the work saved by exact units, by
        all, then the numbers of units; an alternative that leaves a single unit counts for nothing.
        """
        beam = [_State(self._labels(), self._pinned(), ())]
        for number, alternatives in zip(self.numbers, possible, strict=True):
            found = [
                self._scored(self._taking(state, number, alternative), wanted)
                for state in beam
                for alternative in self._open(state, alternatives) or [None]
            ]
            beam = sorted(found, key=lambda state: state.score, reverse=True)[:BEAM]
        return list(beam[0].taken)

    # -- what is there ------------------------------------------------------------------------

    def _explore(self, neighbours: Callable[[int], Sequence[int]]) -> None:
        coupling = self.coupling
        waiting = sorted(map(coupling.root, coupling.choices[self.numbers[0]].axes))
        for root in waiting:  # it grows
            if root in self._base:
                continue
            if len(self._base) >= _CLASSES or self._total > _COORDINATES:
                self.whole = False
                self._add(root)  # an axis of a choice seen must be there
                continue
            self._add(root)
            for number in neighbours(root):
                if number not in self.numbers:
                    if len(self.numbers) == WINDOW:
                        self.whole = False
                        break
                    self.numbers.append(number)
                    waiting += sorted(map(coupling.root, coupling.choices[number].axes))
            if len(waiting) < _CLASSES:
                links = coupling.linked(root)[:_LINKS]
                waiting += [end for link in links for end in link.roots(coupling)]
        for root in self._base:
            for link in coupling.linked(root)[:_LINKS]:
                a, b = link.roots(coupling)
                if root == a and b in self._base:
                    assert link.a_index is not None and link.b_index is not None
                    self._links.append((self._base[a] + link.a_index, self._base[b] + link.b_index))

    def _add(self, root: int) -> None:
        self._base[root] = self._total
        self._total += self.coupling.sizes[root]

    def _row(self, axis: int) -> slice:
        base = self._base[self.coupling.root(axis)]
        return slice(base, base + self.coupling.sizes[axis])

    def _labels(self) -> Indices:
        labels = np.arange(self._total)
        if not self._links:
            return labels
        left, right = (np.concatenate(side) for side in zip(*self._links, strict=True))
        return _join(labels, left, right, self._total)

    def _pinned(self) -> Flags:
        flags = np.zeros(self._total, np.bool_)
        for root, base in self._base.items():
            held = self.coupling.pinned(root)
            if held is not None:
                flags[base : base + held.size] = held
        return flags

    # -- what an alternative does ---------------------------------------------------------------

    def _dead(self, state: _State) -> Flags:
        """bool[labels]: which components hold a pinned coordinate."""
        dead = np.zeros(int(state.labels.max(initial=-1)) + 1, np.bool_)
        dead[state.labels[state.pinned]] = True
        return dead

    def _open(self, state: _State, alternatives: Sequence[Alternative]) -> list[Alternative | None]:
        dead = self._dead(state)
        return [
            a
            for a in alternatives
            if not any(dead[state.labels[self._row(axis)]].all() for axis in a.needs)
        ]

    def _taking(self, state: _State, number: int, alternative: Alternative | None) -> _State:
        pinned, labels = state.pinned, state.labels
        stops = self.coupling.choices[number].axes if alternative is None else alternative.stops
        if stops:
            pinned = pinned.copy()
            for axis in stops:
                pinned[self._row(axis)] = True
        if alternative is not None and alternative.digits:
            left = np.concatenate([labels[self._row(axis)] for axis, _ in alternative.digits])
            right = np.concatenate([digit for _, digit in alternative.digits])
            count = int(labels.max(initial=-1)) + 1
            labels = _join(labels, left, count + right, count + int(right.max(initial=-1)) + 1)
        return _State(labels, pinned, (*state.taken, alternative))

    def _scored(self, state: _State, wanted: Callable[[Alternative], bool]) -> _State:
        dead = self._dead(state)
        rank, hits, most = 0, 0, 0.0
        for alternative in state.taken:
            if alternative is None:
                continue
            found = (np.unique(state.labels[self._row(axis)]) for axis, _ in alternative.digits)
            units = min((int((~dead[labels]).sum()) for labels in found), default=1)
            if units > 1:
                rank += alternative.rank
                hits += wanted(alternative)
                most += math.log2(units)
        live = ~dead[state.labels]
        across = np.zeros(dead.size, np.bool_)
        across[state.labels[self._across]] = True
        exact, saved = (
            round(self._work.saved(state.labels, part), 6)
            for part in (live & ~across[state.labels], live)
        )
        score = (rank, hits, exact, saved, round(most, 6))
        return _State(state.labels, state.pinned, state.taken, score)


class _Work:
    """The products of axis sizes (multiply-accumulates) that the classes of a scene are part of.

    ``base`` gives for every class where its coordinates begin, in the order of the scene.
    """

    def __init__(self, coupling: Coupling, base: dict[int, int]) -> None:
        filled = {root: k for k, root in enumerate(r for r in base if coupling.sizes[r])}
        self._starts = np.array([base[root] for root in filled], np.int64)
        self._sizes = np.array([coupling.sizes[root] for root in filled], np.float64)
        numbers = {k for root in filled for k in coupling.products_of(root)[:_LINKS]}
        products = [coupling.products[k] for k in sorted(numbers)]
        inside = [
            [k for a in p if (k := filled.get(coupling.root(a))) is not None] for p in products
        ]
        whole = [math.prod(coupling.sizes[axis] for axis in product) for product in products]
        self._whole = np.array(whole, np.float64)
        self._factors = np.full((len(products), max(map(len, inside), default=0)), len(filled))
        for row, factors in zip(self._factors, inside, strict=True):
            row[: len(factors)] = factors

    def saved(self, labels: Indices, live: Flags) -> float:
        """log2 of how many times less work there is when half of what can go on every axis goes:
        an axis with ``live`` coordinates of two components or more."""
        total = self._whole.sum()
        if not total:
            return 0.0
        first = np.minimum.reduceat(np.where(live, labels, labels.size), self._starts)
        last = np.maximum.reduceat(np.where(live, labels, -1), self._starts)
        share = np.add.reduceat(live.astype(np.int64), self._starts) / self._sizes
        left = np.append(np.where(first < last, 1 - share / 2, 1.0), 1.0)
        return float(np.log2(total / (self._whole * left[self._factors].prod(axis=1)).sum()))


def _join(labels: Indices, left: Indices, right: Indices, count: int) -> Indices:
    """``labels`` after the labels ``left`` and ``right`` (both below ``count``) became one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(count, count))
    joined: Indices = connected_components(graph, directed=False)[1][labels].astype(np.int64)
    return joined
