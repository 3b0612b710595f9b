"""Sizes that only the data tells: how many elements are not zero, how many boxes are left.

Such a size is *split* as a size that control flow leaves open (see `control`): it is one number
in the first of two `Facts` and another in the second, and so its axis counts as dynamic. The same
two numbers serve all operators, since counts of one thing meet again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx

if TYPE_CHECKING:
    from .shapes import Facts, Shape, Typed

_COUNTS = (5, 7)
_INT64 = onnx.TensorProto.INT64


def open_sizes(proto: onnx.NodeProto, facts: Facts) -> None:
    """Gives the outputs of an operator whose sizes depend on the data their types."""
    shapes = _OPERATORS.get(proto.op_type) if proto.domain in ("", "ai.onnx") else None
    if shapes is None or proto.input[0] not in facts.types:
        return
    found = shapes(proto, facts)
    for name, kind in zip(proto.output, found, strict=False):
        if name:
            facts.types.setdefault(name, kind)


def _count(facts: Facts) -> int | None:
    facts.split = True
    return None if facts.look is None else _COUNTS[facts.look]


def _axis(proto: onnx.NodeProto, rank: int) -> int | None:
    return next((a.i % rank for a in proto.attribute if a.name == "axis"), None)


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _non_zero(proto: onnx.NodeProto, facts: Facts) -> list[Typed]:
    count = _count(facts)
    rank = len(facts.types[proto.input[0]][1])
    return [] if count is None else [(_INT64, (rank, count))]


def _non_max_suppression(proto: onnx.NodeProto, facts: Facts) -> list[Typed]:
    count = _count(facts)
    return [] if count is None else [(_INT64, (count, 3))]


def _unique(proto: onnx.NodeProto, facts: Facts) -> list[Typed]:
    dtype, shape = facts.types[proto.input[0]]
    axis, count = _axis(proto, len(shape)), _count(facts)
    if count is None:
        return []
    total = math.prod(shape) if axis is None else shape[axis]
    values = (count,) if axis is None else _with(shape, axis, count)
    return [(dtype, values), (_INT64, (count,)), (_INT64, (total,)), (_INT64, (count,))]


def _compress(proto: onnx.NodeProto, facts: Facts) -> list[Typed]:
    dtype, shape = facts.types[proto.input[0]]
    axis, flags = _axis(proto, len(shape)), facts.values.get(proto.input[1])
    size = math.prod(shape) if axis is None else shape[axis]
    count = _count(facts) if flags is None else int(np.count_nonzero(flags.reshape(-1)[:size]))
    if count is None:
        return []
    return [(dtype, (count,) if axis is None else _with(shape, axis, count))]


def _slice(proto: onnx.NodeProto, facts: Facts) -> list[Typed]:
    """Bounds that are no numbers before the run leave the sizes of all sliced axes open."""
    dtype, shape = facts.types[proto.input[0]]
    starts, _, named, _ = (*proto.input[1:], "", "", "", "")[:4]
    if not facts.cut_open or starts not in facts.types:
        return []
    whole = np.arange(math.prod(facts.types[starts][1]))
    axes = facts.values.get(named) if named else whole
    count = None if axes is None else _count(facts)
    if axes is None or count is None or axes.size > len(shape):
        return []
    for axis in axes.reshape(-1).tolist():
        shape = _with(shape, axis % len(shape), count)
    return [(dtype, shape)]


_OPERATORS: dict[str, Callable[[onnx.NodeProto, Facts], list[Typed]]] = {
    "Compress": _compress,
    "NonMaxSuppression": _non_max_suppression,
    "NonZero": _non_zero,
    "Slice": _slice,
    "Unique": _unique,
}
