"""A model's bytes without holding them: the protobuf wire format, written piece by piece.

A ModelProto on the wire is its fields in any order, so the model is serialized without the main
graph's initializers and these follow, one at a time, by hand:
``tag length`` of ``ModelProto.graph`` (field 7), the rest of the graph, then for every
initializer ``tag length`` of ``GraphProto.initializer`` (field 5) and the tensor, whose bytes are
``TensorProto.raw_data`` (field 9).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as oir

from .checks import DATA_FIELDS
from .external import inline_tensor, placeholder, tensor_data
from .serialization import serialize
from .sparse import is_sparse
from .tensors import replaced_tensors

_RAW_DATA, _INITIALIZER, _GRAPH = b"\x4a", b"\x2a", b"\x3a"  # (field << 3) | 2


def model_chunks(model: oir.Model) -> tuple[int, Iterator[bytes]]:
    """The size of the model on the wire with all data inline, and its bytes piece by piece."""
    top = {id(value) for value in model.graph.initializers.values()}

    def empty(tensor: oir.TensorProtocol, value: oir.Value | None) -> oir.TensorProtocol:
        if id(value) in top and tensor.dtype != oir.DataType.STRING and not is_sparse(tensor):
            return placeholder(tensor, None)
        return inline_tensor(tensor)

    with replaced_tensors(model, empty):
        proto = serialize(model)
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    head = proto.SerializeToString(deterministic=True)
    tensors = [
        (v.name or "", v.const_value)
        for v in model.graph.initializers.values()
        if not is_sparse(v.const_value)
    ]
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
                yield tensor_data(tensor)

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
            for field in DATA_FIELDS:
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
