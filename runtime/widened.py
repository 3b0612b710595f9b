"""bfloat16 models as float32 models: ONNX Runtime's CPU has next to no kernels for bfloat16.

Every bfloat16 number is a float32 number, so the copy computes the same function without the
rounding of its intermediate values. Two models are only ever compared when both are widened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from .session import Array, Feed

_TYPE_ATTRIBUTES = frozenset(["to", "dtype", "output_dtype", "stash_type", "softmax_precision"])


def uses_bfloat16(model: onnx.ModelProto) -> bool:
    """Whether any tensor, declared type or type attribute of the model is bfloat16."""
    narrow = TensorProto.BFLOAT16
    for body in _bodies(model):
        if isinstance(body, onnx.GraphProto):
            if any(tensor.data_type == narrow for tensor in body.initializer):
                return True
            for info in (*body.input, *body.output, *body.value_info):
                if any(kind.elem_type == narrow for kind in _tensor_types(info.type)):
                    return True
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("t") and attribute.t.data_type == narrow:
                    return True
                if attribute.name in _TYPE_ATTRIBUTES and attribute.i == narrow:
                    return True
    return False


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with float32 in place of bfloat16 everywhere; external bfloat16 data is read."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for body in _bodies(wide):
        if isinstance(body, onnx.GraphProto):
            for tensor in body.initializer:
                _widen(tensor)
            for info in (*body.input, *body.output, *body.value_info):
                for kind in _tensor_types(info.type):
                    if kind.elem_type == TensorProto.BFLOAT16:
                        kind.elem_type = TensorProto.FLOAT
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _widen(attribute.t)
                if attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.BFLOAT16:
                    attribute.i = TensorProto.FLOAT
    return wide


def widened_feed(feed: Feed) -> dict[str, Array]:
    """The feed with float32 arrays in place of bfloat16 ones."""
    return {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        for name, array in feed.items()
    }


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type != TensorProto.BFLOAT16:
        return
    if tensor.data_location == TensorProto.EXTERNAL:
        place = {entry.key: entry.value for entry in tensor.external_data}
        with Path(place["location"]).open("rb") as file:
            file.seek(int(place.get("offset", 0)))
            narrow = np.frombuffer(file.read(int(place["length"])), "<u2")
        array = (narrow.astype(np.uint32) << 16).view(np.float32).reshape(tuple(tensor.dims))
    else:
        array = numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _tensor_types(kind: onnx.TypeProto) -> Iterator[Any]:
    """The tensor types within a type, also those of sequences, optionals and maps."""
    which = kind.WhichOneof("value")
    if which in ("tensor_type", "sparse_tensor_type"):
        yield getattr(kind, which)
    elif which in ("sequence_type", "optional_type"):
        yield from _tensor_types(getattr(kind, which).elem_type)
    elif which == "map_type":
        yield from _tensor_types(kind.map_type.value_type)


def _bodies(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The main graph, the functions, and all subgraphs."""
    stack: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while stack:
        body = stack.pop()
        yield body
        for node in body.node:
            for attribute in node.attribute:
                stack += [attribute.g] if attribute.HasField("g") else []
                stack += attribute.graphs
