"""Other real numbers for weights that are stored as integers with a scale.

A weight behind DequantizeLinear stands for (q - zero) * scale. Numbers that have grown out of the
range of q at the scale that is there get a larger one, channel by channel, where that scale is
theirs alone; a bias whose scale is the product of the input's and the weight's, as integer kernels
want it, keeps being that.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from ..ir.constants import constant_tensor
from ..ir.rules.base import attribute_int
from .stored_weights import Numbers, numbers, spread

Arrays = dict[str, npt.NDArray[np.generic]]


def reader_of(value: oir.Value) -> oir.Node | None:
    """The DequantizeLinear that reads a constant; None for constants that are read as they are."""
    return next((node for node, _ in value.uses() if node.op_type == "DequantizeLinear"), None)


def stored(
    value: oir.Value, real: Numbers, factor: Numbers | None = None
) -> tuple[Arrays, Numbers]:
    """What is stored for a constant's other ``real`` numbers, and its scale if that has to grow, by
    name; and by how much the scale grows along its axis.

    ``factor`` says so for a bias, whose scale follows that of the weight.
    """
    tensor, node = constant_tensor(value), reader_of(value)
    assert tensor is not None
    if node is None:
        return {str(value.name): real.astype(tensor.dtype.numpy())}, np.ones(1)
    axis, block = attribute_int(node, "axis", 1), attribute_int(node, "block_size", 0)
    scale = node.inputs[1]
    assert scale is not None
    steps, zero = numbers(scale).astype(np.float64), _zero(node)
    bits, signed = tensor.dtype.bitwidth, tensor.dtype.is_signed()
    low = -(2 ** (bits - 1)) if signed else 0
    high = low + 2**bits - 1
    grown = np.ones_like(steps)
    if not block and len(scale.uses()) == 1 and steps.ndim <= 1:
        grown = _growth(real / spread(steps, real.shape, axis, 0), steps, axis, low, high, zero)
        if factor is not None and factor.size in (1, steps.size):
            grown = np.broadcast_to(factor.reshape(-1) if steps.ndim else factor.max(), steps.shape)
    point = np.zeros(()) if zero is None else spread(zero, real.shape, axis, block)
    whole = np.rint(real / spread(steps * grown, real.shape, axis, block) + point)
    arrays: Arrays = {str(value.name): np.clip(whole, low, high).astype(tensor.dtype.numpy())}
    kind = constant_tensor(scale)
    if (grown != 1).any() and kind is not None:
        arrays[str(scale.name)] = (steps * grown).astype(kind.dtype.numpy())
    return arrays, grown


def _zero(node: oir.Node) -> Numbers | None:
    point = node.inputs[2] if len(node.inputs) > 2 else None
    return None if point is None else numbers(point).astype(np.float64)


def _growth(
    inside: Numbers, steps: Numbers, axis: int, low: int, high: int, zero: Numbers | None
) -> Numbers:
    """How much larger every scale must be for the numbers, in its steps, to fit the range."""
    others = tuple(k for k in range(inside.ndim) if k != axis % inside.ndim)
    if steps.size == 1 or inside.ndim == 1:
        others = tuple(range(inside.ndim)) if steps.size == 1 else ()
    point = np.zeros(()) if zero is None else zero.reshape(-1) if steps.size > 1 else zero.max()
    above = inside.max(axis=others) / np.maximum(high - point, 1)
    below = inside.min(axis=others) / np.minimum(low - point, -1)
    grown: Numbers = np.maximum(np.maximum(above, below), 1.0).reshape(steps.shape)
    return grown
