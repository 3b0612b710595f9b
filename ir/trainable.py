"""Which constants are weights that may be trained.

A floating-point tensor of more than one element is a weight, except where it *states* something
instead of weighing: the scales of a Resize or a quantiser, bounds, exponents, statistics of a
BatchNormalization, masks. What such a tensor is computed from is no weight either. A single number
is one only where an operator takes it for a weight: the bias of a convolution to one channel, say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from .computed import ancestors
from .constants import constant_tensor, constants, tensor_shape
from .sparse import is_sparse

FLOATS = frozenset(
    [
        oir.DataType.FLOAT,
        oir.DataType.FLOAT16,
        oir.DataType.BFLOAT16,
        oir.DataType.DOUBLE,
    ]
)

_STATED: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4),
    "Clip": (1, 2),
    "DequantizeLinear": (1, 2),
    "Dropout": (1,),
    "OneHot": (1, 2),
    "Pad": (1, 2),
    "Pow": (1,),
    "QuantizeLinear": (1, 2),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
}
"""Inputs that are no weights."""

_WEIGHING = frozenset(
    "BatchNormalization Conv ConvTranspose Gemm GroupNormalization InstanceNormalization "
    "LayerNormalization MatMul PRelu RMSNormalization LSTM GRU RNN".split()
)
"""Operators whose further inputs are weights, however small."""

_MASK = 1e4
"""A larger number fills in for minus infinity: the tensor is a mask."""


@dataclass(frozen=True)
class Trainable:
    """The weights by name, and why other tensors of several numbers are none."""

    weights: Mapping[str, oir.TensorProtocol]
    left: Mapping[str, str]


def trainable(flat: oir.Model) -> Trainable:
    """The weights of a flat model (see `flatten`) that may be trained."""
    stated = set(_stated_constants(flat.graph))
    weights: dict[str, oir.TensorProtocol] = {}
    left: dict[str, str] = {}
    for value, tensor in constants(flat.graph):
        name = str(value.name)
        if tensor.dtype not in FLOATS:
            continue
        if constant_tensor(value) is not tensor:  # made anew for every call
            reason = "numbers in an attribute"
        elif is_sparse(tensor):
            reason = "sparse"
        elif value in stated:
            reason = "a scale, a bound or a statistic"
        else:
            reason = _reason(value, tensor)
        if not reason:
            weights[name] = tensor
        elif int(np.prod(tensor_shape(tensor))) > 1:
            left[name] = reason
    return Trainable(weights, left)


def _reason(value: oir.Value, tensor: oir.TensorProtocol) -> str:
    """Why a tensor that states nothing is no weight, "" if it is one."""
    size = int(np.prod(tensor_shape(tensor)))
    weighs = any(index > 0 and node.op_type in _WEIGHING for node, index in value.uses())
    if not value.uses() or size == 0 or (size == 1 and not weighs):
        return "not used" if not value.uses() else "a single number"
    largest = np.abs(tensor.numpy().astype(np.float64)).max()
    return "" if largest <= _MASK else "a mask, or not finite"


def _stated_constants(graph: oir.Graph) -> Iterator[oir.Value]:
    for node in graph.all_nodes():
        for index in _STATED.get(node.op_type, ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None:
                continue
            roots = ancestors(value)[1]
            if all(constant_tensor(root) is not None for root in roots):
                yield from roots
