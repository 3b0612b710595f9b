"""Options that several commands share: their types, their parsing, and checks before the work."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..ir.errors import UsageError

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write the pruned model.")]
Dim = Annotated[
    list[str] | None,
    typer.Option("--dim", metavar="NAME=SIZE", help="Size of a symbolic dimension (repeatable)."),
]
Calibration = Annotated[
    Path | None,
    typer.Option(help="npz file with arrays named like the inputs, first axis = samples."),
]
Protect = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Node or tensor names that stay whole (repeatable)."),
]
Carrier = Annotated[
    Literal["heads", "head-dim"],
    typer.Option(
        help="What units of attention are made of: whole heads, or one place in every head."
    ),
]
Report = Annotated[Path | None, typer.Option(help="Write the report as JSON to this file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Threads = Annotated[
    int, typer.Option(min=0, max=1024, help="ONNX Runtime threads (0: as many as it likes).")
]
Seed = Annotated[
    int, typer.Option(min=0, help="Seed of the random inputs of certificate and timing.")
]
Bench = Annotated[bool, typer.Option("--bench/--no-bench", help="Time original and result.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and JSON.")]


def parse_dims(pairs: list[str] | None) -> dict[str, int]:
    """The sizes of ``--dim NAME=SIZE``; `UsageError` for another form or a name given twice."""
    dims: dict[str, int] = {}
    for pair in pairs or ():
        name, equals, size = pair.rpartition("=")
        if not (name and equals and re.fullmatch("[0-9]{1,10}", size)):
            raise UsageError(f"--dim '{pair}' is not of the form NAME=SIZE")
        if name in dims:
            raise UsageError(f"--dim gives dimension '{name}' twice")
        dims[name] = int(size)
    return dims


def check_files(inputs: Sequence[Path | None], output: Path, report: Path | None) -> None:
    """Finds out before the work whether the results can be written, and over nothing they need."""
    data = output.with_name(f"{output.name}.data") if output.name else output
    for path in (output, report):
        if path is not None:
            _check_writable(path)
    if report is not None and os.path.realpath(report) in map(os.path.realpath, (output, data)):
        raise UsageError(f"--report {report} and the pruned model would be one file")
    for path in (output, data, report):
        for source in inputs:
            if path is not None and source is not None and _is_same(path, source):
                raise UsageError(f"{path} is an input of this command; write to another file")


def _check_writable(path: Path) -> None:
    folder = path.parent
    try:
        reasons = {
            "it is a folder": path.is_dir(),
            f"the folder {folder} does not exist": not folder.exists(),
            f"{folder} is not a folder": not folder.is_dir(),
            f"the folder {folder} is not writable": not os.access(folder, os.W_OK),
            "it is no plain file": path.exists() and not path.is_file(),
            "its name is too long": len(os.fsencode(path.name)) > 200,
        }
        if not any(reasons.values()):
            tempfile.TemporaryFile(dir=folder).close()  # permissions do not say all
    except OSError as error:
        reasons = {str(error.strerror): True}
    for reason, found in reasons.items():
        if found:
            raise UsageError(f"cannot write {path}: {reason}")


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one of them does not exist
        return False


def check_printed(wanted: Sequence[str], names: Sequence[str]) -> None:
    """Refuses names of passes that are not among ``names``, those of the pipeline."""
    from ..ir.registry import suggest

    for name in wanted:
        if name not in (*names, "all"):
            raise UsageError(
                f"--print-ir-after {name}: no such pass in the pipeline{suggest(name, names)}"
            )
