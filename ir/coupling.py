"""Axes, links, pins and choices: what coupling rules write, before units are formed.

Axes are numbered 0, 1, …; an axis of size n has the coordinates 0..n-1. Two axes linked
coordinate by coordinate (identity) are merged into one *class* at once, so that a chain of
elementwise operators costs one class, not one link per coordinate. All other links are pairs of
index arrays between classes. Pins spread along links while rules are still being applied, since
a reshape chooses its carrier among the axes that are not pinned yet (see `Choice`).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

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
        self._head_roots: set[int] = set()
        self._queue: deque[tuple[int, Indices | None]] = deque()

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
        for end, index in ((a, a_index), (b, b_index)):
            flags = self._pinned.get(self.root(end))
            if flags is not None:
                pinned = index[flags[index]]
                if pinned.size:
                    self._queue.append((end, pinned))

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
        flags_a, flags_b = self._pinned.get(a), self._pinned.pop(b, None)
        self._full.discard(b)
        if flags_b is not None:
            only_b = np.flatnonzero(flags_b if flags_a is None else flags_b & ~flags_a)
            self._pin(a, only_b)
        if flags_a is not None and moved:  # what a already had must reach b's old links
            self._queue.append((a, np.flatnonzero(flags_a)))

    def _pin(self, axis: int, index: Indices | None) -> None:
        root = self.root(axis)
        flags = self._pinned.get(root)
        if flags is None:
            flags = self._pinned[root] = np.zeros(self.sizes[root], np.bool_)
        fresh = np.flatnonzero(~flags) if index is None else np.unique(index[~flags[index]])
        if fresh.size:
            flags[fresh] = True
            if flags.all():
                self._full.add(root)
            self._queue.append((root, fresh))

    def _spread(self) -> None:
        while self._queue:
            axis, _ = self._queue.popleft()
            root = self.root(axis)
            flags = self._pinned[root]
            for link in tuple(self._linked.get(root, ())):
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
        pending = list(self.choices)
        while pending:
            pending = self._take_forced(pending)
            self._head_roots = {self.root(axis) for axis in self.heads}
            hinted = [
                c for c in pending if prefer == "heads" and any(map(self._hinted, c.alternatives))
            ]
            for choice in hinted or pending[:1]:
                self._take_best(choice, prefer)
            decided = {id(c) for c in (hinted or pending[:1])}
            pending = [c for c in pending if id(c) not in decided]
        self._spread()

    def _possible(self, choice: Choice) -> list[Alternative]:
        return [a for a in choice.alternatives if not any(map(self.is_pinned, a.needs))]

    def _take_forced(self, pending: list[Choice]) -> list[Choice]:
        """Takes all choices with at most one alternative left, until none is."""
        seen = -1
        while seen != len(self._full):
            seen = len(self._full)
            rest = []
            for choice in pending:
                possible = self._possible(choice)
                if len(possible) > 1:
                    rest.append(choice)
                elif possible:
                    self._take(choice, possible[0])
                else:
                    choice.otherwise()
            pending = rest
            self._spread()
        return pending

    def _take_best(self, choice: Choice, prefer: str) -> None:
        possible = self._possible(choice)
        if not possible:
            choice.otherwise()
            return

        def preference(a: Alternative) -> tuple[int, bool, bool, int]:
            units = min((self._count_units(axis, digit) for axis, digit in a.digits), default=1)
            return a.rank, units > 1, prefer == "heads" and self._hinted(a), units

        self._take(choice, max(possible, key=preference) if len(possible) > 1 else possible[0])

    def _take(self, choice: Choice, alternative: Alternative) -> None:
        self.carriers[choice.site] = alternative.name
        alternative.apply()

    def _hinted(self, alternative: Alternative) -> bool:
        return any(self.root(axis) in self._head_roots for axis in alternative.hint)

    def _count_units(self, axis: int, digit: Indices) -> int:
        """How many units an axis would fall into, given ``digit`` and the links it has already."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        root, size = self.root(axis), self.sizes[axis]
        base = size + int(digit.max(initial=0)) + 1
        left, right = [np.arange(size)], [size + digit]
        for link in self._linked.get(root, ()):
            assert link.a_index is not None and link.b_index is not None
            mine, other = (
                (link.a_index, link.b_index)
                if self.root(link.a) == root
                else (link.b_index, link.a_index)
            )
            left.append(mine)
            right.append(base + other)
            base += int(other.max(initial=0)) + 1
        if len(left) == 1:
            return int(np.unique(digit).size)
        rows, columns = np.concatenate(left), np.concatenate(right)
        graph = coo_array((np.ones(rows.size, np.int8), (rows, columns)), shape=(base, base))
        return int(np.unique(connected_components(graph, directed=False)[1][:size]).size)
