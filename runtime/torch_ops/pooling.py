"""Pooling: windows of the largest, the mean or the p-norm, and the global forms.

torch's own pooling serves the plain forms. In the others the sum over a window is a convolution
with ones, and a mean divides by the number of places that count: those of the input, with
``count_include_pad`` also the stated padding, never what ``ceil_mode`` adds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import Call, Unsupported, operator
from .windows import Windows, pad_sides, windows

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_SUM = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _surplus(call: Call, x: Tensor, w: Windows) -> tuple[int, ...]:
    """What is missing at the end for the last window under ``ceil_mode``. A window that would start
    beyond the input and its first padding is left out."""
    if not call.get("ceil_mode", 0):
        return (0,) * len(w.kernel)
    found = []
    for n, e, s, begin, end in zip(
        x.shape[2:], w.extents, w.strides, w.begins, w.ends, strict=True
    ):
        count = -(-(n + begin + end - e) // s) + 1
        if (count - 1) * s >= n + begin:
            count -= 1
        found.append(max((count - 1) * s + e - (n + begin + end), 0))
    return tuple(found)


def _of_rank(x: Tensor) -> int:
    rank: int = x.ndim - 2
    if rank not in _MAX:
        raise Unsupported(f"{rank} spatial axes")
    return rank


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Any:
    rank = _of_rank(x)
    if call.outputs > 1:
        raise Unsupported("the output Indices")
    w = windows(call, x.shape[2:], call.get("kernel_shape"))
    surplus = _surplus(call, x, w)
    kind = x.dtype
    x = x if x.is_floating_point() else x.float()
    plain = w.symmetric and not any(surplus)
    padding = w.begins
    if not (plain and all(2 * p <= k for p, k in zip(w.begins, w.kernel, strict=True))):
        ends = [a + b for a, b in zip(w.ends, surplus, strict=True)]
        x, padding = pad_sides(x, w.begins, ends, -math.inf), (0,) * rank
    return _MAX[rank](x, w.kernel, w.strides, padding, w.dilations).to(kind)


def _sums(x: Tensor, w: Windows) -> Tensor:
    """The sum over every window of padded data."""
    rank = len(w.kernel)
    ones = torch.ones((1, 1, *w.kernel), dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, 1, *x.shape[2:])
    y = _SUM[rank](flat, ones, None, w.strides, 0, w.dilations)
    return y.reshape([*x.shape[:2], *y.shape[2:]])


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    rank = _of_rank(x)
    w = windows(call, x.shape[2:], call.get("kernel_shape"))
    surplus = _surplus(call, x, w)
    include = bool(call.get("count_include_pad", 0))
    small = all(2 * p <= k for p, k in zip(w.begins, w.kernel, strict=True))
    if w.symmetric and small and not any(surplus) and set(w.dilations) == {1}:
        return _AVERAGE[rank](x, w.kernel, w.strides, w.begins, False, include)
    ends = [a + b for a, b in zip(w.ends, surplus, strict=True)]
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if include:
        counted = pad_sides(pad_sides(ones, w.begins, w.ends, 1.0), (0,) * rank, surplus)
    else:
        counted = pad_sides(ones, w.begins, ends)
    return _sums(pad_sides(x, w.begins, ends), w) / _sums(counted, w)


@operator("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    _of_rank(x)
    w = windows(call, x.shape[2:], call.get("kernel_shape"))
    p = call.get("p", 2)
    ends = [a + b for a, b in zip(w.ends, _surplus(call, x, w), strict=True)]
    return _sums(pad_sides(x, w.begins, ends).abs().pow(p), w).pow(1 / p)


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(call: Call, x: Tensor) -> Tensor:
    axes = list(range(2, x.ndim))
    if call.op == "GlobalAveragePool":
        return x.mean(axes, keepdim=True)
    if call.op == "GlobalMaxPool":
        return x.amax(axes, keepdim=True)
    p = call.get("p", 2)
    return x.abs().pow(p).sum(axes, keepdim=True).pow(1 / p)
