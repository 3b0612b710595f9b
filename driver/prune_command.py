"""``secateur prune``: only argument handling."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .failures import interruptible
from .options import (
    Bench,
    Calibration,
    Carrier,
    Dim,
    Json,
    Model,
    Output,
    Protect,
    Quiet,
    Report,
    Seed,
    Threads,
    check_files,
    parse_dims,
)

if TYPE_CHECKING:
    from .results import PruneResult


def prune(
    model: Model,
    output: Output,
    ratio: Annotated[
        float | None, typer.Option(help="Share of units to remove from every group.")
    ] = None,
    macs: Annotated[float | None, typer.Option(help="Share of the MACs to keep.")] = None,
    params: Annotated[float | None, typer.Option(help="Share of the parameters to keep.")] = None,
    size: Annotated[
        str | None, typer.Option(help="Bytes of the file, as 500k or 2MB; up to 1: a share.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Bytes of activations at their peak; up to 1: a share.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option(help="Share of the original's P50, measured here.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Milliseconds of the P50, measured here.")
    ] = None,
    min_quality: Annotated[
        float | None, typer.Option(help="The least agreement of the outputs, by --metric.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="cosine, top1, or module:function of your own.")
    ] = "cosine",
    criterion: Annotated[
        str | None,
        typer.Option(help="How units are scored; reconstruction with data, else l2."),
    ] = None,
    combine: Annotated[
        Literal["sum", "mean", "max", "producers"],
        typer.Option(help="How the scores of a unit's weights become one."),
    ] = "sum",
    normalize: Annotated[
        Literal["auto", "none", "mean", "max", "sum", "gauss"],
        typer.Option(help="How scores are made comparable between groups."),
    ] = "auto",
    scope: Annotated[
        Literal["local", "global"] | None,
        typer.Option(help="The same share in every group, or the best over all; global with data."),
    ] = None,
    round_to: Annotated[int, typer.Option(min=1, help="Keep multiples of this many channels.")] = 1,
    protect: Protect = None,
    max_ratio: Annotated[
        float, typer.Option(help="Largest share of units that a group may lose.")
    ] = 1.0,
    min_channels: Annotated[
        int, typer.Option(min=1, help="The least units that a group keeps.")
    ] = 1,
    inexact: Annotated[
        bool, typer.Option("--inexact", help="Also prune groups that a normalisation looks across.")
    ] = False,
    carrier: Carrier = "heads",
    recover: Annotated[
        bool | None,
        typer.Option("--recover/--no-recover", help="Refit the weights; on where data are given."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Prune in steps, each recovered; 2 where data are given."),
    ] = None,
    distill: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Train so long (extra finetune).")
    ] = None,
    dim: Dim = None,
    calibration: Calibration = None,
    report: Report = None,
    json: Json = False,
    threads: Threads = 0,
    seed: Seed = 0,
    bench: Bench = True,
    quiet: Quiet = False,
) -> None:
    """Prune a model to a target, prove the result and time it.

    Give --ratio, or one or more of the other targets, --macs to --min-quality. With --calibration
    the weights that stay are refitted, without labels.
    """
    from .terminal import working

    check_files([model, calibration], output, report)
    dims = parse_dims(dim)
    with interruptible(output, report), working(quiet or json) as progress:
        from .api import prune as prune_model

        result = prune_model(
            model,
            ratio=ratio,
            macs=macs,
            params=params,
            size=size,
            memory=memory,
            latency=latency,
            latency_ms=latency_ms,
            min_quality=min_quality,
            metric=metric,
            criterion=criterion,
            combine=combine,
            normalize=normalize,
            scope=scope,
            round_to=round_to,
            protect=tuple(protect or ()),
            max_ratio=max_ratio,
            min_channels=min_channels,
            inexact=inexact,
            carrier=carrier,
            recover=recover,
            steps=steps,
            distill=distill,
            dims=dims,
            calibration=calibration,
            threads=threads,
            seed=seed,
            bench=bench,
            progress=progress,
        )
        result.save(output, report)
    print_result(result, output, json, quiet)
    if not (quiet or json):
        from .recipe import HINT, NOTHING
        from .terminal import show_hint

        if not any(group["removed"] for group in result.report["groups"]):
            show_hint(NOTHING)
        elif calibration is None and recover is None:
            show_hint(HINT)


def print_result(result: PruneResult, output: Path, json: bool, quiet: bool) -> None:
    """The report as JSON, or a summary of it, or nothing."""
    if json:
        from .report import to_text

        sys.stdout.write(to_text(result.report))
    elif not quiet:
        from .terminal import show_result

        show_result(result, output)
