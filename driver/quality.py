"""The most pruning that keeps a quality, where weights are refitted.

Quality is judged behind the whole pipeline, since refitting brings back most of what a pruning
loses. Alone, a floor on quality asks for the least share of multiply-accumulates that keeps it,
which is found by bisection over whole runs; beside other targets it must hold once these are met.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import onnx_ir as oir

from ..ir.errors import TargetError

if TYPE_CHECKING:
    from .results import PruneResult

RUNS = 6
"""Halvings of the interval in which the share is looked for."""


def least_share(
    attempt: Callable[[float], PruneResult], judge: Callable[[oir.Model], float], floor: float
) -> float:
    """The least share of MACs, to 1 / 2^`RUNS`, at which ``attempt`` gives a model that ``judge``
    finds at least as good as ``floor``. Raises TargetError when there is none."""
    fails, holds, best = 0.0, 1.0, None
    for _ in range(RUNS):
        share = (fails + holds) / 2
        try:
            quality = judge(attempt(share).model)
        except TargetError:  # so little cannot be reached
            fails = share
            continue
        best = quality if best is None else max(best, quality)
        fails, holds = (fails, share) if quality >= floor else (share, holds)
    if holds == 1.0:
        found = "" if best is None else f"; the best quality that a pruning had is {best:.4g}"
        raise TargetError(f"no pruning keeps the quality at {floor:g}{found}")
    return holds


def check_quality(
    result: PruneResult, judge: Callable[[oir.Model], float], floor: float, searched: bool
) -> PruneResult:
    """The result, with its quality in the report. Raises TargetError when it is below the floor."""
    quality = judge(result.model)
    if quality < floor:
        condition = "" if searched else " once the other targets are met"
        raise TargetError(f"the quality is {quality:.4g}{condition}, not {floor:g}")
    row: dict[str, Any] = {"target": "min-quality", "asked": floor, "goal": floor}
    row |= {"pass": len(result.passes), "before": 1.0, "predicted": None, "reached": quality}
    result.report["targets"].append(row)
    return result
