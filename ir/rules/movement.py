"""Operators that move whole coordinates: offsets, strides, selections and repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .base import Operand, Site, positive_axes, rule
from .factors import Run, link_factor
from .indexing import NAMED, RUN_TIME, kept_entries, link_selected, moved
from .strided import couple_strided, renumber

if TYPE_CHECKING:
    from ..restated import Restated

_SPATIAL = "a spatial axis that is folded into channels"


@rule("Transpose", family="movement")
def transpose(site: Site) -> None:
    """Axis i of the output is axis perm[i] of the input."""
    perm = site.integers("perm") or tuple(reversed(range(site.x.rank)))
    for index, source in enumerate(perm):
        site.link(site.x.axis(source), site.y.axis(index))


@rule("Concat", family="movement")
def concat(site: Site) -> None:
    """Along the axis each operand has its own stretch; the other axes are common."""
    concatenate(site, site.inputs)


def concatenate(site: Site, operands: Sequence[Operand | None]) -> None:
    """These inputs one after the other along the node's ``axis``."""
    y = site.y
    axis = positive_axes([site.integer("axis", 1)], y.rank)[0]
    start = 0
    for operand in operands:
        if operand is None:
            continue
        site.link_axes(operand, y, skip=[axis])
        link_stretch(site, operand, y, axis, start)
        start += operand.shape[axis]


def link_stretch(site: Site, part: Operand, whole: Operand, axis: int, start: int) -> None:
    """Coordinate i of ``part`` is coordinate start + i of ``whole``."""
    index = np.arange(part.shape[axis], dtype=np.int64)
    site.link(part.axis(axis), whole.axis(axis), index, start + index)


def _restate_split(node: Restated) -> None:
    axis = node.integer("axis", 0) % node.input_rank(0)
    if node.keep(0, axis).all():
        return
    sizes = [node.new_output_size(j, axis) for j in range(node.outputs)]
    if node.integers("split") is not None or node.opset < 13:
        node.set_ints("split", sizes)
        return
    if not node.has_input(1) and len(set(sizes)) == 1:
        return  # still an equal split
    node.remove_attribute("num_outputs")
    node.want(1, np.array([sizes, sizes], np.int64))


@rule("Split", family="movement", restate=_restate_split, all_outputs=True)
def split(site: Site) -> None:
    """The reverse of a concatenation."""
    x = site.x
    axis = positive_axes([site.integer("axis", 0)], x.rank)[0]
    if site.input(1) is not None:
        site.pin_all("a list of sizes", [site.input(1)])
    if any(o is None for o in site.outputs):
        site.pin(x.axis(axis), "split with an output that is left out")
    start = 0
    for output in site.outputs:
        if output is None:
            continue
        site.link_axes(output, x, skip=[axis])
        link_stretch(site, output, x, axis, start)
        start += output.shape[axis]


# -- Gather, Pad, Tile, Expand ----------------------------------------------------------------


def _restate_gather(node: Restated) -> None:
    axis = node.integer("axis", 0) % node.input_rank(0)
    keep, known = node.keep(0, axis), node.values(1)
    if known is None:
        renumber(node, axis, node.input_rank(1))
        return
    lists = [node.output_keep(0, axis + index) for index in range(known.ndim - 1)]
    if not all(flags.all() for flags in (keep, *lists)):
        node.want(1, kept_entries(moved(known, keep), lists))


@rule("Gather", family="movement", restate=_restate_gather)
def gather(site: Site) -> None:
    """Known indices select coordinates; indices known only at run time pin the axis."""
    x, y, indices = site.x, site.y, site.inputs[1]
    assert indices is not None
    axis = positive_axes([site.integer("axis", 0)], x.rank)[0]
    for index in range(x.rank):
        if index != axis:
            target = index if index < axis else index + indices.rank - 1
            site.produce(x.axis(index), y.axis(target))
    value = site.value(1)
    if value is None and couple_strided(site, axis):
        return
    for index in range(indices.rank):
        site.link(indices.axis(index), y.axis(axis + index))
    if value is None:
        site.pin(x.axis(axis), RUN_TIME)
        return
    targets = [(y.axis(axis + index), index) for index in range(indices.rank)]
    if indices.rank == 1:
        selected = value.astype(np.int64) % max(x.shape[axis], 1)
        position = np.arange(selected.size, dtype=np.int64)
        site.link(x.axis(axis), y.axis(axis), selected, position)
    elif link_selected(site, x.axis(axis), targets, value, x.shape[axis]) is None:
        for target, _ in targets:
            site.pin(target, NAMED)


def padding(site: Site) -> list[tuple[int, int]] | None:
    """(before, after) for every axis, or None when not known."""
    rank = site.x.rank
    pads = site.integers("pads") or site.integers("paddings")
    axes = list(range(rank))
    if site.opset >= 11:
        value, named = site.value(1), site.input(3)
        if value is None or (named is not None and site.value(3) is None):
            return None
        pads = tuple(int(v) for v in value.reshape(-1))
        listed = site.value(3)
        if listed is not None:
            axes = positive_axes([int(v) for v in listed.reshape(-1)], rank)
    result = [(0, 0)] * rank
    for k, axis in enumerate(axes):
        result[axis] = (pads[k], pads[k + len(axes)]) if pads else (0, 0)
    return result


