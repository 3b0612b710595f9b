"""External data: mapped where it lies when read, placed one tensor after another when written."""

from __future__ import annotations

import mmap
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from .errors import ModelError, model_errors, reason
from .serialization import serialize
from .sparse import is_sparse
from .tensors import replaced_tensors

EXTERNAL_THRESHOLD = 1024  # bytes; smaller initializers stay in the model file
ALIGNMENT = 64  # bytes, of offsets in the external data file


class MappedTensor(oir.ExternalTensor):
    """An external tensor read through one memory map per data file.

    onnx-ir maps the whole file again for every tensor and keeps a descriptor for each; a thousand
    weights would run out of them. Mapping at load time also means that replacing the data file
    later never changes the tensor.
    """

    __slots__ = ("_bytes", "_file")

    def __init__(
        self,
        tensor: oir.ExternalTensor,
        data: npt.NDArray[np.uint8],
        file: mmap.mmap | None = None,
    ) -> None:
        super().__init__(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=oir.Shape(tensor.shape),
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            base_dir=tensor.base_dir,
        )
        self._bytes = data
        self._file = file

    def numpy(self) -> npt.NDArray[Any]:
        """The data; a read-only view of the file except for types narrower than a byte."""
        if self.dtype.bitwidth < 8:
            return inline_tensor(self).numpy()
        dtype = self.dtype.numpy().newbyteorder("<")
        return self._bytes.view(dtype).reshape(self.shape.numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.numpy(), dtype=dtype) if copy else np.asarray(self.numpy(), dtype)

    def tobytes(self) -> bytes:
        """The data as stored, little endian."""
        return self._bytes.tobytes()

    def tofile(self, file: IO[bytes]) -> None:
        """Writes the data as stored, without a copy."""
        file.write(self._bytes.data)

    def release(self) -> None:
        """Lets the operating system take back the memory that reading the data took; views of it
        stay valid and read it again."""
        if self._file is None or not hasattr(self._file, "madvise"):
            return
        start = (self.offset or 0) // mmap.PAGESIZE * mmap.PAGESIZE
        length = (self.offset or 0) + self._bytes.size - start
        self._file.madvise(mmap.MADV_DONTNEED, start, length)


def release(tensor: oir.TensorProtocol) -> None:
    """Gives back the memory of a tensor that is mapped from a file; nothing for others."""
    if isinstance(tensor, MappedTensor):
        tensor.release()


def map_external(
    tensor: oir.ExternalTensor, folder: Path | None, maps: dict[str, npt.NDArray[np.uint8]]
) -> MappedTensor:
    """The tensor's bytes mapped from its file; raises ModelError when they are not there."""
    location = os.fspath(tensor.location)
    what = f"external data {location!r} of tensor {tensor.name!r}"
    if folder is None:
        raise ModelError(f"{what} has no folder to look in; load the model by its path")
    parts = Path(location).parts
    real = os.path.realpath(folder / location)
    inside = os.path.realpath(folder)
    if (
        not parts
        or Path(location).is_absolute()
        or ".." in parts
        or os.path.commonpath([real, inside]) != inside
    ):
        raise ModelError(f"{what} lies outside the model's folder; move it beside the model")
    if real not in maps:
        try:
            info = Path(real).stat()
        except OSError as error:
            raise ModelError(
                f"{what} cannot be read: {reason(error)}; keep it beside the model"
            ) from None
        if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
            raise ModelError(f"{what} is not a plain file of its own; copy it beside the model")
        maps[real] = _mapped(real)
    data, start = maps[real], tensor.offset or 0
    expected = tensor.nbytes
    if tensor.length is not None and tensor.length != expected:
        raise ModelError(
            f"{what} has {tensor.length} bytes where its shape needs {expected}; "
            "export the model again"
        )
    if start + expected > data.size:
        raise ModelError(
            f"{what} is too short: {start + expected} bytes needed, {data.size} there; "
            "download it again"
        )
    tensor.base_dir = folder
    file = data.base.obj if isinstance(data.base, memoryview) else None
    return MappedTensor(
        tensor, data[start : start + expected], file if isinstance(file, mmap.mmap) else None
    )


