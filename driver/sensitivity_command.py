"""``secateur sensitivity``: only argument handling."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..ir.errors import UsageError
from .failures import interruptible
from .options import Carrier, Dim, Json, Model, Protect, Quiet, check_files, parse_dims

RATIOS = "0.1,0.25,0.5,0.75"


def sensitivity(
    model: Model,
    calibration: Annotated[
        Path, typer.Option(help="npz file with arrays named like the inputs, first axis = samples.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the table: .csv, .md or .json.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a heat map of groups and shares: .svg, .png or .pdf.")
    ] = None,
    ratios: Annotated[
        str, typer.Option(help="Shares of units to remove from each group, with commas.")
    ] = RATIOS,
    criterion: Annotated[
        str, typer.Option(help="How units are scored; 'secateur passes' lists the criteria.")
    ] = "l2",
    metric: Annotated[
        Literal["error", "mse", "cosine", "top1"],
        typer.Option(help="What the table is sorted by and the plot shows."),
    ] = "error",
    inexact: Annotated[
        bool, typer.Option("--inexact", help="Also the groups that a normalisation looks across.")
    ] = False,
    groups: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only groups of such names (repeatable)."),
    ] = None,
    protect: Protect = None,
    carrier: Carrier = "heads",
    dim: Dim = None,
    samples: Annotated[
        int, typer.Option(min=1, help="At most this many calibration samples are run.")
    ] = 64,
    jobs: Annotated[
        int, typer.Option(min=0, max=1024, help="Processes that share the work (0: one a core).")
    ] = 0,
    threads: Annotated[
        int,
        typer.Option(
            min=0, max=1024, help="ONNX Runtime threads of each (0: the cores divided by the jobs)."
        ),
    ] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Dask scheduler whose workers do the work instead."),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep results here, and go on from what is there."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show how far the outputs move when one group alone loses a share of its units."""
    from .sensitivity_plot import check_plot
    from .sensitivity_table import SUFFIXES, check_suffix, show_sensitivity
    from .terminal import working

    shares = parse_ratios(ratios)
    for path in (output, plot):
        if path is not None:
            check_files([model, calibration], path, None)
    if output is not None:
        check_suffix(output, SUFFIXES)
    if plot is not None:
        check_plot(plot)
    if work is not None and work.exists() and not work.is_dir():
        raise UsageError(f"--work {work} is not a folder")
    dims = parse_dims(dim)
    with interruptible(output, plot, kept=work), working(quiet or json) as progress:
        from .api import sensitivity as measure

        result = measure(
            model,
            calibration=calibration,
            ratios=shares,
            criterion=criterion,
            metric=metric,
            inexact=inexact,
            groups=tuple(groups or ()),
            protect=tuple(protect or ()),
            carrier=carrier,
            dims=dims,
            samples=samples,
            jobs=jobs,
            threads=threads,
            scheduler=scheduler,
            work=work,
            progress=progress,
        )
        if output is not None:
            result.save(output)
        if plot is not None:
            result.plot(plot)
    if json:
        from .report import to_text

        sys.stdout.write(to_text(result.to_json()))
    elif not quiet:
        show_sensitivity(result)


def parse_ratios(text: str) -> tuple[float, ...]:
    """The numbers of ``0.1,0.5``; `UsageError` for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--ratios '{text}' is not a list of numbers with commas") from None
