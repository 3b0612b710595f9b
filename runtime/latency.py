"""Latency of allocations: predicted from tables of layers, and measured end to end.

The prediction is the sum of the layers' table entries plus what no table has: the time of all other
kernels in the original, measured once. All of these are least times, which
other load disturbs least; the prediction is therefore used as a share of the original's, and what
counts in the end is the P50 of the whole candidate, in turns with the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from ..ir.analysis import Analysis
from .benchmark import Timing, benchmark
from .calibration import calibration_feeds
from .inputs import random_feed
from .kernel_times import kernel_times
from .latency_table import ALIGNMENTS, LatencyTable, Timer, measure_tables
from .products import Counts, Products, Sizes
from .runnable import runnable
from .session import Array
from .timed_layers import KERNELS, TimedLayer, timed_layers

PairTimer = Callable[[oir.Model, oir.Model], tuple[Timing, Timing]]
"""Times an original and a candidate in turns."""

TOLERATED = 0.02
"""What counts of an alignment may cost above the line between aligned ones."""
_PART = 0.1
"""The same for the model as a whole, as a part of what one block costs."""
_Probe = tuple[float, float, dict[int, float]]
"""Time of a layer, time to compare with, and excess by alignment."""
_MANY = 32
"""A group of so many steps loses nothing by keeping to them."""


@dataclass(frozen=True)
class Clock:
    """What times models: ``layers`` for tables, ``pair`` for whole candidates."""

    layers: Timer
    pair: PairTimer


def real_clock(
    analysis: Analysis,
    calibration: Mapping[str, Array] | None,
    threads: int,
    seed: int,
) -> Clock:
    """ONNX Runtime on this machine; candidates run on calibration data or one random input."""

    def pair(original: oir.Model, candidate: oir.Model) -> tuple[Timing, Timing]:
        with runnable(original, candidate) as (reference, other):
            binding = analysis.facts[0].binding
            if calibration is None:
                feeds = [random_feed(reference, binding, seed)]
            else:
                feeds = calibration_feeds(dict(calibration), reference, binding, 16)
            first, second = benchmark(
                [reference, other], feeds, threads=threads, min_seconds=1.0, max_seconds=15.0
            )
        return first, second

    return Clock(kernel_times, pair)


class LatencyModel:
    """Predicts the latency of allocations as a share of the original's.

    ``layers`` in the order of nodes with their ``tables`` by signature; ``rest`` is the time of
    what is in no table, in milliseconds.
    """

    def __init__(
        self,
        analysis: Analysis,
        layers: Sequence[TimedLayer],
        tables: Mapping[str, LatencyTable],
        rest: float,
    ) -> None:
        self.layers, self.tables, self.rest = list(layers), tables, rest
        self._groups = len(analysis.groups)
        axes = sorted({axis for layer in layers for axis in layer.axes})
        number = {axis: k for k, axis in enumerate(axes)}
        self._sizes = Products(analysis, [(axis,) for axis in axes])
        self._columns = [[number[axis] for axis in layer.axes] for layer in layers]

    def share(self, removed: Counts) -> Sizes:
        """float64[n]: predicted latency over the original's, in each of n allocations,
        int64[n, groups] counts of units that go."""
        total: Sizes = self.milliseconds(removed)
        whole = float(self.milliseconds(np.zeros_like(removed[:1]))[0])
        return np.asarray(total / whole, np.float64)

    def milliseconds(self, removed: Counts) -> Sizes:
        """float64[n]: the sum of tables and rest."""
        sizes = self._sizes.each(removed)
        total = np.full(len(removed), self.rest, np.float64)
        for layer, columns in zip(self.layers, self._columns, strict=True):
            own = sizes[:, columns]
            # Most allocations of one call differ in one or two groups, which few layers have.
            changed = (own != own[0]).any(axis=1)
            changed[0] = True
            times = self.tables[layer.signature].at(own[changed])
            total[changed] += times
            total[~changed] += times[0]
        return total

    def alignments(self, units: Sequence[int]) -> tuple[int, ...]:
        """For every group the multiple that its channel counts should be: the least at which, and
        at all larger ones, its layers' times lie on the line between aligned counts, up to
        `TOLERATED` of their time. Groups in no layer that was probed follow the others, so do
        groups to which such steps are small, and no step is more than half of a group's
        ``units``."""
        by_group: list[list[_Probe]] = [[] for _ in range(self._groups)]
        everywhere: list[_Probe] = []
        for layer in self.layers:
            table = self.tables[layer.signature]
            for members, excess, block in zip(
                layer.groups, table.excess, table.blocks, strict=True
            ):
                if excess:
                    everywhere.append((table.full, table.full * block, excess))
                    for group in members:
                        by_group[group].append((table.full, table.full, excess))
        common = _alignment(everywhere, _PART)
        found = []
        for own, count in zip(by_group, units, strict=True):
            liked = _alignment(own, TOLERATED) if own else common
            liked = max(liked, min(common, _power_of_two(count // _MANY)))
            found.append(min(liked, _power_of_two(count // 2)))
        return tuple(found)


def _alignment(probes: Sequence[_Probe], tolerated: float) -> int:
    """The multiple of the largest alignment whose excess over all probes is more than tolerated:
    time times excess over what that is compared with."""
    best = 1
    for alignment in ALIGNMENTS:
        there = [(t * excess[alignment], per) for t, per, excess in probes if alignment in excess]
        total = sum(per for _, per in there)
        if total > 0 and sum(e for e, _ in there) / total > tolerated:
            best = 2 * alignment if alignment > 1 else 4
    return best


def _power_of_two(count: int) -> int:
    return 1 << (count.bit_length() - 1) if count > 0 else 1


def latency_model(
    analysis: Analysis,
    clock: Clock,
    threads: int,
    progress: Callable[[float], None] = lambda _done: None,
) -> LatencyModel:
    """Measures the tables, or takes them from the cache, and the original. Raises CertificateError
    when that does not run."""
    layers = timed_layers(analysis)
    tables = measure_tables(layers, threads, clock.layers, progress)
    with runnable(analysis.source) as (model,):
        (rest,) = clock.layers([model], threads, analysis.facts[0].binding, KERNELS)
    return LatencyModel(analysis, layers, tables, rest)
