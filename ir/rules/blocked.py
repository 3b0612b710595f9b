"""Operators of ONNX Runtime on weights that are quantised and packed in blocks.

A block of ``block_size`` numbers along one axis shares a scale and a zero point, and lies in whole
bytes of its own, so the coordinates of a block go together. Zero points are packed, too: those
that share a byte go together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..coupling import Alternative, Indices
from .base import Operand, Site, positive_axes, rule
from .quantization import MICROSOFT

if TYPE_CHECKING:
    from ..restated import Restated

_PACKED = "numbers packed in a block"
_FLAT = "scales of all blocks in one row"
_ROW = "numbers of all columns in one row"


def _restate_matmul(node: Restated) -> None:
    node.set_int("K", node.new_size(0, -1))
    node.set_int("N", node.new_output_size(0, -1))


@rule("MatMulNBits", family="quantisation", domain=MICROSOFT, restate=_restate_matmul)
def matmul_nbits(site: Site) -> None:
    """A [.., K] * B [N, blocks, bytes] -> Y [.., N]; scales and zero points for every column and
    block, the order of the groups (g_idx), a bias."""
    if site.integer("weight_prepacked", 0):
        site.pin_all("weights packed for one machine")
        return
    x, weight, y = site.x, site.inputs[1], site.y
    assert weight is not None
    blocks = weight.axis(1)
    for index in range(x.rank - 1):
        site.link(x.axis(index), y.axis(index))
    site.produce(weight.axis(0), y.axis(-1))
    site.pin(weight.axis(2), _PACKED)
    along = np.arange(x.shape[-1], dtype=np.int64)
    site.link(x.axis(-1), blocks, along, along // site.integer("block_size", 0))
    site.sink(0, x.rank - 1)
    site.role("consumer", blocks)
    site.macs(*y.axes, x.axis(-1))
    site.quantised(1)
    order, bias = site.input(4), site.input(5)
    if order is not None:
        for axis in (x.axis(-1), *order.axes):
            site.pin(axis, "an order of the inputs is given")
    if bias is not None:
        site.link(bias.axis(0), y.axis(-1))
    _scales(site, weight, [o for o in (site.input(2), site.input(3)) if o is not None])


def _scales(site: Site, weight: Operand, operands: Sequence[Operand]) -> None:
    """Scales and zero points, by column and block. In one row, [columns * blocks], they can lose
    either columns or blocks."""
    columns, blocks = weight.shape[:2]
    flat = []
    for operand in operands:
        if operand.rank > 1:
            place = _places(site, blocks, operand.shape[1])
            site.link(operand.axis(0), weight.axis(0))
            site.link(operand.axis(1), weight.axis(1), place, np.arange(blocks))
        elif blocks == 1:
            site.link(operand.axis(0), weight.axis(0))
        else:
            flat.append((operand.axis(0), _places(site, blocks, operand.shape[0] // columns)))
    if not flat:
        return
    column, block = (i.ravel() for i in np.indices((columns, blocks), dtype=np.int64))

    def along(kept: int, index: Indices) -> Alternative:
        axis, other = weight.axis(kept), weight.axis(1 - kept)

        def apply() -> None:
            for vector, place in flat:
                site.link(vector, axis, column * (int(place[-1]) + 1) + place[block], index)
            site.pin(other, _FLAT)

        each = np.arange(weight.shape[kept], dtype=np.int64)
        return Alternative(("columns", "blocks")[kept], (axis,), ((axis, each),), apply)

    def never() -> None:
        for axis in (*weight.axes[:2], *(vector for vector, _ in flat)):
            site.pin(axis, _FLAT)

    site.choose(along(0, column), along(1, block), otherwise=never)


def _places(site: Site, blocks: int, stored: int) -> Indices:
    """Where the number of every block is: one by one, or packed in bytes."""
    each = np.arange(blocks, dtype=np.int64)
    return each if stored == blocks else each * site.integer("bits", 4) // 8


@rule("MatMulBnb4", family="quantisation", domain=MICROSOFT, restate=_restate_matmul)
def matmul_bnb4(site: Site) -> None:
    """A [.., K] * B -> Y [.., N]: column after column, the numbers of B lie in one row, two in a
    byte, with a scale for each ``block_size`` of them. So many columns as end with a block go
    together; or else, where every column ends with one, a block of each column."""
    x, weight, scales, y = site.x, site.inputs[1], site.inputs[2], site.y
    assert weight is not None and scales is not None
    k, n, block = x.shape[-1], y.shape[-1], site.integer("block_size", 64)
    if not site.integer("transB", 1):
        site.pin_all("weights that are not transposed")
        return
    for index in range(x.rank - 1):
        site.link(x.axis(index), y.axis(index))
    site.sink(0, x.rank - 1)
    site.macs(*y.axes, x.axis(-1))
    site.quantised(1)
    rows = ((weight.axis(0), weight.shape[0], 2), (scales.axis(0), scales.shape[0], block))
    together = math.lcm(k, block) // k

    def along(axis: int, other: int, size: int, name: str) -> Alternative:
        """``size`` coordinates of ``axis`` go together."""
        count = x.shape[-1] if name == "blocks" else n
        each = np.arange(count, dtype=np.int64) // size

        def apply() -> None:
            hub = site.hub(int(each[-1]) + 1)
            site.link(axis, hub, np.arange(count), each)
            for row, length, numbers in rows:
                place = np.arange(length, dtype=np.int64) * numbers
                at = place % k if name == "blocks" else place // k
                site.link(row, hub, np.arange(length), each[at])
            site.role("consumer" if name == "blocks" else "producer", rows[0][0])
            site.pin(other, _ROW)

        return Alternative(name, (axis,), ((axis, each),), apply)

    def never() -> None:
        for axis in (x.axis(-1), y.axis(-1), rows[0][0], rows[1][0]):
            site.pin(axis, _ROW)

    ways = [along(y.axis(-1), x.axis(-1), together, "columns")]
    if k % block == 0:
        ways.append(along(x.axis(-1), y.axis(-1), block, "blocks"))
    site.choose(*ways, otherwise=never)


@rule("GatherBlockQuantized", family="quantisation", domain=MICROSOFT)
def gather(site: Site) -> None:
    """Rows of a quantised table, looked up at run time; data, indices, scales, zero points."""
    data, indices, y = site.x, site.inputs[1], site.y
    assert indices is not None
    axis, blocked = positive_axes(
        [site.integer("gather_axis", 0), site.integer("quantize_axis", 1)], data.rank
    )
    others = [operand for operand in site.inputs[2:] if operand is not None]
    site.quantised(0)
    for index in range(indices.rank):
        site.link(indices.axis(index), y.axis(axis + index))
    for operand in (data, *others):
        site.pin(operand.axis(axis), "looked up with indices computed at run time")
    for index in set(range(data.rank)) - {axis}:
        target = index if index < axis else index + indices.rank - 1
        size = y.shape[target]
        along = np.arange(size, dtype=np.int64)
        site.role("producer", data.axis(index))
        # Several numbers of the table may share a byte.
        site.link(y.axis(target), data.axis(index), along, along * data.shape[index] // size)
        if index == blocked:
            block = site.integer("block_size", 128) or size
            _blocks(site, y.axis(target), along // block, [(o, index) for o in others])
            continue
        for operand in others:
            if operand.shape[index] == data.shape[index]:
                site.link(operand.axis(index), data.axis(index))
            else:
                site.pin(operand.axis(index), "broadcast along this axis")


def _blocks(
    site: Site, axis: int, digit: Indices, parameters: Sequence[tuple[Operand, int]]
) -> None:
    """An axis whose coordinates are in the blocks ``digit``, and the axes of their parameters."""
    count = int(digit.max(initial=-1)) + 1
    hub = site.hub(count)
    site.link(axis, hub, np.arange(digit.size), digit)
    for operand, index in parameters:
        place = _places(site, count, operand.shape[index])
        site.link(operand.axis(index), hub, place, np.arange(count))
