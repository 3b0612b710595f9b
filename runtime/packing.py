"""Packing: samples from anywhere become a calibration file that `load_calibration` accepts.

A sample of an input of shape (d0, d1, ...) is an array of shape (d1, ...), one of a batch, or of
the input's own rank. The latter are joined along their first axis where d0 is a free size or 1. If
it is a larger number, or if an input has no axes at all, every sample is one whole feed, and the
file gets an axis of feeds in front of the input's own.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..ir.errors import DataError, UsageError
from ..ir.files import write_files
from ..ir.wording import counted
from .calibration import CALIBRATION_LIMIT, load_calibration
from .samples import BrokenSample, Samples, Stream
from .session import Array
from .signature import fed_inputs, input_shape
from .spool import Spool, npz_chunks

Progress = Callable[[float | None], None]
Source = Samples | Stream
Shape = Sequence[int | str]


@dataclass(frozen=True)
class PackedArray:
    """What was written for one input; ``low``, ``high`` and ``mean`` are of its numbers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float
    high: float
    mean: float


@dataclass(frozen=True)
class Packed:
    """What was written. ``feeds``: whether each of the ``samples`` is a whole feed of the model;
    ``skipped`` says which samples could not be read."""

    samples: int
    feeds: bool
    arrays: tuple[PackedArray, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackOptions:
    """``limit``: at most so many samples; ``shuffle``: a seed for their order (None: as they come);
    ``feeds``: take each sample for a whole feed; ``skip_broken``: leave out what cannot be read;
    ``reshape``: the shape that samples get (None: they have theirs); of samples for several inputs,
    the arrays with so many numbers."""

    limit: int | None = None
    shuffle: int | None = None
    feeds: bool = False
    skip_broken: bool = False
    reshape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"`limit` must be at least 1, not {self.limit}")
        if self.shuffle is not None and self.shuffle < 0:
            raise ValueError(f"`seed` must be at least 0, not {self.shuffle}")
        if self.reshape is not None and not all(size > 0 for size in self.reshape):
            raise ValueError("`reshape` must be positive sizes")


def pack(
    model: onnx.ModelProto,
    sources: Sequence[Source],
    output: Path,
    options: PackOptions,
    progress: Progress = lambda done: None,
) -> Packed:
    """Writes ``output``, an npz file of the samples of all sources for the inputs of ``model``.

    Sources of the same inputs follow each other; sources of different inputs belong together,
    sample by sample. Raises DataError for samples that do not fit the inputs or each other,
    UsageError for what cannot be shuffled or written. Until all is well nothing is written.
    """
    inputs = {value.name: input_shape(value) for value in fed_inputs(model)}
    stored = {name: _stored_type(name, element) for name, (element, _) in inputs.items()}
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        packer = _Packer(inputs, stored, Path(folder), options)
        skipped: list[str] = []
        for sample, label, done in _joined(sources, options, skipped):
            packer.add(sample, label)
            progress(done if options.limit is None else packer.count / options.limit)
            if options.limit is not None and packer.count >= options.limit:
                break
        if not packer.count:
            raise DataError(skipped[0] if skipped else f"{sources[0].label}: holds no samples")
        arrays = {name: spool.array() for name, spool in packer.spools.items()}
        checked = load_calibration(arrays, model, {})
        write_files([(output, npz_chunks(arrays))])
        del checked, arrays  # maps of files in the folder
    made = [_described(name, spool) for name, spool in packer.spools.items()]
    return Packed(packer.count, packer.feeds, tuple(made), tuple(skipped))


def _stored_type(name: str, element: int) -> np.dtype[Any]:
    """How an npz file holds this element type."""
    if element == TensorProto.BFLOAT16:
        return np.dtype(np.float32)
    if element != TensorProto.STRING:
        dtype = helper.tensor_dtype_to_np_dtype(element)
        if dtype.type.__module__ == "numpy":
            return dtype
    kind = TensorProto.DataType.Name(element)
    raise DataError(f"input {name!r} is of type {kind}, which cannot be packed")


