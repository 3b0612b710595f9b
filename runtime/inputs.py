"""Random feeds that a model can run on.

Random integers must be valid where they index something. Every input is followed forward
through operators that only move or shift its values, as ``scale * x + offset``, to the Gathers
it ends in: each bounds it by ``0 <= scale * x + offset < size``. Lengths of sequences are bounded
likewise; where one is counted in a mask, the mask is full.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..ir.errors import ModelError, UsageError
from .session import Array
from .signature import (
    SMALL,
    Types,
    constant_tensor,
    fed_inputs,
    input_shape,
    is_sequence,
    value_types,
)

_MOVES = {
    *("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Slice", "Flatten"),
    *("Expand", "Tile", "Split", "Gather", "GatherElements", "GatherND", "Floor", "Round"),
    *("SequenceAt", "OptionalGetElement"),
}
_MOST_ITERATIONS = 6
_LENGTHS = {"GroupQueryAttention"}
"""Operators that take the number of tokens before the last one, and that of all tokens."""
_POSITIONS = {
    ("", "RotaryEmbedding"): (3, 1),
    ("com.microsoft", "RotaryEmbedding"): (1, 2),
    ("com.microsoft", "GroupQueryAttention"): (9, 7),
}
"""Operators that look positions up: the input that holds these, and that with the table."""
SEQUENCE = 3
"""The length of random sequences."""
_WORDS = ("a", "b", "pruning", "Zürich")


def random_feed(model: onnx.ModelProto, dims: Mapping[str, int], seed: int) -> dict[str, Array]:
    """A random feed with the symbolic dimensions bound to ``dims``; same seed, same feed.

    A sequence has `SEQUENCE` elements, fed as ``name[0]``, ``name[1]``…; an optional is there.
    Floats are standard normal, 8-bit integers use their whole range (they are quantised data or
    pictures), other integers are valid indices where they index something and 0 or 1 elsewhere.
    Raises UsageError when a dimension is not bound, ModelError as `input_shape` does.
    """
    bounds = index_bounds(model, dims)
    feed: dict[str, Array] = {}
    for position, value in enumerate(fed_inputs(model)):
        element, shape = input_shape(value)
        sizes = _bound(value.name, shape, dims)
        rng = np.random.default_rng([seed, position])
        if element == TensorProto.BOOL and sizes in ((), (1,)):
            # A condition: a few seeds must see both branches.
            feed[value.name] = np.full(sizes, (seed + position) % 2 == 0)
            continue
        names = [f"{value.name}[{k}]" for k in range(SEQUENCE)]
        for name in names if is_sequence(value) else [value.name]:
            feed[name] = _random(rng, element, sizes, bounds.get(value.name), value.name)
    return feed


def _bound(name: str, shape: Iterable[int | str], dims: Mapping[str, int]) -> tuple[int, ...]:
    sizes = []
    for dim in shape:
        if isinstance(dim, str) and dim not in dims:
            raise UsageError(f"dimension {dim!r} of input {name!r} has no size: give it with --dim")
        sizes.append(dims[dim] if isinstance(dim, str) else dim)
    return tuple(sizes)


def _random(
    rng: np.random.Generator,
    element: int,
    sizes: tuple[int, ...],
    bounds: tuple[int, int] | None,
    name: str,
) -> Array:
    if element == TensorProto.STRING:
        return np.array(rng.choice(_WORDS, sizes), dtype=object)
    if element in (TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.UNDEFINED):
        raise ModelError(f"input {name!r} has an element type that cannot be fed")
    dtype = helper.tensor_dtype_to_np_dtype(element)
    if element == TensorProto.BOOL:
        return rng.integers(0, 2, sizes).astype(dtype)
    if bounds is not None:
        return rng.integers(bounds[0], max(bounds) + 1, sizes).astype(dtype)
    if element in (TensorProto.INT8, TensorProto.UINT8):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, int(limits.max) + 1, sizes).astype(dtype)
    if dtype.kind in "iu" or "int" in dtype.name:
        return rng.integers(0, 2, sizes).astype(dtype)
    return np.asarray(rng.standard_normal(sizes)).astype(dtype)


@dataclass(frozen=True)
class _Shifted:
    """Values ``scale * x + offset`` of input ``source``, offset between ``low`` and ``high``, or
    sums of ``x`` (``counted``)."""

    source: str
    scale: int = 1
    low: int = 0
    high: int = 0
    counted: bool = False


def index_bounds(model: onnx.ModelProto, dims: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """The valid (lowest, highest) value of every input that ends up as an index."""
    types = value_types(model)
    traced = {value.name: [_Shifted(value.name)] for value in fed_inputs(model)}
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL
    }
    bounds: dict[str, tuple[int, int]] = {}
    for node in _all_nodes(model.graph, traced):
        tensor = constant_tensor(node)
        if tensor is not None and math.prod(tensor.dims) <= SMALL:
            constants[node.output[0]] = numpy_helper.to_array(tensor)
        for number, least, most in _ranges(node, types, dims, constants):
            for item in traced.get(node.input[number], ()):
                if item.counted:
                    if node.op_type in _LENGTHS:
                        bounds[item.source] = (1, 1)
                    continue
                low, high = bounds.get(item.source, (0, 2**62))
                low = max(low, math.ceil((least - item.low) / item.scale))
                high = min(high, (most - item.high) // item.scale)
                bounds[item.source] = (low, high)
        moved = _moved(node, traced, constants)
        if moved:
            traced.update(dict.fromkeys(node.output, moved))
    return bounds


def _all_nodes(
    graph: onnx.GraphProto, traced: dict[str, list[_Shifted]]
) -> Iterator[onnx.NodeProto]:
    """The nodes in order, those of subgraphs in front of the node that owns them. What the body
    of a loop is given is ``traced`` to the loop's own inputs."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                # The last operands correspond. An iteration's number is below the count, which
                # in a Loop stands at the same place.
                pairs = zip(node.input[::-1], attribute.g.input[::-1], strict=False)
                for name, inner in pairs if node.op_type in ("Loop", "Scan") else ():
                    traced.setdefault(inner.name, traced.get(name, []))
                yield from _all_nodes(attribute.g, traced)
        yield node


