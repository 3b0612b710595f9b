"""Paired timing of models: interleaved runs, medians, quartiles, and how sure a ratio is.

Models take turns on the same feed, and the order is reversed every round, so that frequency
changes and other load hit all of them alike. A speed-up is the median of the ratios within each
round; its spread are their quartiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..ir.errors import UsageError
from .session import Feed, Model, make_session, run


@dataclass(frozen=True)
class Timing:
    """Run times of one model in milliseconds: quartiles, number of runs, and every sample."""

    p50: float
    p25: float
    p75: float
    runs: int
    samples: tuple[float, ...] = field(repr=False)

    @property
    def iqr(self) -> float:
        """Interquartile range in milliseconds."""
        return self.p75 - self.p25

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Summarise samples in milliseconds. Raises UsageError when there are none."""
        if not samples:
            raise UsageError("no runs were timed: ask for at least one")
        p25, p50, p75 = (float(q) for q in np.percentile(samples, (25, 50, 75)))
        return cls(p50, p25, p75, len(samples), tuple(samples))


@dataclass(frozen=True)
class Speedup:
    """The median ``ratio`` of paired runs (above 1: the candidate is faster), and the lower and
    upper quartile."""

    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, reference: Timing, candidate: Timing) -> Speedup:
        """From two timings of one `benchmark` call, whose samples are pairs.

        Raises UsageError when the numbers of runs differ.
        """
        if reference.runs != candidate.runs:
            raise UsageError("a speed-up needs timings of the same benchmark")
        pairs = np.asarray(reference.samples) / np.asarray(candidate.samples)
        low, median, high = (float(q) for q in np.percentile(pairs, (25, 50, 75)))
        return cls(median, low, high)


def benchmark(
    models: Sequence[Model],
    feeds: Sequence[Feed],
    *,
    threads: int = 0,
    warmup: int = 3,
    min_runs: int = 20,
    min_seconds: float = 1.0,
    max_seconds: float = 30.0,
    progress: Callable[[float], None] | None = None,
) -> list[Timing]:
    """Time every model on the same feeds, in turns, with all graph optimisations.

    Every round runs each model once on one feed; feeds take turns. Rounds go on until there are
    ``min_runs`` of them and ``min_seconds`` have passed, or ``max_seconds`` have; one is always
    run. ``progress`` gets the fraction done. Raises CertificateError when a model does not run,
    UsageError when there is nothing to time.
    """
    if not models or not feeds:
        raise UsageError("a benchmark needs at least one model and one feed")
    sessions = [make_session(model, threads=threads) for model in models]
    for session in sessions:
        for i in range(warmup):
            run(session, feeds[i % len(feeds)])
    samples: list[list[float]] = [[] for _ in sessions]
    start, rounds = time.perf_counter(), 0
    while True:
        feed = feeds[rounds % len(feeds)]
        order = range(len(sessions))
        for i in order if rounds % 2 == 0 else reversed(order):
            begin = time.perf_counter()
            run(sessions[i], feed)
            samples[i].append((time.perf_counter() - begin) * 1e3)
        rounds += 1
        elapsed = time.perf_counter() - start
        enough = min(rounds / max(min_runs, 1), elapsed / max(min_seconds, 1e-9))
        done = max(enough, elapsed / max(max_seconds, 1e-9))
        if progress is not None:
            progress(min(done, 1.0))
        if done >= 1:
            return [Timing.of(item) for item in samples]
