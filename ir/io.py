"""Reading and writing models without loss, and without holding the weights twice.

Reading checks everything that a later step would stumble over, because the file is untrusted.
Writing streams: weights pass one at a time, and files appear under their name only when they are
complete. A model that nobody changed comes back equal, field by field, but for what
`serialization` lists.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir

from .checks import check_model
from .errors import ModelError, model_errors, reason
from .external import (
    absolute_tensor,
    data_chunks,
    external_form,
    inline_tensor,
    map_external,
)
from .files import write_files
from .ordering import sort_nodes
from .serialization import deserialize, serialize
from .tensors import all_tensors, replace_tensors, replaced_tensors
from .wire import model_chunks

PROTOBUF_LIMIT = 2**31 - 1  # bytes of one message


def load_model(source: str | os.PathLike[str] | onnx.ModelProto | oir.Model) -> oir.Model:
    """The model of a file or of a ModelProto (which is copied); an ``oir.Model`` comes back as is.

    External data stays in its file, memory mapped; then ``model.meta["external_data"]`` is true.
    Nodes that stand before what they read are moved behind it.

    Raises:
        ModelError: the model cannot be read, is damaged, is of an unsupported version, refers to
            data outside its folder, or holds something that could not be written back.
    """
    if isinstance(source, oir.Model):
        return source
    if isinstance(source, onnx.ModelProto):
        where, folder = "model", None
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
    else:
        where, folder = os.fspath(source), Path(source).absolute().parent
        proto = _parse(Path(source))
    with model_errors(where):
        check_model(proto)
        model = deserialize(proto)
        sort_nodes(model)
        maps: dict[str, npt.NDArray[np.uint8]] = {}
        replace_tensors(model, functools.partial(_adopt, folder=folder, maps=maps))
        if any(isinstance(tensor, oir.ExternalTensor) for tensor in all_tensors(model)):
            model.meta["external_data"] = True
    return model


def _parse(path: Path) -> onnx.ModelProto:
    """The proto of a file; the file's bytes are gone when it returns."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelError(f"{path}: is a directory; give the .onnx file in it")
        if not stat.S_ISREG(mode):
            raise ModelError(f"{path}: is not a regular file; give an .onnx file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {reason(error)}; check the path") from None
    if not data:
        raise ModelError(f"{path}: is empty; export or download the model again")
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path}: is a Git LFS pointer, not a model; run `git lfs pull`")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:
        raise ModelError(
            f"{path}: is not an ONNX model, or is truncated; export or download it again"
        ) from None
    return proto


def _adopt(
    tensor: oir.TensorProtocol,
    value: oir.Value | None,
    *,
    folder: Path | None,
    maps: dict[str, npt.NDArray[np.uint8]],
) -> oir.TensorProtocol:
    """The tensor as this package holds it: mapped when external, its metadata kept once."""
    if isinstance(tensor, oir.ExternalTensor):
        return map_external(tensor, folder, maps)
    if isinstance(tensor, oir.serde.TensorProtoTensor):
        tensor.raw.ClearField("metadata_props")  # onnx-ir would write them twice
        if tensor.dtype.name.startswith("FLOAT6"):
            tensor.tobytes()  # refuses values that are not canonical
    return tensor


def save_model(
    model: oir.Model, path: str | os.PathLike[str], *, external: bool | None = None
) -> list[Path]:
    """Writes the model and returns the files written: the model, then its external data if any.

    The same model gives the same bytes. Files are written beside their place and renamed when
    complete, so it is safe to write over the files that the model was loaded from; after a
    failure the old files are still there and nothing else is.

    Args:
        external: put initializers over 1 KiB into ``<file name>.data`` beside the model; None
            means: when the model came with external data, or is too large for one file.

    Raises:
        UsageError: a file cannot be written.
        ModelError: the model cannot be serialized, or is over 2 GB and ``external`` is false.
    """
    target = Path(path)
    if external is None:
        external = _wants_external(model)
    files: list[tuple[Path, Iterable[bytes | memoryview]]] = []
    with model_errors(f"cannot write {target}"):
        if external:
            store = target.with_name(f"{target.name}.data")
            head, placed = external_form(model, store.name)
            files += [(store, data_chunks(placed))] if placed else []
            files.append((target, [head]))
        else:
            size, chunks = model_chunks(model)
            _check_limit(size)
            files.append((target, chunks))
        write_files(files)
    return [file for file, _ in reversed(files)]


