"""What the functions of the Python interface give back."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as oir

from ..ir.analysis import Analysis
from ..ir.coupling import Flags
from ..ir.io import save_model
from ..passes.base import Pass, PassResult
from ..passes.proof import Points
from ..passes.prune import Pruning
from ..runtime.benchmark import Speedup, Timing
from ..runtime.certificate import Certificate


@dataclass(frozen=True)
class Plan:
    """Which units go: ``removed`` is bool[unit_count] over the units of ``analysis``."""

    analysis: Analysis
    removed: Flags


@dataclass(frozen=True)
class Bench:
    """Timings of two models in one interleaved run, and their ratio."""

    original: Timing
    candidate: Timing
    speedup: Speedup
    threads: int


@dataclass
class PruneResult:
    """The pruned model with its proof. ``report`` is a dictionary of JSON values; see
    docs/report.md."""

    model: oir.Model
    original: oir.Model
    passes: tuple[Pass, ...]
    results: tuple[PassResult, ...]
    bench: Bench | None
    report: dict[str, Any] = field(default_factory=dict)
    source: Path | None = None
    same: Certificate | None = None

    @property
    def certificate(self) -> Certificate | None:
        """The certificate of the last pruning pass; where all passes preserve the outputs, that of
        the result against the original (``same``). None when nothing was proved."""
        found = [r.certificate for r in self.results if r.certificate is not None]
        return found[-1] if found else self.same  # type: ignore[return-value]

    @property
    def points(self) -> Points | None:
        """Where the original is masked for that certificate."""
        found = [r.details["points"] for r in self.results if "points" in r.details]
        return found[-1] if found else Points(()) if self.same is not None else None

    @property
    def pruning(self) -> Pruning | None:
        """What the last pruning pass did."""
        found = [r.details["pruning"] for r in self.results if "pruning" in r.details]
        return found[-1] if found else None

    def save(
        self, path: str | os.PathLike[str], report: str | os.PathLike[str] | None = None
    ) -> None:
        """Writes the model (and the report as JSON), each whole or not at all.

        Raises UsageError when a file cannot be written, or when it is one that the original was
        read from: without it nothing could be verified any more.
        """
        from .overwrite import refuse_overwriting
        from .report import describe_files, write_report

        if self.source is not None:
            refuse_overwriting(self.source, self.original, Path(path))
        self.report["pruned"] = describe_files(save_model(self.model, path))
        if report is not None:
            write_report(self.report, report)
