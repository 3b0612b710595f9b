"""Multiply-accumulates of Einsum and of products of quantised numbers, from real shapes, and which
constants those numbers are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx

WEIGHTS = {
    "ConvInteger": (0, 1),
    "DequantizeLinear": (0,),
    "DynamicQuantizeMatMul": (1,),
    "GatherBlockQuantized": (0,),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "MatMulNBits": (1,),
    "QGemm": (0, 3, 6),
    "QMoE": (2, 5, 8),
    "QLinearConv": (0, 3, 8),
    "QLinearMatMul": (0, 3),
}
"""Inputs that may be stored weights or biases."""


def quantised_macs(node: onnx.NodeProto, inputs: Sequence[tuple[int, ...]], y: int) -> int:
    """``y`` is the number of elements of the first output."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type in ("ConvInteger", "QLinearConv"):
        weight = inputs[1 if node.op_type == "ConvInteger" else 3]
        return y * math.prod(weight[1:])
    if node.op_type == "QGemm":
        return y * inputs[0][0 if attributes.get("transA") else 1]
    if node.op_type in ("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul",
                        "DynamicQuantizeMatMul", "MatMulNBits"):  # fmt: skip
        return y * inputs[0][-1]
    if node.op_type == "Einsum":
        return _einsum_macs(attributes["equation"].decode(), inputs)
    return 0


def _einsum_macs(equation: str, inputs: Sequence[tuple[int, ...]]) -> int:
    """As products of two operands, from the left, where a letter goes away."""
    left, arrow, result = "".join(equation.split()).replace("...", "").partition("->")
    result = result if arrow else "".join(s for s in left if left.count(s) == 1 and s != ",")
    sizes = {
        letter: size
        for term, shape in zip(left.split(","), inputs, strict=True)
        for letter, size in zip(reversed(term), reversed(shape), strict=False)
    }
    hidden = math.prod(inputs[0][: len(inputs[0]) - len(left.split(",")[0])])
    done, *terms = map(set, left.split(","))
    total = 0
    for k, term in enumerate(terms):
        later = set(result).union(*terms[k + 1 :])
        if (done & term) - later:
            total += hidden * math.prod(sizes[letter] for letter in done | term)
        done = (done | term) & later
    return total


def quantised_weights(model: onnx.ModelProto) -> set[str]:
    """Names of constants that a node reads as quantised numbers, also after a look-up."""
    found = {
        node.input[k]
        for node in model.graph.node
        for k in WEIGHTS.get(node.op_type, ())
        if k < len(node.input)
    }
    looked_up = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Gather"}
    return found | {looked_up[name] for name in found & looked_up.keys()}
