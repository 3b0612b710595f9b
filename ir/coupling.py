"""Axes, links, pins and choices: what coupling rules write, before units are formed.

Axes are numbered 0, 1, …; an axis of size n has the coordinates 0..n-1. Two axes linked
coordinate by coordinate (identity) are merged into one *class* at once, so that a chain of
elementwise operators costs one class, not one link per coordinate. All other links are pairs of
index arrays between classes. Pins spread along links while rules are still being applied, since
a reshape chooses its carrier among the axes that are not pinned yet (see `Choice`).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Link:
    """Coordinate ``a_index[k]`` of axis ``a`` lives and dies with ``b_index[k]`` of axis ``b``.

    Index arrays of None mean the identity over the whole axis. ``site`` is the number of the
    node that says so.
    """

    a: int
    b: int
    a_index: Indices | None
    b_index: Indices | None
    site: int


@dataclass(frozen=True)
class Pin:
    """Coordinates ``index`` of ``axis`` (all when None) must be kept, because ``reason``."""

    axis: int
    index: Indices | None
    reason: str
    site: int


@dataclass(frozen=True)
class Alternative:
    """One way to form units along a factored axis.

    ``needs`` are the axes that must not be pinned; ``digits`` gives, for each axis it links,
    which unit every coordinate would fall into; ``hint`` axes mark it as preferred when one of
    them is a batch axis of a matrix product; ``apply`` records its links and pins; ``rank``
    orders alternatives before the number of units does.
    """

    name: str
    needs: tuple[int, ...]
    digits: tuple[tuple[int, Indices], ...]
    apply: Callable[[], None]
    hint: tuple[int, ...] = ()
    rank: int = 0


@dataclass(frozen=True)
class Choice:
    """Exclusive alternatives of one node; ``otherwise`` runs when none is possible."""

    site: int
    alternatives: tuple[Alternative, ...]
    otherwise: Callable[[], None]


@dataclass
class Coupling:
    """The table of axes and everything the rules said about them."""

    sizes: list[int] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    heads: set[int] = field(default_factory=set)
    carriers: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._parent: list[int] = []
        self._linked: defaultdict[int, list[Link]] = defaultdict(list)
        self._pinned: dict[int, Flags] = {}
        self._full: set[int] = set()
        self._queue: deque[tuple[int, Sequence[Link] | None]] = deque()
        # While choices are being decided: the open ones, those to look at (again), those with a
        # hint at a head, and by class the choices that a full pin or a head would concern.
        self._open: set[int] = set()
        self._stirred: set[int] = set()
        self._hinted: set[int] = set()
        self._head_roots: set[int] = set()
        self._needing: defaultdict[int, list[int]] = defaultdict(list)
        self._hinting: defaultdict[int, list[int]] = defaultdict(list)
        self._ties: dict[int, tuple[int, Indices]] = {}

    # -- axes ---------------------------------------------------------------------------------

    def add_axes(self, sizes: tuple[int, ...]) -> range:
        """New axes of these sizes; returns their numbers."""
        first = len(self.sizes)
        self.sizes.extend(sizes)
        self._parent.extend(range(first, first + len(sizes)))
        return range(first, first + len(sizes))

    def root(self, axis: int) -> int:
        """The representative of the class that ``axis`` belongs to."""
        parent = self._parent
        while parent[axis] != axis:
            parent[axis] = parent[parent[axis]]
            axis = parent[axis]
        return axis

    # -- statements of rules ------------------------------------------------------------------

    def link(
        self, a: int, b: int, a_index: Indices | None, b_index: Indices | None, site: int
    ) -> None:
        """Links coordinates of two axes (see `Link`); sizes must agree for the identity."""
        link = Link(a, b, a_index, b_index, site)
        self.links.append(link)
        if a_index is None or b_index is None:
            if self.sizes[a] != self.sizes[b]:
                raise ValueError(f"axes of sizes {self.sizes[a]} and {self.sizes[b]} linked whole")
            self._merge(self.root(a), self.root(b))
            return
        for end in (a, b):
            self._linked[self.root(end)].append(link)
        for end in (a, b):
            if self.root(end) in self._pinned:
                self._queue.append((end, (link,)))

    def pin(self, axis: int, index: Indices | None, reason: str, site: int) -> None:
        """Pins coordinates of an axis (all when ``index`` is None)."""
        self.pins.append(Pin(axis, index, reason, site))
        self._pin(axis, index)

    def is_pinned(self, axis: int) -> bool:
        """True when every coordinate of the axis is pinned, counting what links carry."""
        self._spread()
        return self.root(axis) in self._full

    def pinned(self, axis: int) -> Flags | None:
        """Which coordinates of the axis are pinned; None when none is."""
        self._spread()
        return self._pinned.get(self.root(axis))

    # -- spreading pins -----------------------------------------------------------------------

    def _merge(self, a: int, b: int) -> None:
        if a == b:
            return
        if len(self._linked[a]) < len(self._linked[b]):
            a, b = b, a
        self._parent[b] = a
        moved = self._linked.pop(b, [])
        self._linked[a].extend(moved)
        self._ties.pop(b, None)
        if a in self._full:
            self._stirred.update(self._needing.get(b, ()))
        if (a in self._head_roots) != (b in self._head_roots):
            self._hinted.update(self._hinting.get(b if a in self._head_roots else a, ()))
            self._head_roots.discard(b)
            self._head_roots.add(a)
        for concerned in (self._needing, self._hinting):
            if b in concerned:
                concerned[a] += concerned.pop(b)
        flags_a, flags_b = self._pinned.get(a), self._pinned.pop(b, None)
        self._full.discard(b)
        if flags_a is not None and moved:  # what a already had must reach b's old links
            self._queue.append((a, moved))
        if flags_b is not None:
            only_b = np.flatnonzero(flags_b if flags_a is None else flags_b & ~flags_a)
            self._pin(a, only_b)

    def _pin(self, axis: int, index: Indices | None) -> None:
        root = self.root(axis)
        if root in self._full:
            return
        flags = self._pinned.get(root)
        if flags is None:
            flags = self._pinned[root] = np.zeros(self.sizes[root], np.bool_)
        fresh = np.flatnonzero(~flags) if index is None else np.unique(index[~flags[index]])
        if fresh.size:
            flags[fresh] = True
            if flags.all():
                self._full.add(root)
                self._stirred.update(self._needing.get(root, ()))
            self._queue.append((root, None))

    def _spread(self) -> None:
        while self._queue:
            axis, links = self._queue.popleft()
            root = self.root(axis)
            flags = self._pinned[root]
            for link in self._linked.get(root, ()) if links is None else links:
                assert link.a_index is not None and link.b_index is not None
                if self.root(link.a) == root:
                    self._pin(link.b, link.b_index[flags[link.a_index]])
                if self.root(link.b) == root:
                    self._pin(link.a, link.a_index[flags[link.b_index]])

    # -- carriers -----------------------------------------------------------------------------

    def resolve(self, prefer: str = "heads") -> None:
        """Decides all choices (reshape carriers, whole groups or offsets).

        Alternatives that need a pinned axis are out. Choices with one alternative left are
        taken first, since each pins further axes; then those with a batch axis of a matrix
        product (unless ``prefer`` is "largest"), then the rest in order of the nodes, each for
        the alternative that leaves most units.
        """
        self._open = set(range(len(self.choices)))
        self._stirred = set(self._open)
        self._head_roots = {self.root(axis) for axis in self.heads if prefer == "heads"}
        for number, choice in enumerate(self.choices):
            for alternative in choice.alternatives:
                for axis in alternative.needs:
                    self._needing[self.root(axis)].append(number)
                for axis in alternative.hint:
                    self._hinting[self.root(axis)].append(number)
                if self._is_hinted(alternative):
                    self._hinted.add(number)
        for first in range(len(self.choices)):
            self._take_forced()
            while first in self._open:
                batch = sorted(self._hinted & self._open) or [first]
                self._hinted.clear()
                self._open.difference_update(batch)
                for number in batch:
                    self._take_best(self.choices[number], prefer)
                self._take_forced()
        self._spread()

    def _possible(self, choice: Choice) -> list[Alternative]:
        return [a for a in choice.alternatives if not any(map(self.is_pinned, a.needs))]

    def _take_forced(self) -> None:
        """Takes all choices with at most one alternative left, until none is."""
        waiting: list[int] = []
        while True:
            self._spread()
            for number in self._stirred:
                heappush(waiting, number)
            self._stirred.clear()
            if not waiting:
                return
            number = heappop(waiting)
            if number not in self._open:
                continue
            choice = self.choices[number]
            possible = self._possible(choice)
            if len(possible) > 1:
                continue
            self._open.discard(number)
            if possible:
                self._take(choice, possible[0])
            else:
                choice.otherwise()

    def _take_best(self, choice: Choice, prefer: str) -> None:
        possible = self._possible(choice)
        if not possible:
            choice.otherwise()
            return

        def preference(a: Alternative) -> tuple[int, bool, bool, int]:
            units = min((self._count_units(axis, digit) for axis, digit in a.digits), default=1)
            return a.rank, units > 1, self._is_hinted(a), units

        self._take(choice, max(possible, key=preference) if len(possible) > 1 else possible[0])

    def _take(self, choice: Choice, alternative: Alternative) -> None:
        self.carriers[choice.site] = alternative.name
        alternative.apply()

    def _is_hinted(self, alternative: Alternative) -> bool:
        return any(self.root(axis) in self._head_roots for axis in alternative.hint)

    def _count_units(self, axis: int, digit: Indices) -> int:
        """How many units an axis would fall into, given ``digit`` and the links it has already."""
        root, size = self.root(axis), self.sizes[axis]
        done, labels = self._ties.get(root, (0, np.arange(size)))
        links = self._linked.get(root, [])
        if done < len(links):
            ties = [(np.arange(size), labels), *(self._side(root, link) for link in links[done:])]
            labels = _components(size, ties)
            self._ties[root] = len(links), labels
        if links:
            digit = _components(size, [(np.arange(size), labels), (np.arange(size), digit)])
        return int(np.unique(digit).size)

    def _side(self, root: int, link: Link) -> tuple[Indices, Indices]:
        """A link as seen from one of its classes: coordinates there, coordinates at the far end."""
        assert link.a_index is not None and link.b_index is not None
        if self.root(link.a) == root:
            return link.a_index, link.b_index
        return link.b_index, link.a_index


def _components(size: int, ties: Sequence[tuple[Indices, Indices]]) -> Indices:
    """The component of each of ``size`` coordinates; (mine, other) ties all ``mine[k]`` with the
    same ``other[k]``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns, base = [], [], size
    for mine, other in ties:
        rows.append(mine)
        columns.append(base + other)
        base += int(other.max(initial=-1)) + 1
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(row.size, np.int8), (row, column)), shape=(base, base))
    labels = connected_components(graph, directed=False)[1][:size]
    result: Indices = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return result
