"""Elementwise operators: unary, binary with broadcasting, n-ary; activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from .registry import Call, Unsupported, operator, together
from .tensors import NARROWER, WIDER, torch_type

# -- one operand ----------------------------------------------------------------------------------

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": lambda x: F.softplus(x, threshold=40.0),
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

_ACTIVATIONS: dict[str, Callable[[Call, Tensor], Tensor]] = {
    "Celu": lambda c, x: F.celu(x, c.get("alpha", 1.0)),
    "Elu": lambda c, x: F.elu(x, c.get("alpha", 1.0)),
    "Gelu": lambda c, x: F.gelu(x, approximate=c.get("approximate", "none")),
    "HardSigmoid": lambda c, x: (c.get("alpha", 0.2) * x + c.get("beta", 0.5)).clamp(0, 1),
    "LeakyRelu": lambda c, x: F.leaky_relu(x, c.get("alpha", 0.01)),
    "Swish": lambda c, x: x * torch.sigmoid(c.get("alpha", 1.0) * x),
    "ThresholdedRelu": lambda c, x: F.threshold(x, c.get("alpha", 1.0), 0.0),
}


@operator(*_UNARY)
def unary(call: Call, x: Tensor) -> Tensor:
    return _UNARY[call.op](x)


@operator(*_ACTIVATIONS)
def activation(call: Call, x: Tensor) -> Tensor:
    return _ACTIVATIONS[call.op](call, x)


@operator("BitwiseNot")
def bitwise_not(call: Call, x: Tensor) -> Tensor:
    if call.types[0] in WIDER:
        raise Unsupported(f"element type {TensorProto.DataType.Name(call.types[0])}")
    return torch.bitwise_not(x)


@operator("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = call.get("alpha", 1.67326319217681884765625), call.get("gamma", 1.05070102214813)
    return gamma * F.elu(x, alpha)


@operator("Shrink")
def shrink(call: Call, x: Tensor) -> Tensor:
    bias, edge = call.get("bias", 0.0), call.get("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, zero))


@operator("IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if call.get("detect_positive", 1):
        found |= torch.isposinf(x)
    if call.get("detect_negative", 1):
        found |= torch.isneginf(x)
    return found


@operator("PRelu")
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("Clip")
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if call.version < 11:
        return x.clamp(call.get("min"), call.get("max")) if call.attributes else x
    if low is not None:
        x = torch.maximum(x, low.to(x.device))
    return x if high is None else torch.minimum(x, high.to(x.device))


@operator("Cast", "CastLike")
def cast(call: Call, x: Tensor, like: Tensor | None = None) -> Tensor:
    kind = call.get("to") if like is None else call.types[1]
    if kind in NARROWER:
        raise Unsupported(f"element type {TensorProto.DataType.Name(kind)}")
    return x.to(like.dtype if like is not None else torch_type(kind))


@operator("Dropout")
def dropout(call: Call, x: Tensor, ratio: Tensor | None = None, training: Any = None) -> Any:
    if training is not None and bool(training) and (ratio is None or float(ratio) > 0):
        raise Unsupported("training mode")
    return (x, torch.ones_like(x, dtype=torch.bool)) if call.outputs > 1 else x


# -- two operands ---------------------------------------------------------------------------------


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero, as in C."""
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Div": _divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}


@operator(*_BINARY)
def binary(call: Call, a: Tensor, b: Tensor) -> Tensor:
    if a.device != b.device:
        a, b = together(a, b)
    return _BINARY[call.op](a, b)


@operator("Pow")
def power(call: Call, a: Tensor, b: Tensor) -> Tensor:
    a, b = together(a, b)
    if b.numel() == 1 and b.ndim <= a.ndim and not b.requires_grad:
        return torch.pow(a, b.item()).to(a.dtype)
    return torch.pow(a, b).to(a.dtype)


@operator("Mod")
def modulo(call: Call, a: Tensor, b: Tensor) -> Tensor:
    a, b = together(a, b)
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@operator("BitShift")
def bit_shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    left = call.get("direction") == "LEFT"
    return torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)


@operator("Where")
def where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    condition, a, b = together(condition, a, b)
    return torch.where(condition, a, b)


@operator("SwiGLU")
def swiglu(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a * torch.sigmoid(call.get("alpha", 1.0) * a) * b


# -- any number of operands -----------------------------------------------------------------------

_VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Mean": torch.add,
    "Min": torch.minimum,
    "Sum": torch.add,
}


@operator(*_VARIADIC)
def variadic(call: Call, *operands: Tensor) -> Tensor:
    total = reduce(_VARIADIC[call.op], together(*operands))
    return total / len(operands) if call.op == "Mean" else total
