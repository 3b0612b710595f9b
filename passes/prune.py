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
from .base import Contract, Pass, PassContext, PassResult
from .choose import Choice, choose
from .computed_weights import analyze
from .criteria import score_units
from .proof import Points, Removal, prove
from .quality import check_metric
from .room import Limits
from .scoring import Combine, Normalize, Scoring
from .targets import KINDS, Target, parse_amount, shares_of_input

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
    """Removes whole units until all targets are met: ``macs`` and ``params`` (shares of the
    original to keep), ``size`` and ``memory`` (up to 1 a share to keep, else bytes, as in "500k"
    or "2MB"; see `targets`), ``latency`` (share of the original's measured P50) and ``latency_ms``,
    none of them exceeded, and ``min_quality`` of ``metric`` (see `quality`), which alone asks for
    the most pruning that keeps it; or ``ratio`` alone, the share of units removed from every
    group. Shares are of the model that the pass is given, or, ``of`` the original, of the one that
    the pipeline was given."""

    name: ClassVar[str] = "prune"
    contract: ClassVar[Contract] = Contract.MASKS
    summary: ClassVar[str] = "remove coupled channels and prove the result"

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    size: float | str | None = None
    memory: float | str | None = None
    latency: float | None = None
    latency_ms: float | None = None
    min_quality: float | None = None
    metric: str = "cosine"
    of: Literal["input", "original"] = "input"
    criterion: str = "l2"
    combine: Combine = "sum"
    normalize: Normalize = "auto"
    scope: Literal["local", "global"] = "local"
    round_to: int = 1
    protect: tuple[str, ...] = ()
    max_ratio: float = 1.0
    min_channels: int = 1
    inexact: bool = False
    carrier: Literal["heads", "head-dim"] = "heads"

    def __post_init__(self) -> None:
        targets = self.targets  # raises for values out of range
        if not targets:
            kinds = ", ".join(f"`{kind.replace('-', '_')}`" for kind in KINDS)
            raise ValueError(f"prune needs at least one target: {kinds}")
        if self.ratio is not None and len(targets) > 1:
            raise ValueError("`ratio` cannot be combined with another target")
        check_metric(self.metric, self.min_quality)
        if not 0 < self.max_ratio <= 1:
            raise ValueError(
                f"`max_ratio` must be more than 0 and at most 1, not {self.max_ratio:g}"
            )
        for name in ("round_to", "min_channels"):
            if not 1 <= getattr(self, name) <= 2**31:
                raise ValueError(
                    f"`{name}` must be at least 1 and at most 2^31, not {getattr(self, name)}"
                )

    @property
    def targets(self) -> tuple[Target, ...]:
        """All targets that are set."""
        values = {kind: getattr(self, kind.replace("-", "_")) for kind in KINDS}
        return tuple(Target(k, parse_amount(k, v)) for k, v in values.items() if v is not None)

    @property
    def limits(self) -> Limits:
        """What the allocation must respect."""
        return Limits(self.max_ratio, self.round_to, self.inexact, self.min_channels)

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        """Raises TargetError when the target cannot be met, CertificateError when the result does
        not equal the masked original."""
        clock: dict[str, float] = {}
        with _phase("analyse", clock, context):
            analysis = self._analyze(model, context)
        with _phase("allocate", clock, context):
            choice = self._choose(analysis, context)
            removed = choice.removed
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
                [*rewritten.notes, *choice.notes],
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
                "score-lost": choice.lost,
            },
            {"pruning": pruning, "points": points, "targets": choice.details(), **choice.extra},
            certificate,
        )

    def _choose(self, analysis: Analysis, context: PassContext) -> Choice:
        targets = self.targets
        if self.of == "original":
            targets = shares_of_input(targets, context.history)
            if all(target.is_share and target.value == 1 for target in targets):
                return Choice(np.zeros(analysis.unit_count, np.bool_), 0.0, ())  # all are met
        scores = score_units(
            analysis, self.criterion, Scoring(context, self.combine), self.normalize
        )
        return choose(analysis, scores, targets, self.limits, self.scope, context, self.metric)

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
