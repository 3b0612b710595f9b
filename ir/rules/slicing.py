"""Slice: selected coordinates pass through, the others end; kept ones stay in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import Site, positive_axes, rule

if TYPE_CHECKING:
    from ..restated import Restated


def slices(site: Site) -> list[tuple[int, int, int]] | None:
    """(axis, first selected coordinate, step) for each sliced axis; None if not known."""
    rank = site.x.rank
    if site.opset < 10:
        starts, axes = site.integers("starts") or (), site.integers("axes")
        steps: tuple[int, ...] = (1,) * len(starts)
    else:
        if site.value(1) is None or site.value(2) is None:
            return None
        starts, axes, steps = _slice_inputs([site.value(k) for k in (1, 3, 4)])
        if any(site.input(k) is not None and site.value(k) is None for k in (3, 4)):
            return None
    axes = tuple(range(len(starts))) if axes is None else axes
    result = []
    for start, axis, step in zip(starts, positive_axes(axes, rank), steps, strict=True):
        size = site.x.shape[axis]
        start = start + size if start < 0 else start
        start = min(max(start, 0), size if step > 0 else size - 1)
        result.append((axis, start, step))
    return result


def _slice_inputs(
    values: list[np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None],
) -> tuple[tuple[int, ...], tuple[int, ...] | None, tuple[int, ...]]:
    starts, axes, steps = (
        None if v is None else tuple(int(e) for e in v.reshape(-1)) for v in values
    )
    assert starts is not None
    return starts, axes, steps if steps is not None else (1,) * len(starts)


def _passing(site: Site) -> set[int]:
    """The axes that pass whole, where the bounds of some are not known or move: those that are not
    sliced, and those sliced from end to end under every binding."""
    x, bounds = site.x, site.inputs[1]
    named, steps = site.value(3), site.value(4)
    if bounds is None or (site.input(3) is not None and named is None):
        return set()
    axes = range(bounds.shape[0]) if named is None else named.reshape(-1).tolist()
    axes = positive_axes(axes, x.rank)
    passing = set(range(x.rank)) - set(axes)
    starts, ends = site.values(1), site.values(2)
    if starts is None or ends is None or (site.input(4) is not None and steps is None):
        return passing
    for k, axis in enumerate(axes):
        sizes = (x.shape[axis], x.later[axis])
        whole = all(
            (start[k] == 0 or start[k] <= -size) and end[k] >= size
            for start, end, size in zip(starts, ends, sizes, strict=False)
        )
        if whole and (steps is None or steps[k] == 1):
            passing.add(axis)
    return passing


def _restate_slice(node: Restated) -> None:
    """Kept coordinates stay in order, so a slice stays a slice: only its bounds move."""
    if node.opset < 10:
        bounds = [np.array([node.integers(name)], np.int64) for name in ("starts", "ends")]
        axes = node.integers("axes")
        steps: tuple[int, ...] = (1,) * bounds[0].shape[1]
    else:
        known = [node.values(k) for k in (1, 2, 3, 4)]
        if known[0] is None or known[1] is None:
            return
        bounds = [v.astype(np.int64) for v in known[:2] if v is not None]
        axes, listed = (None if v is None else tuple(v[0].tolist()) for v in known[2:])
        steps = listed or (1,) * bounds[0].shape[1]
    starts, ends = bounds
    rank, restated = node.input_rank(0), False
    for k, axis in enumerate(axes if axes is not None else range(starts.shape[1])):
        keep = node.keep(0, axis % rank)
        if keep.all():
            continue
        restated = True
        start, end, step = int(starts[0, k]), int(ends[0, k]), steps[k]
        stop = None if step < 0 and end < -keep.size else end
        selected = np.arange(keep.size)[slice(start, stop, step)]
        new = (np.cumsum(keep) - 1)[selected[keep[selected]]]
        if not new.size:
            starts[:, k] = ends[:, k] = 0
            continue
        last = int(new[-1]) + (1 if step > 0 else -1)
        starts[:, k] = new[0]
        ends[:, k] = last if last >= 0 else -int(keep.sum()) - 1
    if not restated:
        return
    if node.opset < 10:
        node.set_ints("starts", starts[0])
        node.set_ints("ends", ends[0])
    else:
        node.want(1, starts)
        node.want(2, ends)


@rule("Slice", family="movement", restate=_restate_slice)
def slice_(site: Site) -> None:
    """Selected coordinates pass through, others end here. With a step of s > 1 units are blocks
    of s coordinates, so that the step still holds when some are gone."""
    x, y = site.x, site.y
    site.pin_all("slice bounds", site.inputs[1:])
    sliced = slices(site)
    if sliced is None:
        passing = _passing(site)
        for index in range(x.rank):
            if index in passing:
                site.link(x.axis(index), y.axis(index))
            else:
                for operand in (x, y):
                    site.pin(operand.axis(index), "sliced at bounds computed at run time")
        return
    site.link_axes(x, y, skip=[axis for axis, _, _ in sliced])
    for axis, start, step in sliced:
        position = np.arange(y.shape[axis], dtype=np.int64)
        if x.dynamic[axis] or y.dynamic[axis]:
            for operand in (x, y):
                site.pin(operand.axis(axis), "a dynamic axis is sliced")
        elif abs(step) == 1:
            site.link(x.axis(axis), y.axis(axis), start + step * position, position)
        else:
            _strided(site, axis, start, step)


def _strided(site: Site, axis: int, start: int, step: int) -> None:
    x, y = site.x, site.y
    size, stride = x.shape[axis], abs(step)
    if size % stride or y.shape[axis] != size // stride:
        for operand in (x, y):
            site.pin(operand.axis(axis), "sliced with a step that does not divide the axis")
        return
    position = np.arange(size, dtype=np.int64)
    hub = site.hub(size // stride)
    site.link(x.axis(axis), hub, position, position // stride)
    index = np.arange(y.shape[axis], dtype=np.int64)
    site.link(y.axis(axis), hub, index, (start + step * index) // stride)
