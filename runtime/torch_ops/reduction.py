"""Reductions, softmax and its kin, sums along an axis, and the choice of the largest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .registry import Call, axis_of, numbers, operator


def _product(x: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True).to(x.dtype)
    return x


def _mean(x: Tensor, axes: Sequence[int]) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=True)
    count = torch.ones(x.shape, dtype=x.dtype).sum(axes, keepdim=True)
    return torch.div(x.sum(axes, keepdim=True), count, rounding_mode="trunc").to(x.dtype)


def _extreme(x: Tensor, axes: Sequence[int], function: Any, neutral: float) -> Tensor:
    if x.numel():
        y: Tensor = function(x, axes, keepdim=True)
        return y
    sizes = [1 if axis in axes else n for axis, n in enumerate(x.shape)]
    if x.dtype == torch.bool:
        return x.new_full(sizes, neutral > 0)
    return x.new_full(sizes, neutral)


_REDUCTIONS: dict[str, Callable[[Tensor, Sequence[int]], Tensor]] = {
    "ReduceL1": lambda x, axes: x.abs().sum(axes, keepdim=True),
    "ReduceL2": lambda x, axes: x.square().sum(axes, keepdim=True).sqrt(),
    "ReduceLogSum": lambda x, axes: x.sum(axes, keepdim=True).log(),
    "ReduceLogSumExp": lambda x, axes: x.logsumexp(axes, keepdim=True),
    "ReduceMax": lambda x, axes: _extreme(x, axes, torch.amax, -math.inf),
    "ReduceMean": _mean,
    "ReduceMin": lambda x, axes: _extreme(x, axes, torch.amin, math.inf),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes: x.sum(axes, keepdim=True, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes: x.square().sum(axes, keepdim=True, dtype=x.dtype),
}


@operator(*_REDUCTIONS)
def reduction(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = call.get("axes") if axes is None else numbers(axes)
    if not given and call.get("noop_with_empty_axes", 0):
        along: list[int] = []
    else:
        along = [axis_of(axis, x.ndim) for axis in given or range(x.ndim)]
    if along:
        y = _REDUCTIONS[call.op](x, along)
    else:  # over nothing, element by element: as over an axis of size one
        y = _REDUCTIONS[call.op](x.unsqueeze(0), [0]).squeeze(0)
    if call.get("keepdims", 1):
        return y
    return y.reshape([n for axis, n in enumerate(y.shape) if axis not in along])


@operator("ArgMax", "ArgMin")
def arg(call: Call, x: Tensor) -> Tensor:
    axis = axis_of(call.get("axis", 0), x.ndim)
    choose = torch.argmax if call.op == "ArgMax" else torch.argmin
    if call.get("select_last_index", 0):
        return x.shape[axis] - 1 - choose(x.flip(axis), axis, keepdim=bool(call.get("keepdims", 1)))
    # torch does not promise which of equal ones it gives; the first is the first extreme.
    best = x.amax(axis, keepdim=True) if call.op == "ArgMax" else x.amin(axis, keepdim=True)
    return (x == best).to(torch.uint8).argmax(axis, keepdim=bool(call.get("keepdims", 1)))


@operator("TopK")
def top_k(call: Call, x: Tensor, count: Tensor | None = None) -> Any:
    k = call.get("k") if count is None else int(count)
    axis = axis_of(call.get("axis", -1), x.ndim)
    order = torch.sort(x, dim=axis, descending=bool(call.get("largest", 1)), stable=True)
    return order.values.narrow(axis, 0, k), order.indices.narrow(axis, 0, k)


def softmax_axis(call: Call, x: Tensor) -> tuple[Tensor, int]:
    """The data and the axis along which it is normalised; before opset 13 all axes from the
    stated one count as one."""
    axis = axis_of(call.get("axis", -1 if call.version >= 13 else 1), x.ndim)
    if call.version >= 13 or axis == x.ndim - 1:
        return x, axis
    return x.flatten(axis), axis


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    flat, axis = softmax_axis(call, x)
    if call.op == "Hardmax":
        first = (flat == flat.amax(axis, keepdim=True)).to(torch.uint8).argmax(axis, keepdim=True)
        return torch.zeros_like(flat).scatter(axis, first, 1.0).reshape(x.shape)
    function = torch.softmax if call.op == "Softmax" else torch.log_softmax
    return function(flat, axis).reshape(x.shape)


@operator("CumSum", "CumProd")
def cumulated(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    along = axis_of(int(axis), x.ndim)
    if call.get("reverse", 0):
        x = x.flip(along)
    function = torch.cumsum if call.op == "CumSum" else torch.cumprod
    y = function(x, along, dtype=x.dtype)
    if call.get("exclusive", 0):
        neutral = 0 if call.op == "CumSum" else 1
        first = torch.full_like(y.narrow(along, 0, 1), neutral)
        y = torch.cat([first, y.narrow(along, 0, y.shape[along] - 1)], along)
    return y.flip(along) if call.get("reverse", 0) else y
