"""Reading and writing models without loss, and without holding the weights twice.

Reading checks everything that a later step would stumble over, because the file is untrusted:
sizes of stored data, locations of external data, versions, and whatever onnx-ir would drop.
Value infos that name no value of their graph describe nothing and are the only thing dropped.

Writing streams. A ModelProto on the wire is its fields in any order, so the model is serialized
without the main graph's initializers and these follow, one at a time, by hand:
``tag length`` of ``ModelProto.graph`` (field 7), the rest of the graph, then for every
initializer ``tag length`` of ``GraphProto.initializer`` (field 5) and the tensor, whose bytes are
``TensorProto.raw_data`` (field 9). Files appear under their name only when they are complete.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import mmap
import os
import re
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs
import onnx_ir as oir

from .errors import ModelError, SecateurError, UsageError

MIN_OPSET = 7
MIN_IR_VERSION = 3  # the first with opset imports
MAX_RANK = 32  # what every supported numpy can hold
EXTERNAL_THRESHOLD = 1024  # bytes; smaller initializers stay in the model file
ALIGNMENT = 64  # bytes, of offsets in the external data file
PROTOBUF_LIMIT = 2**31 - 1  # bytes of one message

_RAW_DATA, _INITIALIZER, _GRAPH = b"\x4a", b"\x2a", b"\x3a"  # (field << 3) | 2
_DATA_FIELDS = (
    "float_data",
    "double_data",
    "int32_data",
    "int64_data",
    "uint64_data",
    "string_data",
)
_WIDE_FIELDS = {
    "FLOAT": "float_data",
    "COMPLEX64": "float_data",
    "DOUBLE": "double_data",
    "COMPLEX128": "double_data",
    "INT64": "int64_data",
    "UINT32": "uint64_data",
    "UINT64": "uint64_data",
    "STRING": "string_data",
}
_ATTRIBUTE_FIELDS = {
    "FLOAT": "f",
    "INT": "i",
    "STRING": "s",
    "TENSOR": "t",
    "GRAPH": "g",
    "TYPE_PROTO": "tp",
    "FLOATS": "floats",
    "INTS": "ints",
    "STRINGS": "strings",
    "TENSORS": "tensors",
    "GRAPHS": "graphs",
    "TYPE_PROTOS": "type_protos",
}
_TERM = rb"[A-Za-z ]*(\.\.\.[A-Za-z ]*)?"
_EQUATION = re.compile(_TERM + rb"(," + _TERM + rb")*(->" + _TERM + rb")?")

Replace = Callable[[oir.TensorProtocol, "oir.Value | None"], oir.TensorProtocol]


# Reading


class MappedTensor(oir.ExternalTensor):
    """An external tensor read through one memory map per data file.

    onnx-ir maps the whole file again for every tensor and keeps a descriptor for each; a thousand
    weights would run out of them. Mapping at load time also means that replacing the data file
    later never changes the tensor.
    """

    __slots__ = ("_bytes",)

    def __init__(self, tensor: oir.ExternalTensor, data: npt.NDArray[np.uint8]) -> None:
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


def load_model(source: str | os.PathLike[str] | onnx.ModelProto | oir.Model) -> oir.Model:
    """The model of a file or of a ModelProto (which is copied); an ``oir.Model`` comes back as is.

    External data stays in its file, memory mapped; then ``model.meta["external_data"]`` is true.

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
    with _model_errors(where):
        _check_model(proto)
        model = oir.serde.deserialize_model(proto)
        if "ai.onnx" in model.opset_imports:  # the other spelling of "", which nodes lose too
            model.graph.opset_imports[""] = model.graph.opset_imports.pop("ai.onnx")
        maps: dict[str, npt.NDArray[np.uint8]] = {}
        _replace_tensors(model, functools.partial(_adopt, folder=folder, maps=maps))
        if any(isinstance(tensor, oir.ExternalTensor) for tensor in _all_tensors(model)):
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
        raise ModelError(f"{path}: cannot be read: {_reason(error)}; check the path") from None
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
        return _map_external(tensor, folder, maps)
    if isinstance(tensor, oir.serde.TensorProtoTensor):
        tensor.raw.ClearField("metadata_props")  # onnx-ir would write them twice
        if tensor.dtype.name.startswith("FLOAT6"):
            tensor.tobytes()  # refuses values that are not canonical
    return tensor


