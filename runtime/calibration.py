"""Calibration data: arrays checked against what a model takes, and cut into feeds."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..ir.errors import DataError
from .session import Array, one_line
from .signature import fed_inputs, input_shape, is_sequence

# Calibration files larger than this, unpacked, are refused before anything is read.
CALIBRATION_LIMIT = 8 * 2**30
# So many samples of it are run, at most, to compare two models.
CALIBRATION_SAMPLES = 64


def load_calibration(
    source: str | Path | Mapping[str, Array], model: onnx.ModelProto, dims: Mapping[str, int]
) -> dict[str, Array]:
    """Calibration arrays (an npz file or a mapping), checked against the inputs of ``model``.

    One array per fed input, under its name. Either every array has the rank of its input, and
    its first axis counts samples (a scalar input: one number for all), or every array has one
    axis more, and each step of the first axis is one whole feed. The other axes must have the
    input's static sizes and agree on the symbolic ones. Raises DataError for anything else:
    unreadable or oversized files, wrong names, types, sizes or sample counts, NaN, infinity.
    """
    names = {value.name for value in fed_inputs(model)}
    label = "calibration" if isinstance(source, Mapping) else str(source)
    if isinstance(source, Mapping):
        arrays = {name: np.asarray(array) for name, array in source.items()}
        _check_names(arrays, names, label)
    else:
        arrays = _read(Path(source), names)
    for value in fed_inputs(model):
        if is_sequence(value):
            raise DataError(f"{label}: input {value.name!r} is a sequence, which no array can feed")
    shapes = {value.name: input_shape(value) for value in fed_inputs(model)}
    extra = {arrays[name].ndim - len(shape) for name, (_, shape) in shapes.items()}
    if extra not in ({0}, {1}):
        ranks = ", ".join(f"{n} {arrays[n].ndim} for {len(s)}" for n, (_, s) in shapes.items())
        raise DataError(f"{label}: ranks do not fit the inputs ({ranks})")
    whole = extra == {1}
    bound: dict[str, int | None] = {}
    if not whole:
        bound = {s[0]: dims.get(s[0]) for _, s in shapes.values() if s and isinstance(s[0], str)}
    for name, (element, shape) in shapes.items():
        arrays[name] = _typed(arrays[name], element, f"{label}: array {name!r}")
        sizes = arrays[name].shape[1:]
        for axis, (dim, size) in enumerate(zip(shape if whole else shape[1:], sizes, strict=True)):
            wanted = dim if isinstance(dim, int) else bound.setdefault(dim, size)
            if wanted is not None and wanted != size:
                raise DataError(
                    f"{label}: axis {axis + 1} of {name!r} has size {size}, not {wanted}"
                )
    counts = {name: len(array) for name, array in arrays.items() if array.ndim}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"{label}: sample counts differ ({listed})")
    if 0 in counts.values():
        raise DataError(f"{label}: holds no samples")
    return arrays


def calibration_feeds(
    arrays: Mapping[str, Array], model: onnx.ModelProto, dims: Mapping[str, int], limit: int
) -> list[dict[str, Array]]:
    """Cut what `load_calibration` returned into feeds, of at most ``limit`` samples in all.

    A static first dimension k takes k samples at a time, a symbolic one as many as ``dims``
    binds it to (one when it does not); the last feed may be shorter when all are symbolic.
    Raises DataError when there are fewer samples than one feed needs.
    """
    shapes = {value.name: input_shape(value)[1] for value in fed_inputs(model)}
    if all(arrays[name].ndim == len(shape) + 1 for name, shape in shapes.items()):
        count = min((len(array) for array in arrays.values()), default=0)
        return [
            {name: np.asarray(a[i]) for name, a in arrays.items()} for i in range(min(count, limit))
        ]
    firsts = {name: shape[0] for name, shape in shapes.items() if shape}
    steps = {n: d if isinstance(d, int) else dims.get(d, 1) for n, d in firsts.items()}
    count = min((len(arrays[name]) for name in steps), default=1)
    largest = max(steps.values(), default=1)
    if any(count < step for name, step in steps.items() if isinstance(firsts[name], int)):
        raise DataError(f"too few samples ({count}): the model takes {largest} at a time")
    total = min(count, max(limit, largest))
    loose = all(isinstance(dim, str) for dim in firsts.values()) and len(set(steps.values())) == 1
    number = -(-total // largest) if loose else total // largest
    feeds = []
    for i in range(number):
        feed = {
            n: a[i * steps[n] : min((i + 1) * steps[n], total)]
            for n, a in arrays.items()
            if n in steps
        }
        feeds.append(feed | {name: a for name, a in arrays.items() if name not in steps})
    return feeds


def _typed(array: Array, element: int, what: str) -> Array:
    """``array`` in the element type of its input, which float64 may become by rounding."""
    wanted = helper.tensor_dtype_to_np_dtype(element)
    narrowed: dict[int, str] = {
        int(TensorProto.FLOAT): "float64",
        int(TensorProto.BFLOAT16): "float32",
    }  # npz: no bfloat16
    if element == TensorProto.STRING and array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype != wanted and array.dtype != narrowed.get(element):
        raise DataError(f"{what} is {array.dtype}, not {wanted}: convert it")
    with np.errstate(over="ignore"):
        typed = array.astype(wanted, copy=False)
    if typed.dtype.kind not in "biuO" and not _is_finite(typed):
        raise DataError(f"{what} holds NaN or infinity")
    return typed


def _is_finite(array: Array) -> bool:
    """In blocks: float64 copies of all samples would be many times as large as they."""
    flat = array.reshape(-1)
    blocks = (flat[k : k + (1 << 22)] for k in range(0, flat.size, 1 << 22))
    return all(np.isfinite(block.astype(np.float64)).all() for block in blocks)


def _read(path: Path, names: set[str]) -> dict[str, Array]:
    """The arrays called ``names``, which must be all there are; sizes are checked before."""
    _check_names(stored_names(path), names, str(path))
    return read_members(path, names)


def stored_names(path: Path) -> list[str]:
    """The names of the arrays in an npz file. Raises DataError when it is none, or when two arrays
    have the same name."""
    with _npz_errors(path), zipfile.ZipFile(path) as archive:
        names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
        if len(set(names)) != len(names):
            raise DataError(f"{path}: two arrays have the same name")
        return names


def read_members(path: Path, names: set[str]) -> dict[str, Array]:
    """The arrays called ``names`` of an npz file. Raises DataError for what is unreadable, holds
    Python objects, or is larger than `CALIBRATION_LIMIT`, before any of it is read."""
    with _npz_errors(path):
        with zipfile.ZipFile(path) as archive:
            members = [i for i in archive.infolist() if i.filename.removesuffix(".npy") in names]
            for info in members:
                with archive.open(info) as stream:
                    _check_header(stream, info.file_size)
            if sum(info.file_size for info in members) > CALIBRATION_LIMIT:
                raise ValueError(f"more than {CALIBRATION_LIMIT >> 30} GiB unpacked")
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in names}


@contextmanager
def _npz_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None
    except Exception as error:  # whatever zipfile, zlib and numpy say to a malformed file
        raise DataError(f"{path}: not a readable .npz file: {one_line(error)}") from None


def _check_names(found: Collection[str], names: set[str], label: str) -> None:
    wrong = sorted(names.symmetric_difference(found))
    missing = [name for name in wrong if name in names]
    if missing:
        there = ", ".join(sorted(found)) or "none"
        raise DataError(f"{label}: no array for input {missing[0]!r} (arrays: {there})")
    if wrong:
        inputs = ", ".join(sorted(names))
        raise DataError(
            f"{label}: array {wrong[0]!r} is no input (inputs: {inputs}); rename it or leave it out"
        )


def _check_header(stream: Any, size: int) -> None:
    """Refuse an array whose stated shape is not what its member holds."""
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else (np.lib.format.read_array_header_2_0)
    )
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError("an array is larger than its data")