def _restate_pad(node: Restated) -> None:
    """Padded coordinates that are gone are padded no more."""
    rank = node.input_rank(0)
    known, named = (node.values(1), node.values(3)) if node.opset >= 11 else (None, None)
    if node.opset < 11:
        pads, axes = list(node.integers("pads") or ()), list(range(rank))
    else:
        if known is None:
            return
        pads = known[0].tolist()
        axes = list(range(rank)) if named is None else [int(a) % rank for a in named[0].flat]
    old = list(pads)
    for k, axis in enumerate(axes):
        kept = node.output_keep(0, axis)
        before, after = old[k], old[k + len(axes)]
        if before > 0:
            pads[k] = int(kept[:before].sum())
        if after > 0:
            pads[k + len(axes)] = int(kept[kept.size - after :].sum())
    if known is None:
        node.set_ints("pads", pads)
    else:
        wanted = known.copy()
        moved = [k for k, size in enumerate(pads) if size != old[k]]
        wanted[:, moved] = np.array(pads, np.int64)[moved]
        node.want(1, wanted)


@rule("Pad", family="movement", restate=_restate_pad)
def pad(site: Site) -> None:
    """Constant padding adds coordinates that are free; other modes mix the axis."""
    x, y = site.x, site.y
    site.pin_all("a list of sizes", site.inputs[1:])
    pads = padding(site)
    constant = site.string("mode", "constant") == "constant"
    for index in range(x.rank):
        before, after = pads[index] if pads is not None else (1, 1)
        if (before, after) == (0, 0):
            site.link(x.axis(index), y.axis(index))
        elif pads is None or not constant or x.dynamic[index] or y.dynamic[index]:
            for operand in (x, y):
                site.pin(operand.axis(index), "padded by copying or by an unknown amount")
        else:
            position = np.arange(x.shape[index], dtype=np.int64)
            inside = (position + before >= 0) & (position + before < y.shape[index])
            position = position[inside]
            site.link(x.axis(index), y.axis(index), position, position + before)
            if min(before, after) < 0:
                site.pin(x.axis(index), "cropped by negative padding")


def _restate_tile(node: Restated) -> None:
    """Repeats stay, but an axis of size 1 is repeated once for every kept coordinate."""
    wanted = node.values(1)
    if wanted is None:
        return
    wanted = wanted.copy()
    for index in range(node.input_rank(0)):
        if node.old_size(0, index) == 1 and not node.output_keep(0, index).all():
            wanted[:, index] = node.new_shape(0)[:, index]
    node.want(1, wanted)


@rule("Tile", family="movement", restate=_restate_tile)
def tile(site: Site) -> None:
    """Copies of the axis one after the other; all copies of a coordinate go together."""
    x, y = site.x, site.y
    site.pin_all("a list of sizes", site.inputs[1:])
    for index in range(x.rank):
        size, total = x.shape[index], y.shape[index]
        if size == total:
            site.link(x.axis(index), y.axis(index))
        elif size == 1:
            site.pin(x.axis(index), "broadcast along this axis")
        else:
            runs = [Run(x.axis(index), (1,)), Run(y.axis(index), (0, 1))]
            link_factor(site, runs, 1, (total // size, size))


def _restate_expand(node: Restated) -> None:
    """New sizes; an entry of 1 goes on meaning "as the input"."""
    targets, shape = node.values(1), node.new_shape(0)
    if targets is not None:
        shape = shape[:, shape.shape[1] - targets.shape[1] :]
        shape = np.where((targets == 1) & (shape != 1), 1, shape)
    node.want(1, shape)


@rule("Expand", family="movement", restate=_restate_expand)
def expand(site: Site) -> None:
    """Broadcast to a shape: new coordinates are all alike, so any of them may go."""
    site.pin_all("a list of sizes", site.inputs[1:])
    offset = site.y.rank - site.x.rank
    for index, size in enumerate(site.x.shape):
        if size == site.y.shape[index + offset]:
            site.link(site.x.axis(index), site.y.axis(index + offset))
        else:
            site.pin(site.x.axis(index), "broadcast along this axis")


# -- channels to space and back ---------------------------------------------------------------


@rule("DepthToSpace", "SpaceToDepth", family="movement")
def depth_space(site: Site) -> None:
    """A channel of the wide side and its blocksize^2 channels of the deep side go together."""
    to_space = site.node.op_type == "DepthToSpace"
    deep, wide = (site.x, site.y) if to_space else (site.y, site.x)
    site.link(deep.axis(0), wide.axis(0))
    for axis in (*deep.axes[2:], *wide.axes[2:]):
        site.pin(axis, _SPATIAL)
    blocks = site.integer("blocksize", 1) ** 2
    sizes = (blocks, wide.shape[1])
    crd = site.string("mode", "DCR") == "CRD"
    runs = [Run(deep.axis(1), (1, 0) if crd else (0, 1)), Run(wide.axis(1), (1,))]
    link_factor(site, runs, 1, sizes)