def _map_external(
    tensor: oir.ExternalTensor, folder: Path | None, maps: dict[str, npt.NDArray[np.uint8]]
) -> MappedTensor:
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
                f"{what} cannot be read: {_reason(error)}; keep it beside the model"
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
    return MappedTensor(tensor, data[start : start + expected])


def _mapped(path: str) -> npt.NDArray[np.uint8]:
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


# Checks of an untrusted proto. Each raises a ModelError that says what, without the file.


def _check_model(proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph"):
        raise ModelError("holds no graph; is it an ONNX model?")
    if not MIN_IR_VERSION <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"IR version {proto.ir_version or 'missing'} is unknown; "
            f"{MIN_IR_VERSION} to {onnx.IR_VERSION} are supported"
        )
    if proto.training_info:
        raise ModelError("training_info is not supported; export the model for inference")
    if proto.ir_version < 11 and getattr(proto, "configuration", None):
        raise ModelError("device configurations need IR version 11; raise ir_version")
    _check_text(proto)
    _check_opset(proto.opset_import, required=True)
    _check_once((entry.key for entry in proto.metadata_props), "metadata key")
    _check_once(
        ("::".join((f.domain, f.name, getattr(f, "overload", ""))) for f in proto.functions),
        "function",
    )
    _check_graph(proto.graph, proto.ir_version)
    for function in proto.functions:
        _check_opset(function.opset_import, required=False)
        _check_once((entry.key for entry in function.metadata_props), "metadata key")
        for info in getattr(function, "value_info", ()):
            _check_value(info)
        for attribute in function.attribute_proto:
            _check_attribute(attribute, proto.ir_version)
        _check_nodes(function.node, proto.ir_version)


def _check_text(message: Any) -> None:
    """Refuses text that is not UTF-8, which protobuf hands out as bytes."""
    for field, value in message.ListFields():
        if field.name == "raw_data":
            continue
        if field.type == field.TYPE_STRING:
            for text in [value] if isinstance(value, str | bytes) else value:
                if isinstance(text, bytes):
                    raise ModelError(
                        f"field {field.name} holds {text[:40]!r}, which is not UTF-8; "
                        "export the model again"
                    )
        elif field.type == field.TYPE_MESSAGE:
            for inner in [value] if hasattr(value, "ListFields") else value:
                _check_text(inner)


def _check_opset(imports: Iterable[onnx.OperatorSetIdProto], *, required: bool) -> None:
    versions = [("" if i.domain == "ai.onnx" else i.domain, i.version) for i in imports]
    _check_once((domain for domain, _ in versions), "opset import")
    version = dict(versions).get("")
    newest = onnx.defs.onnx_opset_version()
    if version is None:
        if required:
            raise ModelError("imports no opset of the default domain; export the model again")
    elif version < MIN_OPSET:
        raise ModelError(
            f"opset {version} is below {MIN_OPSET}; convert it with onnx.version_converter"
        )
    elif version > newest:
        raise ModelError(
            f"opset {version} is newer than {newest}, the newest that onnx {onnx.__version__} "
            "knows; upgrade onnx"
        )


