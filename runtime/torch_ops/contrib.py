"""Operators of ONNX Runtime's own domain that fused exports hold."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .normalization import rms
from .registry import Call, Unsupported, operator

MICROSOFT = "com.microsoft"


@operator("Gelu", "BiasGelu", domain=MICROSOFT)
def gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias)


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(call: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(call.get("alpha", 1.702) * x)


@operator("BiasAdd", domain=MICROSOFT)
def bias_add(call: Call, x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    return x + bias + skip


@operator("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(call: Call, x: Tensor, bias: Tensor) -> Tensor:
    left, right = (x + bias).chunk(2, -1)
    return left * F.gelu(right)


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(
    call: Call,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    bias: Tensor | None = None,
) -> Any:
    total = x + skip if bias is None else x + skip + bias
    y = F.layer_norm(total, scale.shape, scale, shift, call.get("epsilon", 1e-12))
    return _with_sum(call, y, total)


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_norm(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Any:
    total = x + skip if bias is None else x + skip + bias
    return _with_sum(call, rms(total, [-1], call.get("epsilon", 1e-12)) * scale, total)


def _with_sum(call: Call, y: Tensor, total: Tensor) -> Any:
    """The outputs Y, (mean, inverse deviation: of no use to inference) and the sum."""
    if call.outputs in (2, 3):
        raise Unsupported("the outputs mean and inv_std_var")
    return y if call.outputs < 2 else (y, None, None, total)
