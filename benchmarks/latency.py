"""What fewer multiply-accumulates are worth in ONNX Runtime: unaligned, and aligned by tables.

python -m benchmarks.latency [--models NAME ...] [--macs SHARE] [--threads N ...] [--size N]

Every model is pruned to the same share of its MACs twice: as the criterion says, and in the steps
that the measured tables of this machine like (`macs` and `latency=1` together). Original and both
results take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import onnx

from benchmarks.architectures import ARCHITECTURES
from benchmarks.models import resnet50
from benchmarks.table import environment, environment_line, markdown

MODELS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "resnet50": lambda size: resnet50(batch_norm=False),
    **ARCHITECTURES,
}
Scope = Literal["local", "global"]


@dataclass(frozen=True)
class Pruned:
    """One way to prune: what it keeps of the MACs, the median speed-up and its quartiles, and the
    speed-up of the sum of the kernels' least times, which other load hardly disturbs."""

    macs: float
    speedup: float
    low: float
    high: float
    kernels: float

    @property
    def worth(self) -> tuple[float, float]:
        """Both speed-ups over the ratio of MACs."""
        return self.speedup * self.macs, self.kernels * self.macs


@dataclass(frozen=True)
class Row:
    """A model on so many threads: its P50, and both ways; the commonest steps of the aligned one
    in channels."""

    model: str
    threads: int
    milliseconds: float
    unaligned: Pruned
    aligned: Pruned
    steps: str


def measure(
    name: str, size: int, macs: float, threads: int, scope: Scope, min_seconds: float
) -> Row:
    """Prunes both ways and times them in turns with the original."""
    import secateur
    from secateur.ir.io import to_proto
    from secateur.passes.base import PassContext
    from secateur.passes.choose import choose
    from secateur.passes.criteria import score_units
    from secateur.passes.prune import Prune
    from secateur.runtime.benchmark import Speedup, benchmark
    from secateur.runtime.cost import CostModel
    from secateur.runtime.inputs import random_feed
    from secateur.runtime.kernel_times import kernel_times

    model = MODELS[name](size)
    analysis = secateur.analyze(model)
    scores, costs = score_units(analysis, "l2"), CostModel(analysis)
    context = PassContext(threads=threads)
    ways = []
    for asked in (Prune(macs=macs, scope=scope), Prune(macs=macs, latency=1.0, scope=scope)):
        ways.append(choose(analysis, scores, asked.targets, asked.limits, scope, context))
    whole = costs.costs().macs
    smaller = [to_proto(secateur.rewrite(secateur.Plan(analysis, w.removed)).model) for w in ways]
    timings = benchmark(
        [model, *smaller],
        [random_feed(model, {}, 0)],
        threads=threads,
        min_seconds=min_seconds,
        max_seconds=max(30.0, min_seconds),
    )
    kernels = kernel_times([model, *smaller], threads, without=())
    found = []
    for way, timing, kernel in zip(ways, timings[1:], kernels[1:], strict=True):
        ratio = Speedup.of(timings[0], timing)
        kept = costs.costs(way.removed).macs / whole
        found.append(Pruned(kept, ratio.ratio, ratio.low, ratio.high, kernels[0] / kernel))
    steps = ways[1].extra["alignment"]
    shown = "/".join(str(s) for s in sorted(set(steps), key=steps.count, reverse=True)[:3])
    return Row(name, threads, timings[0].p50, found[0], found[1], shown)


def show(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    own = ["MACs", "speed-up (quartiles)", "kernels", "worth", "kernels"]
    header = ["model", "threads", "ms", *own, *own, "steps"]
    header[3], header[8] = "unaligned: MACs", "aligned: MACs"

    def cells(way: Pruned) -> list[str]:
        spread = f"{way.speedup:.2f} ({way.low:.2f}-{way.high:.2f})"
        worth = [f"{value:.2f}" for value in way.worth]
        return [f"{way.macs:.3f}", spread, f"{way.kernels:.2f}", *worth]

    return markdown(
        header,
        [
            [
                row.model,
                str(row.threads),
                f"{row.milliseconds:.2f}",
                *cells(row.unaligned),
                *cells(row.aligned),
                row.steps,
            ]
            for row in rows
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time pruned models in ONNX Runtime.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--macs", type=float, default=0.5, help="share of the MACs to keep")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--scope", choices=("local", "global"), default="local")
    parser.add_argument(
        "--size", type=int, default=224, help="of pictures, or tokens; ResNet-50: 224"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing per model")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    rows = []
    for threads in options.threads:
        for name in options.models:
            print(f"{name}, {threads} thread(s)", file=sys.stderr, flush=True)
            rows.append(
                measure(name, options.size, options.macs, threads, options.scope, options.seconds)
            )
    if options.json:
        print(
            json.dumps({"environment": environment(), "rows": [asdict(r) for r in rows]}, indent=1)
        )
        return
    print(environment_line())
    print(f"MACs asked: {options.macs:g}, scope {options.scope}, size {options.size}, batch 1\n")
    print(show(rows))


if __name__ == "__main__":
    main()
