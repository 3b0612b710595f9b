"""`secateur.pack_calibration`: pictures, arrays, tables or Python into a calibration file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnx import TensorProto

from ..ir.errors import DataError, UsageError
from ..ir.io import load_model
from ..ir.registry import suggest
from ..runtime.image_samples import SUFFIXES, ImageOptions, image_samples
from ..runtime.packing import Packed, PackOptions, Source, pack
from ..runtime.samples import PYTHON, npy_samples, npz_samples, python_samples
from ..runtime.signature import fed_inputs, input_shape
from ..runtime.table_samples import TableOptions, table_samples
from .context import Progress, interface

if TYPE_CHECKING:
    from .api import Source as Model

Origin = str | os.PathLike[str] | Iterable[Any] | Callable[[], Iterable[Any]]
_FLOATS = (*(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16),)


def pack_calibration(
    sources: Origin | Sequence[Origin],
    output: str | os.PathLike[str],
    model: Model,
    *,
    input: str | None = None,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    feeds: bool = False,
    skip_broken: bool = False,
    size: int | tuple[int, int] | None = None,
    layout: Literal["NCHW", "NHWC"] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    scale: float | None = None,
    bgr: bool = False,
    resize: Literal["squash", "crop", "letterbox"] = "squash",
    header: bool | None = None,
    columns: Sequence[str] = (),
    delimiter: str | None = None,
    reshape: Sequence[int] | None = None,
    keys: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Packed:
    """Writes ``output``, a calibration file for ``model``, and says what is in it.

    A source is a folder of pictures (or one), an .npz, .npy, .csv or .tsv file, the text
    ``module:function``, or from Python a function or an iterable of samples. Text may start with
    ``INPUT=`` for the input that it feeds; ``input`` is that of all others, needed where the model
    has several. The other options are those of `ImageOptions`, `TableOptions`, `PackOptions` and
    `npz_samples`.

    Raises the errors of `secateur.ir.errors`; see docs/cli.md.
    """
    proto = interface(load_model(model))
    try:
        images = ImageOptions(
            (size, size) if isinstance(size, int) else size,
            layout,
            tuple(mean),
            tuple(std),
            scale,
            bgr,
            resize,
        )
        shape = None if reshape is None else tuple(reshape)
        table = TableOptions(header, tuple(columns), delimiter)
        options = PackOptions(limit, seed if shuffle else None, feeds, skip_broken, shape)
    except ValueError as error:
        raise UsageError(str(error)) from None
    inputs = {value.name: input_shape(value) for value in fed_inputs(proto)}
    if input is not None and input not in inputs:
        raise UsageError(f"`input`: the model has no input '{input}'{suggest(input, inputs)}")

    kinds = set[str]()

    def opened(origin: Origin) -> Source:
        name = input
        if isinstance(origin, (str, os.PathLike)):
            text = os.fspath(origin)
            before, equals, after = text.partition("=")
            if equals and before in inputs:
                name, text = before, after
            path = Path(text)
            exists = os.access(path, os.F_OK)  # Path.exists raises where a name is too long
            if not exists and PYTHON.fullmatch(text):
                return python_samples(text, tuple(inputs) if name is None else (name,))
        else:
            return python_samples(origin, tuple(inputs) if name is None else (name,))
        suffix = path.suffix.lower()
        if not exists:
            raise DataError(f"{path}: no such file or folder; check the path")
        if suffix == ".npz":
            kinds.add("npz files")
            return npz_samples(path, tuple(inputs), keys, rename or {})
        if name is None and len(inputs) != 1:
            listed = ", ".join(inputs) or "none"
            raise UsageError(f"which input does {path} feed? give `input` (inputs: {listed})")
        name = name or next(iter(inputs))
        element, dims = inputs[name]
        if suffix == ".npy":
            return npy_samples(path, name)
        if suffix in (".csv", ".tsv"):
            kinds.add("tables")
            return table_samples(path, name, dims if shape is None else None, table)
        if path.is_dir() or suffix in SUFFIXES:
            kinds.add("pictures")
            return image_samples(path, name, dims, element in _FLOATS, images)
        raise DataError(
            f"{path} is no folder, picture, .npz, .npy, .csv or .tsv file, nor module:function"
        )

    several = isinstance(sources, Sequence) and not isinstance(sources, str)
    origins: Sequence[Any] = sources if several else [sources]  # type: ignore[assignment]
    found = [opened(origin) for origin in origins]
    if not found:
        raise UsageError("no source is given")
    for kind, given in {
        "pictures": _changed(images, ImageOptions()),
        "tables": _changed(table, TableOptions()),
        "npz files": [n for n, v in {"key": keys, "rename": rename}.items() if v],
    }.items():
        if given and kind not in kinds:
            raise UsageError(f"`{given[0]}` is for {kind}, and none of the sources is one")
    report = progress or (lambda message, done: None)
    return pack(proto, found, Path(output), options, lambda done: report("pack", done))


def _changed(options: Any, defaults: Any) -> list[str]:
    """The names of options that are not what they are by default."""
    names = [field.name for field in fields(defaults)]
    return [name for name in names if getattr(options, name) != getattr(defaults, name)]
