"""Gram matrices of a linear layer's inputs and targets, from what was kept of a run.

Rows are drawn at random from all samples and positions, the same for inputs and targets; every so
many samples are held out, or, of fewer samples than that, rows. Each feed gets a thread of ours,
and BLAS should have one (`one_blas_thread`): small matrices gain nothing from many, and threads
that wait for each other on a busy machine lose much. The sums are made in the order of the feeds:
the same data give the same numbers.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..ir.linear import LinearLayer
from .least_squares import Gram, Matrix
from .session import Array
from .unfold import Rows, input_rows, row_sizes, target_rows

HELD_OUT = 5
"""Every so many samples one is held out."""
CHUNK = 2**23
"""Numbers that are unfolded at a time."""
MEMORY = 2**31
"""Bytes of sums that are added up at a time, unless those of a single feed need more."""
ROWS_PER_COLUMN = 64
"""So many rows for every column of a layer's input, unless there are fewer."""
LEAST_ROWS = 32768


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within the block, BLAS computes with one thread."""
    import scipy.linalg  # noqa: F401  has a BLAS of its own, which must be loaded to be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield


class LayerRows:
    """Rows of a layer's inputs and of what it should give.

    ``inputs`` and ``targets`` hold one array for every feed, with the shapes of the layer's input
    and output; what ``offsets`` hold, in the shape of the targets, is added to the layer's output
    before it is compared with them. ``rows`` are used in all (0: as many as the number of columns
    asks for).
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
    ) -> None:
        self.layer, self.inputs, self.targets, self.offsets = layer, inputs, targets, offsets
        self.seed = seed
        workers, sums = threads or os.cpu_count() or 1, self._empty()
        self.workers = max(1, min(workers, MEMORY // (2 * (sums.g.nbytes + sums.c.nbytes))))
        self.chunk = max(1, CHUNK // (layer.groups * (layer.columns + 1)))
        self.counts = [int(np.prod(row_sizes(layer, target))) for target in targets]
        limit = rows or max(ROWS_PER_COLUMN * (layer.columns + 1), LEAST_ROWS)
        self.share = min(limit / max(sum(self.counts), 1), 1.0)
        samples = [row_sizes(layer, target)[0] for target in targets]
        self.few = sum(samples) < HELD_OUT
        self.firsts = np.cumsum([0, *(self.counts if self.few else samples)])

    def sums(self, rectified: Matrix | None = None) -> tuple[Gram, Gram]:
        """The sums over training and over held-out rows.

        With ``rectified`` weights, targets that are not positive ask for nothing more than that:
        where the layer with these weights gives less than zero, it is asked for what it gives. The
        products of the inputs with each other are then those of the call without.
        """
        train, held_out = self._empty(), self._empty()
        with ThreadPoolExecutor(self.workers) as pool:
            for first in range(0, len(self.inputs), self.workers):  # few sums at a time
                some = range(first, min(first + self.workers, len(self.inputs)))
                for one, other in pool.map(lambda k: self._part(k, rectified), some):
                    train.include(one, known=rectified is not None)
                    held_out.include(other, known=rectified is not None)
        if rectified is None:
            self._known = train.g, held_out.g
        train.g, held_out.g = self._known
        return train, held_out

    def _part(self, number: int, rectified: Matrix | None) -> tuple[Gram, Gram]:
        sizes, count = row_sizes(self.layer, self.targets[number]), self.counts[number]
        picked = np.arange(count)
        if self.share < 1.0:
            rng = np.random.default_rng([*self.seed, number])
            picked = np.sort(rng.permutation(count)[: math.ceil(count * self.share)])
        each = 1 if self.few else count // max(sizes[0], 1)
        held = (self.firsts[number] + picked // max(each, 1)) % HELD_OUT == HELD_OUT - 1
        grams = self._empty(), self._empty()
        for gram, chosen in zip(grams, (picked[~held], picked[held]), strict=True):
            for start in range(0, len(chosen), self.chunk):
                where = Rows.of(chosen[start : start + self.chunk], sizes)
                x = input_rows(self.layer, self.inputs[number], self.targets[number], where)
                wanted = self._rows(self.targets[number], where)
                offset = 0.0 if self.offsets is None else self._rows(self.offsets[number], where)
                if rectified is not None:
                    given = np.einsum("rgk,gkm->rgm", x, rectified[:, :-1], optimize=True)
                    given = given + rectified[:, -1] + offset
                    wanted = np.where(wanted > 0, wanted, np.minimum(given, 0))
                gram.add(x, wanted - offset, known=rectified is not None)
        return grams

    def _rows(self, array: Array, where: Rows) -> Array:
        """[rows, groups, outputs of a group]."""
        found = target_rows(self.layer, array, where)
        return found.reshape(len(found), self.layer.groups, -1)

    def _empty(self) -> Gram:
        layer = self.layer
        return Gram.empty(layer.groups, layer.columns, layer.outputs // layer.groups)