def _described(name: str, spool: Spool) -> PackedArray:
    numbers = max(spool.count * spool.numbers, 1)
    shape = (spool.count, *spool.row)
    return PackedArray(name, spool.dtype.name, shape, spool.low, spool.high, spool.total / numbers)


def _joined(
    sources: Sequence[Source], options: PackOptions, skipped: list[str]
) -> Iterator[tuple[dict[str, Array], str, float | None]]:
    """Samples of all inputs, where they come from, and which share of all has been read. What is
    broken is told to ``skipped``."""
    counted: dict[frozenset[str], list[Samples]] = {}
    for source in sources:
        if isinstance(source, Samples):
            counted.setdefault(frozenset(source.inputs), []).append(source)
    streams = [source for source in sources if isinstance(source, Stream)]
    stream = itertools.chain.from_iterable(s.samples for s in streams)
    columns = [_concatenated(group) for group in counted.values()]
    counts = {column.label: column.count for column in columns}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{label} {count}" for label, count in counts.items())
        raise DataError(f"sample counts differ ({listed})")
    if options.shuffle is not None and streams:
        raise UsageError(f"{streams[0].label} comes in its own order: shuffle it there")
    total = next(iter(counts.values()), None)
    order: Iterator[int] = itertools.count()
    if total is not None:
        order = iter(range(total))
        if options.shuffle is not None:
            order = iter(np.random.default_rng(options.shuffle).permutation(total).tolist())
    label = ", ".join([*counts, *(s.label for s in streams)])
    for position, k in enumerate(order):
        parts: list[Mapping[str, Array]] = []
        if streams:
            item = next(stream, None)
            if item is None:
                if total is None:
                    return
                raise DataError(f"sample counts differ ({label}): a stream ends after {position}")
            parts.append(item)
        try:
            parts += [column.read(k) for column in columns]
        except BrokenSample as error:
            if not options.skip_broken:
                raise
            skipped.append(str(error))
            continue
        sample: dict[str, Array] = {}
        for part in parts:
            if twice := sample.keys() & part.keys():
                raise DataError(f"two sources feed input {min(twice)!r} ({label})")
            sample |= part
        yield sample, f"{label}, sample {k}", None if total is None else (position + 1) / total
    if streams and next(stream, None) is not None:
        raise DataError(f"sample counts differ ({label}): a stream goes on after {total}")


def _concatenated(group: Sequence[Samples]) -> Samples:
    if len(group) == 1:
        return group[0]
    ends = np.cumsum([source.count for source in group])

    def read(k: int) -> Mapping[str, Array]:
        place = int(np.searchsorted(ends, k, side="right"))
        return group[place].read(k - int(ends[place]) + group[place].count)

    label = " + ".join(source.label for source in group)
    return replace(group[0], label=label, count=int(ends[-1]), read=read)


