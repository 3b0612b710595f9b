"""Arrays that grow on disk, and npz files written from them: nothing holds all samples."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..ir.errors import UsageError, reason
from .session import Array

_BLOCK = 1 << 22


@dataclass
class Spool:
    """An array in a file, to which rows are added; with the range and the sum of its numbers."""

    path: Path
    dtype: np.dtype[np.generic]
    row: tuple[int, ...]
    count: int = 0
    low: float = np.inf
    high: float = -np.inf
    total: float = 0.0

    def add(self, rows: Array) -> None:
        """Adds an array (rows, ...) of the dtype. Raises UsageError when the disk is full."""
        try:
            with self.path.open("ab") as file:
                file.write(np.ascontiguousarray(rows).tobytes())
        except OSError as error:
            raise UsageError(
                f"cannot write {self.path}: {reason(error)}; set TMPDIR to another folder"
            ) from None
        self.count += len(rows)
        if rows.size:
            self.low = min(self.low, float(rows.min()))
            self.high = max(self.high, float(rows.max()))
            self.total += float(rows.sum(dtype=np.float64))

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.count * self.numbers * self.dtype.itemsize

    @property
    def numbers(self) -> int:
        """Numbers in a row."""
        return int(np.prod(self.row, dtype=np.int64))

    def array(self) -> Array:
        """All rows, mapped."""
        shape = (self.count, *self.row)
        if not self.nbytes:
            return np.empty(shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", shape=shape)


def npz_chunks(arrays: Mapping[str, Array]) -> Iterator[bytes]:
    """The bytes of an npz file, piece by piece; the same arrays give the same bytes."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(info, "w", force_zip64=True) as member:
                kind = np.lib.format.dtype_to_descr(array.dtype)
                header = {"descr": kind, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(member, header)
                flat = np.asarray(array).reshape(-1)
                step = max(_BLOCK // array.dtype.itemsize, 1)
                for start in range(0, flat.size, step):
                    member.write(flat[start : start + step].tobytes())
                    yield pipe.taken()
    yield pipe.taken()


class _Pipe(io.RawIOBase):
    """Takes what is written, to be handed on."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        part = bytes(data)  # type: ignore[call-overload]
        self.parts.append(part)
        return len(part)

    def taken(self) -> bytes:
        parts, self.parts = self.parts, []
        return b"".join(parts)
