"""Gauges: what an allocation costs in the terms of one target, predicted and exactly.

A prediction is evaluated for many allocations at once. It is what the search works on; what is
reached is always read off the units that go, or off the rewritten model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.analysis import Analysis
from ..ir.coupling import Flags
from ..ir.io import written_bytes
from ..ir.rewrite import rewrite
from ..runtime.cost import CostModel, Costs
from ..runtime.products import Counts, Products, Sizes
from .targets import Target


@dataclass(frozen=True)
class Gauge:
    """Costs in the terms of ``target``; the original has ``whole`` of them.

    ``predict`` gives float64[n, m] for int64[n, groups] counts of units that go: m quantities that
    must all stay within the same limit. ``exact`` reads the cost off flags of units. ``cheap``
    says that it needs no rewriting, ``smooth`` that the prediction falls evenly.
    """

    target: Target
    whole: float
    predict: Callable[[Counts], Sizes]
    exact: Callable[[Flags], float]
    products: Products | None = None
    cheap: bool = True
    smooth: bool = True

    @property
    def goal(self) -> float:
        """The most that may stay."""
        return self.target.goal(self.whole)


class Bounds:
    """Limits on what gauges predict; ``limits`` defaults to their goals."""

    def __init__(
        self, groups: int, gauges: Sequence[Gauge], limits: Sequence[float] | None = None
    ) -> None:
        self._groups = groups
        self.gauges = list(gauges)
        self.limits = [g.goal for g in gauges] if limits is None else list(limits)
        self.smooth = all(g.smooth for g in gauges)
        self._columns: list[Sizes | None] = [None] * len(self.gauges)

    def shares(self, removed: Counts) -> Sizes:
        """float64[n, m]: every quantity over its limit, in each of n allocations."""
        found = [np.zeros((len(removed), 0))]
        for k, gauge in enumerate(self.gauges):
            found.append(self._shares(k, gauge.predict(removed)))
        return np.concatenate(found, axis=1)

    def after(self, counts: Counts, group: Counts, count: Counts) -> Sizes:
        """As `shares`, float64[moves, m], when ``group[k]`` alone goes from its count in
        ``counts`` to ``count[k]``; sums of products need no whole evaluation for that."""
        found = [np.zeros((len(group), 0))]
        for k, gauge in enumerate(self.gauges):
            if gauge.products is None:
                predicted = gauge.predict(moves(counts, group, count))
            else:
                change = gauge.products.merged.changes(counts, group, counts[group] - count)
                predicted = gauge.predict(counts[None]) + change[:, None]
            found.append(self._shares(k, predicted))
        return np.concatenate(found, axis=1)

    def _shares(self, number: int, predicted: Sizes) -> Sizes:
        limit = self.limits[number]
        if predicted.shape[1] > 1:  # what fits when nothing goes always fits
            if self._columns[number] is None:
                whole = self.gauges[number].predict
                none = np.zeros((1, self._groups), np.int64)
                self._columns[number] = whole(none)[0] > limit
            predicted = predicted[:, self._columns[number]]
        return predicted / max(limit, 1e-300)

    def excess(self, removed: Counts) -> Sizes:
        """float64[n]: by how much all limits are exceeded together; 0 where none is."""
        return over(self.shares(removed))


def over(shares: Sizes) -> Sizes:
    """float64[n]: the sum of what shares, float64[n, m], are above 1."""
    total: Sizes = np.maximum(shares - 1, 0.0).sum(axis=1)
    return total


def moves(counts: Counts, group: Counts, count: Counts) -> Counts:
    """int64[moves, groups]: allocations that differ from ``counts`` in one group each."""
    found = np.repeat(counts[None], len(group), axis=0)
    found[np.arange(len(group)), group] = count
    return found


def exact_gauges(analysis: Analysis, targets: Sequence[Target]) -> list[Gauge]:
    """The gauges of all targets that need no measurement: macs, params, size and memory."""
    model = CostModel(analysis)
    before = model.costs()
    last: dict[bytes, Costs] = {}

    def costs(removed: Flags) -> Costs:
        key = removed.tobytes()
        if key not in last:
            last.clear()
            last[key] = model.costs(removed)
        return last[key]

    def summed(target: Target, whole: int, products: Products, field: str) -> Gauge:
        return Gauge(
            target,
            whole,
            lambda removed: products.totals(removed)[:, None],
            lambda removed: float(getattr(costs(removed), field)),
            products,
        )

    makers: dict[str, Callable[[Target], Gauge]] = {
        "macs": lambda t: summed(t, before.macs, model.macs, "macs"),
        "params": lambda t: summed(t, before.parameters, model.parameters, "parameters"),
        "size": lambda t: _size(model, t),
        "memory": lambda t: Gauge(
            t,
            before.peak_activation_bytes,
            model.live_bytes.each,
            lambda removed: float(costs(removed).peak_activation_bytes),
        ),
    }
    return [makers[t.kind](t) for t in targets if t.kind in makers]


def _size(costs: CostModel, target: Target) -> Gauge:
    """The bytes of the files that the model is written to: constants, and the rest, which hardly
    changes."""
    analysis, weights = costs.analysis, costs.weight_bytes
    whole = written_bytes(analysis.source)
    rest = whole - weights.total(np.zeros(len(analysis.groups), np.int64))

    def exact(removed: Flags) -> float:
        return written_bytes(rewrite(analysis, removed).model) if removed.any() else whole

    return Gauge(
        target,
        whole,
        lambda removed: weights.totals(removed)[:, None] + rest,
        exact,
        weights,
        cheap=False,
    )
