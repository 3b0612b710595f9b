"""What the benchmark programs print: a Markdown table, and where it was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version

LIBRARIES = ("numpy", "scipy", "onnx", "onnx-ir", "onnxruntime")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first column is text, the others are numbers."""
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if k == 0 else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def environment() -> dict[str, str]:
    """Processor count, load when asked, Python and library versions."""
    found = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "load average": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
        "python": platform.python_version(),
    }
    return found | {name: version(name) for name in LIBRARIES}


def environment_line() -> str:
    """`environment` on one line."""
    found = environment()
    head = f"{found.pop('machine')}, load {found.pop('load average')}"
    return "; ".join([head, ", ".join(f"{name} {value}" for name, value in found.items())])
