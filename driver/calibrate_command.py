"""``secateur calibrate``: only argument handling."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..ir.errors import UsageError
from ..ir.wording import counted
from .failures import interruptible
from .options import Json, Quiet, check_files

if TYPE_CHECKING:
    from ..runtime.packing import Packed


def calibrate(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[INPUT=]SOURCE...",
            help="Folders of pictures, .npz, .npy, .csv or .tsv files, module:function.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The npz file to write.")],
    model: Annotated[Path, typer.Option(help="ONNX file that the samples are for.")],
    input: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Input that sources without INPUT= feed."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many samples.")] = None,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Take samples in random order.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of that order.")] = 0,
    feeds: Annotated[
        bool, typer.Option("--feeds", help="Every sample is a whole feed, not one of a batch.")
    ] = False,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out pictures that cannot be read.")
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(metavar="HEIGHTxWIDTH", help="Size of pictures, where the model is free."),
    ] = None,
    layout: Annotated[
        Literal["NCHW", "NHWC"] | None, typer.Option(help="Where the channels of pictures go.")
    ] = None,
    mean: Annotated[str, typer.Option(help="Subtracted after scaling; one number or a list.")] = (
        "0"
    ),
    std: Annotated[str, typer.Option(help="Divided by after that; one number or a list.")] = "1",
    scale: Annotated[
        float | None,
        typer.Option(help="Pixels are multiplied by it (default: 1/255 for floats, else 1)."),
    ] = None,
    bgr: Annotated[bool, typer.Option("--bgr", help="Blue first.")] = False,
    resize: Annotated[
        Literal["squash", "crop", "letterbox"], typer.Option(help="How pictures get their size.")
    ] = "squash",
    header: Annotated[
        bool | None,
        typer.Option("--header/--no-header", help="Whether tables name their columns."),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns to use: names or numbers from 0, with commas.")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="Between cells (default: a comma).")] = None,
    reshape: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Shape that samples get, e.g. 3,8,8.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Arrays of npz files to use (repeatable)."),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=INPUT", help="Array of npz files for an input (repeatable)."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack samples into a calibration file for a model."""
    from .terminal import working

    given = [Path(text) for source in sources for text in (source, source.partition("=")[2])]
    check_files([model, *(path for path in given if os.fspath(path) != ".")], output, None)
    if output.suffix != ".npz":
        raise UsageError(f"--output {output}: the name must end in .npz")
    sizes = None if size is None else _numbers("--size", size, int, "[xX,]")
    if sizes is not None and len(sizes) not in (1, 2):
        raise UsageError(f"--size '{size}' is not of the form HEIGHTxWIDTH")
    renamed = [pair.partition("=") for pair in rename or ()]
    if wrong := [pair for pair, parts in zip(rename or (), renamed, strict=True) if not parts[2]]:
        raise UsageError(f"--rename '{wrong[0]}' is not of the form NAME=INPUT")
    with interruptible(output), working(quiet or json) as progress:
        from .api import pack_calibration

        packed = pack_calibration(
            sources,
            output,
            model,
            input=input,
            limit=limit,
            shuffle=shuffle,
            seed=seed,
            feeds=feeds,
            skip_broken=skip_broken,
            size=None if sizes is None else (sizes[0], sizes[-1]),
            layout=layout,
            mean=_numbers("--mean", mean, float),
            std=_numbers("--std", std, float),
            scale=scale,
            bgr=bgr,
            resize=resize,
            header=header,
            columns=() if columns is None else tuple(c.strip() for c in columns.split(",")),
            delimiter=delimiter,
            reshape=None if reshape is None else _numbers("--reshape", reshape, int, "[xX,]"),
            keys=tuple(key or ()),
            rename={name: to for name, _, to in renamed},
            progress=progress,
        )
    if json:
        from .report import to_text

        sys.stdout.write(to_text(_described(packed, output)))
    elif not quiet:
        _show(packed, output)


def _numbers(option: str, text: str, kind: Any, separator: str = ",") -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in re.split(separator, text))
    except ValueError:
        raise UsageError(f"{option} '{text}' is not a list of numbers") from None


def _described(packed: Packed, output: Path) -> dict[str, Any]:
    from dataclasses import asdict

    return {"file": str(output), "bytes": output.stat().st_size, **asdict(packed)}


def _show(packed: Packed, output: Path) -> None:
    from rich.markup import escape

    from .terminal import _notes, _out, _table

    table = _table("input", "type", "shape", "lowest", "highest", "mean")
    for array in packed.arrays:
        shape = "x".join(map(str, array.shape))
        numbers = (f"{value:.4g}" for value in (array.low, array.high, array.mean))
        table.add_row(escape(array.name), array.dtype, shape, *numbers)
    out = _out()
    out.print(table)
    _notes([f"left out: {text}" for text in packed.skipped])
    what = counted(packed.samples, "whole feed" if packed.feeds else "sample")
    out.print(f"wrote {what} to {escape(str(output))}")