def _moved(
    node: onnx.NodeProto, traced: Mapping[str, list[_Shifted]], constants: Mapping[str, Array]
) -> list[_Shifted]:
    """What the node's output holds of the inputs, when it only moves, joins or shifts values."""
    if not node.input:
        return []
    first = traced.get(node.input[0], [])
    if node.op_type in _MOVES:
        return first
    if node.op_type == "ReduceSum":
        return [_Shifted(item.source, counted=True) for item in first]
    if node.op_type in ("Concat", "Where"):
        return [item for name in node.input for item in traced.get(name, ())]
    if node.op_type not in ("Add", "Sub", "Mul") or len(node.input) != 2:
        return []
    other = node.input[1]
    if not first and node.op_type != "Sub":
        first, other = traced.get(node.input[1], []), node.input[0]
    constant = constants.get(other)
    if not first or constant is None or constant.size == 0 or constant.dtype.kind not in "iuf":
        return []
    low, high = int(constant.min()), int(constant.max())
    if node.op_type == "Mul":
        if low != high or low <= 0:
            return []
        return [replace(i, scale=i.scale * low, low=i.low * low, high=i.high * low) for i in first]
    if node.op_type == "Sub":
        low, high = -high, -low
    return [replace(i, low=i.low + low, high=i.high + high) for i in first]


def _ranges(
    node: onnx.NodeProto, types: Types, dims: Mapping[str, int], constants: Mapping[str, Array]
) -> Iterator[tuple[int, int, int]]:
    """(input number, least, greatest) for every operand of known range that indexes or counts."""
    yield from ((number, 0, size - 1) for number, size in _indexed(node, types, dims, constants))
    if node.op_type in _LENGTHS and len(node.input) > 6:

        def size(number: int, axis: int) -> int:
            shape = types.get(node.input[number], (0, ()))[1]
            found = shape[axis] if axis < len(shape) else None
            return (dims.get(found, 0) if isinstance(found, str) else found) or 0

        steps, past = size(0, 1), size(3, 2)
        yield 5, max(steps - 1, 0), past + steps - 1 if steps else 2**31 - 1
        if steps:
            yield 6, past + steps, past + steps


def _indexed(
    node: onnx.NodeProto, types: Types, dims: Mapping[str, int], constants: Mapping[str, Array]
) -> Iterator[tuple[int, int]]:
    """(input number, size of what it indexes) for every index operand of known range."""

    def size(number: int, axis: int) -> Iterator[int]:
        shape = types.get(node.input[number], (0, ()))[1] if number < len(node.input) else ()
        if -len(shape) <= axis < len(shape):
            found = shape[axis]
            found = dims.get(found) if isinstance(found, str) else found
            if found:
                yield found

    attributes = {item.name: item for item in node.attribute}

    def attribute(name: str) -> int:
        return attributes[name].i if name in attributes else 0

    op = node.op_type
    if op in ("Gather", "GatherElements", "ScatterElements", "Scatter"):
        yield from ((1, n) for n in size(0, attribute("axis")))
    elif op == "GatherBlockQuantized":
        yield from ((1, n) for n in size(0, attribute("gather_axis")))
    elif op in ("GatherND", "ScatterND"):
        batch = attribute("batch_dims")
        for depth in (d for d in size(1, -1) if d <= 8):
            yield from ((1, n) for axis in range(batch, batch + depth) for n in size(0, axis))
    elif op == "OneHot" and node.input[1] in constants:
        yield 0, int(constants[node.input[1]].max())
    elif op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"):
        yield from ((1, n) for n in size(0, 1))
    elif op == "Loop":
        yield 0, _MOST_ITERATIONS
    elif op == "EmbedLayerNormalization":
        for number, table in ((0, 2), (1, 4), (8, 3)):
            if number < len(node.input):
                yield from ((number, n) for n in size(table, 0))
    elif (node.domain, op) in _POSITIONS:
        number, table = _POSITIONS[node.domain, op]
        if number < len(node.input):
            yield from ((number, n) for n in size(table, 0))
