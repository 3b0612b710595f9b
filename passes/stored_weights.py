"""What stored weights stand for: their own numbers, or those that they are dequantised to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from ..ir.constants import constant_tensor
from ..ir.rules.base import attribute_int

Numbers = npt.NDArray[np.float64]
Reader = Callable[[Numbers, oir.Node], Numbers]

_HALF = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4], np.float32)
_CODES = (
    np.concatenate([_HALF, -_HALF]),
    np.array(
        [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
         0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0],
        np.float32,
    ),
)  # fmt: skip
"""What the codes of MatMulBnb4 stand for: FP4, and NF4 (the quantiles of a normal distribution,
Dettmers et al., QLoRA, 2023, appendix E)."""


def numbers(value: oir.Value) -> Numbers:
    """The real numbers of a constant, with the axes that it is stored with.

    Those that share a byte are on one more axis at the end. Integers whose scale is applied later
    (MatMulInteger) are counted from their zero point.
    """
    array = _constant(value)
    assert array is not None
    for node, index in value.uses():
        reader = READERS.get(node.op_type, {}).get(index)
        if reader is not None:
            return reader(array, node)
    return array


def _linear(scale: int | None, zero: int, axis: int | None) -> Reader:
    """(q - zero) * scale: the numbers of these inputs, and the axis along which vectors run (None:
    an attribute says it)."""

    def read(array: Numbers, node: oir.Node) -> Numbers:
        along = attribute_int(node, "axis", 1) if axis is None else axis
        if node.op_type == "QGemm" and attribute_int(node, "transB", 0):
            along = 0
        block = attribute_int(node, "block_size", 0)
        point, factor = (_input(node, k) for k in (zero, scale))
        if point is not None:
            array = array - spread(point, array.shape, along, block)
        return array if factor is None else array * spread(factor, array.shape, along, block)

    return read


def spread(parameter: Numbers, shape: tuple[int, ...], axis: int, block: int) -> Numbers:
    """A scale or zero point (per tensor, axis or block) as it meets a tensor of ``shape``."""
    axis = axis if len(shape) > 1 else 0
    if parameter.size == 1:
        return parameter.reshape(())
    if block:
        return np.repeat(parameter, block, axis).take(range(shape[axis]), axis)
    if parameter.ndim > 1:
        return parameter
    target = [1] * len(shape)
    target[axis] = parameter.size
    return parameter.reshape(target)


def _blocked(array: Numbers, node: oir.Node) -> Numbers:
    """B of MatMulNBits: [columns, blocks, numbers of a block]."""
    bits = attribute_int(node, "bits", 4)
    columns, blocks = array.shape[:2]
    scale, zero = _input(node, 2), _input(node, 3)
    values = _unpacked(array, bits).reshape(columns, blocks, -1)
    assert scale is not None
    if zero is not None and zero.size != columns * blocks:
        zero = _unpacked(zero.reshape(columns, -1), bits).reshape(columns, -1)[:, :blocks]
    middle = 2 ** (bits - 1) if zero is None else zero.reshape(columns, blocks, 1)
    return (values - middle) * scale.reshape(columns, blocks, 1)


def _directions(array: Numbers, node: oir.Node, scale: int) -> Numbers:
    """A weight of DynamicQuantizeLSTM: [directions, inputs, columns]."""
    factor, point = _input(node, scale), _input(node, scale + 1)
    assert factor is not None and point is not None
    count = array.shape[0]
    return (array - point.reshape(count, 1, -1)) * factor.reshape(count, 1, -1)


def _coded(array: Numbers, node: oir.Node) -> Numbers:
    """B of MatMulBnb4, in a row: codes of numbers, the first of two in the high half of a byte."""
    scale, block = _input(node, 2), attribute_int(node, "block_size", 64)
    assert scale is not None
    codes = _unpacked(array, 4).astype(np.int64)[:, ::-1]
    factors = np.repeat(scale, block)[: codes.size].reshape(codes.shape)
    return _float(_CODES[attribute_int(node, "quant_type", 1)])[codes] * factors


def _experts(array: Numbers, node: oir.Node, number: int) -> Numbers:
    """Weights of layer ``number`` of QMoE: [experts, rows, bytes]."""
    bits = attribute_int(node, "expert_weight_bits", 4)
    bits = attribute_int(node, f"fc{number + 1}_expert_weight_bits", bits)
    scale, zero = _input(node, 3 + 3 * number), _input(node, 11 + number)
    assert scale is not None
    blocks = scale.reshape(*array.shape[:2], -1).shape[2]
    middle = np.full(scale.shape, 2 ** (bits - 1), array.dtype)
    if zero is not None:
        middle = _unpacked(zero, bits).reshape(*zero.shape[:-1], -1)[..., : scale.shape[-1]]
    values = _unpacked(array, bits).reshape(*array.shape[:2], blocks, -1)
    each = (values - middle.reshape(*values.shape[:3], 1)) * scale.reshape(*values.shape[:3], 1)
    return each.reshape(*array.shape, -1)


def _table(array: Numbers, node: oir.Node) -> Numbers:
    """The data of GatherBlockQuantized, several numbers in a byte or one in each element."""
    kind = node.inputs[0].dtype if node.inputs[0] is not None else None
    bits = attribute_int(node, "bits", 4) if kind == oir.DataType.UINT8 else 8
    axis = attribute_int(node, "quantize_axis", 1) % array.ndim
    block = attribute_int(node, "block_size", 128) or array.shape[axis]
    scale, zero = _input(node, 2), _input(node, 3)
    assert scale is not None
    values = _unpacked(array, bits)
    middle: Numbers | int = 2 ** (bits - 1) if kind == oir.DataType.UINT8 else 0
    if zero is not None:
        zero = _unpacked(zero, bits).reshape(*zero.shape[:-1], -1)[..., : scale.shape[-1]]
        middle = _repeated(zero, values, axis, block * bits // 8)
    return (values - middle) * _repeated(scale, values, axis, block * bits // 8)


def _repeated(parameter: Numbers, values: Numbers, axis: int, block: int) -> Numbers:
    """A number for each block of ``block`` stored elements, at every one of them."""
    return np.repeat(parameter, block, axis).take(range(values.shape[axis]), axis)[..., None]


def _unpacked(array: Numbers, bits: int) -> Numbers:
    """The numbers in each byte, lowest first, on an axis of their own."""
    shifts = np.arange(0, 8, bits)
    packed = array.astype(np.int64)[..., None] >> shifts & (2**bits - 1) if bits < 8 else None
    return _float(array[..., None] if packed is None else packed)


def _input(node: oir.Node, index: int | None) -> Numbers | None:
    return None if index is None or index >= len(node.inputs) else _constant(node.inputs[index])


def _constant(value: oir.Value | None) -> Numbers | None:
    tensor = None if value is None else constant_tensor(value)
    return None if tensor is None else _float(np.asarray(tensor.numpy()))


def _float(array: npt.NDArray[np.generic]) -> Numbers:
    """Narrow and integer types as float32; the rest as it is."""
    kind = np.float64 if array.dtype == np.float64 else np.float32
    return array.astype(kind, copy=False)


READERS: dict[str, dict[int, Reader]] = {
    "ConvInteger": {1: _linear(None, 3, 0)},
    "DequantizeLinear": {0: _linear(1, 2, None)},
    "DynamicQuantizeLSTM": {k: partial(_directions, scale=6 + 2 * k) for k in (1, 2)},
    "DynamicQuantizeMatMul": {1: _linear(2, 3, -1)},
    "GatherBlockQuantized": {0: _table},
    "MatMulBnb4": {1: _coded},
    "MatMulInteger": {0: _linear(None, 2, -2), 1: _linear(None, 3, -1)},
    "MatMulIntegerToFloat": {1: _linear(3, 5, -1)},
    "MatMulNBits": {1: _blocked},
    "QEmbedLayerNormalization": {k: _linear(k + 6, k + 11, None) for k in range(2, 7)},
    "QGemm": {3: _linear(4, 5, 1)},
    "QMoE": {2 + 3 * k: partial(_experts, number=k) for k in range(3)},
    "QLinearConv": {3: _linear(4, 5, 0)},
    "QLinearMatMul": {0: _linear(1, 2, -2), 3: _linear(4, 5, -1)},
}
"""By operator and number of the input: how it reads a stored weight."""
