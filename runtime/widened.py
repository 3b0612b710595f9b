"""Models in float32: what ONNX Runtime's CPU has no kernels for can be run and compared that way.

It has next to none for bfloat16, and none for some operators of float64 and float16. A bfloat16 or
float16 number is a float32 number, so the copy computes the same function without the rounding of
its intermediate values; float64 numbers are rounded, the same ones to the same. Two models are
only ever compared when both are widened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..ir.protos import model_bodies
from .session import Array, Feed

BFLOAT16 = frozenset([TensorProto.BFLOAT16])
FLOATS = frozenset([TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.DOUBLE])
"""Element types that float32 may stand in for."""

_TYPE_ATTRIBUTES = frozenset(["to", "dtype", "output_dtype", "stash_type", "softmax_precision"])


def uses(model: onnx.ModelProto, kinds: Collection[int]) -> bool:
    """Whether any tensor, declared type or type attribute of the model is one of these."""
    for body in model_bodies(model):
        if isinstance(body, onnx.GraphProto):
            if any(tensor.data_type in kinds for tensor in body.initializer):
                return True
            for info in (*body.input, *body.output, *body.value_info):
                if any(kind.elem_type in kinds for kind in _tensor_types(info.type)):
                    return True
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("t") and attribute.t.data_type in kinds:
                    return True
                if attribute.name in _TYPE_ATTRIBUTES and attribute.i in kinds:
                    return True
    return False


def uses_bfloat16(model: onnx.ModelProto) -> bool:
    """Whether any tensor, declared type or type attribute of the model is bfloat16."""
    return uses(model, BFLOAT16)


def widened(model: onnx.ModelProto, kinds: Collection[int] = BFLOAT16) -> onnx.ModelProto:
    """A copy with float32 in place of ``kinds`` everywhere; their external data is read."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for body in model_bodies(wide):
        if isinstance(body, onnx.GraphProto):
            for tensor in body.initializer:
                _widen(tensor, kinds)
            for info in (*body.input, *body.output, *body.value_info):
                for kind in _tensor_types(info.type):
                    if kind.elem_type in kinds:
                        kind.elem_type = TensorProto.FLOAT
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _widen(attribute.t, kinds)
                if attribute.name in _TYPE_ATTRIBUTES and attribute.i in kinds:
                    attribute.i = TensorProto.FLOAT
    return wide


def widened_feed(feed: Feed, kinds: Collection[int] = BFLOAT16) -> dict[str, Array]:
    """The feed with float32 arrays in place of those of ``kinds``."""
    dtypes = {helper.tensor_dtype_to_np_dtype(kind) for kind in kinds}
    return {
        name: array.astype(np.float32) if array.dtype in dtypes else array
        for name, array in feed.items()
    }


def _widen(tensor: TensorProto, kinds: Collection[int]) -> None:
    if tensor.data_type not in kinds:
        return
    if tensor.data_location == TensorProto.EXTERNAL:
        place = {entry.key: entry.value for entry in tensor.external_data}
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        with Path(place["location"]).open("rb") as file:
            file.seek(int(place.get("offset", 0)))
            stored = np.frombuffer(file.read(int(place["length"])), dtype)
        array = stored.astype(np.float32).reshape(tuple(tensor.dims))
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
