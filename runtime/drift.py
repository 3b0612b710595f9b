"""How far a model's outputs move: sums over all elements of all feeds.

For one output with values a of the original and b of the candidate,

    error  = sqrt(S(b - a)^2 / S a^2)                   relative root-mean-square error
    mse    = S(b - a)^2 / n                             in the output's unit, squared
    cosine = 1 - S ab / sqrt(S a^2 * S b^2)             cosine distance
    top1   = share of decisions that change: rows of a table (batch, classes) whose largest
             element is another one, or elements of an output of integers, bools or strings.

The sums go over the elements that are finite in the original, in float64, feed by feed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .elements import finite, is_float, wide
from .session import Array

METRICS = ("error", "mse", "cosine", "top1")
_DIGITS = 6


@dataclass(frozen=True)
class Drift:
    """The measures of one output, to six significant digits; None where an output has no such
    number, or none that is finite."""

    error: float | None = None
    mse: float | None = None
    cosine: float | None = None
    top1: float | None = None

    @classmethod
    def from_json(cls, data: Any) -> Drift:
        """Of a dictionary with these names. Raises TypeError or ValueError for others."""
        for name, value in data.items():
            if value is not None and not (type(value) in (int, float) and value >= 0):
                raise ValueError(f"{name} {value!r} is no measure")
        return cls(**data)


def drift(pairs: Iterable[tuple[Mapping[str, Array], Mapping[str, Array]]]) -> dict[str, Drift]:
    """The drift of every output over (original, candidate) outputs, feed by feed.

    An output that is missing on one side, or has another shape there, has no numbers.
    """
    sums: dict[str, _Sums] = {}
    for original, candidate in pairs:
        for name, wanted in original.items():
            sums.setdefault(name, _Sums()).add(wanted, candidate.get(name))
    return {name: entry.drift() for name, entry in sums.items()}


def worst(drifts: Iterable[Drift]) -> Drift:
    """The largest of each measure over several outputs; None where no output has it."""
    entries = list(drifts)

    def largest(metric: str) -> float | None:
        found = [v for v in (getattr(entry, metric) for entry in entries) if v is not None]
        return max(found, default=None)

    return Drift(*map(largest, METRICS))


@dataclass
class _Sums:
    """What one output adds up to: squares of a, b and b - a, their product, decisions."""

    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0
    count: int = 0
    decisions: int = 0
    changed: int = 0
    comparable: bool = True

    def add(self, wanted: Array, got: Array | None) -> None:
        if got is None or got.shape != wanted.shape:
            self.comparable = False
            return
        if not is_float(wanted):
            self.decisions += wanted.size
            self.changed += int(np.count_nonzero(wanted != got))
            return
        a, b = wide(wanted), wide(got)
        if a.ndim == 2 and a.shape[1] > 1:
            self.decisions += len(a)
            self.changed += int(np.count_nonzero(a.argmax(axis=1) != b.argmax(axis=1)))
        inside = finite(wanted)
        a, b = a[inside], b[inside]
        self.count += a.size
        with np.errstate(over="ignore", invalid="ignore"):
            self.aa += float(np.square(a).sum())
            self.bb += float(np.square(b).sum())
            self.ab += float((a * b).sum())
            self.dd += float(np.square(b - a).sum())

    def drift(self) -> Drift:
        if not self.comparable:
            return Drift()
        top1 = _number(self.changed / self.decisions) if self.decisions else None
        if not self.count or not math.isfinite(self.dd):
            return Drift(top1=top1)
        if self.dd == 0.0:
            return Drift(0.0, 0.0, 0.0, top1)
        norm = math.sqrt(self.aa) * math.sqrt(self.bb)
        return Drift(
            _number(math.sqrt(self.dd / self.aa)) if self.aa else None,
            _number(self.dd / self.count),
            _number(max(1.0 - self.ab / norm, 0.0)) if norm else 1.0,
            top1,
        )


def _number(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
