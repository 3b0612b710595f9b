"""Operators that read or write coordinates of one axis by index: GatherElements and its kin.

An index tensor that is known before the run is an index map: coordinate c of the indexed axis and
coordinate j of a list axis go together when some index at j says c, whatever the other axes hold.
That is the same as for Gather with a list. The indices are restated, since the coordinates they
name move up. Indices that are computed at run time hold the indexed axis, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..coupling import Indices
from ..shapes import Array
from .base import Operand, Site, positive_axes, rule

if TYPE_CHECKING:
    from ..restated import Restated

RUN_TIME = "looked up with indices computed at run time"
WRITTEN = "written at indices computed at run time"
NAMED = "selected by name"


# -- index maps -------------------------------------------------------------------------------


def link_selected(
    site: Site, axis: int, lists: Sequence[tuple[int, int]], indices: Array, size: int
) -> int | None:
    """Couples an axis with the list axis along which its indices differ most.

    ``indices`` holds coordinates of ``axis``, which has ``size`` of them, and may be negative;
    ``lists`` are (axis, dimension of ``indices``) pairs. Returns the list axis; None, with the
    selected coordinates pinned, when there is none along which more than one unit is left.
    """
    selected = indices.astype(np.int64) % max(size, 1)
    best: tuple[int, int, tuple[Indices, Indices]] | None = None
    for target, dimension in lists:
        pairs = _pairs(selected, dimension)
        units = _count_components(*pairs)
        if units > 1 and (best is None or units > best[0]):
            best = units, target, pairs
    if best is None:
        site.pin(axis, NAMED, np.unique(selected))
        return None
    _, target, (coordinates, positions) = best
    site.link(axis, target, coordinates, positions)
    return target


def _pairs(selected: Indices, dimension: int) -> tuple[Indices, Indices]:
    """Every (coordinate, position along ``dimension``) that occurs, once."""
    length = selected.shape[dimension]
    rows = np.moveaxis(selected, dimension, -1)
    found = np.unique(rows * length + np.arange(length, dtype=np.int64))
    return found // length, found % length


def _count_components(a: Indices, b: Indices) -> int:
    """How many parts two index arrays fall into when ``a[k]`` and ``b[k]`` belong together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not a.size:
        return 0
    a, b = (np.unique(v, return_inverse=True)[1].astype(np.int64) for v in (a, b))
    total = int(a.max()) + int(b.max()) + 2
    edges = coo_array((np.ones(a.size, np.int8), (a, b + int(a.max()) + 1)), shape=(total, total))
    count, _ = connected_components(edges, directed=False)
    return int(count)


def moved(indices: Array, keep: npt.NDArray[np.bool_]) -> Indices:
    """Indices of an axis after only the flagged coordinates of it are left."""
    old = indices.astype(np.int64)
    result: Indices = (np.cumsum(keep) - 1)[np.where(old < 0, old + keep.size, old)]
    return result


def kept_entries(values: Array, keeps: Sequence[npt.NDArray[np.bool_]]) -> Array:
    """What is left of [bindings, ...] once the axes behind the first are cut."""
    for index, keep in enumerate(keeps, start=1):
        values = np.compress(keep, values, axis=index)
    return values


def _link_prefix(site: Site, long: int, short: int, size: int) -> None:
    """The first ``size`` coordinates of an axis are those of another."""
    index = np.arange(size, dtype=np.int64)
    site.link(long, short, index, index)


# -- along one axis ---------------------------------------------------------------------------


def _indexed_axis(site: Site) -> int:
    return positive_axes([site.integer("axis", 0)], site.x.rank)[0]


def _restate_elements(node: Restated) -> None:
    """Indices name coordinates of ``axis`` of the data, and have the shape of what they move."""
    axis, indices = node.integer("axis", 0) % node.input_rank(0), node.values(1)
    keep = node.keep(0, axis)
    if indices is not None and not keep.all():
        keeps = [node.keep(1, index) for index in range(node.input_rank(1))]
        node.want(1, kept_entries(moved(indices, keep), keeps).astype(indices.dtype))


@rule("GatherElements", family="movement", restate=_restate_elements)
def gather_elements(site: Site) -> None:
    """Y[i, j] = X[indices[i, j], j]: the other axes pass through, by their first coordinates."""
    x, y, indices = site.x, site.y, site.inputs[1]
    assert indices is not None
    axis = _indexed_axis(site)
    site.link_axes(indices, y)
    _pass_other_axes(site, x, y, axis)
    value = site.value(1)
    if value is None:
        site.pin(x.axis(axis), RUN_TIME)
    else:
        link_selected(site, x.axis(axis), [(y.axis(axis), axis)], value, x.shape[axis])


