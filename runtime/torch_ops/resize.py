"""Resize and Upsample: interpolation axis by axis.

Output place ``o`` of an axis reads input place ``x(o)``, which the coordinate transformation gives;
nearest takes one place, linear two, cubic four, with weights that depend on ``x(o)`` alone. Places
and weights are computed in float64 and fetched by index, so gradients pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import Call, Unsupported, axis_of, numbers, operator

Places = npt.NDArray[np.float64]


def _half_pixel_symmetric(o: Places, scale: float, n: int, m: int) -> Places:
    adjusted = m / (scale * n)
    return n / 2 * (1 - adjusted) + (o + 0.5) / scale - 0.5


_COORDINATES: dict[str, Callable[[Places, float, int, int], Places]] = {
    "align_corners": lambda o, s, n, m: o * ((n - 1) / (m - 1)) if m > 1 else o * 0,
    "asymmetric": lambda o, s, n, m: o / s,
    "half_pixel": lambda o, s, n, m: (o + 0.5) / s - 0.5,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": lambda o, s, n, m: (o + 0.5) / s - 0.5 if m > 1 else o * 0,
}

_NEAREST: dict[str, Callable[[Places], Places]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@operator("Resize")
def resize(call: Call, x: Tensor, *inputs: Tensor | None) -> Tensor:
    if call.version < 11:
        return upsample(call, x, inputs[0])
    scales, sizes = ([*inputs, None, None, None])[1:3]
    if call.get("antialias", 0):
        raise Unsupported("antialias")
    axes = [axis_of(a, x.ndim) for a in call.get("axes") or range(x.ndim)]
    if sizes is not None and sizes.numel():
        wanted = numbers(sizes)
        factors = [m / x.shape[a] for a, m in zip(axes, wanted, strict=True)]
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            best = min(factors) if policy == "not_larger" else max(factors)
            wanted = [int(best * x.shape[a] + 0.5) for a in axes]
            factors = [best] * len(axes)
    else:
        assert scales is not None
        factors = numbers(scales)
        wanted = [int(np.floor(x.shape[a] * s)) for a, s in zip(axes, factors, strict=True)]
    return _resized(call, x, axes, factors, wanted)


@operator("Upsample")
def upsample(call: Call, x: Tensor, scales: Tensor | None = None) -> Tensor:
    factors = list(call.get("scales")) if scales is None else numbers(scales)
    wanted = [int(np.floor(n * s)) for n, s in zip(x.shape, factors, strict=True)]
    plain = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    mode = call.get("mode", "nearest")
    old = Call(call.op, 11, 1, {"mode": "linear" if mode == "bilinear" else mode, **plain})
    return _resized(old, x, list(range(x.ndim)), factors, wanted)


def _resized(call: Call, x: Tensor, axes: Any, factors: Any, wanted: Any) -> Tensor:
    for axis, scale, size in zip(axes, factors, wanted, strict=True):
        if size != x.shape[axis] or scale != 1:
            x = _along(call, x, axis, scale, size)
    return x


def _along(call: Call, x: Tensor, axis: int, scale: float, size: int) -> Tensor:
    n = x.shape[axis]
    name = call.get("coordinate_transformation_mode", "half_pixel")
    if name not in _COORDINATES:
        raise Unsupported(f"coordinate_transformation_mode {name}")
    places = _COORDINATES[name](np.arange(size, dtype=np.float64), scale, n, size)
    mode = call.get("mode", "nearest")
    if mode == "nearest":
        rounded = _NEAREST[call.get("nearest_mode", "round_prefer_floor")](places)
        return _fetch(x, axis, rounded.clip(0, n - 1).astype(np.int64))
    first = np.floor(places)
    rest = places - first
    offsets: tuple[int, ...]
    if mode == "linear":
        offsets, weights = (0, 1), np.stack([1 - rest, rest])
    elif mode == "cubic":
        offsets, weights = (-1, 0, 1, 2), _cubic(rest, call.get("cubic_coeff_a", -0.75))
    else:
        raise Unsupported(f"mode {mode}")
    total: Tensor | None = None
    if call.get("exclude_outside", 0):
        inside = np.stack([(first + k >= 0) & (first + k < n) for k in offsets])
        weights = np.where(inside, weights, 0)
        weights = weights / weights.sum(0)
    for offset, weight in zip(offsets, weights, strict=True):
        part = _fetch(x, axis, (first + offset).clip(0, n - 1).astype(np.int64))
        factor = torch.from_numpy(weight).to(x.dtype).to(x.device)
        part = part * factor.reshape(-1, *[1] * (x.ndim - 1 - axis))
        total = part if total is None else total + part
    assert total is not None
    return total


def _fetch(x: Tensor, axis: int, index: npt.NDArray[np.int64]) -> Tensor:
    """The places along an axis; whole repetitions of image rows and columns go by torch's own
    interpolation, whose gradient costs less."""
    times, left = divmod(index.size, x.shape[axis])
    whole = not left and x.is_floating_point() and x.ndim == 4 and axis >= 2
    if whole and np.array_equal(index, np.arange(index.size) // max(times, 1)):
        return F.interpolate(x, scale_factor=[times, 1] if axis == 2 else [1, times])
    return x.index_select(axis, torch.from_numpy(index).to(x.device))


def _cubic(t: Places, a: float) -> Places:
    """Keys 1981, "Cubic convolution interpolation": weights of the four places around."""

    def near(d: Places) -> Places:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Places) -> Places:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)])
