"""The report: everything about a pruning as JSON. Its schema is docs/report.schema.json."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as oir

from ..ir.errors import DataError
from ..ir.io import atomic_write, files_digest, memory_digest, model_files

if TYPE_CHECKING:
    from ..passes.base import PassContext
    from ..passes.prune import Pruning
    from ..runtime.benchmark import Timing
    from ..runtime.cost import Costs
    from .api import Bench, PruneResult, Source

VERSION = 1
"""Version of the report's schema; it changes when a field changes its meaning or goes."""

_LIBRARIES = ("onnx", "onnx-ir", "onnxruntime", "numpy", "scipy", "networkx")


def build_report(
    result: PruneResult, source: Source, context: PassContext, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """A dictionary of plain JSON values about one run."""
    from ..passes.pipeline import format_pipeline

    pruning = result.pruning
    if isinstance(source, (str, os.PathLike)):
        original = describe_files(model_files(source, result.original))
    else:
        original = describe_model(result.original)
    pruned = describe_model(result.model)
    clock = dict(seconds)
    for prune_result in result.results:
        if "pruning" in prune_result.details:
            for phase, spent in prune_result.details["pruning"].seconds.items():
                clock[phase] = clock.get(phase, 0.0) + spent
    report: dict[str, Any] = {
        "schema_version": VERSION,
        "secateur": _version("secateur"),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "pipeline": format_pipeline(result.passes),
        "options": [_options(p) for p in result.passes],
        "seed": context.seed,
        "threads": context.threads,
        "dims": dict(pruning.analysis.facts[0].binding) if pruning else dict(context.dims),
        "original": original,
        "pruned": pruned,
        "seconds": {phase: round(spent, 6) for phase, spent in clock.items()},
        "groups": [],
        "layers": [],
        "totals": {"file_bytes": _change(original["bytes"], pruned["bytes"])},
        "certificate": None,
        "timing": _timing(result.bench),
        "warnings": [],
        "removed": [],
    }
    if pruning is not None:
        report["groups"] = groups_json(pruning)
        report["layers"] = _layers(pruning.before, pruning.after)
        report["totals"] |= {
            "macs": _change(pruning.before.macs, pruning.after.macs),
            "parameters": _change(pruning.before.parameters, pruning.after.parameters),
            "weight_bytes": _change(pruning.before.weight_bytes, pruning.after.weight_bytes),
            "peak_activation_bytes": _change(
                pruning.before.peak_activation_bytes, pruning.after.peak_activation_bytes
            ),
            "units": _change(
                pruning.analysis.unit_count,
                pruning.analysis.unit_count - int(pruning.removed.sum()),
            ),
        }
        certificate = result.certificate
        assert certificate is not None
        report["certificate"] = certificate.to_json() | {
            "masks": [m.to_json() for m in pruning.masks],
            "compactions": [c.to_json() for c in pruning.compactions],
        }
        report["warnings"] = list(pruning.analysis.warnings) + list(certificate.notes)
        report["removed"] = [
            {"tensor": s.tensor, "axis": s.axis, "indices": list(s.indices), "role": s.role}
            for s in pruning.slices
        ]
    return report


def groups_json(pruning: Pruning) -> list[dict[str, Any]]:
    """Every group with what it keeps and what it owns."""
    analysis = pruning.analysis
    rows = []
    for group in analysis.groups:
        gone = int(pruning.removed[group.units].sum())
        rows.append(
            {
                "name": group.name,
                "units": len(group.units),
                "kept": len(group.units) - gone,
                "removed": gone,
                "exact": group.exact,
                "weights": [
                    {"tensor": analysis.owners[a][0], "axis": analysis.owners[a][1]}
                    for a in group.axes
                    if analysis.owners[a][0] in analysis.weight_names
                ],
            }
        )
    return rows


def _layers(before: Costs, after: Costs) -> list[dict[str, Any]]:
    return [
        {
            "name": old.name,
            "op_type": old.op_type,
            "macs": {"before": old.macs, "after": new.macs},
            "parameters": {"before": old.parameters, "after": new.parameters},
            "activation_bytes": {"before": old.activation_bytes, "after": new.activation_bytes},
        }
        for old, new in zip(before.layers, after.layers, strict=True)
    ]


def _change(before: int, after: int) -> dict[str, Any]:
    """Before, after, and the ratio both ways people state it."""
    return {
        "before": before,
        "after": after,
        "removed_share": round(1 - after / before, 6) if before else 0.0,
        "times_smaller": round(before / after, 6) if after else None,
    }


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
    """The report as JSON text."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{type(value).__name__} in a report")

    return json.dumps(report, indent=2, default=plain) + "\n"


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
        except (OSError, ValueError) as error:
            raise DataError(f"{source}: not a readable report: {error}") from None
    version = report.get("schema_version") if isinstance(report, Mapping) else None
    if version != VERSION:
        raise DataError(f"{source}: not a report of schema version {VERSION}")
    return report  # type: ignore[no-any-return]
