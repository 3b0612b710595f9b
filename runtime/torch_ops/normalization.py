"""Normalisations over batch, layer, instance, group and neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import Call, Unsupported, axis_of, operator


def _channels(vector: Tensor, x: Tensor) -> Tensor:
    """A vector along axis 1."""
    return vector.reshape(-1, *[1] * (x.ndim - 2))


@operator("BatchNormalization")
def batch_norm(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Any:
    """With ``call.renew`` the batch's own statistics are used, and those of the model follow them
    (in place; they are buffers of the executor then)."""
    if call.get("training_mode", 0) or call.outputs > 1 or not call.get("spatial", 1):
        raise Unsupported("training mode" if call.get("spatial", 1) else "statistics per place")
    return F.batch_norm(x, mean, variance, scale, bias, call.renew, 0.1, call.get("epsilon", 1e-5))


def _outputs(call: Call, x: Tensor, y: Tensor, axes: Sequence[int], epsilon: float) -> Any:
    """The result of a LayerNormalization with the statistics that are asked for."""
    if call.outputs < 2:
        return y
    mean = x.mean(axes, keepdim=True)
    deviation = (x - mean).square().mean(axes, keepdim=True)
    return (y, mean, (deviation + epsilon).rsqrt())[: call.outputs]


@operator("LayerNormalization")
def layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis, epsilon = axis_of(call.get("axis", -1), x.ndim), call.get("epsilon", 1e-5)
    shape = list(x.shape[axis:])
    if list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        y = F.layer_norm(x, shape, scale, bias, epsilon)
    else:
        y = F.layer_norm(x, shape, None, None, epsilon) * scale
        y = y if bias is None else y + bias
    return _outputs(call, x, y, list(range(axis, x.ndim)), epsilon)


def rms(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """``x`` divided by its root mean square along ``axes``."""
    return x * (x.square().mean(axes, keepdim=True) + epsilon).rsqrt()


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Any:
    axis, epsilon = axis_of(call.get("axis", -1), x.ndim), call.get("epsilon", 1e-5)
    if call.outputs > 1:
        raise Unsupported("a second output")
    return rms(x, list(range(axis, x.ndim)), epsilon) * scale


@operator("InstanceNormalization")
def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    axes = list(range(2, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    return rms(centred, axes, call.get("epsilon", 1e-5)) * _channels(scale, x) + _channels(bias, x)


@operator("GroupNormalization")
def group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = call.get("num_groups")
    if call.version < 21:  # one number for each group
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


@operator("LRN")
def local_response(call: Call, x: Tensor) -> Tensor:
    size = call.get("size")
    before, after = (size - 1) // 2, size // 2
    squares = F.pad(x.square(), [*[0, 0] * (x.ndim - 2), before, after])
    total = torch.stack([squares.narrow(1, k, x.shape[1]) for k in range(size)]).sum(0)
    alpha, beta = call.get("alpha", 1e-4), call.get("beta", 0.75)
    return x / (call.get("bias", 1.0) + alpha / size * total).pow(beta)


@operator("LpNormalization")
def lp_norm(call: Call, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(
        x, call.get("p", 2), axis_of(call.get("axis", -1), x.ndim), keepdim=True
    )
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("MeanVarianceNormalization")
def mean_variance(call: Call, x: Tensor) -> Tensor:
    axes = list(call.get("axes", (0, 2, 3)))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)