def model_bytes(model: oir.Model) -> bytes:
    """The model with all data inline, as save_model writes it.

    Raises:
        ModelError: the model cannot be serialized or is over 2 GB.
    """
    with model_errors("model"):
        size, chunks = model_chunks(model)
        _check_limit(size)
        return b"".join(chunks)


def written_bytes(model: oir.Model) -> int:
    """The size of the files that save_model writes, a data file being called "model.onnx.data".

    Raises:
        ModelError: the model cannot be serialized.
    """
    with model_errors("model"):
        if not _wants_external(model):
            return model_chunks(model)[0]
        head, placed = external_form(model, "model.onnx.data")
        return len(head) + (placed[-1][0] + placed[-1][1].nbytes if placed else 0)


def to_proto(model: oir.Model, *, inline: bool = True, sparse: bool = True) -> onnx.ModelProto:
    """The model as a ModelProto with all data inline; or, with ``inline`` False, with external
    data left in its files, whose locations are then absolute paths. With ``sparse`` False, sparse
    initializers are written densely.

    Raises:
        ModelError: the model cannot be serialized.
    """
    convert = inline_tensor if inline else absolute_tensor
    with model_errors("model"), replaced_tensors(model, lambda tensor, value: convert(tensor)):
        return serialize(model, sparse=sparse)


def digest(source: str | os.PathLike[str] | onnx.ModelProto | oir.Model) -> str:
    """A SHA-256 in hexadecimal that names the model.

    Of a path: of the file's bytes, followed by those of its external data files in the order of
    their locations. Of a model in memory: of its bytes with all data inline.

    Raises:
        ModelError: as load_model.
    """
    model = load_model(source)
    if isinstance(source, oir.Model | onnx.ModelProto):
        return memory_digest(model)[0]
    return files_digest(model_files(source, model))[0]


def memory_digest(model: oir.Model) -> tuple[str, int]:
    """SHA-256 and size in bytes of a model in memory with all data inline; holds no copy of it.

    Raises:
        ModelError: the model cannot be serialized.
    """
    result = hashlib.sha256()
    with model_errors("model"):
        size, chunks = model_chunks(model)
        for chunk in chunks:
            result.update(chunk)
    return result.hexdigest(), size


def model_files(path: str | os.PathLike[str], model: oir.Model) -> list[Path]:
    """The file that ``model`` was loaded from, then its external data files by location."""
    locations = {
        os.fspath(tensor.location): Path(tensor.path)
        for tensor in all_tensors(model)
        if isinstance(tensor, oir.ExternalTensor)
    }
    return [Path(path), *(locations[key] for key in sorted(locations))]


def files_digest(files: Sequence[Path]) -> tuple[str, int]:
    """SHA-256 of the files' bytes one after another, and their number.

    Raises:
        ModelError: a file cannot be read.
    """
    result, size = hashlib.sha256(), 0
    for path in files:
        with model_errors(str(path)), path.open("rb") as file:
            while block := file.read(1 << 20):
                result.update(block)
                size += len(block)
    return result.hexdigest(), size


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes a file beside its place, then renames it; text is written as UTF-8.

    Raises:
        UsageError: the file cannot be written; an old file is still there.
    """
    write_files([(Path(path), [data.encode() if isinstance(data, str) else data])])


def _wants_external(model: oir.Model) -> bool:
    if model.meta.get("external_data"):
        return True
    tensors = all_tensors(model)
    if any(isinstance(t, oir.ExternalTensor) or t.meta.get("external_data") for t in tensors):
        return True
    numbers = (t.nbytes for t in tensors if t.dtype != oir.DataType.STRING)
    return sum(numbers) > PROTOBUF_LIMIT - (PROTOBUF_LIMIT >> 5)


def _check_limit(size: int) -> None:
    if size > PROTOBUF_LIMIT:
        raise ModelError(f"{size} bytes do not fit into one protobuf; use external data")
