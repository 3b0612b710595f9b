"""Samples from text tables: one row is one sample."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..ir.errors import DataError, UsageError
from ..ir.registry import suggest
from ..ir.wording import counted
from .samples import Samples
from .session import one_line


@dataclass(frozen=True)
class TableOptions:
    """How to read a table. ``header``: whether the first row names the columns (None: if any cell
    of it is no number); ``columns``: names or numbers from 0, in this order (none: all);
    ``delimiter``: one character (None: a tabulator in .tsv files, else a comma)."""

    header: bool | None = None
    columns: tuple[str, ...] = ()
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise ValueError(f"`delimiter` must be one character, not '{self.delimiter}'")


def table_samples(
    path: Path, name: str, shape: Sequence[int | str] | None, options: TableOptions
) -> Samples:
    """Of a .csv or .tsv file, for input ``name`` of shape ``shape`` (None: rows stay flat).

    Raises DataError for what is no table of finite numbers, UsageError for columns that it does
    not have.
    """
    delimiter = options.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
    numbers: list[list[float]] = []
    columns: list[int] = []
    names: list[str] = []
    width = 0
    for line, cells in _rows(path, delimiter):
        if not width:
            width = len(cells)
            header = options.header
            if header is None:
                header = any(_number(cell) is None for cell in cells)
            names = [cell.strip() for cell in cells] if header else []
            columns = _columns(path, names, width, options.columns)
            if header:
                continue
        if len(cells) != width:
            raise DataError(f"{path}: line {line} has {counted(len(cells), 'cell')}, not {width}")
        row = [_number(cells[k]) for k in columns]
        if None in row:
            k = columns[row.index(None)]
            called = f"'{names[k]}'" if names else k
            raise DataError(
                f"{path}: line {line}, column {called}: '{cells[k][:40]}' is no finite number"
            )
        numbers.append([value for value in row if value is not None])
    if not numbers:
        raise DataError(f"{path}: holds no rows of numbers")
    table = np.array(numbers)
    target = (len(columns),) if shape is None else _target(path, len(columns), name, shape)
    return Samples(str(path), (name,), len(table), lambda k: {name: table[k].reshape(target)})


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row that is not empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None
    except (csv.Error, UnicodeError) as error:
        raise DataError(f"{path}: not a readable table: {one_line(error)}") from None


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _columns(path: Path, names: list[str], width: int, wanted: Sequence[str]) -> list[int]:
    found = []
    for column in wanted:
        if names.count(column) > 1:
            raise UsageError(f"{path} has two columns '{column}': give its number, from 0")
        if column in names:
            found.append(names.index(column))
        elif column.isdecimal() and int(column) < width:
            found.append(int(column))
        else:
            known = suggest(column, names) or f"; number them from 0 to {width - 1}"
            raise UsageError(f"{path} has no column '{column}'{known}")
    return found or list(range(width))


def _target(path: Path, count: int, name: str, shape: Sequence[int | str]) -> tuple[int, ...]:
    """The shape of one sample of ``count`` numbers."""
    for dims in (shape[1:], shape):
        static = tuple(size for size in dims if isinstance(size, int))
        if len(static) == len(dims) and math.prod(static) == count:
            return static
    if len(shape) == 2 and isinstance(shape[1], str):
        return (count,)
    takes = ", ".join(map(str, shape))
    raise DataError(
        f"{path}: rows have {counted(count, 'number')}, but input {name!r} takes ({takes}):"
        " choose `columns` or give `reshape`"
    )
