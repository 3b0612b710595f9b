"""Operators that move elements: the arrays move as the tensor does.

Where an axis is not tracked, one entry speaks of all that is selected from it; an axis of which it
is not known what is selected is tracked no more.
"""

from __future__ import annotations

import math

import numpy as np

from ..rules.base import positive_axes
from ..rules.movement import padding
from ..rules.pooling import resampled
from ..rules.reshape import blocks, factorise
from ..rules.slicing import slices
from .base import LIMIT, Bounds, Step, numbers_of, rounded, settle, transfer


@transfer("Transpose")
def transpose(step: Step) -> Bounds:
    """Axis i of the output is axis perm[i] of the input."""
    perm = step.site.integers("perm") or tuple(reversed(range(len(step.x.shape))))
    return step.x.move(lambda array: array.transpose(perm))


@transfer("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(step: Step) -> Bounds | None:
    """Every block of axes is cut into factors (see `secateur.ir.rules.reshape`). An output axis is
    tracked along all its factors if it is along one, unless its size moves."""
    x, y = step.operand(0), step.site.y
    if 0 in x.shape or math.prod(x.shape) != math.prod(y.shape):
        return None
    if math.prod(x.later) != math.prod(y.later):
        return None
    sides = [[(k, (o.shape[k], o.later[k])) for k in range(o.rank)] for o in (x, y)]
    bounds = step.x
    shape: list[int] = []  # of the arrays, factor by factor
    sizes: list[int] = []
    runs: dict[int, list[int]] = {}  # the factors of every output axis
    moves: list[bool] = []
    for left, right in blocks(*sides):
        pairs, found = (
            ([left[0][1]], []) if len(left) == len(right) == 1 else factorise(left, right)
        )
        if len(left) == len(right) == 1:
            places: dict[int, tuple[int, ...]] = {left[0][0]: (0,)}
            runs[right[0][0]] = [len(sizes)]
        elif found:
            places = {run.axis: run.factors for run in found[: len(left)]}
            for run in found[len(left) :]:
                runs[run.axis] = [len(sizes) + factor for factor in run.factors]
        else:  # no common factors
            bounds = bounds.collapsed(axis for axis, _ in left)
            shape += [1]
            sizes += [1]
            moves += [False]
            continue
        own = [1] * len(pairs)
        for axis, factors in places.items():
            if bounds.shape[axis] > 1:
                if any(pairs[f][0] != pairs[f][1] for f in factors):
                    return None
                for factor in factors:
                    own[factor] = pairs[factor][0]
        shape += own
        sizes += [first for first, _ in pairs]
        moves += [first != second for first, second in pairs]
    bounds = bounds.reshaped(*shape)
    target = [1] * y.rank
    for axis, factors_ in runs.items():
        if all(bounds.shape[f] == 1 for f in factors_):
            continue
        full = math.prod(bounds.shape) * math.prod(
            sizes[f] for f in factors_ if bounds.shape[f] == 1
        )
        if any(moves[f] for f in factors_) or full > LIMIT:
            bounds = bounds.collapsed(factors_)
            continue
        for factor in factors_:
            bounds = bounds.tracked(factor, sizes[factor])
        target[axis] = y.shape[axis]
    return bounds.reshaped(*target)


@transfer("Concat")
def concat(step: Step) -> Bounds | None:
    """One after the other along the axis."""
    y = step.site.y
    axis = positive_axes([step.site.integer("axis", 1)], y.rank)[0]
    parts, shapes = [], []
    for index, bounds in enumerate(step.inputs):
        if bounds is not None:
            shape = step.operand(index).shape
            tracked = bounds.collapsed([axis]) if y.dynamic[axis] else bounds
            parts.append(tracked if y.dynamic[axis] else bounds.tracked(axis, shape[axis]))
            shapes.append([1 if k == axis else size for k, size in enumerate(shape)])
    others = [b.collapsed([axis]) for b in parts]  # which other axes are tracked
    full = [max(b.shape[k] for b in others) for k in range(y.rank)]
    if math.prod(full) * y.shape[axis] > LIMIT:
        return None
    for k, size in enumerate(full):
        if k != axis and size > 1:
            parts = [b.tracked(k, size) for b in parts]
    joined = [
        np.concatenate([getattr(b, name) for b in parts], axis)
        for name in ("low", "high", "point", "number")
    ]
    found = Bounds(*joined)
    return found.collapsed([axis]).marked(step.mark) if y.dynamic[axis] else found


@transfer("Split")
def split(step: Step) -> list[Bounds | None]:
    """Consecutive stretches of the axis."""
    axis = positive_axes([step.site.integer("axis", 0)], step.operand(0).rank)[0]
    found: list[Bounds | None] = []
    start = 0
    for output in step.site.outputs:
        if output is None:
            found.append(None)
            continue
        index = np.arange(start, start + output.shape[axis])
        found.append(_taken(step.x, axis, index, step.mark + start))
        start += output.shape[axis]
    return found


def _taken(bounds: Bounds, axis: int, index: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
           mark: int) -> Bounds:  # fmt: skip
    """Coordinates ``index`` of an axis, a vector."""
    if bounds.shape[axis] == 1:
        return bounds.marked(mark)
    return bounds.move(lambda array: np.take(array, index, axis))


@transfer("Slice")
def slice_(step: Step) -> Bounds:
    """Selected coordinates pass through; where the bounds are not known, any of them may."""
    x, y, bounds = step.operand(0), step.site.y, step.x
    known = slices(step.site)
    if known is None:
        changed = [k for k in range(x.rank) if (x.shape[k], x.later[k]) != (y.shape[k], y.later[k])]
        axes = step.site.value(3) if step.site.opset >= 10 else None
        sliced = range(x.rank) if axes is None else positive_axes(axes.reshape(-1).tolist(), x.rank)
        return bounds.collapsed({*changed, *sliced}).marked(step.mark)
    for axis, start, stride in known:
        bounds = _taken(bounds, axis, start + stride * np.arange(y.shape[axis]), step.mark + axis)
    return bounds


@transfer("Gather")
def gather(step: Step) -> Bounds | None:
    """Known indices select coordinates, unknown ones any of them."""
    x, indices, bounds = step.operand(0), step.operand(1), step.x
    axis = positive_axes([step.site.integer("axis", 0)], x.rank)[0]
    value = step.site.value(1)
    if value is None or math.prod(bounds.shape) * value.size > LIMIT:
        bounds, value = bounds.collapsed([axis]).marked(step.mark), None
    if value is not None and bounds.shape[axis] > 1:
        index = value.astype(np.int64) % x.shape[axis]
        return bounds.move(lambda array: np.take(array, index, axis))
    shape = [*bounds.shape[:axis], *(1,) * indices.rank, *bounds.shape[axis + 1 :]]
    return bounds.marked(step.mark).reshaped(*shape)


@transfer("Pad")
def pad(step: Step) -> Bounds | None:
    """Constant padding adds slices of the constant; other modes repeat what is there."""
    pads, bounds = padding(step.site), step.x
    rank = len(bounds.shape)
    if step.site.string("mode", "constant") != "constant":
        axes = range(rank) if pads is None else [k for k, p in enumerate(pads) if p != (0, 0)]
        return bounds.collapsed(axes).marked(step.mark)
    filled = step.given(2)
    fill = np.array(step.real("value", 0.0)) if filled is None else filled.point.reshape(-1)
    if pads is None or fill.size != 1 or np.isnan(fill).any():
        return None
    value = float(fill.reshape(())[()])
    for axis, (before, after) in enumerate(pads):
        size = step.operand(0).shape[axis]
        if before < 0 or after < 0:
            bounds = bounds.collapsed([axis]).marked(step.mark)
        if max(before, after) <= 0:
            continue
        if bounds.shape[axis] == 1 and (size > 1 or step.operand(0).dynamic[axis]):
            bounds = Bounds(
                np.minimum(bounds.low, value),
                np.maximum(bounds.high, value),
                np.where(bounds.point == value, value, np.nan),
                bounds.marked(step.mark + axis).number,
            )
            continue
        bounds = _padded(bounds, axis, max(before, 0), max(after, 0), value)
    return bounds


def _padded(bounds: Bounds, axis: int, before: int, after: int, value: float) -> Bounds:
    widths = [(before, after) if k == axis else (0, 0) for k in range(len(bounds.shape))]
    number = numbers_of(np.array(value))[()]
    low, high, point = (
        np.pad(a, widths, constant_values=value) for a in (bounds.low, bounds.high, bounds.point)
    )
    return Bounds(low, high, point, np.pad(bounds.number, widths, constant_values=number))


@transfer("Expand")
def expand(step: Step) -> Bounds:
    """Copies along new axes and axes of size 1."""
    rank = step.site.y.rank - len(step.x.shape)
    return step.x.reshaped(*(1,) * rank, *step.x.shape)


@transfer("Tile")
def tile(step: Step) -> Bounds:
    """Copies of an axis one after the other."""
    bounds, x, y = step.x, step.operand(0), step.site.y
    for axis, size in enumerate(x.shape):
        if y.shape[axis] == size:
            continue
        if y.dynamic[axis] or math.prod(bounds.shape) * (y.shape[axis] // size) > LIMIT:
            bounds = bounds.collapsed([axis]).marked(step.mark)
        elif bounds.shape[axis] > 1:
            copies = [y.shape[axis] // size if k == axis else 1 for k in range(x.rank)]
            bounds = bounds.move(lambda array, copies=copies: np.tile(array, copies))  # type: ignore[misc]
    return bounds


@transfer("DepthToSpace")
def depth_to_space(step: Step) -> Bounds:
    """blocksize^2 channels become the places of one."""
    channels, wide = step.operand(0).shape[1], step.site.y.shape[1]
    bounds = step.x.collapsed([0, 2, 3]).tracked(1, channels)
    crd = step.site.string("mode", "DCR") == "CRD"
    inner = bounds.reshaped(wide, -1) if crd else bounds.reshaped(-1, wide).move(np.transpose)
    return inner.collapsed([1]).reshaped(1, wide, 1, 1)


@transfer("SpaceToDepth")
def space_to_depth(step: Step) -> Bounds:
    """blocksize^2 places of a channel become channels."""
    wide, deep = step.operand(0).shape[1], step.site.y.shape[1]
    bounds = step.x.collapsed([0, 2, 3]).tracked(1, wide).reshaped(1, wide)
    return bounds.tracked(0, deep // wide).reshaped(1, deep, 1, 1)


@transfer("Resize", "Upsample")
def resize(step: Step) -> Bounds | None:
    """Nearest elements, or means of some; cubic interpolation leaves the range."""
    mode = step.site.string("mode", "nearest")
    where = step.site.string("coordinate_transformation_mode", "")
    if mode not in ("nearest", "linear") or where == "tf_crop_and_resize":
        return None
    bounds = step.x.collapsed(resampled(step.site)).marked(step.mark)
    if mode == "nearest":
        return bounds
    low, high = rounded(bounds.low, bounds.high, step.unit or 0.0, 8)
    return settle(low, high, bounds.point, bounds.number)
