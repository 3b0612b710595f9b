"""From targets to the units that go, with what was asked and what is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from ..ir.analysis import Analysis
from ..ir.coupling import Flags
from ..ir.errors import TargetError
from ..ir.rewrite import rewrite
from ..runtime.benchmark import Timing
from ..runtime.latency import Clock, LatencyModel, latency_model, real_clock
from ..runtime.products import Counts
from .allocation import Scope, by_ratio, check_reachable, solve
from .base import PassContext
from .gauges import Gauge, exact_gauges
from .latency_target import meet_latency
from .quality import Judge
from .quality_target import most_pruning
from .room import Limits, Room, Scores, nothing_prunable
from .targets import Kind, Target


@dataclass(frozen=True)
class Reached:
    """One target: the value that was asked for, and in the unit of the target what the original
    has, what may stay (``goal``), what the search predicted and what is left (``reached``)."""

    target: Kind
    asked: float
    before: float
    goal: float
    predicted: float
    reached: float


@dataclass(frozen=True)
class Choice:
    """The units to remove, bool[unit_count]; ``lost`` is the share of the total score that goes
    with them."""

    removed: Flags
    lost: float
    reached: tuple[Reached, ...]
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def details(self) -> list[dict[str, Any]]:
        """What was asked and reached for every target, as JSON values."""
        return [asdict(reached) for reached in self.reached]


def choose(
    analysis: Analysis,
    scores: Scores,
    targets: Sequence[Target],
    limits: Limits,
    scope: Scope,
    context: PassContext | None = None,
    metric: str = "cosine",
    clock: Clock | None = None,
) -> Choice:
    """Meets all targets; a quality alone by the most pruning that keeps it, beside others by what
    they need. ``context`` says how models are run where they are measured, ``clock`` what times
    them (by default ONNX Runtime).

    Raises TargetError when nothing can be pruned or a target is out of reach.
    """
    context = context or PassContext()
    demands = [t for t in targets if t.kind == "min-quality"]
    budgets = [t for t in targets if t.kind != "min-quality"]
    judge = Judge(analysis.source, metric, context) if demands else None
    if judge is not None and not budgets:
        return _of_quality(Room(analysis, scores, limits), demands[0], judge, scope, context)
    choice = _within(analysis, scores, budgets, limits, scope, context, clock)
    return choice if judge is None else _judged(analysis, choice, demands[0], judge)


def _within(
    analysis: Analysis,
    scores: Scores,
    targets: Sequence[Target],
    limits: Limits,
    scope: Scope,
    context: PassContext,
    clock: Clock | None,
) -> Choice:
    """Meets targets on costs."""
    if targets[0].kind == "ratio":
        return _by_ratio(Room(analysis, scores, limits), targets[0].value, scope)
    gauges = exact_gauges(analysis, targets)
    timed = [t for t in targets if t.kind in ("latency", "latency-ms")]
    if timed:
        return _in_time(analysis, scores, timed, gauges, limits, scope, context, clock)
    room = Room(analysis, scores, limits)
    counts = solve(room, gauges, scope)
    return Choice(room.flags(counts), room.lost_share(counts), _reached(room, gauges, counts))


def _of_quality(
    room: Room, target: Target, judge: Judge, scope: Scope, context: PassContext
) -> Choice:
    counts, found, tried = most_pruning(
        room,
        target.value,
        lambda counts: judge(rewrite(room.analysis, room.flags(counts)).model),
        scope,
        lambda done: context.progress("judge candidates", done),
    )
    return Choice(
        room.flags(counts),
        room.lost_share(counts),
        (Reached(target.kind, target.value, 1.0, target.value, found, found),),
        judge.notes,
        {"qualities": [{"share": share, "quality": quality} for share, quality in tried]},
    )


def _judged(analysis: Analysis, choice: Choice, target: Target, judge: Judge) -> Choice:
    """The choice with its quality. Raises TargetError when that is too low."""
    found = judge(rewrite(analysis, choice.removed).model) if choice.removed.any() else 1.0
    if found < target.value:
        raise TargetError(
            f"the quality is {found:.6g} once the other targets are met, not {target.value:g}; "
            "ask for less of one of them"
        )
    reached = Reached(target.kind, target.value, 1.0, target.value, found, found)
    return replace(choice, reached=(*choice.reached, reached), notes=(*choice.notes, *judge.notes))


def _by_ratio(room: Room, ratio: float, scope: Scope) -> Choice:
    counts = by_ratio(room, ratio, scope)
    share = float(counts.sum()) / max(room.analysis.unit_count, 1)
    reached = Reached("ratio", ratio, 0.0, ratio, share, share)
    return Choice(room.flags(counts), room.lost_share(counts), (reached,))


def _reached(room: Room, gauges: Sequence[Gauge], counts: Counts) -> tuple[Reached, ...]:
    flags = room.flags(counts)
    return tuple(
        Reached(
            g.target.kind,
            g.target.value,
            g.whole,
            g.goal,
            float(g.predict(counts[None]).max(initial=0.0)),
            g.exact(flags),
        )
        for g in gauges
    )


def _in_time(
    analysis: Analysis,
    scores: Scores,
    targets: Sequence[Target],
    gauges: Sequence[Gauge],
    limits: Limits,
    scope: Scope,
    context: PassContext,
    clock: Clock | None,
) -> Choice:
    """Meets latencies as well, in steps that the machine likes unless ``round_to`` is given."""
    freest = Room(analysis, scores, limits)
    if not freest.room.any():
        raise TargetError(nothing_prunable(analysis, limits))
    check_reachable(freest, gauges)  # before minutes of timing
    clock = clock or real_clock(analysis, context.calibration, context.threads, context.seed)
    model = latency_model(
        analysis, clock, context.threads, lambda done: context.progress("time layers", done)
    )
    original, _ = clock.pair(analysis.source, analysis.source)
    goal = min(t.value if t.is_share else t.value / original.p50 for t in targets)
    timings: dict[bytes, tuple[Timing, Timing]] = {}

    def measured(room: Room, counts: Counts) -> float:
        smaller = rewrite(analysis, room.flags(counts)).model if counts.any() else analysis.source
        before, after = timings[counts.tobytes()] = clock.pair(analysis.source, smaller)
        return max(after.p50 / t.goal(before.p50) for t in targets)

    progress = partial(context.progress, "time candidates")
    rooms = _liked_rooms(analysis, scores, limits, model, goal)
    for room in rooms:
        try:
            timer = partial(measured, room)
            tried = meet_latency(room, gauges, model, goal, timer, scope, progress)
            break
        except TargetError:
            if room is rooms[-1]:
                raise
    best = tried[0]
    before, after = timings[best.counts.tobytes()]
    reached = [
        Reached(
            t.kind,
            t.value,
            before.p50,
            t.goal(before.p50),
            best.predicted * before.p50,
            after.p50,
        )
        for t in targets
    ]
    return Choice(
        room.flags(best.counts),
        room.lost_share(best.counts),
        (*_reached(room, gauges, best.counts), *reached),
        extra={
            "alignment": list(room.limits.alignment or ()),
            "candidates": [
                {"predicted": c.predicted, "measured": c.measured * goal} for c in tried
            ],
        },
    )


def _liked_rooms(
    analysis: Analysis, scores: Scores, limits: Limits, model: LatencyModel, goal: float
) -> list[Room]:
    """Room in the steps that the tables like, or in smaller ones where the goal needs these; where
    by the tables none do, both, since small models may be faster than these know."""
    if limits.round_to > 1:
        return [Room(analysis, scores, limits)]
    alignment, rooms = model.alignments([len(g.units) for g in analysis.groups]), list[Room]()
    while True:
        room = Room(analysis, scores, replace(limits, alignment=alignment))
        if room.room.any():
            rooms.append(room)
            if float(model.share(room.room[None])[0]) <= goal:
                return rooms[-1:]
        if max(alignment) == 1:
            return rooms[:1] + rooms[1:][-1:]
        alignment = tuple(max(a // 2, 1) for a in alignment)
