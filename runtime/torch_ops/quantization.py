"""QuantizeLinear and DequantizeLinear with a straight-through gradient.

Quantised numbers are held in floats, so that a gradient passes from DequantizeLinear to
QuantizeLinear and whatever only moves numbers between the two. Rounding counts as the identity and
saturation cuts the gradient off (Bengio et al. 2013, "Estimating or Propagating Gradients Through
Stochastic Neurons"; Jacob et al. 2018, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from .registry import Call, Unsupported, axis_of, operator

_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
}
_COMPUTED: dict[torch.dtype, int] = {
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int16: TensorProto.INT16,
    torch.int32: TensorProto.UINT16,
}
"""The types of computed zero points, which no Cast makes narrower."""


def _spread(call: Call, vector: Tensor, x: Tensor) -> Tensor:
    """A scale or zero point in a shape that broadcasts with the data."""
    if vector.numel() == 1 and vector.ndim <= 1:
        return vector.reshape(()).to(x.device)
    vector = vector.to(x.device)
    axis = axis_of(call.get("axis", 1), x.ndim)
    block = call.get("block_size", 0)
    if block:
        return vector.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return vector.reshape(-1, *[1] * (x.ndim - 1 - axis))


def _rounded(x: Tensor) -> Tensor:
    return x + (torch.round(x) - x).detach()


@operator("QuantizeLinear")
@operator("QuantizeLinear", domain="com.microsoft")
def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    element = call.get("output_dtype", 0) or (call.types[2] if len(call.types) > 2 else 0)
    if not element:
        element = TensorProto.UINT8 if zero is None else _COMPUTED.get(zero.dtype, 0)
    if element not in _RANGES:
        raise Unsupported(f"element type {TensorProto.DataType.Name(element)}")
    low, high = _RANGES[element]
    steps = _rounded(x / _spread(call, scale, x).to(x.dtype))
    if zero is not None:
        steps = steps + _spread(call, zero, x).to(x.dtype)
    return steps.clamp(low, high)


@operator("DequantizeLinear")
@operator("DequantizeLinear", domain="com.microsoft")
def dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    steps = x.to(scale.device, scale.dtype)
    if zero is not None:
        steps = steps - _spread(call, zero, steps).to(scale.dtype)
    return steps * _spread(call, scale, steps)


@operator("DynamicQuantizeLinear")
def dynamic_quantize(call: Call, x: Tensor) -> Any:
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((-low / scale).clamp(0, 255))
    return (_rounded(x / scale) + zero).clamp(0, 255), scale, zero.to(torch.uint8)
