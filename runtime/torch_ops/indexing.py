"""Gather and Scatter in all their forms, OneHot, Trilu, Compress, NonZero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .registry import Call, axis_of, numbers, operator

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _from_front(index: Tensor, size: int) -> Tensor:
    """Indices as int64, counted from the front."""
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


@operator("Gather")
def gather(call: Call, x: Tensor, index: Tensor) -> Tensor:
    axis = axis_of(call.get("axis", 0), x.ndim)
    index = _from_front(index.to(x.device), x.shape[axis])
    y = x.index_select(axis, index.reshape(-1))
    return y.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, index: Tensor) -> Tensor:
    axis = axis_of(call.get("axis", 0), x.ndim)
    return x.gather(axis, _from_front(index.to(x.device), x.shape[axis]))


@operator("Scatter", "ScatterElements")
def scatter_elements(call: Call, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    axis = axis_of(call.get("axis", 0), x.ndim)
    index, updates = _from_front(index.to(x.device), x.shape[axis]), updates.to(x.device)
    mode = call.get("reduction", "none")
    if mode == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCE[mode], include_self=True)


def _places(index: Tensor, batch: int, shape: torch.Size) -> tuple[Tensor, ...]:
    """The last axis of an index tensor as one index tensor for each axis that it names; the
    first ``batch`` axes count up."""
    depth = index.shape[-1]
    found: list[Tensor] = []
    for k in range(batch):
        sizes = [shape[k] if j == k else 1 for j in range(index.ndim - 1)]
        found.append(torch.arange(shape[k], device=index.device).reshape(sizes))
    for k in range(depth):
        found.append(_from_front(index[..., k], shape[batch + k]))
    return tuple(found)


@operator("GatherND")
def gather_nd(call: Call, x: Tensor, index: Tensor) -> Tensor:
    return x[_places(index.to(x.device), call.get("batch_dims", 0), x.shape)]


@operator("ScatterND")
def scatter_nd(call: Call, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    index, updates = index.to(x.device), updates.to(x.device)
    depth = index.shape[-1]
    places = _places(index, 0, x.shape)
    rows = torch.zeros(index.shape[:-1], dtype=torch.int64, device=x.device)
    for place, size in zip(places, x.shape[:depth], strict=True):
        rows = rows * size + place
    flat = x.reshape(-1, *x.shape[depth:])
    rows, values = rows.reshape(-1), updates.reshape(-1, *x.shape[depth:])
    mode = call.get("reduction", "none")
    if mode == "none":
        y = flat.index_put((rows,), values)
    else:
        index = rows.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
        y = flat.scatter_reduce(0, index, values, _REDUCE[mode], include_self=True)
    return y.reshape(x.shape)


@operator("OneHot")
def one_hot(call: Call, index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    size = int(depth.reshape(-1)[0])
    axis = axis_of(call.get("axis", -1), index.ndim + 1)
    places = _from_front(index, size).unsqueeze(axis)
    classes = torch.arange(size, device=index.device)
    hot = places == classes.reshape(-1, *[1] * (index.ndim - axis))
    off, on = values.to(index.device)
    return torch.where(hot, on, off)


@operator("Trilu")
def trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if call.get("upper", 1) else x.tril(diagonal)


@operator("Compress")
def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    axis = call.get("axis")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis_of(axis, x.ndim))
    chosen = [k for k, flag in enumerate(numbers(condition)) if flag]
    return x.index_select(axis, torch.tensor(chosen, dtype=torch.int64, device=x.device))


@operator("NonZero")
def non_zero(call: Call, x: Tensor) -> Any:
    return torch.nonzero(x).t()
