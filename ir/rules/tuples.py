"""GatherND and ScatterND: coordinates of several axes at once, read or written by tuples.

The *list axes* are all axes of the indices but the last. Column c of the indices (see `columns`)
couples axis c of the data with list axes: one to one where it counts the whole axis, as in the mesh
of a slice, by an index map where its numbers are known, and not at all where a run decides. Only
list axes that such computed numbers lie along are linked with the indices. The others need not be:
after pruning, a mesh is put together again from shorter columns.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from ..columns import Column
from ..constants import constant_tensor
from ..coupling import Flags
from ..shapes import Array
from .base import Operand, Site, rule
from .indexing import RUN_TIME, WRITTEN, end_updates, link_selected, moved

if TYPE_CHECKING:
    from ..restated import Restated


# -- coupling ---------------------------------------------------------------------------------


def _couple(site: Site, lists: Operand, first: int, reason: str) -> list[int]:
    """Couples the axes of the data from ``first`` on with the list axes, the first of ``lists``;
    computed numbers pin for ``reason``. Returns the list axes that are coupled with none."""
    indices, columns = site.inputs[1], site.columns(1, first)
    assert indices is not None
    site.pin(indices.axis(-1), "places in a tuple of indices")
    used: set[int | None] = set()
    for index, column in enumerate(columns, start=first):
        axis = site.x.axis(index)
        if column.counts >= 0:
            site.link(axis, lists.axis(column.counts))
            used.add(lists.axis(column.counts))
        elif column.fixed is None:
            site.pin(axis, reason)
        else:
            targets = [(lists.axis(k), k) for k in sorted(column.axes) if k >= first]
            used.add(link_selected(site, axis, targets, column.fixed, site.x.shape[index]))
    computed, stored = _computed(columns), _is_stored(site.node.inputs[1])
    for k in range(indices.rank - 1):
        if stored or k in computed:
            site.link(indices.axis(k), lists.axis(k))
        else:
            site.pin(indices.axis(k), "a list of indices")
        if k in computed and lists.axis(k) in used:
            site.pin(lists.axis(k), reason)
    return [k for k in range(indices.rank - 1) if lists.axis(k) not in used]


def _is_stored(value: oir.Value | None) -> bool:
    return value is not None and constant_tensor(value) is not None


def _computed(columns: Sequence[Column]) -> set[int]:
    """The list axes along which only a run tells the numbers of some column."""
    return {k for column in columns if column.computed for k in column.axes}


# -- restating --------------------------------------------------------------------------------


def _restate(node: Restated) -> None:
    """What is left of the tuples, in the numbers that coordinates of the data have now. In a new
    mesh, last places that count whole axes, each along the last list axis, are left out: shorter
    tuples name all of what they count."""
    first, lists = node.integer("batch_dims", 0), range(node.input_rank(1) - 1)
    columns = node.columns(1, first)
    written = node.op_type == "ScatterND"
    kept = [node.keep(2, k) if written else node.output_keep(0, k) for k in lists]
    keeps = [node.keep(0, first + place) for place in range(len(columns))]
    computed = _computed(columns)
    if all(k.all() for k in keeps) and all(kept[k].all() for k in lists if k not in computed):
        return
    stored = _is_stored(node.source(1))
    while not stored and len(kept) > first and _is_rest(columns, len(kept) - 1):
        columns, kept = columns[:-1], kept[:-1]
    moving = {k for c in columns if c.fixed is None for k in c.axes}
    sizes = [1 if k in moving else int(keep.sum()) for k, keep in enumerate(kept)]
    known = {
        place: _numbers(column.fixed, column.axes, keeps[place], kept)
        for place, column in enumerate(columns)
        if column.fixed is not None
    }
    if stored:
        spread = [np.broadcast_to(numbers, (*sizes, 1)) for numbers in known.values()]
        node.want(1, np.stack([np.concatenate(spread, axis=-1)] * 2))
        return
    read = {
        place: _read(node, column, first + place, bool(keeps[place].all()), len(kept))
        for place, column in enumerate(columns)
        if column.fixed is None
    }
    shape: Array | oir.Value = np.array([*sizes, 1])
    if read:  # the axes that these lie along are as long as they are, at every size
        total = reduce(lambda a, b: node.insert(1, "Add", [a, b]), read.values())
        shape = node.insert(1, "Shape", [node.insert(1, "Expand", [total, shape])])
    parts = [read[k] if k in read else known[k] for k in range(len(columns))]
    node.insert(1, "Concat", [node.insert(1, "Expand", [p, shape]) for p in parts], axis=-1)


def _is_rest(columns: Sequence[Column], last: int) -> bool:
    """Whether the last column, if not the only one, counts an axis along list axis ``last``, where
    no other lies."""
    *others, column = columns
    counts = column.counts == last and column.fixed is not None
    return counts and bool(others) and not any(last in c.axes for c in others)


def _numbers(fixed: Array, axes: Collection[int], keep: Flags, kept: Sequence[Flags]) -> Array:
    """What fixed numbers that lie along list ``axes`` are now, with a last axis of size 1; ``keep``
    is what stays of what they name, ``kept`` what stays of the list axes."""
    numbers: Array = moved(fixed, keep)
    for k in axes:
        numbers = np.compress(kept[k], numbers, axis=k)
    return numbers.reshape(*numbers.shape[: len(kept)], 1)


def _read(node: Restated, column: Column, axis: int, whole: bool, lists: int) -> oir.Value:
    """A column into an ``axis`` of the data, ``whole`` or cut, that a run computes; with a last
    axis of size 1 behind the axes that are left of the ``lists``."""
    if column.counts >= 0 and not (whole and column.source):
        size = node.insert(1, "Gather", [node.insert(1, "Shape", [node.source(0)]), np.array(axis)])
        counted = node.insert(1, "Range", [np.array(0), size, np.array(1)])
        shape = [-1 if k == column.counts else 1 for k in range(lists + 1)]
        return node.insert(1, "Reshape", [counted, np.array(shape)])
    source, place, rank = node.value(column.source), column.place, node.rank(column.source)
    if place >= 0:
        bounds = [np.array([number]) for number in (place, place + 1, -1)]
        source, rank = node.insert(1, "Slice", [source, *bounds]), rank - 1
    left = max(rank - (node.input_rank(1) - 1 - lists), 0)
    return node.insert(1, "Reshape", [source, np.array([0] * left + [1])])


# -- rules ------------------------------------------------------------------------------------


@rule("GatherND", family="movement", restate=_restate)
def gather_nd(site: Site) -> None:
    """Y[batch, list, rest] = X[batch, *indices[batch, list], rest]."""
    x, y, indices = site.x, site.y, site.inputs[1]
    assert indices is not None
    first, lists, depth = site.integer("batch_dims", 0), indices.rank - 1, indices.shape[-1]
    for index in range(first):
        site.link(x.axis(index), y.axis(index))
    for index in range(first + depth, x.rank):
        site.produce(x.axis(index), y.axis(index - first - depth + lists))
    _couple(site, y, first, RUN_TIME)


@rule("ScatterND", family="movement", restate=_restate)
def scatter_nd(site: Site) -> None:
    """Y = X, but Y[*indices[list], rest] takes updates[list, rest]."""
    x, y, indices, updates = site.x, site.y, site.inputs[1], site.inputs[2]
    assert indices is not None and updates is not None
    lists, depth = indices.rank - 1, indices.shape[-1]
    site.link_axes(x, y)
    for index in range(depth, x.rank):
        site.link(y.axis(index), updates.axis(index - depth + lists))
    end_updates(site, updates, _couple(site, updates, 0, WRITTEN))
