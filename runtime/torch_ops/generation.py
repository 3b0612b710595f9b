"""Sampling grids and other operators that compute positions: GridSample, AffineGrid, Col2Im."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import Call, Unsupported, numbers, operator

_MODES = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic",
          "bicubic": "bicubic"}  # fmt: skip


@operator("GridSample")
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    mode = _MODES[call.get("mode", "linear")]
    if mode == "bicubic" and x.ndim != 4:
        raise Unsupported("mode cubic in three dimensions")
    aligned = bool(call.get("align_corners", 0))
    return F.grid_sample(x, grid, mode, call.get("padding_mode", "zeros"), aligned)


@operator("AffineGrid")
def affine_grid(call: Call, theta: Tensor, size: Tensor) -> Tensor:
    return F.affine_grid(theta, numbers(size), bool(call.get("align_corners", 0)))


@operator("Col2Im")
def col2im(call: Call, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    sizes, kernel = numbers(image), numbers(block)
    rank = len(sizes)
    pads = list(call.get("pads") or [0] * (2 * rank))
    if rank != 2 or pads[:2] != pads[2:]:
        raise Unsupported(f"{rank} spatial axes" if rank != 2 else "asymmetric pads")
    dilation, stride = call.get("dilations") or [1, 1], call.get("strides") or [1, 1]
    return F.fold(x, sizes, kernel, list(dilation), pads[:2], list(stride))


@operator("CenterCropPad")
def center_crop_pad(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    axes = call.get("axes", range(x.ndim))
    for axis, wanted in zip(axes, numbers(shape), strict=True):
        size = x.shape[axis]
        if wanted <= size:
            x = x.narrow(axis, (size - wanted) // 2, wanted)
        else:
            sides = list(x.shape)
            parts = []
            for extra in ((wanted - size) // 2, wanted - size - (wanted - size) // 2):
                sides[axis] = extra
                parts.append(torch.zeros(sides, dtype=x.dtype, device=x.device))
            x = torch.cat([parts[0], x, parts[1]], axis)
    return x
