"""What ``inspect``, ``explain``, ``bench`` and ``passes`` say, as JSON values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.analysis import Analysis
from ..ir.errors import SecateurError, UsageError
from ..passes.options import Option
from .api import analyze, bench
from .context import Calibration, Progress
from .savings import owned


def describe_analysis(analysis: Analysis) -> dict[str, Any]:
    """Groups with what they own and cost, pins by reason, totals and warnings."""
    from ..ir.explain import site_name
    from ..ir.roles import roles_of_axes
    from ..runtime.cost import CostModel

    roles = roles_of_axes(analysis)
    model = CostModel(analysis)
    costs = model.costs()
    groups = []
    for group in analysis.groups:
        one = np.zeros(len(analysis.groups), np.int64)
        one[group.number] = 1
        zero = np.zeros_like(one)
        groups.append(
            {
                "name": group.name,
                "units": len(group.units),
                "exact": group.exact,
                "macs_per_unit": model.macs.total(zero) - model.macs.total(one),
                "parameters_per_unit": model.parameters.total(zero) - model.parameters.total(one),
                "weights": [
                    {"tensor": tensor, "axis": axis, "role": role}
                    for tensor, axis, role in owned(analysis, group, roles)
                ],
            }
        )
    pins: dict[str, tuple[Counter[str], int]] = {}
    for pin in analysis.coupling.pins:
        if analysis.coupling.sizes[pin.axis] > 1:
            nodes, axes = pins.get(pin.reason, (Counter(), 0))
            if pin.site >= 0:
                nodes[site_name(analysis, pin.site)] += 1
            pins[pin.reason] = (nodes, axes + 1)
    in_groups = _prunable_parameters(analysis)
    return {
        "groups": groups,
        "units": analysis.unit_count,
        "macs": costs.macs,
        "parameters": costs.parameters,
        "weight_bytes": costs.weight_bytes,
        "peak_activation_bytes": costs.peak_activation_bytes,
        "prunable_parameters": in_groups,
        "stored": list(analysis.stored),
        "dims": dict(analysis.facts[0].binding),
        "pins": [
            {"reason": reason, "axes": axes, "nodes": list(nodes)}
            for reason, (nodes, axes) in sorted(pins.items(), key=lambda item: -item[1][1])
        ],
        "warnings": list(analysis.warnings),
    }


def _prunable_parameters(analysis: Analysis) -> int:
    """Elements of weights that belong to a unit along some axis."""
    total = 0
    for weight in analysis.weights:
        kept = 1
        for axis in weight.axes[0]:
            units = analysis.units_of(axis)
            size = analysis.coupling.sizes[axis]
            kept *= size if units is None else int((units < 0).sum())
        total += int(np.prod(weight.shape, dtype=np.int64)) - kept
    return total


def describe_explanations(analysis: Analysis, name: str) -> dict[str, Any]:
    """Explanations of ``NAME`` or ``NAME:AXIS``; tensor names may hold colons themselves."""
    from ..ir.explain import explain, nodes_across

    try:
        found = explain(analysis, name)
    except UsageError:
        stem, colon, axis = name.rpartition(":")
        if not colon or not re.fullmatch("-?[0-9]{1,9}", axis):
            raise
        found = explain(analysis, stem, int(axis))
    return {
        "name": name,
        "axes": [
            {
                "tensor": e.value,
                "axis": e.axis,
                "size": e.size,
                "free": e.free,
                "groups": [
                    {
                        "name": g.name,
                        "units": len(g.units),
                        "exact": g.exact,
                        "across": nodes_across(analysis, g),
                    }
                    for g in e.groups
                ],
                "path": [asdict(step) for step in e.path],
                "reason": e.reason,
            }
            for e in found
        ],
    }


def describe_bench(
    original: Path,
    pruned: Path,
    *,
    dims: Mapping[str, int],
    calibration: Calibration | None,
    threads: int,
    seed: int,
    min_runs: int,
    min_seconds: float,
    progress: Progress,
) -> dict[str, Any]:
    """Both timings, the speed-up and the MACs ratio."""
    from ..runtime.cost import CostModel
    from .report import timing_json

    timing = bench(
        original,
        pruned,
        dims=dims,
        calibration=calibration,
        threads=threads,
        seed=seed,
        min_runs=min_runs,
        min_seconds=min_seconds,
        progress=progress,
    )
    macs = []
    for model in (original, pruned):
        try:
            analysis = analyze(model, dims=dims, calibration=calibration)
            macs.append(CostModel(analysis).costs().macs)
        except SecateurError:  # a model that runs but cannot be analysed still has a time
            macs.append(0)
    return {
        "threads": threads,
        "original": timing_json(timing.original) | {"macs": macs[0]},
        "pruned": timing_json(timing.candidate) | {"macs": macs[1]},
        "speedup": asdict(timing.speedup),
        "macs_ratio": macs[0] / macs[1] if all(macs) else None,
    }


def describe_plugins() -> dict[str, Any]:
    """Passes, criteria and the operators with a coupling rule, with their providers."""
    from ..ir.rules.registry import all_rules
    from ..passes.criteria import criteria
    from ..passes.registry import list_passes

    families: dict[str, dict[str, Any]] = {}
    for (domain, op), rule in sorted(all_rules().items()):
        key = f"{rule.provider}/{rule.family}"
        row = families.setdefault(
            key, {"family": rule.family, "provider": rule.provider, "operators": []}
        )
        row["operators"].append(f"{domain}.{op}" if domain else op)
    registry = criteria()
    return {
        "passes": [
            {
                "name": info.name,
                "summary": info.summary,
                "contract": info.contract.value,
                "provider": info.provider,
                "options": [_option(o) for o in info.options],
            }
            for info in list_passes()
        ],
        "criteria": [{"name": n, "provider": registry.provider(n)} for n in registry.names()],
        "rules": list(families.values()),
    }


def _option(option: Option) -> dict[str, Any]:
    default = option.default
    return {
        "name": option.key,
        "type": option.type_text,
        "default": list(default) if isinstance(default, tuple) else default,
        "required": option.required,
    }
