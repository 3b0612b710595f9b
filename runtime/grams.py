"""Gram matrices of a linear layer's inputs and targets, from what was kept of a run.

Rows are drawn at random from all samples and positions, the same for inputs and targets; every so
many samples are held out. Each feed gets a thread of ours, and BLAS should have one
(`one_blas_thread`): small matrices gain nothing from many, and threads that wait for each other on
a busy machine lose much. The sums are made in the order of the feeds: the same data give the same
numbers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..ir.linear import LinearLayer
from .least_squares import Gram
from .session import Array
from .unfold import Rows, input_rows, row_sizes, target_rows

HELD_OUT = 5
"""Every so many samples one is held out."""
CHUNK = 8192
"""Rows that are unfolded at a time."""
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


def layer_grams(
    layer: LinearLayer,
    inputs: Sequence[Array],
    targets: Sequence[Array],
    *,
    seed: Sequence[int],
    rows: int = 0,
    threads: int = 0,
) -> tuple[Gram, Gram]:
    """The sums of a layer over training and held-out rows.

    ``inputs`` and ``targets`` hold one array for every feed, with the shapes of the layer's input
    and output; ``rows`` are used in all (0: as many as the number of columns asks for).
    """
    total = sum(int(np.prod(row_sizes(layer, target))) for target in targets)
    limit = rows or max(ROWS_PER_COLUMN * (layer.columns + 1), LEAST_ROWS)
    firsts = np.cumsum([0, *(row_sizes(layer, target)[0] for target in targets)])

    def part(number: int) -> tuple[Gram, Gram]:
        x, target = inputs[number], targets[number]
        sizes = row_sizes(layer, target)
        count = int(np.prod(sizes))
        share = -(-count * limit // total)
        picked = np.arange(count)
        if share < count:
            picked = np.sort(np.random.default_rng([*seed, number]).permutation(count)[:share])
        samples = firsts[number] + picked // (count // sizes[0])
        held = samples % HELD_OUT == HELD_OUT - 1
        grams = _empty(layer), _empty(layer)
        for gram, chosen in zip(grams, (picked[~held], picked[held]), strict=True):
            for start in range(0, len(chosen), CHUNK):
                where = Rows.of(chosen[start : start + CHUNK], sizes)
                aims = target_rows(layer, target, where)
                aims = aims.reshape(len(aims), layer.groups, -1)
                gram.add(input_rows(layer, x, target, where), aims)
        return grams

    train, held_out = _empty(layer), _empty(layer)
    workers = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(inputs), workers):  # no more sums at a time than workers
            for one, other in pool.map(part, range(first, min(first + workers, len(inputs)))):
                train, held_out = train + one, held_out + other
    return train, held_out


def _empty(layer: LinearLayer) -> Gram:
    return Gram.empty(layer.groups, layer.columns, layer.outputs // layer.groups)
