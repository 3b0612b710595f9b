"""Secateur's own speed: measures the milestone's figures and prints them as a table.

python -m benchmarks.figures [--repeat N] [--sizes N ...] [--json]

Every measurement runs in a fresh process, `--repeat` times. Pruning is timed from file to file in
the steps of `secateur.driver.api` (load, analyze, plan, rewrite) and `save_model`: everything but
the certificate and the benchmark. Memory is the peak of the process above what it held after the
imports. "whole call" is `secateur.prune(...)` and `save` with a report, less its certificate.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

Sample = dict[str, float]
ROOT = Path(__file__).resolve().parent.parent
PHASES = ("load", "analyse", "plan", "rewrite", "save")
HELP_RUNS = 10


# ---- in the measured process --------------------------------------------------------------


def memory(field: str) -> float:
    """VmRSS or VmHWM (the peak) of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def prune_file(model: Path, ratio: float, output: Path) -> Sample:
    """Prunes a file to a file; seconds of every phase and in all, and the peak memory in bytes."""
    begin = time.perf_counter()
    _import_all()
    from secateur.driver import api
    from secateur.ir.io import save_model

    imported = time.perf_counter()
    baseline = _reset_peak()
    clock = [time.perf_counter()]

    def lap() -> None:
        clock.append(time.perf_counter())

    loaded = api.load(model)
    lap()
    analysis = api.analyze(loaded)
    lap()
    plan = api.plan(analysis, ratio=ratio, inexact=True)
    lap()
    rewritten = api.rewrite(plan)
    lap()
    save_model(rewritten.model, output)
    lap()
    spent = [after - before for before, after in pairwise(clock)]
    return {
        **dict(zip(PHASES, spent, strict=True)),
        "seconds": clock[-1] - clock[0],
        "imports": imported - begin,
        "peak_bytes": memory("VmHWM") - baseline,
        "units": float(analysis.unit_count),
        "removed": float(plan.removed.sum()),
    }


def prune_call(model: Path, ratio: float, output: Path) -> Sample:
    """`secateur.prune` and `save` as a user calls them; seconds less those of the certificate."""
    _import_all()
    import secateur

    begin = time.perf_counter()
    result = secateur.prune(model, ratio=ratio, bench=False)
    result.save(output, output.with_suffix(".json"))
    spent = time.perf_counter() - begin
    certify = float(result.report["seconds"]["certify"])
    return {"seconds": spent - certify, "certify": certify}


def analyse_file(model: Path) -> Sample:
    """Seconds that the analysis of a file takes once it is loaded, and how large it is."""
    _import_all()
    from secateur.driver import api

    loaded = api.load(model)
    baseline = _reset_peak()
    begin = time.perf_counter()
    analysis = api.analyze(loaded)
    return {
        "seconds": time.perf_counter() - begin,
        "peak_bytes": memory("VmHWM") - baseline,
        "coordinates": float(sum(analysis.coupling.sizes)),
        "units": float(analysis.unit_count),
        "groups": float(len(analysis.groups)),
    }


def _import_all() -> None:
    """Everything that the measured code imports late."""
    for name in ("scipy.sparse.csgraph", "onnx.reference", "secateur.driver.api"):
        importlib.import_module(name)


def _reset_peak() -> float:
    """Sets the peak back to what is held now, where the kernel allows it; bytes held now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


# ---- in the measuring process -------------------------------------------------------------


def repeat(times: int, *call: str) -> list[Sample]:
    """Samples of a function above, each from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.figures", "--worker", *call]
    return [
        json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
        for _ in range(times)
    ]


