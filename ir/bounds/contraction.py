"""Convolutions and matrix products.

With constant weights W, an output is y_o = b_o + sum_k W_ok x_k, so that with l <= x <= h

    sum_k (W+_ok l_k + W-_ok h_k)  <=  y_o - b_o  <=  sum_k (W+_ok h_k + W-_ok l_k),

W+ and W- being the positive and the negative part. All places under a kernel have the same bounds:
the parts are summed over the kernel first. Where an output may look beyond the picture, x may also
be zero. Outputs are equal where weights, biases and the inputs that they read are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np

from ..rules.base import Site
from .base import (
    Bounds,
    Floats,
    Numbers,
    Step,
    aligned,
    bits_of,
    mix,
    mix_along,
    rounded,
    settle,
    transfer,
)
from .elementwise import times


def sees_padding(site: Site) -> bool:
    """Whether some output of a convolution may read fewer places than the kernel has."""
    node, kernel = site.node, site.inputs[1]
    assert kernel is not None
    taps = kernel.shape[2:]
    if node.op_type == "ConvTranspose":
        strides, added = site.integers("strides") or (), site.integers("output_padding") or ()
        plain = all(size == 1 for size in (*taps, *strides)) and not any(added)
        return not plain or site.integers("output_shape") is not None or _pads(site, taps)
    return _pads(site, taps)


def _pads(site: Site, taps: Sequence[int]) -> bool:
    if site.string("auto_pad", "NOTSET") in ("NOTSET", "VALID"):
        return any(site.integers("pads") or ())
    return any(size > 1 for size in taps)


def matrices(site: Site, weight: Floats, side: int = 1) -> Floats | None:
    """The weight of a node, its input number ``side``, as float64[groups, outputs, inputs, taps];
    None if it is no matrix, or the node of another kind."""
    op, groups = site.node.op_type, site.integer("group", 1)
    if op == "Conv":
        outputs, inputs = weight.shape[:2]
        return weight.reshape(groups, outputs // groups, inputs, -1)
    if op == "ConvTranspose":
        inputs, outputs = weight.shape[:2]
        parts = weight.reshape(groups, inputs // groups, outputs, -1)
        return np.swapaxes(parts, 1, 2)
    if op == "Gemm" and weight.ndim == 2 and side == 1:
        alpha = site.node.attributes.get_float("alpha", 1.0)
        turned = weight if site.integer("transB", 0) else weight.T
        return alpha * turned[None, :, :, None]
    if op == "MatMul" and weight.ndim == 2:
        return (weight.T if side == 1 else weight)[None, :, :, None]
    return None


def weighted(x: Bounds, weight: Floats, padded: bool, unit: float, bias: Bounds | None) -> Bounds:
    """What is known of the outputs: arrays of shape (outputs,), from ``x``, known for each input
    channel, the weight as of `matrices` and the bias."""
    groups, _, inputs, taps = weight.shape
    terms = inputs * taps + 1
    x = x.reshaped(groups, inputs)
    plus, minus = (part(weight, 0).sum(-1) for part in (np.maximum, np.minimum))
    low, high, point = x.low, x.high, x.point
    if padded:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        point = np.where(x.zero, 0.0, np.nan)
    open_low, open_high = np.isinf(low).astype(np.float64), np.isinf(high).astype(np.float64)
    low, high = np.where(np.isinf(low), 0, low), np.where(np.isinf(high), 0, high)

    def dot(matrix: Floats, vector: Floats) -> Floats:
        return np.asarray(np.matmul(matrix, vector[..., None])[..., 0])

    with np.errstate(invalid="ignore"):
        least = dot(plus, low) + dot(minus, high)
        most = dot(plus, high) + dot(minus, low)
        sizes = (
            dot(plus, np.abs(low)) - dot(minus, np.abs(high)),
            dot(plus, np.abs(high)) - dot(minus, np.abs(low)),
        )
        least = np.where(dot(plus, open_low) - dot(minus, open_high) > 0, -np.inf, least)
        most = np.where(dot(plus, open_high) - dot(minus, open_low) > 0, np.inf, most)
        known = ~np.isnan(point)
        exact = dot(plus + minus, np.where(known, point, 0.0))
        exact = np.where(dot(plus - minus, (~known).astype(np.float64)) > 0, np.nan, exact)
    read = mix(x.number[:, None, :, None], np.arange(inputs * taps).reshape(inputs, taps))
    number = mix(bits_of(weight), read).sum(axis=(2, 3), dtype=np.uint64)
    least, most, exact, *sizes_ = (a.reshape(-1) for a in (least, most, exact, *sizes))
    number = number.reshape(-1)
    if bias is not None:
        least, most, exact = least + bias.low, most + bias.high, exact + bias.point
        sizes_ = [sizes_[0] + np.abs(bias.low), sizes_[1] + np.abs(bias.high)]
        number = mix(number, bias.number)
    return settle(*rounded(least, most, unit, terms, sizes_), exact, number)


@transfer("Conv", "ConvTranspose")
def convolution(step: Step) -> Bounds | None:
    """Channels of X [N, C, ...] to channels of Y."""
    weight, rank = step.weight(1), step.site.y.rank
    matrix = None if weight is None else matrices(step.site, weight)
    if matrix is None or step.unit is None:
        return None
    outputs = matrix.shape[0] * matrix.shape[1]
    bias = step.given(2)
    found = weighted(
        step.x.along(1, step.operand(0).shape[1]),
        matrix,
        sees_padding(step.site),
        step.unit,
        None if bias is None else bias.along(0, outputs),
    )
    return found.marked(step.mark).reshaped(1, outputs, *(1,) * (rank - 2))


@transfer("Gemm")
def gemm(step: Step) -> Bounds | None:
    """alpha A' B' + beta C, with B constant."""
    weight = step.weight(1)
    matrix = None if weight is None else matrices(step.site, weight)
    if matrix is None or step.unit is None:
        return None
    outputs, bias = matrix.shape[1], step.given(2)
    if bias is not None:
        shape = step.operand(2).shape
        beta = step.real("beta", 1.0)
        if len(shape) and shape[-1] == outputs:
            bias = bias.along(len(shape) - 1, outputs)
        else:  # one number for all columns, though perhaps not for all rows
            bias = bias.collapsed(range(len(shape))).reshaped(1)
        ends = times((bias.low, bias.high), (np.array(beta), np.array(beta)))
        bias = Bounds(*rounded(*ends, step.unit), beta * bias.point, bias.number)
    axis = 0 if step.site.integer("transA", 0) else 1
    x = step.x.along(axis, step.operand(0).shape[axis])
    return weighted(x, matrix, False, step.unit, bias).marked(step.mark).reshaped(1, outputs)


@transfer("MatMul")
def matmul(step: Step) -> Bounds | None:
    """A constant matrix on either side; else the product of what is known of both."""
    a, b, y = step.operand(0), step.operand(1), step.site.y
    if step.unit is None or min(a.rank, b.rank) < 2:
        return None
    side = 1 if b.rank == 2 and b.constant else 0 if a.rank == 2 and a.constant else None
    weight = None if side is None else step.weight(side)
    matrix = None if weight is None or side is None else matrices(step.site, weight, side)
    if matrix is not None and side is not None:
        data, operand = step.inputs[1 - side], step.operand(1 - side)
        assert data is not None
        axis = operand.rank - 1 if side == 1 else operand.rank - 2
        found = weighted(data.along(axis, operand.shape[axis]), matrix, False, step.unit, None)
        shape = [1] * y.rank
        shape[y.rank - 1 if side == 1 else y.rank - 2] = matrix.shape[1]
        return found.marked(step.mark).reshaped(*shape)
    batch = y.rank - 2
    labels = [*range(batch - a.rank + 2, batch), batch, batch + 2]
    others = [*range(batch - b.rank + 2, batch), batch + 2, batch + 1]
    return product(step, [labels, others], list(range(batch + 2)))


@transfer("Einsum")
def einsum(step: Step) -> Bounds | None:
    """Two operands without diagonals and ellipses."""
    equation = step.site.string("equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2 or "." in equation or step.unit is None:
        return None
    if any(len(set(term)) < len(term) for term in (*terms, result)):
        return None
    number = {letter: k for k, letter in enumerate(dict.fromkeys(result + left.replace(",", "")))}
    return product(step, [[number[c] for c in term] for term in terms], list(range(len(result))))


def product(step: Step, labels: Sequence[Sequence[int]], result: Sequence[int]) -> Bounds:
    """The sum over all labels that are not in ``result``, which are the first ones, of the product
    of two operands whose axes bear ``labels``."""
    count = max(*labels[0], *labels[1]) + 1
    parts, shapes, sizes = [], [], [1] * count
    moving: set[int] = set()
    for index, own in enumerate(labels):
        bounds, operand = step.inputs[index], step.operand(index)
        assert bounds is not None
        shape, order = [1] * count, np.argsort(own)
        for axis, label in enumerate(own):
            shape[label] = operand.shape[axis]
            sizes[label] = max(sizes[label], operand.shape[axis])
            if operand.dynamic[axis]:
                moving.add(label)
        turned = bounds.move(lambda array, order=order: array.transpose(order))  # type: ignore[misc]
        full = [1] * count
        for axis, label in enumerate(sorted(own)):
            full[label] = turned.shape[axis]
        parts.append(turned.reshaped(*full))
        shapes.append(shape)
    a, b = aligned(parts, shapes, count)
    summed = [label for label in range(count) if label not in result]
    ends = times((a.low, a.high), (b.low, b.high))
    point = np.where(a.zero | b.zero, 0.0, a.point * b.point)
    number: Numbers = mix(mix(a.number, b.number), step.mark)
    tracked = np.broadcast_shapes(a.shape, b.shape)
    low, high, point = (np.broadcast_to(array, tracked) for array in (*ends, point))
    number = np.broadcast_to(number, tracked)
    times_ = math.prod(sizes[k] for k in summed if tracked[k] == 1)
    if any(k in moving for k in summed):  # as many terms as there may be
        low = np.where(low < 0, -np.inf, np.minimum(low, 0))
        high = np.where(high > 0, np.inf, np.maximum(high, 0))
        point = np.where((low == 0) & (high == 0), 0.0, np.nan)
        times_ = 1
    below, above = np.abs(low), np.abs(high)
    with np.errstate(invalid="ignore"):
        low, high, point, below, above = (
            array.sum(axis=tuple(summed), keepdims=True) * times_
            for array in (low, high, point, below, above)
        )
    number = reduce(mix_along, summed, number)
    terms = math.prod(sizes[k] for k in summed)
    assert step.unit is not None
    low, high = rounded(low, high, step.unit, terms, (below, above))
    return settle(low, high, point, number).reshaped(*low.shape[: len(result)])
