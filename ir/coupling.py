"""Axes, links, pins and choices: what coupling rules write, before units are formed.

Axes are numbered 0, 1, …; an axis of size n has the coordinates 0..n-1. Two axes linked
coordinate by coordinate (identity) are merged into one *class* at once, so that a chain of
elementwise operators costs one class, not one link per coordinate. All other links are pairs of
index arrays between classes. Pins spread along links while rules are still being applied, since
a reshape chooses its carrier among the axes that are not pinned yet (see `Choice`).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from .carriers import WINDOW, Scene
from .carriers import Alternative as Alternative
from .carriers import Choice as Choice
from .moving import Flags as Flags
from .moving import Indices as Indices
from .moving import Layout as Layout
from .moving import agree

MOVES = "a dynamic axis"
_TWO_WAYS = "a dynamic axis that is taken apart in two ways"


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

    def roots(self, coupling: Coupling) -> tuple[int, int]:
        """The classes of both axes."""
        return coupling.root(self.a), coupling.root(self.b)


@dataclass(frozen=True)
class Pin:
    """Coordinates ``index`` of ``axis`` (all when None) must be kept, because ``reason``."""

    axis: int
    index: Indices | None
    reason: str
    site: int


@dataclass
class Coupling:
    """The table of axes and everything the rules said about them.

    ``sizes`` and ``later`` are the sizes of the axes under the two bindings of the symbolic
    dimensions. An axis whose sizes differ *moves*. It is pinned, unless it is a moving factor
    times static ones, one of which carries (see `declare`); ``moving`` holds such axes with the
    node that they appear at, ``layouts`` by class what has been declared.
    """

    sizes: list[int] = field(default_factory=list)
    later: list[int] = field(default_factory=list)
    moving: dict[int, int] = field(default_factory=dict)
    layouts: dict[int, list[Layout]] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    heads: set[int] = field(default_factory=set)
    carriers: dict[int, str] = field(default_factory=dict)
    products: Sequence[tuple[int, ...]] = ()
    """Axes the product of whose sizes is the work of a node: its multiply-accumulates."""
    across: Collection[int] = ()
    """Axes that some node looks across."""

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
        self._held: defaultdict[int, list[int]] = defaultdict(list)
        self._products: defaultdict[int, list[int]] = defaultdict(list)
        self._across: set[int] = set()

    # -- axes ---------------------------------------------------------------------------------

    def add_axes(
        self, sizes: tuple[int, ...], later: tuple[int, ...] | None = None, site: int = -1
    ) -> range:
        """New axes of these sizes (``later`` under the second binding), which node ``site`` is
        the first to see; returns their numbers."""
        first = len(self.sizes)
        later = sizes if later is None else later
        self.sizes.extend(sizes)
        self.later.extend(later)
        for number, (a, b) in enumerate(zip(sizes, later, strict=True), start=first):
            if a != b:
                self.moving[number] = site
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
        """Links coordinates of two axes (see `Link`); sizes must agree for the identity.

        A moving axis is pinned when it is linked by index or to an axis that moves differently.
        """
        link = Link(a, b, a_index, b_index, site)
        whole = a_index is None or b_index is None
        if whole and self.sizes[a] != self.sizes[b]:
            raise ValueError(f"axes of sizes {self.sizes[a]} and {self.sizes[b]} linked whole")
        if whole and self.later[a] == self.later[b]:
            self.links.append(link)
            self._merge(self.root(a), self.root(b))
            return
        for end in (a, b):
            if whole or end in self.moving:
                self.pin(end, None, MOVES, site)
        if whole:
            self.links.append(link)
        else:
            self._link(link)

    def declare(self, axis: int, hub: int, layout: Layout, site: int) -> None:
        """Says that the moving ``axis`` holds the static factor ``hub``, and links them.

        Two layouts of one class must tie the same digits of their factors to each other under
        both bindings; otherwise the class is pinned. Several factors of one axis, (N * A * B) as
        (N, A * B) and as (N * A, B), say, are then no less sound than one. If one of the two is a
        batch axis of a matrix product, both count as such.
        """
        size = self.sizes[axis]
        self._link(Link(axis, hub, np.arange(size), layout.digit(size), site))
        self._lay_out(axis, [layout])
        for one, other in ((axis, hub), (hub, axis)):
            self._held[self.root(one)].append(other)
        for root in {self.root(axis), self.root(hub)} & self._head_roots:
            self._mark_heads(root)

    def _mark_heads(self, root: int) -> None:
        """Counts a class, and what it holds or is held by, as batch axes of a matrix product."""
        waiting = [root]
        while waiting:
            root = waiting.pop()
            self._head_roots.add(root)
            self._hinted.update(self._hinting.get(root, ()))
            held = {self.root(axis) for axis in self._held.get(root, ())}
            waiting += held - self._head_roots

    def _lay_out(self, axis: int, layouts: Sequence[Layout]) -> None:
        known = self.layouts.setdefault(self.root(axis), [])
        totals = self.sizes[axis], self.later[axis]
        for layout in layouts:
            if layout not in known:
                if not all(agree(layout, other, totals) for other in known):
                    self.pin(axis, None, _TWO_WAYS, self.moving[axis])
                known.append(layout)

    def kept_later(self, axis: int, keep: Flags) -> Flags:
        """bool[later size]: what stays of an axis under the second binding, given ``keep`` under
        the first."""
        if axis not in self.moving:
            return keep
        total = self.later[axis]
        layouts = self.layouts.get(self.root(axis))
        return layouts[0].kept(keep, total) if layouts else np.ones(total, np.bool_)

    def _link(self, link: Link) -> None:
        self.links.append(link)
        a, b = link.a, link.b
        for end in (a, b):
            self._linked[self.root(end)].append(link)
        for end in (a, b):
            if self.root(end) in self._pinned:
                self._queue.append((end, (link,)))

    def pin(self, axis: int, index: Indices | None, reason: str, site: int) -> None:
        """Pins coordinates of an axis (all when ``index`` is None or the axis moves)."""
        if axis in self.moving:
            index = None
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

    def linked(self, root: int) -> list[Link]:
        """The links by index at a class."""
        return self._linked.get(root, [])

    def products_of(self, root: int) -> list[int]:
        """The numbers of the products that a class is a factor of."""
        return self._products.get(root, [])

    def is_inexact(self, root: int) -> bool:
        """True when some node looks across an axis of the class."""
        return root in self._across

    # -- spreading pins -----------------------------------------------------------------------

    def _merge(self, a: int, b: int) -> None:
        if a == b:
            return
        if len(self._linked[a]) < len(self._linked[b]):
            a, b = b, a
        self._parent[b] = a
        moved = self._linked.pop(b, [])
        self._linked[a].extend(moved)
        if a in self._full:
            self._stirred.update(self._needing.get(b, ()))
        for concerned in (self._needing, self._hinting, self._held, self._products):
            if b in concerned:
                concerned[a] += concerned.pop(b)
        if b in self._across:
            self._across.add(a)
        if (a in self._head_roots) != (b in self._head_roots):
            self._head_roots.discard(b)
            self._mark_heads(a)
        layouts = self.layouts.pop(b, None)
        if layouts:
            self._lay_out(a, layouts)
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
        product, then the rest in order of the nodes, together with the open choices next to
        them, for the combination that lets pruning save most (see `Scene`). Where an alternative
        follows such a batch axis, it is preferred, or with ``prefer`` "head-dim" the others are.
        """
        factored = {
            self.root(axis)
            for choice in self.choices
            for alternative in choice.alternatives
            for axis in alternative.needs
            if axis in self.moving
        }
        self._pin_moving(factored)
        self._open = set(range(len(self.choices)))
        self._stirred = set(self._open)
        self._head_roots = {self.root(axis) for axis in self.heads}
        for number, choice in enumerate(self.choices):
            for alternative in choice.alternatives:
                for axis in alternative.needs:
                    self._needing[self.root(axis)].append(number)
                for axis in alternative.hint:
                    self._hinting[self.root(axis)].append(number)
                if self._is_hinted(alternative):
                    self._hinted.add(number)
        self._across = {self.root(axis) for axis in self.across}
        for number, product in enumerate(self.products):
            for axis in product:
                self._products[self.root(axis)].append(number)
        for first in range(len(self.choices)):
            self._take_forced()
            while first in self._open:
                hinted = sorted(self._hinted & self._open)
                self._hinted.clear()
                for number in hinted:
                    self._take_best(Scene(self, number, lambda _: ()), prefer)
                if not hinted:
                    self._take_best(Scene(self, first, self._neighbours), prefer)
                self._take_forced()
        self._pin_moving(self.layouts.keys())
        self._spread()

    def _pin_moving(self, factored: Collection[int]) -> None:
        """Pins the moving axes whose classes hold no static factor that may carry."""
        for axis, site in self.moving.items():
            if self.root(axis) not in factored:
                self.pin(axis, None, MOVES, site)

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

    def _neighbours(self, root: int) -> list[int]:
        """The first open choices that a full pin of the class would concern."""
        numbers = self._needing.get(root, [])
        if numbers and numbers[0] not in self._open:
            numbers[:] = [number for number in numbers if number in self._open]
        return [number for number in numbers[: 4 * WINDOW] if number in self._open]

    def _take_best(self, scene: Scene, prefer: str) -> None:
        """Decides the choices of a scene; only the nearer half when it does not hold all."""
        choices = [self.choices[number] for number in scene.numbers]
        picks = scene.best(
            [self._possible(choice) for choice in choices],
            lambda alternative: self._is_hinted(alternative) == (prefer == "heads"),
        )
        count = len(picks) if scene.whole else (len(picks) + 1) // 2
        for number, choice, pick in list(zip(scene.numbers, choices, picks, strict=True))[:count]:
            if pick is None and number == scene.numbers[0]:
                self._open.discard(number)
                choice.otherwise()
            elif pick is not None and pick in self._possible(choice):
                self._open.discard(number)
                self._take(choice, pick)

    def _take(self, choice: Choice, alternative: Alternative) -> None:
        self.carriers[choice.site] = alternative.name
        alternative.apply()

    def _is_hinted(self, alternative: Alternative) -> bool:
        return any(self.root(axis) in self._head_roots for axis in alternative.hint)