class _Packer:
    """Turns samples into rows of the arrays to be written."""

    def __init__(
        self,
        inputs: Mapping[str, tuple[int, tuple[int | str, ...]]],
        stored: Mapping[str, np.dtype[Any]],
        folder: Path,
        options: PackOptions,
    ) -> None:
        self.inputs, self.stored, self.folder, self.options = inputs, stored, folder, options
        self.feeds = options.feeds
        self.count = 0
        self.spools: dict[str, Spool] = {}

    def add(self, sample: Mapping[str, Array], label: str) -> None:
        """Adds what one sample holds. Raises DataError when it does not fit."""
        if wrong := sorted(self.inputs.keys() ^ sample.keys()):
            known = [name for name in wrong if name in self.inputs]
            hint = f"nothing for input {known[0]!r}" if known else f"no input is {wrong[0]!r}"
            there, inputs = ", ".join(sample) or "none", ", ".join(self.inputs)
            raise DataError(f"{label}: {hint} (arrays: {there}; inputs: {inputs})")
        arrays = self._reshaped({name: np.asarray(sample[name]) for name in self.inputs}, label)
        if not self.count:
            self.feeds = self.feeds or self._are_feeds(arrays)
        rows = {name: self._rows(name, array, label) for name, array in arrays.items()}
        counts = {name: len(array) for name, array in rows.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(f"{label}: batches differ ({listed})")
        limit = self.options.limit
        room = None if limit is None else limit - self.count
        for name, array in rows.items():
            self._spool(name, array[:room], label)
        self.count = next(iter(self.spools.values())).count
        if sum(spool.nbytes for spool in self.spools.values()) > CALIBRATION_LIMIT:
            raise DataError(
                f"{label}: more than {CALIBRATION_LIMIT >> 30} GiB of samples; give `limit`"
            )

    def _reshaped(self, arrays: dict[str, Array], label: str) -> dict[str, Array]:
        sizes = self.options.reshape
        if sizes is None:
            return arrays
        fitting = {n: a.reshape(sizes) for n, a in arrays.items() if a.size == math.prod(sizes)}
        if not fitting:
            found = " and ".join(counted(array.size, "number") for array in arrays.values())
            to = "x".join(map(str, sizes))
            raise UsageError(f"{label}: {found} cannot be reshaped to {to}: correct `reshape`")
        return arrays | fitting

    def _are_feeds(self, arrays: Mapping[str, Array]) -> bool:
        for name, array in arrays.items():
            shape = self.inputs[name][1]
            first = shape[0] if shape else 2
            if array.ndim == len(shape) and isinstance(first, int) and first != 1:
                return True
        return False

    def _rows(self, name: str, array: Array, label: str) -> Array:
        """The array with an axis of rows in front, in the element type of the input."""
        shape = takes = self.inputs[name][1]
        given = array.shape
        if array.ndim == len(shape) - 1:
            array = array[np.newaxis]
        axes = array.shape
        if self.feeds and array.ndim == len(shape):
            array = array[np.newaxis]
        elif array.ndim == len(shape):
            shape, axes = shape[1:], axes[1:]
        else:
            axes = ()
        if not _fits(axes, shape):
            wanted = takes if self.feeds else takes[1:]
            has, whole, one = (", ".join(map(str, sizes)) for sizes in (given, takes, wanted))
            how = "a function, module:function, can yield it so"
            if sizes := _unfolded(given, wanted):
                how = f"give `reshape` {','.join(map(str, sizes))}"
            raise DataError(
                f"{label} has shape ({has}), but input {name!r} takes ({whole}): "
                f"each sample must be ({one}); {how}"
            )
        return _cast(array, self.stored[name], f"{label}, input {name!r}")

    def _spool(self, name: str, rows: Array, label: str) -> None:
        spool = self.spools.get(name)
        if spool is None:
            path = self.folder / f"{len(self.spools)}.raw"
            spool = self.spools[name] = Spool(path, rows.dtype, rows.shape[1:])
        if rows.shape[1:] != spool.row:
            first = ", ".join(map(str, spool.row))
            has = ", ".join(map(str, rows.shape[1:]))
            raise DataError(f"{label}, input {name!r} has shape ({has}), the first had ({first})")
        spool.add(rows)


def _fits(sizes: Sequence[int], shape: Shape) -> bool:
    return len(sizes) == len(shape) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(shape, sizes, strict=True)
    )


def _unfolded(given: Sequence[int], wanted: Shape) -> list[int] | None:
    """The sizes that make a sample as it is wanted, where it lacks axes of size 1 or is flat; None
    where a new shape would not do, as where axes are in another order."""
    rest = iter([size for size in given if size != 1])
    sizes = [1 if dim == 1 else next(rest, 0) for dim in wanted]
    if len(given) == 1 and all(isinstance(dim, int) for dim in wanted):
        sizes = [int(dim) for dim in wanted]
    return sizes if math.prod(sizes) == math.prod(given) and _fits(sizes, wanted) else None


def _cast(array: Array, dtype: np.dtype[Any], where: str) -> Array:
    """The array in another element type. Raises DataError where that changes more than the
    precision of floats, and for NaN and infinity."""
    if array.dtype.type.__module__ == "ml_dtypes":
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} holds {array.dtype}, no numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
    if dtype.kind == "f":
        if not np.isfinite(cast).all():
            raise DataError(f"{where} holds NaN, infinity or numbers too large for {dtype}")
    elif not np.array_equal(cast.astype(array.dtype), array):
        raise DataError(f"{where} holds numbers that {dtype} does not have")
    return cast
