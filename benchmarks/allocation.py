"""How close allocations come to the bound of the relaxed problem.

python -m benchmarks.allocation [--models NAME ...] [--seconds S] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import onnx

from benchmarks.architectures import mobilenet_v2, transformer
from benchmarks.models import resnet50
from benchmarks.table import environment, environment_line, markdown

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50": lambda: resnet50(batch_norm=False),
    "mobilenet_v2": mobilenet_v2,
    "transformer": transformer,
}
TARGETS = ({"macs": 0.7}, {"macs": 0.5}, {"params": 0.5}, {"macs": 0.6, "params": 0.5})


@dataclass(frozen=True)
class Row:
    """One allocation: the share of all scores that it loses, that a local one with the same
    targets loses, and that any must lose; seconds to allocate and to bound."""

    model: str
    targets: dict[str, float]
    local: float
    lost: float
    bound: float
    gap: float
    allocate_seconds: float
    bound_seconds: float


def measure(name: str, targets: dict[str, float], criterion: str, seconds: float) -> Row:
    """Allocates by weight norms and bounds what is lost from below."""
    import secateur
    from secateur.passes.allocation import Limits, Target, solve
    from secateur.passes.criteria import score_units
    from secateur.passes.gauges import exact_gauges
    from secateur.passes.relaxation import relaxed_bound
    from secateur.passes.room import Room

    analysis = secateur.analyze(MODELS[name]())
    room = Room(analysis, score_units(analysis, criterion), Limits())
    gauges = exact_gauges(
        analysis,
        [Target(kind, value) for kind, value in targets.items()],  # type: ignore[arg-type]
    )
    begin = time.perf_counter()
    counts = solve(room, gauges, "global")
    middle = time.perf_counter()
    bound = relaxed_bound(room, gauges, counts, seconds=seconds)
    end = time.perf_counter()
    total = float(room.lost(room.size))
    local = room.lost_share(solve(room, gauges, "local"))
    return Row(
        name,
        targets,
        local,
        bound.lost / total,
        bound.bound / total,
        bound.gap,
        middle - begin,
        end - middle,
    )


def show(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    header = ["model", "targets", "local loses", "global loses", "any loses", "gap", "s", "bound s"]
    cells = [
        [
            row.model,
            ", ".join(f"{kind} {value:g}" for kind, value in row.targets.items()),
            f"{100 * row.local:.2f} %",
            f"{100 * row.lost:.2f} %",
            f"{100 * row.bound:.2f} %",
            f"{100 * row.gap:.2f} %",
            f"{row.allocate_seconds:.2f}",
            f"{row.bound_seconds:.0f}",
        ]
        for row in rows
    ]
    return markdown(header, cells)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Bound what allocations lose.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--criterion", default="l2")
    parser.add_argument("--seconds", type=float, default=20.0, help="of HiGHS, per allocation")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    rows = [
        measure(name, targets, options.criterion, options.seconds)
        for name in options.models
        for targets in TARGETS
    ]
    if options.json:
        print(
            json.dumps({"environment": environment(), "rows": [asdict(r) for r in rows]}, indent=1)
        )
        return
    print(environment_line())
    print(f"scores: {options.criterion}, over the mean of their group\n")
    print(show(rows))


if __name__ == "__main__":
    main()
