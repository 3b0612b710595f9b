"""The most pruning that keeps a quality: bisection over how much is kept, each answer run whole.

Quality need not fall steadily with the share of multiply-accumulates that is kept (parameters,
where a model has none), so the result is a candidate that was judged good enough, next to one with
a little less kept that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..ir.errors import TargetError
from ..runtime.products import Counts
from .allocation import Scope, solve
from .gauges import exact_gauges
from .room import Room, nothing_prunable
from .targets import Kind, Target

STEPS = 9


def most_pruning(
    room: Room,
    quality: float,
    judge: Callable[[Counts], float],
    scope: Scope,
    progress: Callable[[float], None] = lambda _done: None,
) -> tuple[Counts, float, list[tuple[float, float]]]:
    """The counts that keep least while ``judge`` says at least ``quality``, what it said of them,
    and all shares that were tried with their quality.

    Raises TargetError when nothing that was tried keeps the quality.
    """
    if not room.room.any():
        raise TargetError(nothing_prunable(room.analysis, room.limits))
    kind: Kind = "macs" if exact_gauges(room.analysis, [Target("macs", 1.0)])[0].whole else "params"
    (gauge,) = exact_gauges(room.analysis, [Target(kind, 1.0)])
    least = gauge.exact(room.flags(room.room)) / gauge.whole
    low, high, share = least, 1.0, least
    best: tuple[Counts, float] | None = None
    judged: dict[bytes, float] = {}
    tried: list[tuple[float, float]] = []
    for step in range(STEPS):
        progress(step / STEPS)
        counts = solve(room, exact_gauges(room.analysis, [Target(kind, share)]), scope)
        key = counts.tobytes()
        if counts.any() and key not in judged:
            judged[key] = judge(counts)
            tried.append((share, judged[key]))
        if judged.get(key, math.inf) >= quality:
            high = share
            best = (counts, judged[key]) if key in judged else best
        else:
            low = share
        if low == high:  # the least there is keeps it
            break
        share = (low + high) / 2
    if best is None:
        top = max((q for _, q in tried), default=float("nan"))
        raise TargetError(
            f"no pruning keeps a quality of {quality:g}: at best {top:.6g} was reached, with "
            f"{max(s for s, _ in tried):.4g} of the {'MACs' if kind == 'macs' else 'parameters'}"
        )
    return *best, tried
