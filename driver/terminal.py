"""What people read: summaries with rich on stdout, progress on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..ir.wording import counted
from .quantities import count, counts, milliseconds, size, sizes
from .savings import change

if TYPE_CHECKING:
    from .context import Progress
    from .results import PruneResult

MANY = 40
"""Longer lists of groups are cut on the terminal; JSON has them all."""


@contextmanager
def working(quiet: bool) -> Iterator[Progress]:
    """A progress line on stderr while a long phase runs; nothing when quiet or redirected."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda message, done: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("load", total=None)

        def progress(message: str, done: float | None) -> None:
            bar.update(task, description=escape(message), total=None if done is None else 1.0)
            if done is not None:
                bar.update(task, completed=done)

        yield progress


def _out() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _table(*columns: str, **options: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", **options)
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k == 0 else "right", overflow="fold")
    return table


def show_result(result: PruneResult, output: Path) -> None:
    """The short summary after prune and run."""
    report, out = result.report, _out()
    totals = report["totals"]
    table = _table("", "before", "after", "removed", "smaller")
    rows: list[tuple[str, Mapping[str, Any], Callable[..., list[str]]]] = [
        (label, totals[key], show)
        for key, label, show in (
            ("macs", "MACs", counts),
            ("parameters", "parameters", counts),
            ("file_bytes", "file", sizes),
            ("peak_activation_bytes", "peak activations", sizes),
        )
        if key in totals
    ]
    timing = report["timing"]
    if timing is not None:
        both = change(*(timing[which]["p50_ms"] for which in ("original", "pruned")))
        rows.append(("latency (P50)", both, milliseconds))
    for label, row, show in rows:
        times = f"{row['times_smaller']:.2f}x" if row["times_smaller"] else "-"
        share = f"{round(row['removed_share'], 3) + 0.0:.1%}"
        table.add_row(label, *show(row["before"], row["after"]), share, times)
    out.print(table)
    if timing is not None:
        speedup, original = timing["speedup"], timing["original"]
        out.print(
            f"speed-up {speedup['ratio']:.2f}x (quartiles {speedup['low']:.2f} to"
            f" {speedup['high']:.2f}, {counted(original['runs'], 'interleaved run')})"
        )
    if any(g["removed"] for g in report["groups"]):
        out.print(_removed(report["groups"]))
    if report["stored"]:
        out.print(f"stored {counted(len(report['stored']), 'weight')} computed from constants")
    if result.certificate is not None:
        out.print(f"certificate: {escape(result.certificate.describe())}")
    for target in report["targets"]:
        if target["target"] == "min-quality":
            out.print(f"quality {target['reached']:.4g}, asked for {target['asked']:g}")
    for line in _steps(report):
        out.print(line, markup=False)
    if timing is None and not result.passes:
        out.print("no pass was run")
    _notes([*report["warnings"], *_timing_advice(timing)])
    out.print(f"wrote {escape(str(output))}")


def _removed(groups: Sequence[Mapping[str, Any]]) -> str:
    names = {g["name"] for g in groups}
    touched = {g["name"] for g in groups if g["removed"]}
    gone = sum(g["removed"] for g in groups)
    all_groups = counted(len(names), "group")
    return f"removed {counted(gone, 'unit')} from {len(touched)} of {all_groups}"


def _steps(report: Mapping[str, Any]) -> Iterator[str]:
    """What the passes did to the outputs. Where several prune, each of them begins a step, and a
    line says what it removed, too."""
    prunes = [done["contract"] == "masks" for done in report["passes"]]
    for number, done in enumerate(report["passes"], start=1):
        step, found = sum(prunes[:number]), done["statistics"]
        groups = [g for g in report["groups"] if g["pass"] == number]
        label = done["pass"]
        if step and sum(prunes) > 1:
            label = f"step {step} of {sum(prunes)}, {label}"
            if groups:
                yield f"{label}: {_removed(groups)}"
        if "dropped" in found:
            branches = counted(found["branches"], "residual branch", "residual branches")
            yield f"{label}: dropped {found['dropped']} of {branches}"
        if done["contract"] == "preserves" and "units" in found:
            yield f"{label}: removed {counted(found['units'], 'unit')}"
        if "drift-before" in found:
            before, after = found["drift-before"], found["drift"]
            yield f"{label}: outputs off by {before:.2g} of their spread, now by {after:.2g}"


def _timing_advice(timing: Mapping[str, Any] | None) -> list[str]:
    """What to do about a timing that shows no gain or nothing at all."""
    if timing is None:
        return []
    speedup = timing["speedup"]
    if speedup["low"] < 1 < speedup["high"]:
        steady = "" if timing["threads"] == 1 else "--threads 1 or "
        return [f"the timing is too noisy to tell them apart; try {steady}a larger batch"]
    if speedup["ratio"] < 1:
        return [
            "slower than the original here: ONNX Runtime computes in blocks of 8 or 16 channels;"
            " see whether --round-to 8 or 16 helps"
        ]
    return []


def _notes(notes: list[str]) -> None:
    """What the reader should know beside the data: on stderr."""
    error = Console(stderr=True, highlight=False, soft_wrap=True)
    for note in notes[:5]:
        error.print(f"[yellow]note:[/] {escape(note)}")
    if len(notes) > 5:
        error.print(f"[yellow]note:[/] … and {len(notes) - 5} more (see --report or --json)")


def show_hint(text: str) -> None:
    """One line on stderr about what could be done."""
    _notes([text])