def _pass_other_axes(site: Site, long: Operand, short: Operand, axis: int) -> None:
    for index in range(long.rank):
        if index == axis:
            continue
        if long.shape[index] == short.shape[index]:
            site.produce(long.axis(index), short.axis(index))
        else:
            _link_prefix(site, long.axis(index), short.axis(index), short.shape[index])


@rule("ScatterElements", "Scatter", family="movement", restate=_restate_elements)
def scatter_elements(site: Site) -> None:
    """Y = X, but Y[indices[i, j], j] takes updates[i, j]; a sum of updates at indices computed at
    run time ends their axis, as adding zeros does nothing."""
    x, y, indices, updates = site.x, site.y, site.inputs[1], site.inputs[2]
    assert indices is not None and updates is not None
    axis = _indexed_axis(site)
    site.link_axes(x, y)
    site.link_axes(indices, updates)
    _pass_other_axes(site, y, updates, axis)
    value = site.value(1)
    if value is None:
        site.pin(y.axis(axis), WRITTEN)
        end_updates(site, updates, [axis])
        return
    lists = [(updates.axis(axis), axis)]
    if link_selected(site, y.axis(axis), lists, value, y.shape[axis]) is None:
        site.pin(updates.axis(axis), NAMED)


def end_updates(site: Site, updates: Operand, indices: Sequence[int]) -> None:
    """Axes of updates that land anywhere: sums take any number of them."""
    for index in indices:
        if site.string("reduction", "none") == "add":
            site.sink(2, index)
        else:
            site.pin(updates.axis(index), WRITTEN)


@rule("TensorScatter", family="movement")
def tensor_scatter(site: Site) -> None:
    """A cache with new entries written along ``axis``, at a place of its own for every batch."""
    cache, update = site.x, site.inputs[1]
    assert update is not None
    axis = positive_axes([site.integer("axis", -2)], cache.rank)[0]
    site.link_axes(cache, site.y)
    site.link_axes(cache, update, skip=[axis])
    for operand in (cache, update):
        site.pin(operand.axis(axis), WRITTEN)
    where = site.input(2)
    if where is not None:
        site.link(where.axis(0), cache.axis(0))


# -- by condition, by size --------------------------------------------------------------------


@rule("Compress", family="movement")
def compress(site: Site) -> None:
    """Coordinates whose flag is set; the flags go with the coordinates."""
    x, y, flags = site.x, site.y, site.inputs[1]
    assert flags is not None
    if "axis" not in site.node.attributes and x.rank > 1:
        site.pin_all("flattened and selected")
        return
    axis, value = _indexed_axis(site), site.value(1)
    site.link_axes(x, y, skip=[axis])
    if value is None:
        for operand in (x.axis(axis), y.axis(axis), flags.axis(0)):
            site.pin(operand, "selected by flags computed at run time")
        return
    selected = np.flatnonzero(value.reshape(-1)[: x.shape[axis]])
    site.link(x.axis(axis), y.axis(axis), selected, np.arange(selected.size, dtype=np.int64))
    _link_prefix(site, x.axis(axis), flags.axis(0), min(flags.shape[0], x.shape[axis]))


def _restate_crop(node: Restated) -> None:
    axes = node.integers("axes") or tuple(range(node.output_rank(0)))
    node.want(1, node.new_shape(0)[:, [axis % node.output_rank(0) for axis in axes]])


@rule("CenterCropPad", family="movement", restate=_restate_crop)
def center_crop_pad(site: Site) -> None:
    """The middle passes through; the ends stay, since the middle is found from both sizes."""
    x, y = site.x, site.y
    site.pin_all("a list of sizes", site.inputs[1:])
    for index in range(x.rank):
        old, new = x.shape[index], y.shape[index]
        if old == new:
            site.link(x.axis(index), y.axis(index))
            continue
        long, short = (x, y) if old > new else (y, x)
        start, length = abs(old - new) // 2, min(old, new)
        inside = np.arange(start, start + length, dtype=np.int64)
        site.link(long.axis(index), short.axis(index), inside, inside - start)
        outside = np.setdiff1d(np.arange(max(old, new), dtype=np.int64), inside)
        site.pin(long.axis(index), "cut or filled evenly at both ends", outside)