def help_seconds(times: int = HELP_RUNS) -> list[Sample]:
    """Wall time of ``secateur --help`` from the shell."""
    script = Path(sys.executable).with_name("secateur")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "secateur"]
    samples = []
    for _ in range(times):
        begin = time.perf_counter()
        subprocess.run([*command, "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        samples.append({"seconds": time.perf_counter() - begin})
    return samples


def row(name: str, samples: Sequence[Sample], key: str, target: float, unit: str = "s") -> Any:
    """One figure: best, median and worst of its samples beside the target."""
    values = [sample[key] for sample in samples]
    return {
        "figure": name,
        "unit": unit,
        "target": target,
        "best": min(values),
        "median": statistics.median(values),
        "worst": max(values),
        "runs": len(values),
        "met": statistics.median(values) < target,
        "samples": list(samples),
    }


def measure(folder: Path, times: int) -> list[Any]:
    """All figures with a target."""
    import onnx

    from benchmarks.models import resnet50, swin_like, wide_graph

    rows = []
    path, output = folder / "model.onnx", str(folder / "pruned.onnx")
    onnx.save(resnet50(), path)
    size = path.stat().st_size
    for ratio in (0.1, 0.5):
        samples = repeat(times, "prune_file", str(path), str(ratio), output)
        for sample in samples:
            sample["peak_ratio"] = sample["peak_bytes"] / size
        name = f"ResNet-50, ratio {ratio:g}, file to file"
        rows.append(row(name, samples, "seconds", 1))
        rows.append(row(f"{name}: peak / file size", samples, "peak_ratio", 3, "x"))
    whole = repeat(times, "prune_call", str(path), "0.5", output)
    rows.append(row("ResNet-50, ratio 0.5, whole call less certificate", whole, "seconds", 1))
    model = swin_like(6000)
    onnx.save(model, path)
    count = len(model.graph.node)
    samples = repeat(times, "prune_file", str(path), "0.5", output)
    rows.append(row(f"Swin-like, {count} nodes, ratio 0.5, file to file", samples, "seconds", 5))
    onnx.save(wide_graph(), path)
    samples = repeat(times, "analyse_file", str(path))
    millions = samples[0]["coordinates"] / 1e6
    rows.append(row(f"wide graph, {millions:.1f} M coordinates, analysis", samples, "seconds", 10))
    rows.append(row("secateur --help", help_seconds(), "seconds", 0.5))
    return rows


def scaling(folder: Path, times: int, sizes: Sequence[int]) -> list[Any]:
    """Median seconds of every phase for Swin-like graphs of several sizes, ratio 0.5."""
    import onnx

    from benchmarks.models import swin_like

    rows = []
    path = folder / "model.onnx"
    for size in sizes:
        model = swin_like(size)
        onnx.save(model, path)
        samples = repeat(times, "prune_file", str(path), "0.5", str(folder / "pruned.onnx"))
        spent = {
            key: statistics.median(sample[key] for sample in samples)
            for key in (*PHASES, "seconds", "peak_bytes")
        }
        rows.append({"nodes": len(model.graph.node), **spent})
    return rows


def show(figures: Sequence[Any], growth: Sequence[Any]) -> str:
    """Both tables as Markdown."""
    from benchmarks.table import environment_line, markdown

    parts = [environment_line(), ""]
    cells = [
        [
            item["figure"],
            f"< {item['target']:g} {item['unit']}",
            *(f"{item[key]:.2f}" for key in ("best", "median", "worst")),
            str(item["runs"]),
            "yes" if item["met"] else "NO",
        ]
        for item in figures
    ]
    if cells:
        header = ["figure", "target", "best", "median", "worst", "runs", "met"]
        parts += [markdown(header, cells), ""]
    if growth:
        header = ["nodes (Swin-like)", *(f"{p} s" for p in PHASES), "all s", "ms/node", "peak MB"]
        cells = [
            [
                str(item["nodes"]),
                *(f"{item[phase]:.2f}" for phase in PHASES),
                f"{item['seconds']:.2f}",
                f"{1e3 * item['seconds'] / item['nodes']:.3f}",
                f"{item['peak_bytes'] / 1e6:.0f}",
            ]
            for item in growth
        ]
        parts += [markdown(header, cells), ""]
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure Secateur's own speed and memory.")
    parser.add_argument("--repeat", type=int, default=5, help="processes per figure (default 5)")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[1500, 3000, 6000, 12000],
        help="nodes of the graphs for the scaling table",
    )
    parser.add_argument("--only-scaling", action="store_true", help="only the scaling table")
    parser.add_argument("--json", action="store_true", help="print JSON with every sample")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(_work(*options.worker)))
        return
    if options.repeat < 1:
        parser.error("--repeat: give at least 1")
    with tempfile.TemporaryDirectory(prefix="secateur-figures-") as name:
        folder = Path(name)
        figures = [] if options.only_scaling else measure(folder, options.repeat)
        growth = scaling(folder, options.repeat, options.sizes)
    if options.json:
        from benchmarks.table import environment

        found = {"environment": environment(), "figures": figures, "scaling": growth}
        print(json.dumps(found, indent=1))
    else:
        print(show(figures, growth))


def _work(name: str, model: str, *rest: str) -> Sample:
    path = Path(model)
    if name == "analyse_file":
        return analyse_file(path)
    ratio, output = float(rest[0]), Path(rest[1])
    return (prune_file if name == "prune_file" else prune_call)(path, ratio, output)


if __name__ == "__main__":
    main()
