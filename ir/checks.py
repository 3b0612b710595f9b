"""Checks of an untrusted model before anything else looks at it.

Refused is what a later step would stumble over: impossible shapes, stored data of another size,
unknown types and versions, and whatever onnx-ir would drop without a word.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import onnx
import onnx.defs
import onnx_ir as oir

from .errors import ModelError

MIN_OPSET = 7
MIN_IR_VERSION = 3  # the first with opset imports
MAX_RANK = 32  # what every supported numpy can hold

DATA_FIELDS = (
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


def check_model(proto: onnx.ModelProto) -> None:
    """Refuses what is no ONNX model that Secateur reads: raises ModelError."""
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
    # Converters repeat entries (skl2onnx does), which says nothing; two versions would.
    versions = {("" if i.domain == "ai.onnx" else i.domain, i.version) for i in imports}
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
    names = [tensor.name for tensor in graph.initializer]
    names += [sparse.values.name for sparse in graph.sparse_initializer]
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
    _check_type(info.type, info.name, maps=True)


def _check_type(kind: onnx.TypeProto, name: str, maps: bool = False) -> None:
    field = kind.WhichOneof("value")
    if field == "opaque_type" or (field == "map_type" and not maps):
        raise ModelError(f"{name!r} is of {field}, which is not supported")
    if field == "map_type":
        _check_type(kind.map_type.value_type, name, maps)
    elif field in ("sequence_type", "optional_type"):
        _check_type(getattr(kind, field).elem_type, name, maps)
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
    found = {field: len(getattr(tensor, field)) for field in DATA_FIELDS}
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
