"""Mixtures of experts on quantised weights as those on floats (see `float_operators`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from .lift import MICROSOFT, Lift, Rounded

_KEPT = ("k", "activation_type", "swiglu_fusion", "activation_alpha", "activation_beta",
         "swiglu_limit")  # fmt: skip


def experts(lift: Lift, node: onnx.NodeProto) -> bool:
    """QMoE as MoE, which has a softmax over all experts: it is normalised over the chosen ones."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    names = [*node.input, *[""] * 15][:15]
    if names[14] or attributes.get("quant_type", b"int") != b"int":
        raise Rounded
    inputs = names[:2]
    for number in range(3):
        weights, scales, bias = names[2 + 3 * number : 5 + 3 * number]
        zeros = names[11 + number]
        bits = attributes.get("expert_weight_bits", 4)
        bits = attributes.get(f"fc{number + 1}_expert_weight_bits", bits)
        if weights:
            array = _dequantised(lift, weights, scales, zeros, bits)
            weights = lift.add("Constant", [], value=numpy_helper.from_array(array))
        inputs += [weights, bias]
    kept = {name: attributes[name] for name in _KEPT if name in attributes}
    lift.add("MoE", inputs, node.output[0], MICROSOFT, normalize_routing_weights=1, **kept)
    return True


def _dequantised(
    lift: Lift, weights: str, scales: str, zeros: str, bits: int
) -> npt.NDArray[np.generic]:
    """[experts, rows, columns] from packed weights, and scales and zero points [experts, rows] or
    [experts, rows, blocks]."""
    if any(name and name not in lift.constants for name in (weights, scales, zeros)):
        raise Rounded
    packed, scale = (numpy_helper.to_array(lift.constants[name]) for name in (weights, scales))
    numbers = _unpacked(packed, bits).astype(scale.dtype)
    zero = np.full(scale.shape, 2 ** (bits - 1), scale.dtype)
    if zeros:
        points = _unpacked(numpy_helper.to_array(lift.constants[zeros]), bits)
        zero = points[..., : scale.shape[-1]].astype(scale.dtype)
    if scale.ndim == 2:
        scale, zero = scale[..., None], zero[..., None]
    blocks = numbers.reshape(*scale.shape, -1)
    return np.asarray(((blocks - zero[..., None]) * scale[..., None]).reshape(numbers.shape))


def _unpacked(array: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """The numbers in the bytes of the last axis, lowest bits first."""
    parts = array[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8(2**bits - 1)
    return parts.reshape(*array.shape[:-1], -1)
