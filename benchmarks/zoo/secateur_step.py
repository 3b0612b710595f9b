"""The steps of Secateur: analyse, prune and prove an exported file, and time the result."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .record import Record, Spec, read_result

if TYPE_CHECKING:
    from secateur.ir.analysis import Analysis

SLICES = 8
"""Of the largest weights that must stay whole, how many are explained."""


def run(spec: Spec, record: Record) -> None:
    """Exact groups only, or with step ``secateur-inexact`` all groups (once if those are all)."""
    import secateur

    inexact = spec.step == "secateur-inexact"
    if inexact and (same := exact_result(spec)):
        record.add(**same)
        return
    record.stage("load")
    begin = time.perf_counter()
    analysis = secateur.analyze(spec.model, dims=spec.dims)
    analysed = time.perf_counter() - begin
    record.add(**describe(analysis), seconds={"analyse": analysed})
    if not any(group.exact or inexact for group in analysis.groups):
        left = {"macs": 1.0, "parameters": 1.0}
        record.add(left=left, note="nothing to prune", certificate=None, speedup=None)
        return
    explained = [] if inexact else largest_kept(analysis)
    del analysis

    pruned = spec.files / f"{spec.step}.onnx"
    begin = time.perf_counter()
    result = secateur.prune(
        spec.model,
        ratio=spec.ratio,
        inexact=inexact,
        dims=spec.dims,
        threads=spec.threads,
        bench=False,
        progress=lambda phase, _: record.stage(phase),
    )
    whole = time.perf_counter() - begin
    certificate, report = result.certificate, result.report
    assert certificate is not None
    totals = report["totals"]
    record.add(
        left={k: totals[k]["after"] / max(totals[k]["before"], 1) for k in ("macs", "parameters")},
        certificate={k: getattr(certificate, k) for k in ("ok", "worst", "tolerance", "kind")}
        | {"runs": len(certificate.runs)},
        warnings=report["warnings"],
        seconds={**report["seconds"], "analyse": analysed, "whole": whole},
        kept=explained,
    )
    record.stage("run")
    result.save(pruned)
    record.add(file_left=report["pruned"]["bytes"] / report["original"]["bytes"])
    del result
    timing = secateur.bench(
        spec.model, pruned, dims=spec.dims, threads=1, min_runs=10, min_seconds=1.0
    )
    record.add(
        speedup=asdict(timing.speedup),
        milliseconds=[timing.original.p50, timing.candidate.p50],
    )


def exact_result(spec: Spec) -> dict[str, Any] | None:
    """What pruning exact groups gave where there are no others: the same pruning again."""
    found = read_result(spec.done.with_name("secateur.json"))
    if not found or found["status"] != "ok" or found["groups"]["inexact"]:
        return None
    return {k: v for k, v in found.items() if k not in ("case", "step", "status", "seconds_all")}


def describe(analysis: Analysis) -> dict[str, Any]:
    """Groups, units, parameters, MACs and what share of the parameters can go."""
    from secateur.runtime.cost import CostModel

    costs = CostModel(analysis).costs()
    exact = [group for group in analysis.groups if group.exact]
    units = sum(len(group.units) for group in exact)
    return {
        "groups": {"exact": len(exact), "inexact": len(analysis.groups) - len(exact)},
        "units": {"exact": units, "inexact": analysis.unit_count - units},
        "macs": costs.macs,
        "parameters": costs.parameters,
        "prunable": {
            "exact": prunable(analysis, False) / max(costs.parameters, 1),
            "all": prunable(analysis, True) / max(costs.parameters, 1),
        },
        "warnings": list(analysis.warnings),
    }


def prunable(analysis: Analysis, inexact: bool) -> int:
    """Elements of weights at coordinates that belong to a unit of an allowed group."""
    import numpy as np

    total = 0
    allowed = np.array([group.exact or inexact for group in analysis.groups], np.bool_)
    for weight in analysis.weights:
        kept = 1
        for axis in weight.axes[0]:
            size, units = analysis.coupling.sizes[axis], analysis.units_of(axis)
            if units is not None:
                size -= int(allowed[analysis.group_of_unit[units[units >= 0]]].sum())
            kept *= size
        total += math.prod(weight.shape) - kept
    return total


def largest_kept(analysis: Analysis) -> list[dict[str, Any]]:
    """The largest weights that no unit owns a coordinate of, with the reasons for their axes."""
    from secateur.ir.explain import explain

    whole = [w for w in analysis.weights if not any(map(_free, _units(analysis, w)))]
    whole.sort(key=lambda w: -math.prod(w.shape))
    return [
        {
            "tensor": weight.name,
            "shape": list(weight.shape),
            "reasons": [e.reason for e in explain(analysis, weight.name)],
        }
        for weight in whole[:SLICES]
        if math.prod(weight.shape) > 1
    ]


def _units(analysis: Analysis, weight: Any) -> list[Any]:
    return [analysis.units_of(axis) for axis in weight.axes[0]]


def _free(units: Any) -> bool:
    return units is not None and bool((units >= 0).any())
