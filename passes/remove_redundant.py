"""``remove-redundant``: remove units that are zero, constant, not read, or doubled by another.

What goes, and why the outputs stay, is in `secateur.passes.redundant_units`; what is proved of
values beforehand in `secateur.ir.bounds`. Removing some units shows others to be redundant (a unit
that only removed ones read, say), so that it all runs again until nothing is found.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as oir

from ..ir.analysis import Analysis
from ..ir.bounds import propagate
from ..ir.patch import RewriteError
from ..ir.rewrite import Rewritten, rewrite
from .base import Contract, Pass, PassContext, PassResult
from .computed_weights import Carrier, analyze
from .empty_branches import drop_empty, leave_some
from .fold_units import apply_changes, settle_changes
from .redundant_units import CAUSES, Change, Finder, Redundant


@dataclass(frozen=True)
class RemoveRedundant(Pass):
    """Removes units that are zero, constant (with ``constants``), copies of another (with
    ``duplicates``) or not read. ``protect`` are globs of nodes or tensors that stay whole."""

    name: ClassVar[str] = "remove-redundant"
    contract: ClassVar[Contract] = Contract.PRESERVES
    summary: ClassVar[str] = "remove channels that are zero, constant, duplicate or not read"

    constants: bool = True
    duplicates: bool = True
    protect: tuple[str, ...] = ()

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        """Raises UsageError for a glob that matches nothing."""
        counts: Counter[str] = Counter()
        removed: list[dict[str, Any]] = []
        notes: list[str] = []
        carrier: Carrier = "heads"
        smaller, idle = model, 0
        while idle < 2:
            analysis = self._analyze(smaller, context, carrier)
            found = self._reduce(analysis)
            if found is not None:
                rewritten, redundant = found
                smaller, idle = rewritten.model, 0
                notes += rewritten.notes
                counts += _count(redundant)
                removed += _rows(analysis, redundant)
                continue
            if not analysis.coupling.carriers:
                break
            idle += 1
            carrier = "head-dim" if carrier == "heads" else "heads"
        statistics = {"units": counts.total(), **{cause: counts[cause] for cause in CAUSES}}
        details = {"removed": removed, "notes": notes}
        return PassResult(smaller, bool(counts), statistics, details)

    def _analyze(self, model: oir.Model, context: PassContext, carrier: Carrier) -> Analysis:
        from ..runtime.observe import observer

        context.progress("analyse", None)
        return analyze(
            model,
            context.dims,
            protect=self.protect,
            prefer=carrier,
            observe=observer(model, context.calibration),
        )

    def _reduce(self, analysis: Analysis) -> tuple[Rewritten, Redundant] | None:
        """One round; None when nothing goes."""
        if not analysis.unit_count:
            return None
        finder = Finder(analysis, propagate(analysis))
        redundant = finder.find(self.constants, self.duplicates)
        leave_some(analysis, redundant)
        changes = settle_changes(finder, redundant)
        if not redundant.removed.any():
            return None
        try:
            return _cut(analysis, redundant, changes)
        except RewriteError:
            return self._reduce_by_group(finder, redundant)

    def _reduce_by_group(
        self, finder: Finder, redundant: Redundant
    ) -> tuple[Rewritten, Redundant] | None:
        """Without the groups of which some size cannot be restated."""
        analysis = finder.analysis
        for group in analysis.groups:
            alone = np.zeros(analysis.unit_count, np.bool_)
            alone[group.units] = redundant.removed[group.units]
            try:
                if alone.any():
                    rewrite(analysis, alone)
            except RewriteError:
                redundant.spare(group.units)
        leave_some(analysis, redundant)
        changes = settle_changes(finder, redundant)
        return _cut(analysis, redundant, changes) if redundant.removed.any() else None


def _cut(
    analysis: Analysis, redundant: Redundant, changes: list[Change]
) -> tuple[Rewritten, Redundant]:
    removed = redundant.removed
    rewritten = rewrite(analysis, removed)
    apply_changes(rewritten.model, analysis, removed, changes)
    drop_empty(rewritten.model, analysis, removed)
    return rewritten, redundant


def _count(redundant: Redundant) -> Counter[str]:
    return Counter(CAUSES[cause] for cause in redundant.cause[redundant.removed])


def _rows(analysis: Analysis, redundant: Redundant) -> list[dict[str, Any]]:
    """How many units of every group went, and why."""
    rows = []
    for group in analysis.groups:
        causes = redundant.cause[group.units]
        for number, cause in enumerate(CAUSES):
            if count := int((causes == number).sum()):
                rows.append({"group": group.name, "cause": cause, "units": count})
    return rows
