"""Quantising and dequantising: both rise, for a positive scale."""

from __future__ import annotations

from functools import reduce

import numpy as np

from .base import Bounds, Step, aligned, mix, rounded, settle, transfer


@transfer("QuantizeLinear", "DequantizeLinear")
@transfer("QuantizeLinear", "DequantizeLinear", domain="com.microsoft")
def quantize(step: Step) -> Bounds | None:
    """y = (x - zero point) * scale, and back with rounding: both rise, for a positive scale."""
    scale, zero, x = step.inputs[1], step.given(2), step.operand(0)
    assert scale is not None
    if step.site.integer("block_size", 0) or not (scale.low > 0).all() or x.rank == 0:
        return None
    axis = step.site.integer("axis", 1) % x.rank

    def spread(vector: Bounds) -> tuple[Bounds, tuple[int, ...]]:
        """A vector along the axis, as it is broadcast."""
        size = vector.shape[-1] if vector.shape else 1
        shape = tuple(size if k == axis else 1 for k in range(x.rank))
        return vector.reshaped(*shape), shape

    others = [spread(v) for v in (scale, zero) if v is not None and len(v.shape) <= 1]
    if len(others) < 1 + (zero is not None):
        return None
    parts = aligned([step.x, *(v for v, _ in others)], [x.shape, *(s for _, s in others)], x.rank)
    number = reduce(mix, (b.number for b in parts), np.array(step.mark, np.uint64))
    factor, origin = parts[1].point, parts[2].point if zero is not None else np.zeros(())
    low, high, nothing = parts[0].low, parts[0].high, np.full((), np.nan)
    with np.errstate(all="ignore"):
        if step.site.node.op_type == "DequantizeLinear":
            if step.unit is None:
                return None
            low, high = ((end - origin) * factor for end in (low, high))
            point = np.where(low == high, low, nothing)
            return settle(*rounded(low, high, step.unit), point, number)
        if not step.dtype.is_integer():
            return None
        signed = step.dtype.is_signed()
        most = 2.0 ** (step.dtype.bitwidth - signed) - 1
        least = -most - 1 if signed else 0.0
        # The division is rounded, in half precision at worst.
        low, high = rounded(low / factor, high / factor, 2.0**-10)
        low, high = (np.clip(np.round(end) + origin, least, most) for end in (low, high))
        return settle(low, high, nothing, number)
