"""The original with slices of its weights set to zero: a replay of a pruning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..ir.errors import ModelError
from ..ir.protos import Body
from ..ir.wording import counted
from .masked import keep_flags, scopes
from .zero_points import ZERO_POINTS, zero_shape

_INDICES = (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)
"""What is cut of indices and flags would say something else if it were zero."""
_MOVES = frozenset(
    "Expand Flatten Gather GatherElements GatherND Identity Reshape Slice Squeeze Tile Transpose "
    "Unsqueeze".split()
)
"""Operators that give elements of their first input."""


def zeroed_model(
    original: onnx.ModelProto, removed: Iterable[tuple[str, int, Sequence[int]]]
) -> onnx.ModelProto:
    """A copy of ``original`` with slices of stored tensors set to zero.

    ``removed`` lists (tensor name, axis, coordinates on it); the tensor is an initializer or
    the value of a Constant node, named by the node's output. All element types, packed ones
    too, but indices, flags and strings stay; a quantised tensor becomes its zero point, as that is
    afterwards. External data must be loaded. Raises ModelError for a tensor that is not stored.
    """
    zeroed = onnx.ModelProto()
    zeroed.CopyFrom(original)
    nested = reversed(list(scopes(zeroed)))  # names of the graph go before those of functions
    stored = {name: tensor for scope, _ in nested for name, tensor in _stored(scope)}
    points = _points(zeroed, stored)
    for name, axis, indices in sorted(removed, key=lambda entry: entry[0] in points):
        if name not in stored:
            raise ModelError(f"no stored tensor {name!r}: the removal belongs to another model")
        if stored[name].data_type not in _INDICES:
            _zero_slice(stored[name], name, axis, indices, points.get(name))
    return zeroed


def _points(
    model: onnx.ModelProto, stored: Mapping[str, TensorProto]
) -> dict[str, tuple[TensorProto, tuple[int, ...]]]:
    """For stored tensors that a node reads as quantised, as they are or, with one zero point for
    all, picked and moved: their zero points, and the shape in which these meet them. Zero points
    in blocks are left out: their scales go to zero."""
    found = {}
    for scope, _ in scopes(model):
        moved = {node.output[0]: node.input[0] for node in scope.node if node.op_type in _MOVES}
        for node in scope.node:
            for number, place in ZERO_POINTS.get(node.op_type, {}).items():
                if place < len(node.input) and node.input[place] in stored:
                    name, point = node.input[number], stored[node.input[place]]
                    while name in moved and math.prod(point.dims) == 1:
                        name = moved[name]
                    if name not in stored:
                        continue
                    shape = tuple(stored[name].dims)
                    meeting = zero_shape(node, number, len(shape), point.dims)
                    if all(a in (1, b) for a, b in zip(meeting[::-1], shape[::-1], strict=False)):
                        found[name] = point, meeting
    return found


def _stored(scope: Body) -> Iterator[tuple[str, TensorProto]]:
    if isinstance(scope, onnx.GraphProto):
        yield from ((tensor.name, tensor) for tensor in scope.initializer)
    for node in scope.node:
        if node.op_type != "Constant":
            continue
        for attribute in node.attribute:
            if attribute.ref_attr_name:  # what it holds depends on the call
                continue
            if attribute.name == "value_floats" or attribute.name == "value_ints":
                values = helper.get_attribute_value(attribute)
                dtype = np.float32 if attribute.name == "value_floats" else np.int64
                tensor = numpy_helper.from_array(np.asarray(values, dtype))
                attribute.CopyFrom(helper.make_attribute("value", tensor))
            if attribute.name == "value":
                yield node.output[0], attribute.t


def _zero_slice(
    tensor: TensorProto,
    name: str,
    axis: int,
    indices: Sequence[int],
    point: tuple[TensorProto, tuple[int, ...]] | None = None,
) -> None:
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ModelError(f"weights of {name!r} are not loaded: load the external data first")
    shape = tuple(tensor.dims)
    if not -len(shape) <= axis < len(shape):
        raise ModelError(
            f"{name!r} has {counted(len(shape), 'axis', 'axes')}: axis {axis} cannot be zeroed"
        )
    keep = keep_flags(indices, shape[axis], name)
    array = np.array(numpy_helper.to_array(tensor))
    zero = np.zeros((), array.dtype)
    if point is not None:
        zero = numpy_helper.to_array(point[0]).reshape(point[1])
    gone = (slice(None),) * (axis % len(shape)) + (~keep,)
    array[gone] = np.broadcast_to(zero, shape)[gone]
    fresh = numpy_helper.from_array(array, tensor.name)
    if fresh.data_type != tensor.data_type:  # old onnx unpacks narrow types into wider ones
        fresh = helper.make_tensor(tensor.name, tensor.data_type, shape, array.ravel().tolist())
    tensor.CopyFrom(fresh)
