"""Meeting a latency: allocate by tables, measure the whole candidate, correct, and again.

The allocation works on predicted shares of the original's latency. Each answer is rewritten and
timed in turns with the original; the limit on the prediction is then moved along the line through
the last two answers (the secant), kept between the highest limit that met the goal and the lowest
that did not. Where the least that the tables promise is too slow but the smallest model is not,
MACs tell apart what lies between. Of the candidates that were measured to meet the goal, the one
that loses least is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..ir.errors import TargetError
from ..runtime.latency import LatencyModel
from ..runtime.products import Counts
from .allocation import Scope, solve
from .gauges import Gauge, exact_gauges
from .room import Room
from .targets import Kind, Target

ATTEMPTS = 6
_CLOSE, _AIM = 0.97, 0.985
"""A candidate within these shares of the goal is close enough; corrections aim at the latter."""

_COSTS: tuple[Kind, ...] = ("macs", "params")
"""What tells candidates apart where the tables do not, in this order."""
_LEAST = 1e-6
"""Of a cost of which nothing stays, so that there is a middle."""


@dataclass(frozen=True)
class Candidate:
    """An allocation: ``limit`` is what its prediction was held to, ``predicted`` its share of the
    original's latency, ``measured`` its measured latency over the goal, of several the worst."""

    counts: Counts
    limit: float
    predicted: float
    measured: float

    @property
    def fits(self) -> bool:
        """Whether it was measured to meet the goal."""
        return self.measured <= 1


def meet_latency(
    room: Room,
    gauges: Sequence[Gauge],
    model: LatencyModel,
    goal: float,
    measure: Callable[[Counts], float],
    scope: Scope,
    progress: Callable[[float], None] = lambda _done: None,
) -> list[Candidate]:
    """Candidates within the goals of ``gauges``, the best that was measured to meet the goal
    first. ``goal`` is a share of the original's latency, ``measure`` gives a candidate's latency
    over its goal.

    Raises TargetError when a goal is out of reach; then none of the candidates, the smallest
    possible model among them, was fast enough.
    """
    least = float(model.share(room.room[None])[0])
    limit, tried = goal, list[Candidate]()

    def timed(counts: Counts, limit: float) -> Candidate:
        return Candidate(counts, limit, float(model.share(counts[None])[0]), measure(counts))

    for attempt in range(ATTEMPTS):
        progress(attempt / ATTEMPTS)
        limit = min(max(limit, least), 1.0)
        counts = solve(room, [*gauges, latency_gauge(room, model, limit)], scope)
        if any(np.array_equal(counts, done.counts) for done in tried):
            break
        tried.append(timed(counts, limit))
        if _CLOSE <= tried[-1].measured <= 1 or (limit == 1 and tried[-1].fits):
            break
        limit = _corrected(tried)
    if not any(c.fits for c in tried):
        tried.append(timed(room.room, least))
        if tried[-1].measured < _CLOSE:
            tried += _by_cost(room, gauges, tried, timed, scope)
    if not any(c.fits for c in tried):
        best = goal * min(c.measured for c in tried)
        raise TargetError(
            f"the latency cannot go down to {goal:.4g} of the original: at best {best:.4g} was "
            "measured under these limits"
        )
    return sorted(tried, key=lambda c: (not c.fits, float(room.lost(c.counts))))


def _by_cost(
    room: Room,
    gauges: Sequence[Gauge],
    tried: Sequence[Candidate],
    timed: Callable[[Counts, float], Candidate],
    scope: Scope,
) -> list[Candidate]:
    """Candidates between the last one, which is fast enough, and the one before, by MACs, or by
    parameters where these say nothing."""
    for whole in exact_gauges(room.analysis, [Target(kind, 1.0) for kind in _COSTS]):
        slow, fast = (_kept(whole, candidate.counts) for candidate in tried[-2:])
        if fast < slow:
            break
    else:
        return []
    found: list[Candidate] = []
    for _ in range(ATTEMPTS):
        middle = Target(whole.target.kind, math.sqrt(slow * max(fast, _LEAST)))
        try:
            counts = solve(room, [*gauges, replace(whole, target=middle)], scope)
        except TargetError:
            break
        share = _kept(whole, counts)
        if not fast < share < slow:
            break
        found.append(timed(counts, tried[-1].limit))
        if _CLOSE <= found[-1].measured <= 1:
            break
        slow, fast = (slow, share) if found[-1].fits else (share, fast)
    return found


def _kept(gauge: Gauge, counts: Counts) -> float:
    """The share of a cost that stays."""
    return float(gauge.predict(counts[None])[0, 0]) / max(gauge.whole, 1)


def latency_gauge(room: Room, model: LatencyModel, limit: float) -> Gauge:
    """The predicted share of the original's latency, to be at most ``limit``."""
    return Gauge(
        Target("latency", limit),
        1.0,
        lambda removed: model.share(removed)[:, None],
        lambda flags: float(model.share(room.counts(flags)[None])[0]),
        smooth=False,
    )


def _corrected(tried: Sequence[Candidate]) -> float:
    """The limit at which the line through the last two candidates meets the aim."""
    last = tried[-1]
    limit = last.limit * _AIM / last.measured
    if len(tried) > 1:
        rise = last.measured - tried[-2].measured
        run = last.predicted - tried[-2].predicted
        if rise * run > 0:
            limit = last.predicted + (_AIM - last.measured) * run / rise
    below = max((c.limit for c in tried if c.fits), default=0.0)
    above = min((c.limit for c in tried if not c.fits), default=1.0)
    if below < limit < above:
        return limit
    return (below + above) / 2 if below else 0.9 * last.limit
