"""Operators that only move data: Reshape, Transpose, Concat, Slice, Pad and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import Call, Unsupported, axis_of, numbers, operator, together


@operator("Reshape")
def reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    wanted = numbers(shape)
    if not call.get("allowzero", 0):
        wanted = [x.shape[k] if n == 0 else n for k, n in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    axis = axis_of(call.get("axis", 1), x.ndim)
    rows = 1
    for n in x.shape[:axis]:
        rows *= n
    return x.reshape(rows, -1) if x.numel() else x.reshape(rows, x.numel() // max(rows, 1))


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(*call.get("perm", range(x.ndim - 1, -1, -1)))


@operator("Squeeze")
def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = call.get("axes") if axes is None else numbers(axes)
    along = {axis_of(a, x.ndim) for a in given} if given is not None else None
    keep = [n for k, n in enumerate(x.shape) if (n != 1 if along is None else k not in along)]
    return x.reshape(keep)


@operator("Unsqueeze")
def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = list(call.get("axes")) if axes is None else numbers(axes)
    for axis in sorted(axis_of(a, x.ndim + len(given)) for a in given):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(call: Call, *parts: Tensor) -> Tensor:
    return torch.cat(together(*parts), call.get("axis", 1))


@operator("Split")
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Any:
    axis = axis_of(call.get("axis", 0), x.ndim)
    given = call.get("split") if sizes is None else numbers(sizes)
    if not given:
        count = call.get("num_outputs", call.outputs)
        size = -(-x.shape[axis] // count)
        given = [max(min(size, x.shape[axis] - k * size), 0) for k in range(count)]
    return torch.split(x, list(given), axis)


@operator("Slice")
def slice_(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    begin = list(call.get("starts")) if starts is None else numbers(starts)
    end = list(call.get("ends")) if ends is None else numbers(ends)
    given = call.get("axes") if axes is None else numbers(axes)
    along = list(range(len(begin))) if given is None else [axis_of(a, x.ndim) for a in given]
    by = [1] * len(begin) if steps is None else numbers(steps)
    index = [slice(None)] * x.ndim
    for axis, first, last, step in zip(along, begin, end, by, strict=True):
        places = range(*slice(first, last, step).indices(x.shape[axis]))
        if step < 0:  # torch has no negative steps
            x = x.flip(axis)
            start = x.shape[axis] - 1 - places.start
            index[axis] = (
                slice(start, start + len(places) * -step, -step) if places else slice(0, 0)
            )
        else:
            index[axis] = slice(places.start, places.stop, step) if places else slice(0, 0)
    return x[tuple(index)]


@operator("Expand")
def expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    wanted = torch.broadcast_shapes(tuple(x.shape), tuple(numbers(shape)))
    return x.expand(wanted)


@operator("Tile")
def tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(*numbers(repeats)) if x.ndim else x


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    (n, c, h, w), b = x.shape, call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, b)
    y = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // (b * b), h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    (n, c, h, w), b = x.shape, call.get("blocksize")
    y = x.reshape(n, c, h // b, b, w // b, b)
    first = call.get("mode", "DCR") == "CRD"
    y = y.permute(0, 1, 3, 5, 2, 4) if first else y.permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * b * b, h // b, w // b)


@operator("Pad")
def pad(
    call: Call,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    given = list(call.get("pads", call.get("paddings", ()))) if pads is None else numbers(pads)
    along = list(range(x.ndim)) if axes is None else [axis_of(a, x.ndim) for a in numbers(axes)]
    fill = call.get("value", 0.0) if value is None else value.reshape(-1)[0].item()
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for k, axis in enumerate(along):
        begins[axis], ends[axis] = given[k], given[k + len(along)]
    mode = call.get("mode", "constant")
    if mode == "constant":
        flat = [n for pair in zip(reversed(begins), reversed(ends), strict=True) for n in pair]
        while flat[-2:] == [0, 0]:
            flat = flat[:-2]
        return F.pad(x, flat, value=fill) if flat else x
    for axis in range(x.ndim):
        if begins[axis] or ends[axis]:
            places = torch.arange(-begins[axis], x.shape[axis] + ends[axis])
            x = x.index_select(axis, _mirrored(places, x.shape[axis], mode).to(x.device))
    return x


def _mirrored(places: Tensor, size: int, mode: str) -> Tensor:
    """Places beyond an axis as places on it."""
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places.remainder(size)
    if mode != "reflect":
        raise Unsupported(f"mode {mode}")
    period = max(2 * (size - 1), 1)
    folded = places.remainder(period)
    return torch.where(folded < size, folded, period - folded)


@operator("ReverseSequence")
def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    batch, time = call.get("batch_axis", 1), call.get("time_axis", 0)
    places = torch.arange(x.shape[time], device=x.device).unsqueeze(0)
    ends = lengths.to(x.device).unsqueeze(1)
    index = torch.where(places < ends, ends - 1 - places, places)
    return x.gather(time, spread(index, (batch, time), x.shape))


def spread(index: Tensor, axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """A matrix laid along two axes of ``shape`` and repeated along the others."""
    first, second = axes
    index = index if first < second else index.t()
    sizes = [n if k in axes else 1 for k, n in enumerate(shape)]
    return index.reshape(sizes).expand(*shape)