def _check_once(names: Iterable[str], kind: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ModelError(f"{kind} {name!r} appears {count} times; keep one")


def _check_graph(graph: onnx.GraphProto, ir_version: int) -> None:
    if graph.sparse_initializer:
        raise ModelError(f"sparse initializers of graph {graph.name!r} are not supported")
    names = [tensor.name for tensor in graph.initializer]
    if "" in names:
        raise ModelError(f"an initializer of graph {graph.name!r} has no name; give it one")
    _check_once(names, "initializer")
    inputs = [info.name for info in graph.input]
    _check_once(inputs, "graph input")
    _check_once((entry.key for entry in graph.metadata_props), "metadata key")
    outputs = [name for node in graph.node for name in node.output if name]
    _check_once([*outputs, *{*names, *inputs}], "value")
    known = {*names, *inputs, *outputs}
    seen: dict[str, bytes] = {}
    for annotation in graph.quantization_annotation:
        text = annotation.SerializeToString(deterministic=True)
        if (
            annotation.tensor_name not in known
            or seen.setdefault(annotation.tensor_name, text) != text
        ):
            raise ModelError(
                f"quantization annotation of {annotation.tensor_name!r} names no value of its "
                "graph or contradicts another; remove it"
            )
    for tensor in graph.initializer:
        _check_tensor(tensor)
    for info in (*graph.input, *graph.output, *graph.value_info):
        _check_value(info)
    _check_nodes(graph.node, ir_version)


def _check_nodes(nodes: Iterable[onnx.NodeProto], ir_version: int) -> None:
    for node in nodes:
        label = f"node {node.name or (node.output[0] if node.output else '')!r} ({node.op_type})"
        try:
            _check_once((attribute.name for attribute in node.attribute), "attribute")
            _check_once((entry.key for entry in node.metadata_props), "metadata key")
            if ir_version < 11 and getattr(node, "device_configurations", None):
                raise ModelError("device configurations need IR version 11")
            for attribute in node.attribute:
                _check_attribute(attribute, ir_version)
                # ONNX's shape inference does not return from some other equations
                if node.op_type == "Einsum" and not _EQUATION.fullmatch(attribute.s):
                    raise ModelError(f"{attribute.name!r} is no Einsum equation")
        except ModelError as error:
            text = str(error)
            raise ModelError(text if text.startswith("node ") else f"{label}: {text}") from None


def _check_attribute(attribute: onnx.AttributeProto, ir_version: int) -> None:
    kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
    if kind.startswith("SPARSE") or attribute.HasField("sparse_tensor"):
        raise ModelError(f"attribute {attribute.name!r} is sparse, which is not supported")
    if not attribute.ref_attr_name and kind not in _ATTRIBUTE_FIELDS:
        raise ModelError(f"attribute {attribute.name!r} has no type; export the model again")
    fields = {field.name for field, _ in attribute.ListFields()}
    expected = set() if attribute.ref_attr_name else {_ATTRIBUTE_FIELDS[kind]}
    if fields - {"name", "type", "doc_string", "ref_attr_name"} - expected:
        raise ModelError(f"attribute {attribute.name!r} holds values besides its type {kind}")
    for tensor in (*([attribute.t] if "t" in fields else ()), *attribute.tensors):
        _check_tensor(tensor)
    for graph in (*([attribute.g] if "g" in fields else ()), *attribute.graphs):
        _check_graph(graph, ir_version)
    for kind_proto in (*([attribute.tp] if "tp" in fields else ()), *attribute.type_protos):
        _check_type(kind_proto, attribute.name)


def _check_value(info: onnx.ValueInfoProto) -> None:
    _check_once((entry.key for entry in info.metadata_props), "metadata key")
    _check_type(info.type, info.name)


def _check_type(kind: onnx.TypeProto, name: str) -> None:
    field = kind.WhichOneof("value")
    if field in ("map_type", "opaque_type"):
        raise ModelError(f"{name!r} is of {field}, which is not supported")
    if field in ("sequence_type", "optional_type"):
        _check_type(getattr(kind, field).elem_type, name)
    elif field is not None:
        leaf = getattr(kind, field)
        if leaf.elem_type not in oir.DataType.__members__.values():
            raise ModelError(f"{name!r} has the unknown element type {leaf.elem_type}")
        if leaf.HasField("shape") and not leaf.HasField("elem_type"):
            raise ModelError(f"{name!r} has a shape but no element type; export the model again")


def _check_tensor(tensor: onnx.TensorProto) -> None:
    what = f"tensor {tensor.name!r}"
    if tensor.data_type not in oir.DataType.__members__.values() or not tensor.data_type:
        raise ModelError(f"{what} has the unknown data type {tensor.data_type}")
    if tensor.HasField("segment"):
        raise ModelError(f"{what} is stored in segments, which is not supported")
    _check_once((entry.key for entry in tensor.metadata_props), "metadata key")
    dims = list(tensor.dims)
    if (
        any(dim < 0 for dim in dims)
        or len(dims) > MAX_RANK
        or math.prod(d or 1 for d in dims) > (2**48)
    ):
        raise ModelError(f"{what} has the impossible shape {dims}")
    count, dtype = math.prod(dims), oir.DataType(tensor.data_type)
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    found = {field: len(getattr(tensor, field)) for field in _DATA_FIELDS}
    found = {field: size for field, size in found.items() if size}
    expected: dict[str, int] = {}
    if external:
        if dtype == oir.DataType.STRING:
            raise ModelError(f"{what} holds strings, which cannot be external")
        for entry in tensor.external_data:
            number = entry.key in ("offset", "length")
            if "\0" in entry.value or (number and not re.fullmatch("[0-9]{1,20}", entry.value)):
                raise ModelError(
                    f"{what} has the impossible external {entry.key} {entry.value[:40]!r}"
                )
    elif tensor.HasField("raw_data"):
        found["raw_data"] = len(tensor.raw_data)
        expected["raw_data"] = -1 if dtype == oir.DataType.STRING else _byte_count(dtype, count)
    elif count:
        values = count
        if dtype.name.startswith("COMPLEX"):
            values = 2 * count
        elif dtype != oir.DataType.STRING and dtype.bitwidth in (2, 4):
            values = _byte_count(dtype, count)
        expected[_WIDE_FIELDS.get(dtype.name, "int32_data")] = values
    if found != expected:
        raise ModelError(
            f"{what} is {dtype}{dims} but its stored data has another size; export it again"
        )


def _byte_count(dtype: oir.DataType, count: int) -> int:
    return -(-dtype.bitwidth * count // 8)


# Tensors of a model


def _graphs(model: oir.Model) -> Iterator[oir.Graph]:
    """Every graph: the main one, functions' bodies, and the subgraphs of both."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()


def _all_tensors(model: oir.Model) -> list[oir.TensorProtocol]:
    """Every initializer and attribute tensor, in the order of the graphs."""
    tensors: list[oir.TensorProtocol] = []

    def note(tensor: oir.TensorProtocol, value: oir.Value | None) -> oir.TensorProtocol:
        tensors.append(tensor)
        return tensor

    _replace_tensors(model, note)
    return tensors


def _replace_tensors(model: oir.Model, replace: Replace) -> list[Callable[[], object]]:
    """Puts ``replace(tensor, initializer or None)`` in every place; returns what undoes it."""
    undo: list[Callable[[], object]] = []
    try:
        for graph in _graphs(model):
            for value in graph.initializers.values():
                if (tensor := value.const_value) is None:
                    raise ModelError(f"initializer {value.name!r} has no data; give it a tensor")
                if (new := replace(tensor, value)) is not tensor:
                    undo.append(functools.partial(setattr, value, "const_value", tensor))
                    value.const_value = new
            for node in graph:
                for name, attribute in list(node.attributes.items()):
                    changed = _replace_attribute(attribute, replace)
                    if changed is not attribute:
                        undo.append(functools.partial(node.attributes.__setitem__, name, attribute))
                        node.attributes[name] = changed
    except BaseException:
        for step in undo:
            step()
        raise
    return undo


def _replace_attribute(attribute: oir.Attr, replace: Replace) -> oir.Attr:
    if attribute.is_ref():
        return attribute
    if attribute.type == oir.AttributeType.TENSOR:
        old = attribute.as_tensor()
        new = replace(old, None)
        if new is not old:
            return oir.AttrTensor(attribute.name, new, doc_string=attribute.doc_string)
    elif attribute.type == oir.AttributeType.TENSORS:
        olds = list(attribute.as_tensors())
        news = [replace(tensor, None) for tensor in olds]
        if any(new is not old for new, old in zip(news, olds, strict=True)):
            return oir.AttrTensors(attribute.name, news, doc_string=attribute.doc_string)
    return attribute


@contextlib.contextmanager
def replaced_tensors(model: oir.Model, replace: Replace) -> Iterator[None]:
    """Within the block every tensor is ``replace(tensor, initializer)``; then all is as before.

    ``replace`` gets the tensor and the initializer that holds it, None for an attribute's tensor.
    """
    undo = _replace_tensors(model, replace)
    try:
        yield
    finally:
        for step in undo:
            step()


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
    proto.raw_data = _data(tensor)
    inline = oir.serde.TensorProtoTensor(proto)
    inline.metadata_props.update(tensor.metadata_props)
    return inline


def _data(tensor: oir.TensorProtocol) -> bytes:
    with _model_errors(f"tensor {tensor.name!r}"):
        data = tensor.tobytes() if tensor.nbytes else b""
    if len(data) != tensor.nbytes:
        raise ModelError(
            f"tensor {tensor.name!r} holds {len(data)} bytes where its shape needs {tensor.nbytes}"
        )
    return data


# Writing


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
    files: list[tuple[Path, Iterable[bytes]]] = []
    with _model_errors(f"cannot write {target}"):
        if external:
            store = target.with_name(f"{target.name}.data")
            head, placed = _external_form(model, store.name)
            files += [(store, _data_chunks(placed))] if placed else []
            files.append((target, [head]))
        else:
            size, chunks = _chunks(model)
            _check_limit(size)
            files.append((target, chunks))
        _write_files(files)
    return [file for file, _ in reversed(files)]


def model_bytes(model: oir.Model) -> bytes:
    """The model with all data inline, as save_model writes it.

    Raises:
        ModelError: the model cannot be serialized or is over 2 GB.
    """
    with _model_errors("model"):
        size, chunks = _chunks(model)
        _check_limit(size)
        return b"".join(chunks)


def to_proto(model: oir.Model) -> onnx.ModelProto:
    """The model as a ModelProto with all data inline.

    Raises:
        ModelError: the model cannot be serialized.
    """
    with (
        _model_errors("model"),
        replaced_tensors(model, lambda tensor, value: inline_tensor(tensor)),
    ):
        return oir.serde.serialize_model(model)


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
    with _model_errors("model"):
        size, chunks = _chunks(model)
        for chunk in chunks:
            result.update(chunk)
    return result.hexdigest(), size


def model_files(path: str | os.PathLike[str], model: oir.Model) -> list[Path]:
    """The file that ``model`` was loaded from, then its external data files by location."""
    locations = {
        os.fspath(tensor.location): Path(tensor.path)
        for tensor in _all_tensors(model)
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
        with _model_errors(str(path)), path.open("rb") as file:
            while block := file.read(1 << 20):
                result.update(block)
                size += len(block)
    return result.hexdigest(), size


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes a file beside its place, then renames it; text is written as UTF-8.

    Raises:
        UsageError: the file cannot be written; an old file is still there.
    """
    _write_files([(Path(path), [data.encode() if isinstance(data, str) else data])])


def _wants_external(model: oir.Model) -> bool:
    if model.meta.get("external_data"):
        return True
    tensors = _all_tensors(model)
    if any(isinstance(t, oir.ExternalTensor) or t.meta.get("external_data") for t in tensors):
        return True
    numbers = (t.nbytes for t in tensors if t.dtype != oir.DataType.STRING)
    return sum(numbers) > PROTOBUF_LIMIT - (PROTOBUF_LIMIT >> 5)


def _check_limit(size: int) -> None:
    if size > PROTOBUF_LIMIT:
        raise ModelError(f"{size} bytes do not fit into one protobuf; use external data")


def _external_form(
    model: oir.Model, location: str
) -> tuple[bytes, list[tuple[int, oir.TensorProtocol]]]:
    """The model file's bytes, and every tensor outside it with its offset in the data file."""
    placed: list[tuple[int, oir.TensorProtocol]] = []
    end = 0

    def place(tensor: oir.TensorProtocol, value: oir.Value | None) -> oir.TensorProtocol:
        nonlocal end
        if value is None and not isinstance(tensor, oir.ExternalTensor):
            return tensor
        if tensor.dtype == oir.DataType.STRING or tensor.nbytes <= EXTERNAL_THRESHOLD:
            return inline_tensor(tensor)
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        end = offset + tensor.nbytes
        placed.append((offset, tensor))
        return placeholder(tensor, value.name if value else None, location, offset)

    with replaced_tensors(model, place):
        proto = oir.serde.serialize_model(model)
    return proto.SerializeToString(deterministic=True), placed


def _data_chunks(placed: Sequence[tuple[int, oir.TensorProtocol]]) -> Iterator[bytes]:
    end = 0
    for offset, tensor in placed:
        yield bytes(offset - end)
        yield _data(tensor)
        end = offset + tensor.nbytes


def _chunks(model: oir.Model) -> tuple[int, Iterator[bytes]]:
    """The size of the model on the wire with all data inline, and its bytes piece by piece."""
    top = {id(value) for value in model.graph.initializers.values()}

    def empty(tensor: oir.TensorProtocol, value: oir.Value | None) -> oir.TensorProtocol:
        if id(value) in top and tensor.dtype != oir.DataType.STRING:
            return placeholder(tensor, None)
        return inline_tensor(tensor)

    with replaced_tensors(model, empty):
        proto = oir.serde.serialize_model(model)
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    head = proto.SerializeToString(deterministic=True)
    tensors = [(v.name or "", v.const_value) for v in model.graph.initializers.values()]
    sizes = [_wire_size(name, tensor) for name, tensor in tensors if tensor is not None]
    body = len(graph) + sum(1 + len(_varint(size)) + size for size in sizes)
    start = head + _GRAPH + _varint(body)

    def pieces() -> Iterator[bytes]:
        yield start
        yield graph
        for (name, tensor), size in zip(tensors, sizes, strict=True):
            assert tensor is not None
            yield _INITIALIZER + _varint(size)
            yield _wire_head(name, tensor)
            if _has_raw_data(tensor):
                yield _data(tensor)

    return len(start) + body, pieces()


def _has_raw_data(tensor: oir.TensorProtocol) -> bool:
    """Whether the data goes into raw_data; a proto that used another field keeps it."""
    if isinstance(tensor, oir.serde.TensorProtoTensor):
        return bool(tensor.raw.HasField("raw_data"))
    return tensor.dtype != oir.DataType.STRING


def _wire_size(name: str, tensor: oir.TensorProtocol) -> int:
    return len(_wire_head(name, tensor)) + (tensor.nbytes if _has_raw_data(tensor) else 0)


def _wire_head(name: str, tensor: oir.TensorProtocol) -> bytes:
    """The TensorProto up to the bytes of raw_data, which come last; all of it if there are none."""
    if not isinstance(tensor, oir.serde.TensorProtoTensor):
        if tensor.dtype == oir.DataType.STRING:
            proto = oir.serde.serialize_tensor(tensor)
        else:
            proto = oir.serde.serialize_tensor(placeholder(tensor, name))
            proto.ClearField("external_data")
            proto.ClearField("data_location")
    else:
        proto = onnx.TensorProto()
        for field in ("data_type", "doc_string", "data_location"):
            if tensor.raw.HasField(field):
                setattr(proto, field, getattr(tensor.raw, field))
        proto.dims.extend(tensor.raw.dims)
        for key in sorted(tensor.metadata_props):
            proto.metadata_props.add(key=key, value=tensor.metadata_props[key])
        if not _has_raw_data(tensor):
            for field in _DATA_FIELDS:
                getattr(proto, field).extend(getattr(tensor.raw, field))
    proto.name = name
    head: bytes = proto.SerializeToString(deterministic=True)
    return head + _RAW_DATA + _varint(tensor.nbytes) if _has_raw_data(tensor) else head


def _varint(number: int) -> bytes:
    """Base 128, low groups first: https://protobuf.dev/programming-guides/encoding/#varints."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


# Files


def _write_files(files: Sequence[tuple[Path, Iterable[bytes]]]) -> None:
    """Writes all files or none: beside their places first, then renamed in the order given."""
    staged: list[tuple[Path, Path]] = []
    target = Path()
    try:
        for target, chunks in files:
            if target.exists() and not target.is_file():
                raise UsageError(f"cannot write {target}: not a regular file; give another path")
            temporary = _beside(target)
            staged.append((temporary, target))
            with temporary.open("xb") as file:
                for chunk in chunks:
                    file.write(chunk)
            if target.exists():
                shutil.copymode(target, temporary)
        _rename(staged)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {target}: {_reason(error)}; give another path") from None
    finally:
        for temporary, _ in staged:
            with contextlib.suppress(OSError, ValueError):
                temporary.unlink(missing_ok=True)


def _rename(staged: Sequence[tuple[Path, Path]]) -> None:
    """Renames in order; when one fails the old files come back."""
    moved: list[tuple[Path | None, Path]] = []
    try:
        for temporary, target in staged[:-1]:
            backup = _beside(target) if target.exists() else None
            if backup:
                target.replace(backup)
            moved.append((backup, target))
            temporary.replace(target)
        temporary, target = staged[-1]
        temporary.replace(target)
    except BaseException:
        for backup, target in moved:
            if backup:
                backup.replace(target)
            else:
                target.unlink(missing_ok=True)
        raise
    for backup, _ in moved:
        if backup:
            backup.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    return target.with_name(f".secateur-{secrets.token_hex(8)}.tmp")


@contextlib.contextmanager
def _model_errors(where: str) -> Iterator[None]:
    """Every failure inside becomes a one-line ModelError that starts with ``where``."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{where}: {' '.join(str(error).split())}") from error.__cause__
    except SecateurError:
        raise
    except Exception as error:
        raise ModelError(f"{where}: is invalid: {_reason(error)}; export it again") from error


def _reason(error: BaseException) -> str:
    """The root cause in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
