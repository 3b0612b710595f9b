"""Samples from pictures: read, resized, scaled and laid out as a model's input takes them.

A value v of a picture, 0 to 255, becomes (v * scale - mean) / std, with mean and std by channel, in
the order of the model's channels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..ir.errors import DataError, UsageError
from .samples import BrokenSample, Samples
from .session import Array, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset(".png .jpg .jpeg .jfif .bmp .gif .tif .tiff .webp .ppm .pgm .pbm .pnm".split())
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What is tried: some of Pillow's other readers run programs."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_PADDING = 114
"""The grey around a letterboxed picture, as detectors are trained with."""

Layout = Literal["NCHW", "NHWC"]
Resize = Literal["squash", "crop", "letterbox"]


@dataclass(frozen=True)
class ImageOptions:
    """What becomes of a picture.

    ``size``: height and width (None: those of the input); ``layout``: where the channels are (None:
    where the input has 1 or 3, else 4 of them); ``mean`` and ``std``: one number, or one a channel;
    ``scale``: None means 1/255 for inputs of floats, else 1; ``bgr``: blue first; ``resize``: to
    "squash" it, to "crop" its middle once it covers the size, or to "letterbox" it in grey.
    """

    size: tuple[int, int] | None = None
    layout: Layout | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float | None = None
    bgr: bool = False
    resize: Resize = "squash"

    def __post_init__(self) -> None:
        if self.size is not None and not all(0 < edge <= 1 << 16 for edge in self.size):
            raise ValueError("`size` must be 1 to 65536 pixels")
        values = (*self.mean, *self.std, *(() if self.scale is None else (self.scale,)))
        if not np.isfinite(values).all() or 0 in self.std:
            raise ValueError("`mean`, `std` and `scale` must be finite, and `std` not 0")


@dataclass(frozen=True)
class _Form:
    """Height, width and channels of a sample, and the axis of the channels (None: it has none)."""

    height: int
    width: int
    channels: int
    axis: int | None


def image_samples(
    path: Path, name: str, shape: Sequence[int | str], floats: bool, options: ImageOptions
) -> Samples:
    """Of a picture, or of all below a folder, in the order of their names, for input ``name``.

    Raises UsageError without Pillow and for options that do not fit the input, DataError for an
    input that takes no pictures and for a folder without any; reading raises `BrokenSample`.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise UsageError(
            "pictures need the package Pillow: pip install 'secateur[images]'"
        ) from None
    form = _form(name, shape, options)
    for what in ("mean", "std"):
        if len(getattr(options, what)) not in (1, form.channels):
            raise UsageError(f"`{what}` needs one number, or {form.channels}, one a channel")
    files = _files(path)
    scale = options.scale if options.scale is not None else (1 / 255 if floats else 1.0)

    def read(k: int) -> dict[str, Array]:
        pixels = _pixels(files[k], form, options.resize)
        return {name: _finish(pixels, form, scale, options)}

    return Samples(str(path), (name,), len(files), read)


def _files(path: Path) -> list[Path]:
    """The pictures; links to folders are not followed, hidden files and folders left out."""
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += (
            Path(folder) / name
            for name in files
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        )
    if not found:
        kinds = " ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise DataError(f"{path}: holds no pictures ({kinds})")
    return sorted(found, key=lambda file: file.relative_to(path).parts)


def _form(name: str, shape: Sequence[int | str], options: ImageOptions) -> _Form:
    takes = f"input {name!r} takes ({', '.join(map(str, shape))})"
    if len(shape) not in (3, 4):
        raise DataError(f"{takes}: that is no picture; pack it with a Python generator")
    layout = options.layout or _layout(shape[-3:])
    if layout is None and len(shape) == 3:  # (batch, height, width)
        axis, channels, edges = None, 1, shape[1:]
    elif layout is None:
        raise UsageError(f"{takes}: which axis has the channels? give `layout` NCHW or NHWC")
    else:
        axis = 0 if layout == "NCHW" else 2
        size = shape[-3:][axis]
        channels = size if isinstance(size, int) else 3
        edges = shape[-2:] if axis == 0 else shape[-3:-1]
    if channels not in _MODES:
        raise DataError(f"{takes}: pictures have 1, 3 or 4 channels, not {channels}")
    wanted = options.size or edges
    for given, edge in zip(wanted, edges, strict=True):
        if isinstance(edge, int) and given != edge:
            raise UsageError(f"{takes}: `size` {wanted[0]}x{wanted[1]} does not fit")
    height, width = wanted
    if not isinstance(height, int) or not isinstance(width, int):
        raise UsageError(f"{takes}: give --size HEIGHTxWIDTH")
    return _Form(height, width, channels, axis)


def _layout(sizes: Sequence[int | str]) -> Layout | None:
    """Where the channels are: 1 or 3 of them rather than 4, in front rather than at the end."""
    for channels in ((1, 3), (4,)):
        if sizes[0] in channels:
            return "NCHW"
        if sizes[2] in channels:
            return "NHWC"
    return None


def _pixels(path: Path, form: _Form, resize: Resize) -> Array:
    """uint8[height, width, channels]. Raises BrokenSample for what is no readable picture."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                picture = ImageOps.exif_transpose(opened)
                picture = _eight_bits(picture).convert(_MODES[form.channels])
        fitted = _fitted(picture, form, resize)
    except Exception as error:  # whatever Pillow's readers say to a malformed file
        text = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        raise BrokenSample(f"{path}: not a readable picture: {text}") from None
    return np.asarray(fitted).reshape(form.height, form.width, form.channels)


def _eight_bits(picture: Image) -> Image:
    """Pillow would cut 16 bits off at 255 instead of scaling them."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture).astype(np.uint16) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"pictures of mode {picture.mode} have no known range")
    return picture


def _fitted(picture: Image, form: _Form, resize: Resize) -> Image:
    from PIL import Image

    size = (form.width, form.height)
    if resize == "squash":
        return picture.resize(size, Image.Resampling.BILINEAR)
    ratios = (form.width / picture.width, form.height / picture.height)
    ratio = max(ratios) if resize == "crop" else min(ratios)
    inner = (max(round(picture.width * ratio), 1), max(round(picture.height * ratio), 1))
    scaled = picture.resize(inner, Image.Resampling.BILINEAR)
    left, top = ((edge - own) // 2 for edge, own in zip(size, inner, strict=True))
    if resize == "crop":
        return scaled.crop((-left, -top, form.width - left, form.height - top))
    grey: Any = _PADDING if form.channels == 1 else (_PADDING,) * 3 + (255,) * (form.channels - 3)
    box = Image.new(picture.mode, size, grey)
    box.paste(scaled, (left, top))
    return box


def _finish(pixels: Array, form: _Form, scale: float, options: ImageOptions) -> Array:
    """float32 in the layout of the input."""
    if options.bgr and form.channels >= 3:
        pixels = pixels[..., [2, 1, 0, *range(3, form.channels)]]
    mean, std = (np.array(values, np.float32) for values in (options.mean, options.std))
    values = (pixels.astype(np.float32) * np.float32(scale) - mean) / std
    if form.axis is None:
        return values[..., 0]
    return np.moveaxis(values, 2, form.axis)
