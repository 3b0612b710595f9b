"""A layer's time over its channel counts: measured on a grid, interpolated between.

Times fall in stairs: ONNX Runtime's convolutions work on blocks of channels, so that a count just
above a multiple of the block costs nearly as much as the next multiple. The grid lies on multiples
of `BLOCK`, and the allocation moves in steps that the machine likes; which, is measured too, at
*probes* just above a multiple. The excess of n channels is what their time lies above the straight
line between its aligned neighbours, as a share of the upper one's time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from .kernel_times import CONVERSIONS
from .latency_cache import load_times, machine, store_times
from .timed_layers import TimedLayer

Floats = npt.NDArray[np.float64]
Timer = Callable[[Sequence[onnx.ModelProto], int, Mapping[str, int], Collection[str]], list[float]]
"""Milliseconds of every model with so many threads, symbolic dimensions bound, the kernels of some
operators left out; see `kernel_times`."""

BLOCK = 16
ALIGNMENTS = (1, 4, 8, 16)
_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of a layer at sizes of its dimensions: ``grid`` has the counts along each,
    ``times`` what was measured on all their combinations, ``excess`` by dimension what counts that
    are multiples of each of `ALIGNMENTS`, but of no larger one, cost above the line, ``blocks`` by
    dimension what one block costs, as shares like excess."""

    grid: tuple[tuple[int, ...], ...]
    times: Floats
    excess: tuple[dict[int, float], ...]
    blocks: tuple[float, ...]

    @property
    def full(self) -> float:
        """The time of the whole layer."""
        return float(self.times[(-1,) * self.times.ndim])

    def at(self, sizes: Floats) -> Floats:
        """float64[n]: the time at sizes float64[n, dimensions], multilinear between the points of
        the grid, and what it is at its edge beyond."""
        values = self.times[None]
        for counts, own in zip(self.grid, sizes.T, strict=True):
            points = np.asarray(counts, np.float64)
            own = np.clip(own, points[0], points[-1])
            upper = np.clip(np.searchsorted(points, own), 1, max(len(points) - 1, 1))
            upper = np.minimum(upper, len(points) - 1)
            lower = np.maximum(upper - 1, 0)
            width = np.maximum(points[upper] - points[lower], 1e-300)
            share = np.where(upper > lower, (own - points[lower]) / width, 0.0)
            rows = np.arange(len(own)) if len(values) > 1 else np.zeros(len(own), np.int64)
            low, high = values[rows, lower], values[rows, upper]
            share = share.reshape(-1, *(1,) * (low.ndim - 1))
            values = low + (high - low) * share
        return np.broadcast_to(values.reshape(-1), len(sizes)).astype(np.float64)


def measure_tables(
    layers: Sequence[TimedLayer],
    threads: int,
    timer: Timer,
    progress: Callable[[float], None] = lambda _done: None,
) -> dict[str, LatencyTable]:
    """The table of every layer by its signature, from the cache where it is known."""
    distinct = {layer.signature: layer for layer in layers}
    where, tables = machine(threads), {}
    for done, (signature, layer) in enumerate(distinct.items(), start=1):
        grid = tuple(map(grid_counts, layer.full, layer.quanta))
        points = [tuple(int(n) for n in p) for p in _combinations(grid)]
        wanted = list(dict.fromkeys([*points, *_probes(layer)]))
        times = load_times(signature, where)
        missing = [point for point in wanted if point not in times]
        if missing:
            found = timer([layer.model(point) for point in missing], threads, {}, CONVERSIONS)
            times |= dict(zip(missing, found, strict=True))
            store_times(signature, where, times)
        measured = np.array([times[p] for p in points]).reshape([len(g) for g in grid])
        tables[signature] = LatencyTable(grid, measured, *_excess(layer, times))
        progress(done / len(distinct))
    return tables


def grid_counts(full: int, quantum: int = 1) -> tuple[int, ...]:
    """Channel counts to measure at, multiples of ``quantum``: about these shares, multiples of the
    block where they can be, the whole, and a quarter of a block."""
    block = math.lcm(BLOCK, quantum)
    unit = block if full >= 2 * block else max(full // 4 // quantum, 1) * quantum
    counts = {min(full, max(unit, round(full * share / unit) * unit)) for share in _SHARES}
    return tuple(sorted(counts | {full, max(unit // 4 // quantum, 1) * quantum}))


def _combinations(grid: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """int64[points, dimensions], the last dimension fastest."""
    if not grid:
        return np.empty((1, 0), np.int64)
    mesh = np.meshgrid(*(np.array(g, np.int64) for g in grid), indexing="ij")
    return np.stack([m.ravel() for m in mesh], axis=1)


def _probe(full: int) -> int | None:
    """The multiple of two blocks below which one dimension is probed, near three quarters."""
    top = int(full * 0.75 / (2 * BLOCK) + 0.5) * 2 * BLOCK
    return max(top, 2 * BLOCK) if full >= 2 * BLOCK else None


def _probed(full: int, quantum: int) -> dict[int, tuple[int, int, int]]:
    """By alignment a count that is its multiple and of no larger one, and its aligned
    neighbours."""
    top = _probe(full)
    if top is None or BLOCK % quantum:
        return {}
    low = top - BLOCK
    found = {a: (low + a, low, top) for a in ALIGNMENTS if a < BLOCK and a % quantum == 0}
    return found | ({BLOCK: (low, low - BLOCK, top)} if low > BLOCK else {})


def _probes(layer: TimedLayer) -> list[tuple[int, ...]]:
    points = []
    for k, (size, quantum) in enumerate(zip(layer.full, layer.quanta, strict=True)):
        counts = {n for three in _probed(size, quantum).values() for n in three}
        points += [(*layer.full[:k], n, *layer.full[k + 1 :]) for n in sorted(counts)]
    return points


def _excess(
    layer: TimedLayer, times: Mapping[tuple[int, ...], float]
) -> tuple[tuple[dict[int, float], ...], tuple[float, ...]]:
    """The excess by alignment and the cost of one block, for every dimension."""
    full, excess, blocks = layer.full, [], []
    for k, (size, quantum) in enumerate(zip(full, layer.quanta, strict=True)):
        own, block = {}, 0.0
        for alignment, counts in _probed(size, quantum).items():
            middle, low, high = (times[(*full[:k], n, *full[k + 1 :])] for n in counts)
            share = (counts[0] - counts[1]) / (counts[2] - counts[1])
            own[alignment] = (middle - low - (high - low) * share) / high if high else 0.0
            block = (high - low) / high * BLOCK / (counts[2] - counts[1]) if high else 0.0
        excess.append(own)
        blocks.append(block)
    return tuple(excess), tuple(blocks)
