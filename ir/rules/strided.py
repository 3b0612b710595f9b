"""A Gather whose indices are affine: ``sum_i stride_i * o_i + offset`` of the output's coordinates.

PyTorch's as_strided is written like that, over a flattened tensor. Where the strides divide each
other it is no more than a Reshape of the indexed axis into (total / s_0, s_0 / s_1, ...), a slice
and a transposition; that also holds where a leading axis, the batch, moves with a symbolic
dimension. After pruning, the indices that are computed at run time are numbered anew: the static
part of the axis has a period P, of which K coordinates are left, and index i becomes
``i // P * K + place[i % P]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..coupling import Indices
from ..shapes import Array
from .base import Operand, Site
from .reshape import couple_blocks

if TYPE_CHECKING:
    from ..restated import Restated

_UNUSED = "an axis along which the same is looked up again"
_CUT = "a dynamic axis is sliced"


@dataclass(frozen=True)
class _Factor:
    """A factor of the indexed axis: its sizes under every binding, and the axis of the indices
    that runs over it from ``start`` (-1: none does)."""

    sizes: tuple[int, ...]
    axis: int
    start: int

    @property
    def moves(self) -> bool:
        return len(set(self.sizes)) > 1


def couple_strided(site: Site, axis: int) -> bool:
    """Couples a Gather along ``axis`` if its indices are affine under every binding."""
    x, y, indices, values = site.x, site.y, site.inputs[1], site.values(1)
    assert indices is not None
    totals = [x.shape[axis], x.later[axis]][: len(values or ())]
    factors = None if values is None else _factors(values, totals)
    if factors is None:
        return False
    static = [k for k, factor in enumerate(factors) if not factor.moves and factor.sizes[0] > 1]
    if any(factor.moves for factor in factors[static[0] if static else 0 :]):
        return False
    site.pin_all("a list of indices", [indices])
    flat = _only(x, axis)
    parts = site.virtual(*(tuple(f.sizes[k] for f in factors) for k in (0, -1)))
    couple_blocks(site, flat, parts)
    for factor, number in zip(factors, parts.axes, strict=True):
        if factor.axis >= 0:
            _link(site, factor, number, y, axis + factor.axis)
    used = {factor.axis for factor in factors}
    for index in set(range(indices.rank)) - used:
        site.pin(y.axis(axis + index), _UNUSED)
    return True


def _only(x: Operand, axis: int) -> Operand:
    number = x.axis(axis)
    return Operand(
        x.name,
        (x.shape[axis],),
        range(number, number + 1),
        x.constant,
        (x.dynamic[axis],),
        (x.later[axis],),
    )


def _link(site: Site, factor: _Factor, number: int, y: Operand, index: int) -> None:
    target, sizes = y.axis(index), (y.shape[index], y.later[index])
    if (factor.sizes[0], factor.sizes[-1]) == sizes:
        site.link(number, target)
    elif factor.moves or y.dynamic[index]:
        site.pin(number, _CUT)
        site.pin(target, _CUT)
    else:
        position = np.arange(sizes[0], dtype=np.int64)
        site.link(number, target, factor.start + position, position)


def _factors(values: Sequence[Array], totals: Sequence[int]) -> list[_Factor] | None:
    """The indexed axis as factors, the outermost first; None when the indices do not fit any."""
    found = [_strides(value.astype(np.int64)) for value in values]
    known = [strides for strides in found if strides is not None]
    if len(known) < len(found) or len({v.ndim for v in values}) > 1:
        return None
    offset = known[0][0]
    if any(other != offset for other, _ in known):
        return None
    rows = np.array([row for _, row in known], np.int64).reshape(len(known), -1)
    rows = np.where(rows > 0, rows, rows.max(axis=0, initial=0))  # size 1: as in other bindings
    axes = [int(k) for k in np.argsort(-rows[-1], kind="stable") if rows[-1, k] > 0]
    factors, left = [], list(totals)
    for axis in axes:
        strides = rows[:, axis].tolist()
        if any(have % stride for have, stride in zip(left, strides, strict=True)):
            return None
        sizes = tuple(have // stride for have, stride in zip(left, strides, strict=True))
        starts = {offset // s % max(n, 1) for s, n in zip(strides, sizes, strict=True)}
        start = starts.pop()
        if starts or any(start + v.shape[axis] > n for v, n in zip(values, sizes, strict=True)):
            return None
        factors.append(_Factor(sizes, axis, start))
        left = strides
    return [*factors, _Factor(tuple(left), -1, 0)]


def _strides(value: Indices) -> tuple[int, list[int]] | None:
    """The offset and the stride of every axis (0 for one of size 1) if the indices are affine with
    positive strides, else None."""
    if not value.size:
        return None
    origin = int(value.reshape(-1)[0])
    strides, rebuilt = [], np.full(value.shape, origin, np.int64)
    for axis, size in enumerate(value.shape):
        place = tuple(int(k == axis and size > 1) for k in range(value.ndim))
        stride = int(value[place]) - origin
        strides.append(stride)
        shape = [1] * value.ndim
        shape[axis] = size
        rebuilt += stride * np.arange(size, dtype=np.int64).reshape(shape)
        if size > 1 and stride <= 0:
            return None
    return (origin, strides) if origin >= 0 and np.array_equal(rebuilt, value) else None


def renumber(node: Restated, axis: int, rank: int) -> None:
    """Indices computed at run time, of that ``rank``: those of what is left, as it is numbered.
    Where they are cut already they were not affine, and what they name stays."""
    lists = [node.output_keep(0, axis + index) for index in range(rank)]
    keep = node.keep(0, axis)
    period = node.period(0, axis)
    for index, kept in enumerate(lists):
        if not kept.all() and node.keep(1, index).all():
            node.insert(1, "Gather", [None, np.flatnonzero(kept)], axis=index)
    if keep.all():
        return
    place = np.maximum(np.cumsum(keep[:period]) - 1, 0)
    old = node.source(1)
    whole = node.insert(1, "Div", [old, np.array(period)])
    begun = node.insert(1, "Mul", [whole, np.array(period)])
    rest = node.insert(1, "Sub", [old, begun])
    within = node.insert(1, "Gather", [place, rest], axis=0)
    before = node.insert(1, "Mul", [whole, np.array(int(keep[:period].sum()))])
    node.insert(1, "Add", [before, within])
