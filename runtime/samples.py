"""Samples from arrays and from Python: what `pack` packs, one at a time.

A sample maps input names to arrays. Sources that can be counted are read at any place; streams are
read once, in order. Nothing is unpickled, and no module is imported but the one that is named.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import DataError, UsageError
from ..ir.registry import suggest
from ..ir.wording import counted
from .calibration import read_members, stored_names
from .session import Array, one_line

PYTHON = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""``module:function``."""


class BrokenSample(DataError):
    """One sample cannot be read; others can."""


@dataclass(frozen=True)
class Samples:
    """Samples of the inputs ``inputs``: ``count`` of them, ``read`` at any place."""

    label: str
    inputs: tuple[str, ...]
    count: int
    read: Callable[[int], Mapping[str, Array]]


@dataclass(frozen=True)
class Stream:
    """Samples that come in order, as many as there are, and say themselves what they feed."""

    label: str
    samples: Iterator[Mapping[str, Array]]


def npy_samples(path: Path, name: str) -> Samples:
    """Of an .npy file, whose first axis counts samples; it is mapped, not read. Raises DataError
    for another file."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.ndim == 0:
            raise ValueError("it holds no axis of samples")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None
    except Exception as error:  # whatever numpy says to a malformed file
        raise DataError(f"{path}: not a readable .npy file: {one_line(error)}") from None
    return Samples(str(path), (name,), len(array), lambda k: {name: array[k]})


def npz_samples(
    path: Path, inputs: Sequence[str], keys: Sequence[str], rename: Mapping[str, str]
) -> Samples:
    """Of an .npz file: the arrays called ``keys`` (default: all that are inputs once renamed).

    ``rename`` maps names in the file to names of inputs. The first axis of every array counts
    samples; a single number belongs to all of them. Raises DataError for another file,
    UsageError for names that it does not hold.
    """
    stored = stored_names(path)
    for name in (*keys, *rename):
        if name not in stored:
            raise UsageError(f"{path} holds no array '{name}'{suggest(name, stored)}")
    chosen = {n: rename.get(n, n) for n in (keys or stored) if keys or rename.get(n, n) in inputs}
    if not chosen:
        held = ", ".join(stored) or "none"
        raise DataError(
            f"{path}: no array is called like an input (arrays: {held}; inputs: "
            f"{', '.join(inputs)}); use --rename FILE_NAME=INPUT"
        )
    if len(set(chosen.values())) != len(chosen):
        raise UsageError(f"two arrays of {path} would both feed one input")
    arrays = {chosen[name]: array for name, array in read_members(path, set(chosen)).items()}
    counts = {name: len(array) for name, array in arrays.items() if array.ndim}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"{path}: sample counts differ ({listed})")

    def read(k: int) -> dict[str, Array]:
        return {name: a[k] if a.ndim else a for name, a in arrays.items()}

    return Samples(str(path), tuple(arrays), next(iter(counts.values()), 1), read)


def python_samples(
    source: str | Iterable[Any] | Callable[[], Any], inputs: Sequence[str]
) -> Stream:
    """Of ``module:function``, a function or an iterable. Each item is a mapping of input names to
    arrays, a tuple of one array for each of ``inputs``, or one array for the only one.

    Raises DataError when there is no such function, and while the stream is read for what it raises
    itself and for items of another form.
    """
    label = source if isinstance(source, str) else getattr(source, "__name__", "the generator")
    found: Any = _named(source) if isinstance(source, str) else source
    return Stream(label, _items(label, found, tuple(inputs)))


def _items(label: str, found: Any, inputs: tuple[str, ...]) -> Iterator[dict[str, Array]]:
    count = 0
    try:
        with _current_folder():
            for item in found() if callable(found) else found:
                yield _sample(item, inputs, f"{label}: item {count}")
                count += 1
    except DataError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise DataError(
            f"{label} failed after {counted(count, 'sample')}: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from None


def _sample(item: Any, inputs: tuple[str, ...], where: str) -> dict[str, Array]:
    if isinstance(item, Mapping):
        return {str(name): np.asarray(array) for name, array in item.items()}
    parts = item if isinstance(item, tuple) else (item,)
    if len(parts) != len(inputs):
        raise DataError(
            f"{where} has {counted(len(parts), 'array')} for {counted(len(inputs), 'input')} "
            f"({', '.join(inputs)}): yield a dictionary"
        )
    return {name: np.asarray(part) for name, part in zip(inputs, parts, strict=True)}


def _named(source: str) -> Any:
    module, _, name = source.partition(":")
    try:
        with _current_folder():
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
    except Exception as error:  # whatever the user's module raises
        raise DataError(
            f"cannot import {source}: {type(error).__name__}: {one_line(error)}"
        ) from None
    return found


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder can be imported, also by an installed command."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
