"""What operators of attention share: operands laid out in words, heads or dimensions as units.

Every axis of an operand is a word of letters; the same letter is the same axis everywhere:

- ``h`` are the heads of the queries, ``g`` those of keys and values. Query head i reads the key
  head i // (h / g): removed are a key head with all its query heads, or, where key heads must
  stay, the same query head of every key head;
- ``d`` are the dimensions of queries and keys in a head, ``e`` those of values;
- ``hd`` is an axis that holds both, head after head, and ``hd+gd+ge`` holds such runs one after
  the other. Units can form along one factor only: whole heads, or dimensions of all heads at once;
- ``.`` is an axis that stays, and so does every letter that is given a reason to.

An axis of size 1 whose letter is longer is broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..coupling import Alternative, Flags, Indices
from .base import Operand, Site

if TYPE_CHECKING:
    from ..restated import Restated

HEADS, DIMS = "hg", "de"

SOFTMAX = "the softmax of an attention runs along this axis"
LOOKED_UP = "positions that are looked up by their number"
_STAYS = "an axis of an attention that is none of heads, dimensions, batch and queries"
_WHOLE_HEADS = "dimensions of heads that go as a whole"
_WHOLE_DIMS = "heads whose dimensions go one by one"
_NEITHER = "neither whole heads nor dimensions of all heads can go"
_GROUPED = "query heads that share key heads and cannot go together"


class Letters:
    """The operands of one node, axis by axis in letters (see the module).

    ``sizes`` gives the sizes of letters that never stand alone in a word; ``stay`` gives the
    reason why a letter must stay.
    """

    def __init__(
        self, site: Site, sizes: Mapping[str, int], stay: Mapping[str, str] | None = None
    ) -> None:
        self.site = site
        self.sizes = dict(sizes)
        self._stay = dict(stay or {})
        self._hubs: dict[str, int] = {}
        self._words: dict[int, list[str]] = {}

    def hub(self, letter: str, axis: int | None = None) -> int:
        """The axis that all axes of a letter are linked to: the first that is given, or a virtual
        one."""
        if letter == "g" and self.sizes["g"] == self.sizes["h"]:
            letter = "h"
        if letter not in self._hubs:
            hub = self.site.hub(self.sizes[letter]) if axis is None else axis
            self._hubs[letter] = hub
            if letter in self._stay:
                self.site.pin(hub, self._stay[letter])
            if letter in HEADS and self.sizes[letter] > 1:
                self.site.heads(hub)
        return self._hubs[letter]

    def place(self, operand: Operand | None, words: str) -> None:
        """States what the axes of an operand are. Words are taken from the end: an operand may
        have fewer axes. Raises ValueError when a size does not fit."""
        if operand is None:
            return
        for axis, size, word in zip(
            operand.axes, operand.shape, words.split()[-operand.rank or None :], strict=True
        ):
            if word == ".":
                self.site.pin(axis, _STAYS)
            elif len(word) > 1:
                self._words[axis] = word.split("+")
                if size != sum(map(self._length, self._words[axis])):
                    raise ValueError(f"an axis of size {size} does not hold {word}")
            elif size == self.sizes.setdefault(word, size):
                self.site.link(axis, self.hub(word, axis))
            elif size == 1:
                self.site.pin(axis, "broadcast along this axis")
            else:
                raise ValueError(f"axes of sizes {size} and {self.sizes[word]} should be alike")

    def _length(self, word: str) -> int:
        return math.prod(self.sizes[letter] for letter in word)

    def tie(self, letter: str, other: str, index: Indices) -> None:
        """Coordinate i of ``letter`` goes with coordinate ``index[i]`` of ``other``; coordinates
        beyond the index are free."""
        own = np.arange(index.size, dtype=np.int64)
        self.site.link(self.hub(letter), self.hub(other), own, index)

    def rotate(self, interleaved: bool) -> None:
        """Dimension ``d`` turns with its partner by the angle of column ``c`` of the caches."""
        pairs = np.arange(2 * self.sizes["c"], dtype=np.int64)
        self.tie("d", "c", pairs // 2 if interleaved else pairs % self.sizes["c"])

    def macs(self, letters: str) -> None:
        """The node multiplies and accumulates once for every combination of these letters."""
        self.site.macs(*map(self.hub, letters))

    def couple(self, sinks: Sequence[tuple[int, int]] = ()) -> None:
        """Lets units form. ``sinks`` are the (input, axis) pairs of the dimensions of queries,
        which end in the product with the keys."""
        if self._words:
            self._choose_carrier(sinks)
        else:
            for number, index in sinks:
                self.site.sink(number, index)
        if "g" in self.sizes and self.sizes["g"] != self.sizes["h"]:
            self._choose_group()

    # -- heads or dimensions ------------------------------------------------------------------

    def _choose_carrier(self, sinks: Sequence[tuple[int, int]]) -> None:
        def by_heads() -> None:
            self._link(HEADS)
            self._pin(DIMS, _WHOLE_HEADS)

        def by_dims() -> None:
            self._link(DIMS)
            self._pin(HEADS, _WHOLE_DIMS)
            for number, index in sinks:
                self.site.sink(number, index)

        def never() -> None:
            for axis in self._words:
                self.site.pin(axis, _NEITHER)
            self._pin(HEADS + DIMS, _NEITHER)

        options = []
        for letter, family, apply in (("h", HEADS, by_heads), *((x, DIMS, by_dims) for x in DIMS)):
            bearers = [a for a, words in self._words.items() if any(letter in w for w in words)]
            if self.sizes.get(letter, 1) > 1 and bearers:
                needs = (self.hub(letter), *bearers)
                digits = tuple((axis, self._digits(axis, family)) for axis in bearers)
                hint = needs[:1] if family == HEADS else ()
                name = "heads" if family == HEADS else "dimensions"
                options.append(Alternative(name, needs, digits, apply, hint))
        self.site.choose(*options, otherwise=never)

    def _link(self, family: str) -> None:
        for axis, words in self._words.items():
            start = 0
            for word in words:
                index = self._digit(word, family)
                own = start + np.arange(index.size, dtype=np.int64)
                letter = next(x for x in word if x in family)
                self.site.link(axis, self.hub(letter), own, index)
                start += index.size

    def _pin(self, letters: str, reason: str) -> None:
        for letter in letters:
            if letter in self._hubs:
                self.site.pin(self._hubs[letter], reason)

    def _digits(self, axis: int, family: str) -> Indices:
        return np.concatenate([self._digit(word, family) for word in self._words[axis]])

    def _digit(self, word: str, family: str) -> Indices:
        """For each coordinate of a word's run, its position along the letter of ``family``."""
        at = next(k for k, letter in enumerate(word) if letter in family)
        inner = self._length(word[at + 1 :])
        positions = np.arange(self._length(word), dtype=np.int64)
        return positions // inner % self.sizes[word[at]]

    # -- query heads that share key heads -----------------------------------------------------

    def _choose_group(self) -> None:
        site, h, g = self.site, self.hub("h"), self.hub("g")
        queries = self.sizes["h"] // self.sizes["g"]
        heads = np.arange(self.sizes["h"], dtype=np.int64)

        def by_group() -> None:
            site.link(h, g, heads, heads // queries)

        def by_offset() -> None:
            site.link(h, site.hub(queries), heads, heads % queries)
            site.pin(g, _GROUPED)

        def never() -> None:
            site.pin(h, _GROUPED)
            site.pin(g, _GROUPED)

        options = [Alternative("offsets", (h,), ((h, heads % queries),), by_offset)]
        if self.sizes["g"] > 1:
            whole = Alternative("groups", (h, g), ((h, heads // queries),), by_group, rank=1)
            options.insert(0, whole)
        site.choose(*options, otherwise=never)


def left_of(keep: Flags, heads: int) -> tuple[int, int]:
    """How many heads, and how many dimensions of each, are left of an axis of ``heads`` heads."""
    grid = keep.reshape(heads, -1)
    return int(grid.any(axis=1).sum()), int(grid.any(axis=0).sum())


def keep_scale(node: Restated, old: int, new: int, *, zero_is_default: bool = False) -> None:
    """Where head dimensions have gone, 1/sqrt(of the original size) is written out."""
    scale = node.number("scale")
    if new != old and (scale is None or (zero_is_default and not scale)):
        node.set_float("scale", 1 / math.sqrt(old))
