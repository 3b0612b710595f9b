"""Gram matrices of a linear layer's inputs and targets, from what was kept of a run.

Rows are drawn at random from all samples and positions, the same for inputs and targets; every so
many samples are held out, or, of fewer samples than that, rows. Each feed, or some small ones
together, gets a thread of ours, and BLAS should have one (`one_blas_thread`): small matrices gain
nothing from many, and threads that wait for each other on a busy machine lose much. The sums are
made in the order of the feeds: the same data give the same numbers.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..ir.linear import LinearLayer
from .least_squares import Gram, Matrix
from .session import Array
from .unfold import Rows, Unfolded, row_sizes, target_rows

HELD_OUT = 5
"""Every so many samples one is held out."""
CHUNK = 2**23
"""Numbers that are unfolded at a time."""
MEMORY = 2**31
"""Bytes of sums that are added up at a time, unless those of a single feed need more."""
ROWS_PER_COLUMN = 64
"""So many rows for every column of a layer's input, unless there are fewer."""
LEAST_ROWS = 32768
PART = 2048
"""Rows that are worth a sum of their own."""
HELD = 2**30
"""Bytes of unfolded rows that are kept for another call."""


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within the block, BLAS computes with one thread."""
    import scipy.linalg  # noqa: F401  has a BLAS of its own, which must be loaded to be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield


@dataclass(frozen=True)
class _Chunk:
    """Some rows: ``x`` [groups, rows, columns + 1] with the ones of the bias, ``wanted`` and what
    is added to the layer's output, ``offset``, [groups, rows, outputs] (or 0)."""

    is_held_out: bool
    x: Matrix
    wanted: Matrix
    offset: Matrix | float


