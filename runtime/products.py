"""Sums of products of axis sizes, evaluated for many allocations at once.

An axis shrinks by a fixed number of coordinates for every unit of a group that goes, so that the
value of a product under an allocation (how many units each group loses) takes no analysis.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ir.analysis import Analysis

Counts = npt.NDArray[np.int64]
Sizes = npt.NDArray[np.float64]

_NONE = np.empty(0, np.int64)
_AT_ONCE = 2**20
"""So many factors of products are held at once when many allocations are evaluated."""


class Products:
    """A weighted sum of products of axis sizes, evaluated for whole allocations.

    ``terms`` lists the axes of each product, ``weights`` what it counts (default 1). Units of one
    group that own unequally many coordinates of an axis count with their mean.
    """

    def __init__(
        self,
        analysis: Analysis,
        terms: Sequence[Sequence[int]],
        weights: Sequence[float] | None = None,
    ) -> None:
        root = analysis.coupling.root
        rows = [[root(a) for a in term if analysis.units_of(a) is not None] for term in terms]
        fixed = [
            math.prod(analysis.coupling.sizes[a] for a in term if analysis.units_of(a) is None)
            for term in terms
        ]
        axes = sorted({axis for row in rows for axis in row})
        number = {axis: k for k, axis in enumerate(axes)}
        width = max((len(row) for row in rows), default=1)
        self._terms = np.full((len(rows), max(width, 1)), len(axes), np.int64)
        for k, row in enumerate(rows):
            self._terms[k, : len(row)] = [number[a] for a in row]
        self._weights = np.array(fixed, np.float64) * (1.0 if weights is None else weights)
        sizes = [analysis.coupling.sizes[a] for a in axes]
        self._sizes = np.array([*sizes, 1], np.float64)
        # Entry e: axis `_axis[e]` loses `_per_unit[e]` coordinates with every unit of `_group[e]`.
        self._groups = len(analysis.groups)
        found: list[tuple[int, Counts, Sizes]] = []
        for axis, k in number.items():
            units = analysis.units_of(axis)
            assert units is not None
            groups, counts = np.unique(
                analysis.group_of_unit[units[units >= 0]], return_counts=True
            )
            found.append((k, groups, counts / [len(analysis.groups[g].units) for g in groups]))
        lengths = [len(groups) for _, groups, _ in found]
        self._axis = np.repeat(np.array([k for k, _, _ in found], np.int64), lengths)
        self._group = np.concatenate([_NONE, *(groups for _, groups, _ in found)])
        self._per_unit = np.concatenate([np.empty(0), *(per for _, _, per in found)])

    def each(self, removed: Counts) -> Sizes:
        """float64[n, terms]: every product in each of n allocations, int64[n, groups] counts of
        the units that go."""
        values = np.empty((len(removed), len(self._terms)))
        step = max(1, _AT_ONCE // max(self._terms.size, 1))
        for at in range(0, len(removed), step):
            sizes: Sizes = self._sizes[:, None] - self._losses @ removed[at : at + step].T
            values[at : at + step] = (sizes[self._terms].prod(axis=1) * self._weights[:, None]).T
        return values

    def totals(self, removed: Counts) -> Sizes:
        """float64[n]: the sum of all products in each of n allocations, int64[n, groups]."""
        sums: Sizes = self.merged.each(removed).sum(axis=1)
        return sums

    def total(self, removed: Counts) -> float:
        """The sum of all products when every group g loses ``removed[g]`` units."""
        return float((self._factors(removed).prod(axis=1) * self._weights).sum())

    def changes(self, removed: Counts, group: Counts, back: Counts) -> Sizes:
        """float64[moves]: how much the total changes when group ``group[k]`` alone gets
        ``back[k]`` units back, or loses more where that is negative."""
        term, _, per_unit = self._pairs
        order, start = self._by_group
        count = start[group + 1] - start[group]
        move = np.repeat(np.arange(len(group)), count)
        within = np.arange(len(move)) - np.repeat(np.cumsum(count) - count, count)
        pair = order[start[group[move]] + within]
        factors = self._factors(removed)
        values = factors.prod(axis=1)
        at = term[pair]
        grown = (factors[at] + per_unit[pair] * back[move, None]).prod(axis=1)
        change = (grown - values[at]) * self._weights[at]
        return np.bincount(move, change, len(group)).astype(np.float64)

    @property
    def terms(self) -> list[tuple[float, tuple[int, ...]]]:
        """Every product as its weight and the numbers of its factors in `factors`."""
        last = len(self._sizes) - 1
        return [
            (float(weight), tuple(int(k) for k in row if k != last))
            for weight, row in zip(self._weights, self._terms, strict=True)
        ]

    @property
    def factors(self) -> list[tuple[float, dict[int, float]]]:
        """Every axis size as its value when nothing goes, and what it loses per unit of each
        group."""
        found: list[tuple[float, dict[int, float]]] = [(float(s), {}) for s in self._sizes[:-1]]
        for axis, group, per in zip(self._axis, self._group, self._per_unit, strict=True):
            found[axis][1][int(group)] = float(per)
        return found

    @cached_property
    def merged(self) -> Products:
        """The same sum with equal products as one."""
        rows, number = np.unique(np.sort(self._terms, axis=1), axis=0, return_inverse=True)
        result = copy.copy(self)
        for cached in ("_pairs", "_by_group"):
            result.__dict__.pop(cached, None)
        result._terms = rows
        result._weights = np.bincount(number.ravel(), self._weights, len(rows)).astype(np.float64)
        return result

    def _factors(self, removed: Counts) -> Sizes:
        gone = np.bincount(self._axis, self._per_unit * removed[self._group], len(self._sizes))
        factors: Sizes = (self._sizes - gone)[self._terms]
        return factors

    @cached_property
    def _losses(self) -> Any:
        """Sparse float64[axes, groups]: what every axis loses per unit of each group."""
        from scipy.sparse import csr_array

        shape = (len(self._sizes), self._groups)
        return csr_array((self._per_unit, (self._axis, self._group)), shape=shape)

    @cached_property
    def _pairs(self) -> tuple[Counts, Counts, Sizes]:
        """Every (term, group) that meet, and what each factor of the term loses per unit."""
        width = self._terms.shape[1]
        first = np.searchsorted(self._axis, self._terms.ravel(), side="left")
        count = np.searchsorted(self._axis, self._terms.ravel(), side="right") - first
        place = np.repeat(np.arange(self._terms.size), count)
        offset = np.arange(place.size) - np.repeat(np.cumsum(count) - count, count)
        entry = first[place] + offset
        keys, pair = np.unique(
            place // width * self._groups + self._group[entry], return_inverse=True
        )
        per_unit = np.zeros((keys.size, width))
        per_unit[pair, place % width] = self._per_unit[entry]
        return keys // max(self._groups, 1), keys % max(self._groups, 1), per_unit

    @cached_property
    def _by_group(self) -> tuple[Counts, Counts]:
        """The numbers of all pairs, those of one group together, and where each group starts."""
        groups = self._pairs[1]
        order = np.argsort(groups, kind="stable").astype(np.int64)
        return order, np.searchsorted(groups[order], np.arange(self._groups + 1)).astype(np.int64)
