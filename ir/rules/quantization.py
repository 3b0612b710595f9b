"""QuantizeLinear and DequantizeLinear: data passes through, scales follow their axis."""

from __future__ import annotations

import numpy as np

from .base import Operand, Site, positive_axes, rule


@rule("QuantizeLinear", "DequantizeLinear", family="quantisation")
def quantize(site: Site) -> None:
    """Per tensor: nothing couples. Per axis: scale and zero point follow it. Blocked: the
    coordinates of one block share a scale and go together."""
    x, y = site.x, site.y
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
            site.pin(operand.axis(0), "one value for the whole tensor")
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
