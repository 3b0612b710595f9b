"""What a model takes: the inputs to feed, their symbolic dimensions, the types of all values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnx
from onnx import TensorProto, helper

from ..ir.errors import ModelError
from ..ir.inference import infer_shapes
from ..ir.protos import inner_graphs

Types: TypeAlias = "Mapping[str, tuple[int, tuple[int | str | None, ...]]]"
Shape: TypeAlias = "tuple[int | str | None, ...]"

# A constant larger than this is a weight: shape inference needs its shape, not its values.
SMALL = 4096


def fed_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must feed: initializers listed as inputs are left out."""
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in stored]


def is_sequence(value: onnx.ValueInfoProto) -> bool:
    """Whether an input takes a list of tensors, be it as an optional."""
    kind = value.type
    return bool((kind.optional_type.elem_type if _is_optional(kind) else kind).HasField(
        "sequence_type"
    ))  # fmt: skip


def _is_optional(kind: onnx.TypeProto) -> bool:
    return bool(kind.HasField("optional_type"))


def input_shape(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | str, ...]]:
    """Element type and shape of an input, or of the tensors that a sequence or an optional holds;
    an unnamed dimension is called ``<input>.<axis>``.

    Raises ModelError for an input that holds no tensors or whose rank is unknown.
    """
    whole = value.type
    whole = whole.optional_type.elem_type if _is_optional(whole) else whole
    whole = whole.sequence_type.elem_type if whole.HasField("sequence_type") else whole
    if not whole.HasField("tensor_type"):
        raise ModelError(f"input {value.name!r} is not a tensor: it cannot be fed")
    kind = whole.tensor_type
    if not kind.HasField("shape"):
        raise ModelError(f"input {value.name!r} has no shape: state at least its rank")
    dims: list[int | str] = []
    for axis, dim in enumerate(kind.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(dim.dim_value)
        else:
            dims.append(dim.dim_param or f"{value.name}.{axis}")
    return kind.elem_type, tuple(dims)


def input_dims(model: onnx.ModelProto) -> dict[str, list[tuple[str, int]]]:
    """Every symbolic dimension of the fed inputs, with the (input, axis) places that have it.

    Raises ModelError as `input_shape` does.
    """
    places: dict[str, list[tuple[str, int]]] = {}
    for value in fed_inputs(model):
        for axis, dim in enumerate(input_shape(value)[1]):
            if isinstance(dim, str):
                places.setdefault(dim, []).append((value.name, axis))
    return places


def value_types(model: onnx.ModelProto) -> dict[str, tuple[int, Shape]]:
    """Element type and shape of every tensor that ONNX shape inference reaches.

    An entry of a shape is a size, the name of a symbolic dimension, or None. Weights take part
    with their types only, so that models of any size are served.
    """
    shell = onnx.ModelProto(ir_version=model.ir_version)
    shell.opset_import.extend(model.opset_import)
    shell.functions.extend(model.functions)
    graph, source = shell.graph, model.graph
    graph.name = source.name
    for field in ("input", "output", "value_info"):
        getattr(graph, field).extend(getattr(source, field))
    types: dict[str, tuple[int, Shape]] = {}
    for tensor in source.initializer:
        types[tensor.name] = (tensor.data_type, tuple(tensor.dims))
        if math.prod(tensor.dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
    for node in source.node:
        large = constant_tensor(node)
        if large is not None and math.prod(large.dims) > SMALL:
            types[node.output[0]] = (large.data_type, tuple(large.dims))
        else:
            graph.node.append(node)
    held = {value.name for value in (*graph.input, *graph.initializer)}
    for name, (element, shape) in types.items():
        if name not in held:
            graph.input.append(helper.make_tensor_value_info(name, element, shape))
    with contextlib.suppress(Exception):  # what it cannot infer, the model may state
        shell = infer_shapes(shell)
    graphs = (shell.graph, *inner_graphs(shell.graph))
    for value in (
        info for part in graphs for info in (*part.input, *part.output, *part.value_info)
    ):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            dims: Shape = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
                for dim in kind.shape.dim
            )
            types.setdefault(value.name, (kind.elem_type, dims))
    return types


def constant_tensor(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor that a Constant node holds, if it holds one."""
    if node.op_type != "Constant":
        return None
    return next((item.t for item in node.attribute if item.name == "value"), None)


def different_inputs(first: onnx.ModelProto, second: onnx.ModelProto) -> str:
    """How the inputs of two models differ, in words; "" where what fits one fits the other, as
    far as sizes are known."""
    ours, theirs = ({v.name: input_shape(v) for v in fed_inputs(m)} for m in (first, second))
    if ours.keys() != theirs.keys():
        return f"one has the inputs {', '.join(ours)}, one {', '.join(theirs)}"
    for name, (kind, sizes) in ours.items():
        other, others = theirs[name]
        fits = len(sizes) == len(others) and all(
            a == b or isinstance(a, str) or isinstance(b, str)
            for a, b in zip(sizes, others, strict=True)
        )
        if kind != other or not fits:
            return f"input {name} is {_spelt(kind, sizes)} in one, {_spelt(other, others)} in one"
    return ""


def _spelt(kind: int, sizes: Sequence[int | str]) -> str:
    return f"{onnx.TensorProto.DataType.Name(kind).lower()}[{', '.join(map(str, sizes))}]"
