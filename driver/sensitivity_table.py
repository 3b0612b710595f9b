"""The table of `secateur sensitivity`: as CSV, Markdown or JSON, and on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.errors import UsageError
from ..ir.wording import counted
from ..passes.sensitivity import Row

if TYPE_CHECKING:
    from .sensitivity import Sensitivity

SUFFIXES = (".csv", ".md", ".json")
_COLUMNS = (
    *("group", "exact", "units", "ratio", "removed", "macs", "parameters"),
    *("error", "mse", "cosine", "top1"),
)

SHARES = 6
"""Of more shares the terminal shows every second, third, …"""


def check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    """Raises UsageError for a name that does not say which format is wanted."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"cannot write {path}: the name must end in one of {', '.join(suffixes)}")


def write_table(result: Sensitivity, path: Path) -> None:
    """Writes all rows in the format that the suffix names, whole or not at all."""
    from ..ir.io import atomic_write
    from .report import to_text

    check_suffix(path, SUFFIXES)
    suffix = path.suffix.lower()
    if suffix == ".json":
        text = to_text(result.to_json())
    else:
        lines = [[_text(row, column) for column in _COLUMNS] for row in result.rows]
        text = _csv(lines) if suffix == ".csv" else _markdown(lines)
    atomic_write(path, text)


def _text(row: Row, column: str) -> str:
    value = getattr(row.drift if hasattr(row.drift, column) else row, column)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def _csv(lines: list[list[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *lines])
    return file.getvalue()


def _markdown(lines: list[list[str]]) -> str:
    numbers = ["---"] + ["---:"] * (len(_COLUMNS) - 1)
    cells = ([text.replace("|", "\\|") for text in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in (_COLUMNS, numbers, *cells))


def show_sensitivity(result: Sensitivity) -> None:
    """A line for every group, a column for every share; the failures as notes."""
    from rich.markup import escape

    from .terminal import MANY, _notes, _out, _table

    by_group = pivot(result)
    ratios = [row.ratio for row in by_group[0]]
    step = -(-len(ratios) // SHARES)
    chosen = range((len(ratios) - 1) % step, len(ratios), step)  # the largest among them
    table = _table("group", "units", *(f"{ratios[k]:.4g}" for k in chosen))
    for column in table.columns[1:]:
        column.no_wrap = True
    for entries in by_group[:MANY]:
        first = entries[0]
        name = escape(first.group) + ("" if first.exact else " (inexact)")
        values = (shown(entries[k], result.metric) for k in chosen)
        table.add_row(name, str(first.units), *values)
    out = _out()
    samples = counted(result.samples, "sample")
    out.print(f"{LABELS[result.metric]} when a share of one group goes, on {samples}")
    out.print(table)
    if len(by_group) > MANY:
        groups = counted(len(by_group) - MANY, "less sensitive group")
        out.print(f"… and {groups} (see --output or --json)")
    if step > 1:
        shares = counted(len(ratios) - len(chosen), "more share")
        out.print(f"… and {shares} (see --output or --json)")
    known = f", {result.resumed} of them from before" if result.resumed else ""
    out.print(f"{counted(result.measured + result.resumed, 'candidate')} measured{known}")
    failures = {row.failure: row for row in result.rows if row.failure is not None}
    _notes([f"{row.group} at {row.ratio:g}: {text}" for text, row in failures.items()])


LABELS = {
    "error": "relative RMS error",
    "mse": "mean squared error",
    "cosine": "cosine distance",
    "top1": "share of changed decisions",
}


def pivot(result: Sensitivity) -> list[list[Row]]:
    """The rows of each group, by share; the groups in the order of the table."""
    groups: dict[int, list[Row]] = {}
    for row in result.rows:
        groups.setdefault(row.number, []).append(row)
    return list(groups.values())


def shown(row: Row, metric: str) -> str:
    """The measure in three digits; a dash where there is none."""
    value = getattr(row.drift, metric)
    return "-" if value is None else f"{value:.3g}"
