"""The report: everything about a pruning as JSON. Its schema is docs/report.schema.json."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from ..ir.errors import DataError, SecateurError, reason
from ..ir.io import atomic_write, files_digest, memory_digest, model_files
from .savings import change, groups, layers, totals

if TYPE_CHECKING:
    from ..ir.slices import Slice
    from ..passes.base import PassContext
    from ..passes.proof import Points
    from ..passes.prune import Pruning
    from ..runtime.benchmark import Timing
    from ..runtime.cost import Costs
    from .api import Source
    from .origin import Removed
    from .results import Bench, PruneResult

VERSION = 1
"""Version of the report's schema; it changes when a field changes its meaning or goes."""

_PHASES = ("load", "analyse", "allocate", "rewrite", "certify", "time")
_LIBRARIES = ("onnx", "onnx-ir", "onnxruntime", "numpy", "scipy", "networkx")


def build_report(
    result: PruneResult,
    source: Source,
    context: PassContext,
    seconds: Mapping[str, float],
    timings: Sequence[float],
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """A dictionary of plain JSON values about one run.

    ``seconds`` are the phases around the passes, ``timings`` the seconds of every pass,
    ``warnings`` come after those of the passes.
    """
    from ..passes.pipeline import format_pipeline

    prunings = {
        number: found.details["pruning"]
        for number, found in enumerate(result.results, start=1)
        if "pruning" in found.details
    }
    if isinstance(source, (str, os.PathLike)):
        original = describe_files(model_files(source, result.original))
    else:
        original = describe_model(result.original)
    pruned = describe_model(result.model)
    clock = dict(seconds)
    for pruning in prunings.values():
        for phase, spent in pruning.seconds.items():
            clock[phase] = clock.get(phase, 0.0) + spent
    whole = _Whole.of(result, list(prunings.values()), context)
    return {
        "schema_version": VERSION,
        "secateur": _version("secateur"),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
        },
        "pipeline": format_pipeline(result.passes),
        "options": [_options(p) for p in result.passes],
        "seed": context.seed,
        "threads": context.threads,
        "dims": whole.dims,
        "calibration": None
        if context.calibration is None
        else {name: list(array.shape) for name, array in context.calibration.items()},
        "original": original,
        "pruned": pruned,
        "seconds": {phase: round(clock[phase], 6) for phase in _PHASES if phase in clock},
        "passes": _passes(result, timings),
        "groups": [row for number, p in prunings.items() for row in groups(number, p)],
        "blocks": [
            {"pass": number, **block}
            for number, found in enumerate(result.results, start=1)
            for block in found.details.get("blocks", ())
        ],
        "stored": [
            {"pass": number, "tensor": name}
            for number, p in prunings.items()
            for name in p.analysis.stored
        ],
        "refitted": sorted(
            {name for found in result.results for name in found.details.get("refitted", ())}
        ),
        "fits": [
            {"pass": number, **asdict(fit), "ridge": fit.ridge if fit.ridge < math.inf else None}
            for number, found in enumerate(result.results, start=1)
            for fit in found.details.get("fits", ())
        ],
        "targets": [
            {"pass": number, **target}
            for number, found in enumerate(result.results, start=1)
            for target in found.details.get("targets", ())
        ],
        "layers": layers(whole.before, whole.after),
        "totals": {"file_bytes": change(original["bytes"], pruned["bytes"])}
        | totals(whole.before, whole.after, list(prunings.values())),
        "certificate": _certificate(result),
        "steps": _steps(result),
        "timing": _timing(result.bench),
        "warnings": [*_warnings(result, list(prunings.values()), whole), *warnings],
        "copies": [
            {
                "tensor": copy.tensor,
                "stored_as": copy.stored_as,
                "axis": copy.axis,
                "indices": list(copy.indices),
            }
            for pruning in prunings.values()
            for copy in pruning.copies
        ],
        "removed": _slices(whole.removed.slices),
    }


@dataclass(frozen=True)
class _Whole:
    """The whole run from the original model to the result; costs are None when unknown."""

    dims: dict[str, int]
    before: Costs | None
    after: Costs | None
    removed: Removed

    @classmethod
    def of(cls, result: PruneResult, prunings: Sequence[Pruning], context: PassContext) -> _Whole:
        from ..passes.computed_weights import analyze
        from ..passes.prune import Prune
        from ..runtime.cost import CostModel
        from ..runtime.observe import observer
        from .origin import Removed, removed_in_original

        if len(result.passes) == 1 and prunings:
            (only,) = prunings
            dims = dict(only.analysis.facts[0].binding)
            return cls(dims, only.before, only.after, Removed(only.slices, True))
        carriers = {p.carrier for p in result.passes if isinstance(p, Prune)}
        prefer = carriers.pop() if len(carriers) == 1 else "heads"
        analyses = []
        try:
            for model in (result.original, result.model):
                observe = observer(model, context.calibration)
                analyses.append(analyze(model, context.dims, prefer=prefer, observe=observe))
        except SecateurError:  # the passes themselves may have needed no sizes
            return cls(dict(context.dims), None, None, Removed([], not prunings))
        original, final = analyses
        removed = removed_in_original(original, prunings) if prunings else Removed([], True)
        dims = dict(original.facts[0].binding)
        return cls(dims, CostModel(original).costs(), CostModel(final).costs(), removed)


