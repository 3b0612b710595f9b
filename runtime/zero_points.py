"""Where quantised operands have their zero points: they are zero where they equal these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import onnx

Size = TypeVar("Size")

ZERO_POINTS: dict[str, dict[int, int]] = {
    "DequantizeLinear": {0: 2},
    "QLinearConv": {0: 2, 3: 5},
    "QLinearMatMul": {0: 2, 3: 5},
    "ConvInteger": {0: 2, 1: 3},
    "MatMulInteger": {0: 2, 1: 3},
    "QGemm": {0: 2, 3: 5},
    "MatMulIntegerToFloat": {0: 4, 1: 5},
    "DynamicQuantizeMatMul": {1: 3},
    "DynamicQuantizeLSTM": {1: 9, 2: 11},
    "QAttention": {0: 6, 1: 7},
}
"""For each operator: the number of a quantised operand, and that of its zero point."""


def zero_axis(node: onnx.NodeProto, number: int, rank: int) -> int:
    """The axis of a quantised operand along which a vector of zero points runs; 0 for a scalar."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type in ("QLinearConv", "ConvInteger", "DynamicQuantizeLSTM"):
        axis = 0
    elif node.op_type == "DequantizeLinear":
        axis = attributes.get("axis", 1) if rank > 1 else 0
    elif node.op_type == "QGemm":
        axis = 0 if attributes.get("transB", 0) else 1
    else:  # matrix products: the rows of the first operand, the columns of the second
        axis = rank - 2 if number == 0 else rank - 1
    return axis % max(rank, 1)


def zero_shape(
    node: onnx.NodeProto, number: int, rank: int, point: Sequence[Size]
) -> tuple[Size | int, ...]:
    """The shape in which zero points of shape ``point`` meet a quantised operand of that rank."""
    if len(point) == 1:
        return *point, *[1] * (rank - 1 - zero_axis(node, number, rank))
    if node.op_type == "DynamicQuantizeLSTM" and len(point) == 2:  # directions and columns
        return point[0], 1, point[1]
    return tuple(point)
