"""From targets to the units that go, with what was asked and what is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..ir.analysis import Analysis
from ..ir.coupling import Flags
from .allocation import Limits, Room, Scope, Scores, by_ratio, solve
from .gauges import exact_gauges
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
    analysis: Analysis, scores: Scores, targets: Sequence[Target], limits: Limits, scope: Scope
) -> Choice:
    """Meets all targets. Raises TargetError when nothing can be pruned or one is out of reach."""
    room = Room(analysis, scores, limits)
    if targets[0].kind == "ratio":
        counts = by_ratio(room, targets[0].value, scope)
        share = float(counts.sum()) / max(analysis.unit_count, 1)
        asked = targets[0].value
        reached = [Reached("ratio", asked, 0.0, asked, share, share)]
    else:
        gauges = exact_gauges(analysis, targets)
        counts = solve(room, gauges, scope)
        flags = room.flags(counts)
        reached = [
            Reached(
                g.target.kind,
                g.target.value,
                g.whole,
                g.goal,
                float(g.predict(counts[None]).max(initial=0.0)),
                g.exact(flags),
            )
            for g in gauges
        ]
    total = float(room.lost(room.size))
    lost = float(room.lost(counts)) / total if total else 0.0
    return Choice(room.flags(counts), lost, tuple(reached))