def _mapped(path: str) -> npt.NDArray[np.uint8]:
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def placeholder(
    tensor: oir.TensorProtocol, name: str | None, location: str = "", offset: int | None = None
) -> oir.ExternalTensor:
    """A tensor of the same type and shape that says where its data is, without the data."""
    return oir.ExternalTensor(
        location,
        offset,
        None if offset is None else tensor.nbytes,
        tensor.dtype,
        shape=oir.Shape(tensor.shape.numpy()),
        name=name or tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def inline_tensor(tensor: oir.TensorProtocol) -> oir.TensorProtocol:
    """The tensor with its data in memory, when it was external."""
    if not isinstance(tensor, oir.ExternalTensor):
        return tensor
    proto = oir.serde.serialize_tensor(placeholder(tensor, None))
    for field in ("external_data", "data_location", "metadata_props"):
        proto.ClearField(field)
    proto.raw_data = tensor_data(tensor)
    inline = oir.serde.TensorProtoTensor(proto)
    inline.metadata_props.update(tensor.metadata_props)
    return inline


def absolute_tensor(tensor: oir.TensorProtocol) -> oir.TensorProtocol:
    """An external tensor with the absolute path of its file as its location; others as they are."""
    if not isinstance(tensor, oir.ExternalTensor):
        return tensor
    return placeholder(tensor, None, str(Path(tensor.path).absolute()), tensor.offset or 0)


def tensor_data(tensor: oir.TensorProtocol) -> bytes:
    """The tensor's bytes as stored; raises ModelError when they do not fit its shape."""
    with model_errors(f"tensor {tensor.name!r}"):
        data = tensor.tobytes() if tensor.nbytes else b""
    if len(data) != tensor.nbytes:
        raise ModelError(
            f"tensor {tensor.name!r} holds {len(data)} bytes where its shape needs {tensor.nbytes}"
        )
    return data


def external_form(
    model: oir.Model, location: str
) -> tuple[bytes, list[tuple[int, oir.TensorProtocol]]]:
    """The model file's bytes, and every tensor outside it with its offset in the data file."""
    placed: list[tuple[int, oir.TensorProtocol]] = []
    end = 0

    def place(tensor: oir.TensorProtocol, value: oir.Value | None) -> oir.TensorProtocol:
        nonlocal end
        if (value is None and not isinstance(tensor, oir.ExternalTensor)) or is_sparse(tensor):
            return tensor
        if tensor.dtype == oir.DataType.STRING or tensor.nbytes <= EXTERNAL_THRESHOLD:
            return inline_tensor(tensor)
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        end = offset + tensor.nbytes
        placed.append((offset, tensor))
        return placeholder(tensor, value.name if value else None, location, offset)

    with replaced_tensors(model, place):
        proto = serialize(model)
    return proto.SerializeToString(deterministic=True), placed


def data_chunks(
    placed: Sequence[tuple[int, oir.TensorProtocol]],
) -> Iterator[bytes | memoryview]:
    """The bytes of a data file: every tensor at its offset, zeros between them."""
    end = 0
    for offset, tensor in placed:
        yield bytes(offset - end)
        yield _buffer(tensor)
        release(tensor)
        end = offset + tensor.nbytes


def _buffer(tensor: oir.TensorProtocol) -> bytes | memoryview:
    """The tensor's bytes as stored, without a copy where numpy holds them so."""
    if isinstance(tensor, MappedTensor):
        return tensor._bytes.data
    array = tensor.numpy() if tensor.dtype.bitwidth >= 8 else None
    if array is None or array.nbytes != tensor.nbytes or sys.byteorder != "little":
        return tensor_data(tensor)
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1).data
