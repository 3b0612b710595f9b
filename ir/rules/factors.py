"""Factored axes: an axis as a run of factors, and units along one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..coupling import Indices
from .base import Site


@dataclass(frozen=True)
class Run:
    """An axis as a run of factors: its mixed-radix digits, most significant first."""

    axis: int
    factors: tuple[int, ...]

    def digit(self, factor: int, sizes: Sequence[int]) -> Indices:
        """For each coordinate of the axis, its position along ``factor``."""
        at = self.factors.index(factor)
        inner = math.prod(sizes[f] for f in self.factors[at + 1 :])
        total = math.prod(sizes[f] for f in self.factors)
        return np.arange(total, dtype=np.int64) // inner % sizes[factor]


def link_factor(site: Site, runs: Sequence[Run], factor: int, sizes: Sequence[int]) -> None:
    """Links every axis that contains ``factor`` along it, through one hub."""
    hub = site.hub(sizes[factor])
    for run in runs:
        if factor not in run.factors:
            continue
        if all(sizes[f] == 1 for f in run.factors if f != factor):
            site.link(run.axis, hub)
        else:
            digit = run.digit(factor, sizes)
            site.link(run.axis, hub, np.arange(digit.size, dtype=np.int64), digit)


def digits(
    runs: Sequence[Run], factor: int, sizes: Sequence[int]
) -> tuple[tuple[int, Indices], ...]:
    """For each axis that contains ``factor``, the unit that every coordinate falls into."""
    return tuple((r.axis, r.digit(factor, sizes)) for r in runs if factor in r.factors)
