"""What became smaller: the groups, the layers and the totals of a report, before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..ir.analysis import Analysis
    from ..ir.units import Group
    from ..passes.prune import Pruning
    from ..runtime.cost import Costs, LayerCost

_LAYER_FIELDS = ("macs", "parameters", "weight_bytes", "activation_bytes", "live_bytes")


def groups(number: int, pruning: Pruning) -> list[dict[str, Any]]:
    """Every group of one pruning pass with what it keeps and what it owns."""
    analysis = pruning.analysis
    rows = []
    for group in analysis.groups:
        gone = int(pruning.removed[group.units].sum())
        rows.append(
            {
                "name": group.name,
                "pass": number,
                "units": len(group.units),
                "kept": len(group.units) - gone,
                "removed": gone,
                "exact": group.exact,
                "weights": [
                    {"tensor": tensor, "axis": axis} for tensor, axis, _ in owned(analysis, group)
                ],
            }
        )
    return rows


def owned(
    analysis: Analysis, group: Group, roles: Mapping[int, str] = MappingProxyType({})
) -> list[tuple[str, int, str]]:
    """The weights of a group, each once: name, axis and, by ``roles`` of axes, what it does there
    ("coupled" without)."""
    found = (
        (*analysis.owners[a], roles.get(a, "coupled"))
        for a in group.axes
        if analysis.owners[a][0] in analysis.weight_names
    )
    return list(dict.fromkeys(found))


def layers(before: Costs | None, after: Costs | None) -> list[dict[str, Any]]:
    """Every layer of either model, matched by name, operator and occurrence."""
    rows = _by_name(before)
    left = _by_name(after)
    return [
        {
            "name": key[0],
            "op_type": key[1],
            **{
                field: {
                    "before": getattr(rows.get(key), field, None),
                    "after": getattr(left.get(key), field, None),
                }
                for field in _LAYER_FIELDS
            },
        }
        for key in rows | left
    ]


def _by_name(costs: Costs | None) -> dict[tuple[str, str, int], LayerCost]:
    seen: Counter[tuple[str, str]] = Counter()
    rows = {}
    for layer in costs.layers if costs is not None else ():
        key = (layer.name, layer.op_type)
        rows[(*key, seen[key])] = layer
        seen[key] += 1
    return rows


def totals(
    before: Costs | None, after: Costs | None, prunings: Sequence[Pruning]
) -> dict[str, Any]:
    fields = ("macs", "parameters", "weight_bytes", "peak_activation_bytes")
    found: dict[str, Any] = {}
    if before is not None and after is not None:
        found = {k: change(getattr(before, k), getattr(after, k)) for k in fields}
    if prunings:
        units = prunings[0].analysis.unit_count
        found["units"] = change(units, units - sum(int(p.removed.sum()) for p in prunings))
    return found


def change(before: float, after: float) -> dict[str, Any]:
    """Before, after, and the ratio both ways people state it."""
    return {
        "before": before,
        "after": after,
        "removed_share": round(1 - after / before, 6) if before else 0.0,
        "times_smaller": round(before / after, 6) if after else None,
    }
