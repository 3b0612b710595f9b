"""Conv and ConvTranspose of one to three spatial axes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .registry import Call, Unsupported, operator
from .windows import pad_sides, windows

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    if rank not in _CONV:
        raise Unsupported(f"{rank} spatial axes")
    w = windows(call, x.shape[2:], weight.shape[2:])
    padding = w.begins
    if not w.symmetric:
        x, padding = pad_sides(x, w.begins, w.ends), (0,) * rank
    group = call.get("group", 1)
    return _CONV[rank](x, weight, bias, w.strides, padding, w.dilations, group)


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """All that the kernel reaches is computed, then cut (or filled up with zeros) to size."""
    rank = x.ndim - 2
    if rank not in _TRANSPOSED:
        raise Unsupported(f"{rank} spatial axes")
    strides = tuple(call.get("strides") or (1,) * rank)
    dilations = tuple(call.get("dilations") or (1,) * rank)
    extra = tuple(call.get("output_padding") or (0,) * rank)
    full = _TRANSPOSED[rank](
        x, weight, None, strides, 0, 0, groups=call.get("group", 1), dilation=dilations
    )
    mode, sizes = call.get("auto_pad", "NOTSET"), call.get("output_shape")
    pads = list(call.get("pads") or (0,) * (2 * rank))
    if mode.startswith("SAME") or sizes:
        wanted = (
            list(sizes)[-rank:]
            if sizes
            else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        )
        total = [n + e - m for n, e, m in zip(full.shape[2:], extra, wanted, strict=True)]
        half = [t // 2 for t in total]
        rest = [t - h for t, h in zip(total, half, strict=True)]
        pads = [*half, *rest] if mode == "SAME_UPPER" else [*rest, *half]
    elif mode == "VALID":
        pads = [0] * (2 * rank)
    begins = [-n for n in pads[:rank]]
    ends = [e - n for e, n in zip(extra, pads[rank:], strict=True)]
    y = pad_sides(full, begins, ends)
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)
