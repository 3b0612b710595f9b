"""Multiply-accumulates of attention and fused operators, from the shapes of one real run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx


def fused_macs(node: onnx.NodeProto, inputs: Sequence[tuple[int, ...]], y: int) -> int:
    """``y`` is the number of elements of the first output. Attention takes every element of Q
    with every key once, and every element of the output; dimensions of Q and V are alike where
    they are packed."""
    sizes = [math.prod(shape) for shape in inputs]
    if node.op_type == "FusedConv":
        return y * math.prod(inputs[1][1:])
    if node.op_type == "FusedMatMul":  # M K, K N and M N elements
        return y * math.isqrt(sizes[0] * sizes[1] // y)
    if node.op_type == "FusedGemm":  # B transposed
        return y * inputs[1][1]
    if node.op_type in ("MoE", "QMoE"):  # k experts for each token; gates are rows, too
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        rows = inputs[2][1]
        width = rows // 2 if attributes["activation_type"] == b"swiglu" else rows
        return y * int(attributes["k"]) * (rows + width)
    if node.op_type == "GroupQueryAttention":
        return 2 * y * inputs[0][1]
    if node.op_type == "MultiHeadAttention":
        return (sizes[0] + y) * inputs[1][1]
    if node.op_type == "Attention" and node.domain:
        return sizes[0] * inputs[1][1] + 2 * y * inputs[0][1]
    if node.op_type == "Attention":
        past = inputs[4][2] if len(inputs) > 4 else 0
        return (sizes[0] + y) * (inputs[1][-2] + past)
    return 0
