"""Operators that look at a slice as a whole: pooling, reductions, softmax, normalisations.

A mean lies between the bounds of what it is taken of; so does an extreme. An average that counts
padding may be of zeros too. A normalisation's scale of zero leaves its bias, whatever comes in.
"""

from __future__ import annotations

import math

import numpy as np

from ..rules.base import positive_axes
from ..rules.reduction import EXTREMES, SUMS, reduced_axes
from .base import Bounds, Floats, Step, aligned, mix, rounded, settle, transfer
from .elementwise import times


@transfer("MaxPool", "GlobalMaxPool", "AveragePool", "GlobalAveragePool")
def pool(step: Step) -> list[Bounds | None]:
    """Every channel by itself."""
    x, site = step.x.collapsed(range(2, len(step.x.shape))).marked(step.mark), step.site
    if site.node.op_type.endswith("MaxPool"):
        return [x, None]
    if site.integer("count_include_pad", 0) and (
        any(site.integers("pads") or ())
        or site.integer("ceil_mode", 0)
        or site.string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    ):
        point = np.where(x.zero, 0.0, np.nan)
        x = Bounds(np.minimum(x.low, 0), np.maximum(x.high, 0), point, x.number)
    return [_mean_of(x, math.prod(step.operand(0).shape[2:]), step)]


def _mean_of(x: Bounds, count: int, step: Step) -> Bounds:
    return settle(*rounded(x.low, x.high, step.unit or 0.0, count), x.point, x.number)


@transfer("LpPool", "GlobalLpPool")
def norm_pool(step: Step) -> Bounds:
    """Norms are positive; that of zeros is zero."""
    x = step.x.collapsed(range(2, len(step.x.shape))).marked(step.mark)
    return _positive(x)


def _positive(x: Bounds) -> Bounds:
    high = np.where(x.zero, 0.0, np.inf)
    return settle(np.zeros(x.shape), high, np.full(x.shape, np.nan), x.number)


@transfer(*SUMS, *EXTREMES)
def reduce(step: Step) -> Bounds | None:
    """Reduced axes are tracked no more."""
    axes, op = reduced_axes(step.site), step.site.node.op_type
    if axes is None or step.unit is None:
        return None
    x = step.operand(0)
    found = step.x.collapsed(axes).marked(step.mark)
    count = math.prod(x.shape[k] for k in axes)
    if op == "ReduceMean":
        found = _mean_of(found, count, step)
    elif op == "ReduceSum":
        found = _sum(step.x, axes, any(x.dynamic[k] for k in axes), x.shape, step.unit, found)
    elif op in ("ReduceL1", "ReduceL2", "ReduceSumSquare"):
        found = _positive(found)
    elif op not in ("ReduceMax", "ReduceMin"):
        nothing = np.full(found.shape, np.nan)
        found = settle(nothing, nothing, nothing, found.number)
    if step.site.integer("keepdims", 1):
        return found
    return found.reshaped(*(size for k, size in enumerate(found.shape) if k not in axes))


def _sum(
    x: Bounds,
    axes: list[int],
    moves: bool,
    shape: tuple[int, ...],
    unit: float,
    found: Bounds,
) -> Bounds:
    low, high, point = x.low, x.high, x.point
    count = math.prod(shape[k] for k in axes if x.shape[k] == 1)
    if moves:  # as many terms as there may be
        low, high = np.where(low < 0, -np.inf, 0), np.where(high > 0, np.inf, 0)
        point, count = np.where(x.zero, 0.0, np.nan), 1
    with np.errstate(invalid="ignore"):
        low, high, point, below, above = (
            count * array.sum(axis=tuple(axes), keepdims=True)
            for array in (low, high, point, np.abs(low), np.abs(high))
        )
    terms = math.prod(shape[k] for k in axes)
    return settle(*rounded(low, high, unit, terms, (below, above)), point, found.number)


@transfer("Softmax", "LogSoftmax", "Hardmax")
def softmax(step: Step) -> Bounds:
    """Shares of one along the axis, or their logarithms; before opset 13 along all that follow."""
    rank, latest = len(step.x.shape), step.site.opset >= 13
    axis = positive_axes([step.site.integer("axis", -1 if latest else 1)], rank)[0]
    x = step.x.collapsed(range(axis, axis + 1 if latest else rank)).marked(step.mark)
    logarithm = step.site.node.op_type == "LogSoftmax"
    most = 64 * (step.unit or 0.0)
    low = np.full(x.shape, -np.inf if logarithm else 0.0)
    high = np.full(x.shape, most + (not logarithm))
    return settle(low, high, np.full(x.shape, np.nan), x.number)


@transfer("BatchNormalization")
def batch_normalization(step: Step) -> list[Bounds | None]:
    """y = (x - mean) scale / sqrt(variance + epsilon) + bias, channel by channel."""
    site = step.site
    training = site.integer("training_mode", 0) or (site.opset < 14 and len(site.node.outputs) > 1)
    unit, weights = step.unit, [step.weight(k) for k in range(1, 5)]
    arrays = [w for w in weights if w is not None and w.ndim == 1]
    if training or len(arrays) < 4 or unit is None or site.integer("spatial", 1) != 1:
        return []
    scale, bias, mean, variance = arrays
    variance = variance + step.real("epsilon", 1e-5)
    if not (variance > 0).all():
        return []
    factor = scale / np.sqrt(variance)
    rank = site.y.rank
    x = step.x.tracked(1, len(scale)) if rank > 1 else step.x

    def spread(vector: Floats) -> Floats:
        return vector.reshape(1, -1, *(1,) * (rank - 2))

    parameters = [step.inputs[k] for k in range(1, 5)]
    number = x.number
    for bounds in parameters:
        if bounds is not None:
            number = mix(number, bounds.number.reshape(1, -1, *(1,) * (rank - 2)))
    a = spread(factor)
    ends = times((x.low, x.high), (a, a))
    shift = [spread(part) for part in (bias, -mean * factor)]
    sizes = [np.abs(end) + np.abs(shift[0]) + np.abs(shift[1]) for end in ends]
    low, high = (end + shift[0] + shift[1] for end in ends)
    point = np.where(a == 0, 0.0, a * x.point) + shift[0] + shift[1]
    found = settle(*rounded(low, high, unit, 6, sizes), point, mix(number, step.mark))
    return [found]


@transfer("InstanceNormalization")
def instance_normalization(step: Step) -> Bounds | None:
    """Whatever the mean and the variance are, a scale of zero leaves the bias."""
    scale, bias = step.inputs[1], step.inputs[2]
    channels, rank = step.operand(0).shape[1], step.site.y.rank
    if scale is None or bias is None or step.unit is None:
        return None
    x = step.x.collapsed(range(2, rank))
    shape = (1, channels, *(1,) * (rank - 2))
    vectors = [b.along(0, channels).reshaped(*shape) for b in (scale, bias)]
    parts = aligned([x, *vectors], [step.operand(0).shape, shape, shape], rank)
    number = mix(mix(mix(parts[0].number, parts[1].number), parts[2].number), step.mark)
    open_ended = np.full(shape, -np.inf), np.full(shape, np.inf)
    low, high = times(open_ended, (vectors[0].low, vectors[0].high))
    low, high = low + vectors[1].low, high + vectors[1].high
    point = np.where(vectors[0].zero, vectors[1].point, np.nan)
    return settle(low, high, point, number)