def _passes(result: PruneResult, timings: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "pass": done.name,
            "contract": done.contract.value,
            "modified": bool(outcome.modified),
            "seconds": round(spent, 6),
            "statistics": dict(outcome.statistics),
            "certificate": None
            if outcome.certificate is None
            else getattr(outcome.certificate, "describe", str)(),
        }
        for done, outcome, spent in zip(result.passes, result.results, timings, strict=True)
    ]


def _certificate(result: PruneResult) -> dict[str, Any] | None:
    points, certificate = result.points, result.certificate
    if points is None or certificate is None:
        return None
    return certificate.to_json() | _points(points)


def _points(points: Points) -> dict[str, Any]:
    return {
        "masks": [m.to_json() for m in points.masks],
        "compactions": [c.to_json() for c in points.compactions],
    }


def _steps(result: PruneResult) -> list[dict[str, Any]]:
    """What every pruning pass removed from the model that it was given; the last, which the
    certificate is about, only where weights were refitted."""
    found = [(k, r) for k, r in enumerate(result.results, start=1) if "points" in r.details]
    refitted = any(p.refits for p in result.passes)
    return [
        {
            "pass": number,
            **_points(outcome.details["points"]),
            "removed": _slices(outcome.details["pruning"].slices)
            if "pruning" in outcome.details
            else [],
        }
        for number, outcome in (found if refitted else found[:-1])
    ]


def _slices(slices: Sequence[Slice]) -> list[dict[str, Any]]:
    return [
        {"tensor": s.tensor, "axis": s.axis, "indices": list(s.indices), "role": s.role}
        for s in slices
    ]


def _warnings(result: PruneResult, prunings: Sequence[Pruning], whole: _Whole) -> list[str]:
    found = [warning for p in prunings for warning in (*p.analysis.warnings, *p.notes)]
    found += [note for r in result.results for note in r.details.get("notes", ())]
    if result.certificate is not None:
        found += result.certificate.notes
    if not whole.removed.complete:
        found.append("'removed' lacks tensors that passes before the pruning made")
    return list(dict.fromkeys(found))


def _timing(bench: Bench | None) -> dict[str, Any] | None:
    if bench is None:
        return None
    return {
        "threads": bench.threads,
        "original": timing_json(bench.original),
        "pruned": timing_json(bench.candidate),
        "speedup": {
            "ratio": bench.speedup.ratio,
            "low": bench.speedup.low,
            "high": bench.speedup.high,
        },
    }


def timing_json(timing: Timing) -> dict[str, Any]:
    """Milliseconds and the number of runs."""
    return {
        "p50_ms": timing.p50,
        "p25_ms": timing.p25,
        "p75_ms": timing.p75,
        "iqr_ms": timing.iqr,
        "runs": timing.runs,
    }


def describe_files(files: Sequence[Path]) -> dict[str, Any]:
    """Name, SHA-256 and size of a model file followed by its external data files."""
    sha256, size = files_digest(files)
    return {"file": files[0].name, "sha256": sha256, "bytes": size}


def describe_model(model: oir.Model) -> dict[str, Any]:
    """SHA-256 and size of a model in memory."""
    sha256, size = memory_digest(model)
    return {"file": None, "sha256": sha256, "bytes": size}


def _options(p: object) -> dict[str, Any]:
    from dataclasses import asdict

    return {"pass": p.name} | {  # type: ignore[attr-defined]
        k: list(v) if isinstance(v, tuple) else v
        for k, v in asdict(p).items()  # type: ignore[call-overload]
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        from .. import __version__

        return __version__


def to_text(report: Mapping[str, Any]) -> str:
    """The report as JSON text, lists of numbers on one line. Raises nothing for numbers that JSON
    does not have: they become null."""
    try:
        text = json.dumps(report, indent=2, default=_plain, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(report), indent=2, default=_plain)
    return _NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n"


_NUMBERS = re.compile(r"(?<=\[)\s+-?\d+(?:,\s+-?\d+)*\s+(?=\])")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} in a report")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, (float, np.floating)) and not np.isfinite(value):
        return None
    return value


def write_report(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the report whole or not at all. Raises UsageError when that is not possible."""
    atomic_write(path, to_text(report))


def read_report(source: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    """A report from a file or as it is. Raises DataError when it is not one of this version."""
    if isinstance(source, Mapping):
        report: Any = source
    else:
        try:
            report = json.loads(Path(source).read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{source}: not a readable report: {reason(error)}") from None
    version = report.get("schema_version") if isinstance(report, Mapping) else None
    if version != VERSION:
        raise DataError(f"{source}: not a report of schema version {VERSION}")
    return report  # type: ignore[no-any-return]