def show_analysis(data: Mapping[str, Any]) -> None:
    """Groups, pins and totals of ``inspect``."""
    out = _out()
    for group in data["groups"][:MANY]:
        exact = "exact" if group["exact"] else "inexact"
        out.print(
            f"[bold]{escape(group['name'])}[/]: {counted(group['units'], 'unit')}, {exact}, "
            f"{_counted(group['macs_per_unit'], 'MAC')} and "
            f"{_counted(group['parameters_per_unit'], 'parameter')} each"
        )
        for role in ("producer", "consumer", "coupled"):
            names = [f"{w['tensor']}[{w['axis']}]" for w in group["weights"] if w["role"] == role]
            if names:
                more = f", … {len(names) - 6} more" if len(names) > 6 else ""
                out.print(f"    {role:<8}  {', '.join(names[:6])}{more}", markup=False)
    if len(data["groups"]) > MANY:
        out.print(f"… and {counted(len(data['groups']) - MANY, 'more group')} (see --json)")
    out.print(
        f"{counted(len(data['groups']), 'group')}, {counted(data['units'], 'unit')}; "
        f"{_counted(data['macs'], 'MAC')}, {_counted(data['parameters'], 'parameter')}, of which "
        f"{count(data['prunable_parameters'])} in prunable units; "
        f"weights {size(data['weight_bytes'])}, "
        f"peak activations {size(data['peak_activation_bytes'])}"
    )
    if data["stored"]:
        stored = counted(len(data["stored"]), "weight")
        out.print(f"{stored} computed from constants: pruning stores them")
    if data["dims"]:
        sizes = ", ".join(f"{name}={size}" for name, size in data["dims"].items())
        out.print(f"symbolic dimensions bound to {escape(sizes)}")
    if data["pins"]:
        out.print("\n[bold]pinned axes, by reason[/]")
        for pin in data["pins"][:15]:
            nodes = pin["nodes"]
            more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
            where = f" ({nodes[0]}{more})" if nodes else ""
            out.print(f"  {pin['axes']:>5}  {pin['reason']}{where}", markup=False)
        if len(data["pins"]) > 15:
            out.print(f"  … and {counted(len(data['pins']) - 15, 'more reason')} (see --json)")
    _notes(data["warnings"])


def show_explanations(data: Mapping[str, Any]) -> None:
    """One paragraph an axis."""
    out = _out()
    for axis in data["axes"]:
        head = f"[bold]{escape(axis['tensor'])}[/] axis {axis['axis']} (size {axis['size']})"
        if axis["free"] == axis["size"] and not axis["reason"]:
            out.print(f"{head}: can be pruned")
        elif axis["free"]:
            out.print(f"{head}: {axis['free']} of {counted(axis['size'], 'coordinate')} free")
        else:
            out.print(f"{head}: must stay")
        for group in axis["groups"][:5]:
            kind = "exact" if group["exact"] else "inexact: needs --inexact"
            out.print(
                f"    group {escape(group['name'])}, {counted(group['units'], 'unit')}, {kind}"
            )
            for node in group["across"][:5]:
                out.print(f"        looked across by {node}", markup=False)
        for step in axis["path"]:
            out.print(
                f"    -> {step['value']} axis {step['axis']}, coordinate {step['coordinate']}"
                f"   by {step['node']}",
                markup=False,
            )
        if axis["reason"]:
            out.print(f"    because: {axis['reason']}", markup=False)


def show_certificate(data: Mapping[str, Any]) -> None:
    """The verdict of ``verify``."""
    out = _out()
    out.print(data["description"], markup=False)
    if data["replay"] is not None and (data["replay"]["agrees"] or not data["ok"]):
        verb = "reproduces" if data["replay"]["agrees"] else "does not reproduce"
        out.print(f"zeroing the removed slices in the original {verb} the pruned outputs")
    _notes(data["notes"])


def show_bench(data: Mapping[str, Any]) -> None:
    """Two rows and the ratio."""
    out = _out()
    table = _table("", "P50 ms", "P25", "P75", "runs", "MACs")
    macs = [data[name]["macs"] for name in ("original", "pruned")]
    for name, amount in zip(("original", "pruned"), counts(*macs), strict=True):
        row = data[name]
        table.add_row(
            name,
            *(f"{row[k]:.4g}" for k in ("p50_ms", "p25_ms", "p75_ms")),
            str(row["runs"]),
            amount if row["macs"] else "?",
        )
    out.print(table)
    speedup, ratio = data["speedup"], data["macs_ratio"]
    beside = ""
    if ratio:
        beside = f"; MACs ratio {ratio:.2f}x, so {speedup['ratio'] / ratio:.2f} of it is realised"
    out.print(
        f"speed-up {speedup['ratio']:.2f}x (quartiles {speedup['low']:.2f} to "
        f"{speedup['high']:.2f}){beside}"
    )


def show_passes(data: Mapping[str, Any]) -> None:
    """Passes with options; criteria and rules in a line each."""
    out = _out()
    for info in data["passes"]:
        out.print(
            f"[bold]{info['name']}[/] ({info['contract']}, by {escape(info['provider'])}): "
            f"{escape(info['summary'])}"
        )
        for option in info["options"]:
            default = "required" if option["required"] else f"default {option['default']}"
            out.print(f"    {option['name']}: {option['type']}, {default}", markup=False)
    criteria = ", ".join(f"{c['name']} (by {c['provider']})" for c in data["criteria"])
    out.print(f"[bold]criteria[/]: {escape(criteria)}")
    out.print("[bold]coupling rules[/]:")
    for row in data["rules"]:
        out.print(
            f"    {row['family']} (by {row['provider']}): {', '.join(row['operators'])}",
            markup=False,
        )


def _counted(number: float, noun: str) -> str:
    return counted(number, noun, shown=count(number))
