"""Quantising, dequantising, and operators that compute on quantised activations.

Data passes through as in the operator on floats. A scale or a zero point is one number for the
whole tensor (it couples nothing), one for each coordinate of an axis (it follows the axis), or
one for each block (the coordinates of a block go together).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .base import Operand, Site, positive_axes, rule
from .elementwise import align
from .movement import concatenate
from .reduction import normalise

MICROSOFT = "com.microsoft"

_SPATIAL = "a spatial axis of a pooling"


def whole_tensor(site: Site, *operands: Operand | None) -> None:
    """Scales and zero points that hold for a whole tensor: one number each, and it stays."""
    site.pin_all("one value for the whole tensor", operands)


def per_channel(site: Site, operands: Iterable[Operand | None]) -> list[Operand]:
    """Those scales and zero points that are vectors; the others hold for the whole tensor."""
    vectors = []
    for operand in operands:
        if operand is not None and max(operand.shape, default=1) > 1:
            vectors.append(operand)
        else:
            whole_tensor(site, operand)
    return vectors


@rule("QuantizeLinear", "DequantizeLinear", family="quantisation")
@rule("QuantizeLinear", "DequantizeLinear", family="quantisation", domain=MICROSOFT)
def quantize(site: Site) -> None:
    """Per tensor: nothing couples. Per axis: scale and zero point follow it. Blocked: the
    coordinates of one block share a scale and go together."""
    x, y = site.x, site.y
    if site.node.op_type == "DequantizeLinear":
        site.quantised(0)
    site.link_axes(x, y)
    axis = positive_axes([site.integer("axis", 1)], x.rank)[0] if x.rank > 1 else 0
    for operand in site.inputs[1:]:
        if operand is not None:
            _follow(site, x, operand, axis)


def _follow(site: Site, x: Operand, operand: Operand, axis: int) -> None:
    if operand.rank == 0:
        return
    if operand.rank == 1:
        if site.integer("block_size", 0):
            # One block left would be one value for the whole tensor: then no block size may stand.
            for axis in (*operand.axes, *x.axes):
                site.pin(axis, "a vector in blocks")
        elif operand.shape[0] == x.shape[axis]:
            site.link(operand.axis(0), x.axis(axis))
        else:
            whole_tensor(site, operand)
        return
    block = site.integer("block_size", 0) or -(-x.shape[axis] // operand.shape[axis])
    for index in range(x.rank):
        if index != axis or block == 1:
            site.link(operand.axis(index), x.axis(index))
        else:
            coordinates = np.arange(x.shape[index], dtype=np.int64)
            site.link(x.axis(index), operand.axis(index), coordinates, coordinates // block)
            if x.shape[index] % block:  # a short last block would move once others are gone
                last = coordinates[coordinates // block == operand.shape[index] - 1]
                site.pin(x.axis(index), "the last block is shorter", last)


@rule("DynamicQuantizeLinear", family="quantisation")
def dynamic_quantize(site: Site) -> None:
    """Data passes through; scale and zero point depend on the extremes of the whole tensor."""
    site.link_axes(site.x, site.y)
    extremes(site)


def extremes(site: Site) -> None:
    """The first input is scaled by its extremes, counted from zero: a removed coordinate must not
    be among them. What is zero widens no range, so multiplying by zero is exact."""
    for index in range(site.x.rank):
        site.sink(0, index)


# -- quantised activations in, quantised activations out -----------------------------------------


@rule("QLinearSigmoid", "QLinearLeakyRelu", family="quantisation", domain=MICROSOFT)
def unary(site: Site) -> None:
    """X, its scale and zero point, those of Y."""
    site.quantised(0)
    whole_tensor(site, *site.inputs[1:])
    site.link_axes(site.x, site.y)


@rule("QLinearAdd", "QLinearMul", family="quantisation", domain=MICROSOFT)
def binary(site: Site) -> None:
    """Two operands, each with its scale and zero point, and those of the result."""
    _broadcast(site, (0, 3))


@rule("QLinearWhere", family="quantisation", domain=MICROSOFT)
def where(site: Site) -> None:
    """A condition, two operands, each with its scale and zero point, and those of the result."""
    _broadcast(site, (0, 1, 4))


def _broadcast(site: Site, data: tuple[int, ...]) -> None:
    """Inputs ``data`` are broadcast; all others are one number each."""
    site.quantised(*data)
    whole_tensor(site, *(site.input(k) for k in range(len(site.inputs)) if k not in data))
    for number in data:
        operand = site.inputs[number]
        assert operand is not None
        align(site, operand, site.y)


@rule("QLinearConcat", family="quantisation", domain=MICROSOFT)
def concat(site: Site) -> None:
    """Scale and zero point of the result, then every operand with its own."""
    whole_tensor(site, *(operand for k, operand in enumerate(site.inputs) if k % 3 != 2))
    concatenate(site, site.inputs[2::3])
    site.quantised(*range(2, len(site.inputs), 3))


@rule("QLinearSoftmax", family="quantisation", domain=MICROSOFT)
def softmax(site: Site) -> None:
    """As Softmax of the opset that an attribute names."""
    whole_tensor(site, *site.inputs[1:])
    normalise(site, site.integer("opset", 13), -1)


@rule(*("QLinearAveragePool", "QLinearGlobalAveragePool"), family="quantisation", domain=MICROSOFT)
def pool(site: Site) -> None:
    """Every channel is pooled by itself; channels come second or last."""
    x, y = site.x, site.y
    whole_tensor(site, *site.inputs[1:])
    passing = (0, x.rank - 1 if site.integer("channels_last", 0) else 1)
    for index in range(x.rank):
        if index in passing:
            site.link(x.axis(index), y.axis(index))
        else:
            for operand in (x, y):
                site.pin(operand.axis(index), _SPATIAL)
