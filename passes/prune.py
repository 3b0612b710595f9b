"""The pass ``prune``: analyse, score, allocate, rewrite, prove."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import onnx_ir as oir

from ..ir.analysis import Analysis
from ..ir.coupling import Flags
from ..ir.errors import UsageError
from ..ir.masks import Compaction, Mask
from ..ir.reference import reference_points
from ..ir.rewrite import Rewritten, rewrite
from ..ir.slices import Copy, Slice
from ..runtime.cost import CostModel, Costs
from .allocation import Limits, Target, allocate
from .base import Contract, Pass, PassContext, PassResult
from .computed_weights import analyze
from .criteria import score_units
from .proof import Points, Removal, prove
from .scoring import Combine, Normalize, Scoring

if TYPE_CHECKING:
    from ..runtime.certificate import Certificate


@dataclass
class Pruning:
    """What `Prune` did, for reports: ``PassResult.details["pruning"]``."""

    analysis: Analysis
    removed: Flags
    slices: list[Slice]
    masks: list[Mask]
    compactions: list[Compaction]
    before: Costs
    after: Costs
    seconds: dict[str, float] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Prune(Pass):
    """Removes whole units until exactly one target is met: ``ratio`` (share of units removed from
    every group), ``macs`` or ``params`` (share of the original to keep, never exceeded)."""

    name: ClassVar[str] = "prune"
    contract: ClassVar[Contract] = Contract.MASKS
    summary: ClassVar[str] = "remove coupled channels and prove the result"

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    criterion: str = "l2"
    combine: Combine = "sum"
    normalize: Normalize = "auto"
    scope: Literal["local", "global"] = "local"
    round_to: int = 1
    protect: tuple[str, ...] = ()
    max_ratio: float = 1.0
    inexact: bool = False
    carrier: Literal["heads", "head-dim"] = "heads"

    def __post_init__(self) -> None:
        given = [k for k in ("ratio", "macs", "params") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError("prune needs exactly one target: ratio, macs or params")
        for name in (*given, "max_ratio"):
            value = getattr(self, name)
            if not 0 < value <= 1 or (name == "ratio" and value == 1):
                bounds = "more than 0 and " + ("less than 1" if name == "ratio" else "at most 1")
                raise ValueError(f"{name.replace('_', '-')} must be {bounds}, not {value:g}")
        if not 1 <= self.round_to <= 2**31:
            raise ValueError(f"round-to must be at least 1 and at most 2^31, not {self.round_to}")

    @property
    def target(self) -> Target:
        """The one target that is set."""
        if self.ratio is not None:
            return Target("ratio", self.ratio)
        if self.macs is not None:
            return Target("macs", self.macs)
        assert self.params is not None
        return Target("params", self.params)

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        """Raises TargetError when the target cannot be met, CertificateError when the result does
        not equal the masked original."""
        clock: dict[str, float] = {}
        with _phase("analyse", clock, context):
            analysis = self._analyze(model, context)
        with _phase("allocate", clock, context):
            scoring = Scoring(context, self.combine)
            scores = score_units(analysis, self.criterion, scoring, self.normalize)
            limits = Limits(self.max_ratio, self.round_to, self.inexact)
            removed = allocate(analysis, scores, self.target, limits, self.scope)
        with _phase("rewrite", clock, context):
            rewritten = rewrite(analysis, removed) if removed.any() else Rewritten(model, [])
            costs = CostModel(analysis)
            masks, compactions = reference_points(analysis, removed)
            pruning = Pruning(
                analysis,
                removed,
                rewritten.slices,
                masks,
                compactions,
                costs.costs(),
                costs.costs(removed),
                clock,
                rewritten.copies,
                rewritten.notes,
            )
        with _phase("certify", clock, context):
            points = Points(masks, compactions)
            certificate = prove_slices(analysis, rewritten, points, context)
        gone = int(removed.sum())
        return PassResult(
            rewritten.model,
            gone > 0,
            {
                "units": gone,
                "weights-stored": len(analysis.stored),
                "macs": pruning.after.macs / max(pruning.before.macs, 1),
                "params": pruning.after.parameters / max(pruning.before.parameters, 1),
            },
            {"pruning": pruning, "points": points},
            certificate,
        )

    def repeat(self, model: oir.Model, removal: Removal, context: PassContext) -> oir.Model:
        """The model without the units that own what was removed. Raises UsageError when that is
        not what its units are."""
        analysis = self._analyze(model, context)
        removed = np.zeros(analysis.unit_count, np.bool_)
        for name, index, indices in removal.slices:
            operand = analysis.operands.get(name)  # None: its uses differ, and others decide
            if operand is None:
                continue
            size = operand.shape[index] if 0 <= index < operand.rank else 0
            if not all(0 <= k < size for k in indices):
                raise UsageError(f"'{name}' has no such slices")
            units = analysis.units_of(operand.axis(index))
            chosen = np.array([-1]) if units is None else units[list(indices)]
            if (chosen < 0).any():
                raise UsageError(f"slices of '{name}' along axis {index} must stay")
            removed[chosen] = True
        return rewrite(analysis, removed).model if removed.any() else model

    def _analyze(self, model: oir.Model, context: PassContext) -> Analysis:
        from ..runtime.observe import observer

        return analyze(
            model,
            context.dims,
            protect=self.protect,
            prefer=self.carrier,
            observe=observer(model, context.calibration),
        )


def prove_slices(
    analysis: Analysis, rewritten: Rewritten, points: Points, context: PassContext
) -> Certificate:
    """The certificate of a rewriting. Raises CertificateError when a model does not run."""
    return prove(
        analysis.source,
        rewritten.model,
        points,
        analysis.facts,
        context,
        removed=[(s.tensor, s.axis, s.indices) for s in rewritten.slices],
        source=analysis.model if analysis.stored else None,
    )


@contextmanager
def _phase(name: str, clock: dict[str, float], context: PassContext) -> Iterator[None]:
    context.progress(name, None)
    begin = time.perf_counter()
    try:
        yield
    finally:
        clock[name] = time.perf_counter() - begin
