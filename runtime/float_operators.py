"""What operators on quantised numbers are on real ones (see `unrounded`).

Each function gets a node of the original and adds nodes to the lift. It returns whether the node
is replaced; otherwise the node stays, for whoever still reads its integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .float_experts import experts
from .lift import Lift, Real, Rounded

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)

MOVES = frozenset(
    "Concat DepthToSpace Expand Flatten Gather GlobalMaxPool Identity MaxPool Reshape Slice "
    "SpaceToDepth Split Squeeze Tile Transpose Unsqueeze".split()
)
"""Operators that only move numbers, or take the largest."""


def _attributes(node: onnx.NodeProto, *without: str) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name not in without}


def _input(node: onnx.NodeProto, number: int) -> str:
    return node.input[number] if number < len(node.input) else ""


# -- into quantised numbers and out of them -------------------------------------------------------


def _quantize(lift: Lift, node: onnx.NodeProto) -> bool:
    scale, zero = node.input[1], _input(node, 2)
    name = lift.saturated(node.input[0], scale, zero)
    lift.set_real(node.output[0], Real(name, scale, zero))
    return False


def _dynamic_quantize(lift: Lift, node: onnx.NodeProto) -> bool:
    lift.set_real(node.output[0], Real(node.input[0], node.output[1], node.output[2]))
    return False


def _dequantize(lift: Lift, node: onnx.NodeProto) -> bool:
    real = lift.real.get(node.input[0])
    if real is None or not (
        lift.same(real.scale, node.input[1]) and lift.same(real.zero, _input(node, 2))
    ):
        return False
    lift.add("Identity", [real.name], node.output[0])
    return True


def _cast(lift: Lift, node: onnx.NodeProto) -> bool:
    real, to = lift.real.get(node.input[0]), _attributes(node)["to"]
    if real is None or real.scale or to not in _FLOATS:
        return False
    lift.add("Cast", [real.name], node.output[0], to=to)
    return True


def move(lift: Lift, node: onnx.NodeProto) -> bool:
    """Movement does to the real numbers what it does to the quantised ones."""
    count = len(node.input) if node.op_type == "Concat" else 1
    known = [lift.real.get(name) for name in node.input[:count]]
    first = known[0] if known else None
    if node.op_type not in MOVES or first is None or not lift.is_scalar(first.scale):
        return False
    names = []
    for real in known:
        if real is None or not lift.same(real.scale, first.scale):
            return False
        if not lift.same(real.zero, first.zero):
            return False
        names.append(real.name)
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("name")
    copy.input[:count] = names
    stem = f"secateur/real/{len(lift.nodes)}"
    copy.output[:] = [f"{stem}/{k}" if name else "" for k, name in enumerate(node.output)]
    lift.nodes.append(copy)
    for name, real_name in zip(node.output, copy.output, strict=True):
        lift.set_real(name, Real(real_name, first.scale, first.zero))
    return False


def _where(lift: Lift, node: onnx.NodeProto) -> bool:
    """A choice between a quantised value and its zero point, as a mask makes it."""
    real = lift.real.get(node.input[1])
    if real is None or not real.scale or not lift.same(node.input[2], real.zero):
        return False
    zero = lift.constant(0, lift.element(real.scale))
    name = lift.add("Where", [node.input[0], real.name, zero])
    lift.set_real(node.output[0], Real(name, real.scale, real.zero))
    return False


# -- quantised numbers in and out -----------------------------------------------------------------


def _operand(lift: Lift, node: onnx.NodeProto, number: int) -> str:
    """An input that its scale and zero point follow."""
    return lift.value(node, number, node.input[number + 1], _input(node, number + 2))


def _result(lift: Lift, node: onnx.NodeProto, number: int, name: str) -> None:
    scale, zero = node.input[number], _input(node, number + 1)
    lift.set_real(node.output[0], Real(lift.saturated(name, scale, zero), scale, zero))


def _plain(op: str, operands: Sequence[int], result: int) -> Callable[[Lift, onnx.NodeProto], bool]:
    """An operator that is ``op`` on real numbers; ``result`` is the scale of its output."""

    def rewrite(lift: Lift, node: onnx.NodeProto) -> bool:
        attributes = _attributes(node, "channels_last")
        if len(_attributes(node)) > len(attributes) and _attributes(node)["channels_last"]:
            raise Rounded
        reals = [_operand(lift, node, number) for number in operands]
        _result(lift, node, result, lift.add(op, reals, **attributes))
        return False

    return rewrite


def _concat(lift: Lift, node: onnx.NodeProto) -> bool:
    return _plain("Concat", range(2, len(node.input), 3), 0)(lift, node)


def _choice(lift: Lift, node: onnx.NodeProto) -> bool:
    reals = [_operand(lift, node, number) for number in (1, 4)]
    _result(lift, node, 7, lift.add("Where", [node.input[0], *reals]))
    return False


def _softmax(lift: Lift, node: onnx.NodeProto) -> bool:
    attributes = _attributes(node, "opset")
    if (_attributes(node).get("opset", 13) >= 13) != (lift.opset >= 13):
        raise Rounded
    real = lift.add("Softmax", [_operand(lift, node, 0)], **{"axis": -1, **attributes})
    _result(lift, node, 3, real)
    return False


def _bias(lift: Lift, node: onnx.NodeProto, number: int) -> list[str]:
    """A bias in steps of the product of both scales."""
    if not _input(node, number):
        return []
    scale = lift.add("Mul", [node.input[1], node.input[4]])
    name = lift.add("Cast", [node.input[number]], to=lift.element(node.input[1]))
    return [lift.add("Mul", [name, scale])]


def _conv(lift: Lift, node: onnx.NodeProto) -> bool:
    attributes = _attributes(node, "channels_last")
    if len(_attributes(node)) > len(attributes) and _attributes(node)["channels_last"]:
        raise Rounded
    reals = [_operand(lift, node, 0), _operand(lift, node, 3), *_bias(lift, node, 8)]
    _result(lift, node, 6, lift.add("Conv", reals, **attributes))
    return False


def _gemm(lift: Lift, node: onnx.NodeProto) -> bool:
    attributes = _attributes(node)
    attributes["beta"] = attributes.get("alpha", 1.0)
    reals = [_operand(lift, node, 0), _operand(lift, node, 3), *_bias(lift, node, 6)]
    if not _input(node, 7):
        lift.add("Gemm", reals, node.output[0], **attributes)
        return True
    _result(lift, node, 7, lift.add("Gemm", reals, **attributes))
    return False


# -- sums of integers, and floats out -------------------------------------------------------------


def _integer(op: str) -> Callable[[Lift, onnx.NodeProto], bool]:
    """A contraction of integers, each less its zero point, as one of floats."""

    def rewrite(lift: Lift, node: onnx.NodeProto) -> bool:
        operands = [lift.centred(node, number, _input(node, number + 2)) for number in (0, 1)]
        lift.set_real(node.output[0], Real(lift.add(op, operands, **_attributes(node))))
        return False

    return rewrite


def _to_float(lift: Lift, node: onnx.NodeProto) -> bool:
    """MatMulIntegerToFloat, and DynamicQuantizeMatMul, which has its first operand in floats."""
    dynamic = node.op_type == "DynamicQuantizeMatMul"
    scales, zeros, bias = ((0, 2), (0, 3), 4) if dynamic else ((2, 3), (4, 5), 6)
    reals = [
        node.input[k]
        if dynamic and k == 0
        else lift.value(node, k, node.input[scales[k]], _input(node, zeros[k]))
        for k in (0, 1)
    ]
    if _input(node, bias):
        lift.add("Add", [lift.add("MatMul", reals), node.input[bias]], node.output[0])
    else:
        lift.add("MatMul", reals, node.output[0])
    return True


def _matmul_nbits(lift: Lift, node: onnx.NodeProto) -> bool:
    """On floats already, unless it is told to round them."""
    attributes = {**_attributes(node), "accuracy_level": 1}
    lift.add(node.op_type, node.input, node.output[0], node.domain, **attributes)
    return True


def _lstm(lift: Lift, node: onnx.NodeProto) -> bool:
    """LSTM on floats, whose weights have the columns of these in rows."""
    reals = [*node.input[:8], *[""] * (8 - len(node.input))]
    for number in (1, 2):
        scale, zero = node.input[6 + 2 * number : 8 + 2 * number]
        tensor = lift.constants.get(scale)
        if tensor is None:
            raise Rounded
        shape = numpy_helper.from_array(np.array([tensor.dims[0], 1, -1], np.int64))
        meeting = lift.add("Constant", [], value=shape)
        wide, point = (
            lift.add("Cast", [name], to=TensorProto.FLOAT) for name in (node.input[number], zero)
        )
        centred = lift.add("Sub", [wide, lift.add("Reshape", [point, meeting])])
        real = lift.add("Mul", [centred, lift.add("Reshape", [scale, meeting])])
        reals[number] = lift.add("Transpose", [real], perm=[0, 2, 1])
    lift.nodes.append(helper.make_node("LSTM", reals, node.output, **_attributes(node)))
    lift.changed = True
    return True


OPERATORS: dict[str, Callable[[Lift, onnx.NodeProto], bool]] = {
    "Cast": _cast,
    "ConvInteger": _integer("Conv"),
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "DynamicQuantizeLSTM": _lstm,
    "DynamicQuantizeMatMul": _to_float,
    "MatMulInteger": _integer("MatMul"),
    "MatMulIntegerToFloat": _to_float,
    "MatMulNBits": _matmul_nbits,
    "QGemm": _gemm,
    "QLinearAdd": _plain("Add", (0, 3), 6),
    "QLinearAveragePool": _plain("AveragePool", (0,), 3),
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearGlobalAveragePool": _plain("GlobalAveragePool", (0,), 3),
    "QLinearLeakyRelu": _plain("LeakyRelu", (0,), 3),
    "QLinearMatMul": _plain("MatMul", (0, 3), 6),
    "QLinearMul": _plain("Mul", (0, 3), 6),
    "QLinearSigmoid": _plain("Sigmoid", (0,), 3),
    "QLinearSoftmax": _softmax,
    "QLinearWhere": _choice,
    "QMoE": experts,
    "QuantizeLinear": _quantize,
    "Where": _where,
}