class LayerRows:
    """Rows of a layer's inputs and of what it should give.

    ``inputs`` and ``targets`` hold one array for every feed, with the shapes of the layer's input
    and output; what ``offsets`` hold, in the shape of the targets, is added to the layer's output
    before it is compared with them. ``rows`` are used in all (0: as many as the number of columns
    asks for). If their sums will be asked for ``again``, they are kept where they fit.
    """

    def __init__(
        self,
        layer: LinearLayer,
        inputs: Sequence[Array],
        targets: Sequence[Array],
        offsets: Sequence[Array] | None = None,
        *,
        seed: Sequence[int],
        rows: int = 0,
        threads: int = 0,
        again: bool = False,
    ) -> None:
        self.layer, self.inputs, self.targets, self.offsets = layer, inputs, targets, offsets
        self.seed, self.again = seed, again
        workers, sums = threads or os.cpu_count() or 1, self._empty()
        self.workers = max(1, min(workers, MEMORY // (2 * (sums.g.nbytes + sums.c.nbytes))))
        self.chunk = max(1, CHUNK // (layer.groups * (layer.columns + 1)))
        self.counts = [int(np.prod(row_sizes(layer, target))) for target in targets]
        limit = rows or max(ROWS_PER_COLUMN * (layer.columns + 1), LEAST_ROWS)
        self.share = min(limit / max(sum(self.counts), 1), 1.0)
        samples = [row_sizes(layer, target)[0] for target in targets]
        self.few = sum(samples) < HELD_OUT
        self.firsts = np.cumsum([0, *(self.counts if self.few else samples)])
        wide = layer.groups * (layer.columns + 1) + (1 if offsets is None else 2) * layer.outputs
        self.keep = again and 8 * sum(self.counts) * self.share * wide <= HELD
        self.parts = self._parts()
        self._kept: dict[range, list[_Chunk]] = {}

    def sums(self, rectified: Matrix | None = None) -> tuple[Gram, Gram]:
        """The sums over training and over held-out rows.

        With ``rectified`` weights, targets that are not positive ask for nothing more than that:
        where the layer with these weights gives less than zero, it is asked for what it gives. The
        products of the inputs with each other are then those of the call without.
        """
        train, held_out = self._empty(), self._empty()
        with ThreadPoolExecutor(self.workers) as pool:
            for first in range(0, len(self.parts), self.workers):  # few sums at a time
                some = self.parts[first : first + self.workers]
                for one, other in pool.map(lambda part: self._part(part, rectified), some):
                    train.include(one, known=rectified is not None)
                    held_out.include(other, known=rectified is not None)
        if rectified is None:
            self._known = train.g, held_out.g
        train.g, held_out.g = self._known
        return train, held_out

    def _parts(self) -> list[range]:
        """The feeds, so many together that their rows are worth a product."""
        parts, first, rows = list[range](), 0, 0.0
        for number, count in enumerate(self.counts, start=1):
            rows += count * self.share
            if rows >= min(PART, self.chunk) or number == len(self.counts):
                parts.append(range(first, number))
                first, rows = number, 0.0
        return parts

    def _part(self, part: range, rectified: Matrix | None) -> tuple[Gram, Gram]:
        grams = self._empty(), self._empty()
        for chunk in self._chunks(part):
            wanted = chunk.wanted
            if rectified is not None:
                given = chunk.x @ rectified + chunk.offset
                wanted = np.where(wanted > 0, wanted, np.minimum(given, 0))
            gram = grams[chunk.is_held_out]
            gram.add(chunk.x, wanted - chunk.offset, known=rectified is not None)
        return grams

    def _chunks(self, part: range) -> Iterable[_Chunk]:
        """The rows of some feeds, unfolded anew or kept."""
        if part in self._kept:
            return self._kept[part]
        chunks: Iterable[_Chunk] = itertools.chain.from_iterable(map(self._unfolded, part))
        if len(part) > 1:
            chunks = _joined(chunks)
        if self.keep:
            chunks = self._kept[part] = list(chunks)
        return chunks

    def _unfolded(self, number: int) -> Iterator[_Chunk]:
        layer, target, count = self.layer, self.targets[number], self.counts[number]
        sizes, picked = row_sizes(layer, target), np.arange(count)
        if self.share < 1.0:
            rng = np.random.default_rng([*self.seed, number])
            some = math.ceil(count * self.share)
            picked = np.sort(rng.choice(count, some, replace=False, shuffle=False))
        each = 1 if self.few else count // max(sizes[0], 1)
        held = (self.firsts[number] + picked // max(each, 1)) % HELD_OUT == HELD_OUT - 1
        x = Unfolded(layer, self.inputs[number], target)
        for is_held_out, chosen in ((False, picked[~held]), (True, picked[held])):
            for start in range(0, len(chosen), self.chunk):
                where = Rows.of(chosen[start : start + self.chunk], sizes)
                yield _Chunk(
                    is_held_out,
                    _with_ones(x.rows(where)),
                    self._rows(target, where),
                    0.0 if self.offsets is None else self._rows(self.offsets[number], where),
                )

    def _rows(self, array: Array, where: Rows) -> Matrix:
        """[groups, rows, outputs of a group]."""
        found = target_rows(self.layer, array, where).astype(np.float64)
        return found.reshape(len(found), self.layer.groups, -1).transpose(1, 0, 2)

    def _empty(self) -> Gram:
        layer = self.layer
        return Gram.empty(layer.groups, layer.columns, layer.outputs // layer.groups)


def _with_ones(x: Array) -> Matrix:
    """[groups, rows, columns + 1] from [rows, groups, channels, taps]."""
    count, groups, *columns = x.shape
    wide = np.empty((groups, count, math.prod(columns) + 1))
    wide[:, :, :-1].reshape(groups, count, *columns)[...] = x.transpose(1, 0, 2, 3)  # a view
    wide[:, :, -1] = 1.0
    return wide


def _joined(chunks: Iterable[_Chunk]) -> Iterator[_Chunk]:
    """At most two chunks: all rows to train on, and all that are held out."""
    found = list(chunks)
    for held_out in (False, True):
        some = [chunk for chunk in found if chunk.is_held_out == held_out]
        if some:
            offset: Matrix | float = 0.0
            if not isinstance(some[0].offset, float):
                offset = np.concatenate([chunk.offset for chunk in some], axis=1)
            x = np.concatenate([chunk.x for chunk in some], axis=1)
            yield _Chunk(held_out, x, np.concatenate([c.wanted for c in some], axis=1), offset)
