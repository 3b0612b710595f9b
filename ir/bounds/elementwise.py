"""Elementwise operators: equal operands give equal results, and bounds follow for the usual ones.

Sums, products and quotients follow interval arithmetic (Moore 1966), where zero times an infinite
bound is zero, since every value is finite.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np

from ..rules.elementwise import NARY, UNARY
from . import functions
from .base import Bounds, Floats, Numbers, Step, aligned, mix, rounded, settle, transfer, unknown
from .functions import APPROXIMATE, Three

Interval = tuple[Floats, Floats]


@transfer(*UNARY, *NARY, "Identity")
def elementwise(step: Step) -> Bounds | None:
    """Equal operands give equal results; bounds as the operator allows."""
    given = [k for k, bounds in enumerate(step.inputs) if bounds is not None]
    operands = [step.inputs[k] for k in given]
    shapes = [step.operand(k).shape for k in given]
    parts = aligned([b for b in operands if b is not None], shapes, step.site.y.rank)
    number = reduce(mix, (b.number for b in parts), np.array(step.mark, np.uint64))
    op = step.site.node.op_type
    nothing = unknown(step.site.y.rank, step.dtype, step.mark)
    found: Three | None = None
    if step.unit is not None or op == "Cast":
        with np.errstate(all="ignore"):
            if op in _NARY:
                found = _NARY[op](parts, step.unit or 0)
            elif op in functions.UNARY:
                found = functions.UNARY[op](parts[0], step)
    if found is None:
        found = nothing.low, nothing.high, nothing.point
    return settle(*found, _shaped(number, parts))


def _shaped(number: Numbers, parts: list[Bounds]) -> Numbers:
    return np.broadcast_to(number, np.broadcast_shapes(*(b.shape for b in parts)))


@transfer("Dropout")
def dropout(step: Step) -> list[Bounds | None]:
    """The identity in inference."""
    training = step.given(2)
    return [] if training is not None and not training.zero.all() else [step.x, None]


# -- several operands -----------------------------------------------------------------------------


def times(a: Interval, b: Interval) -> Interval:
    """The product of two intervals; zero times infinity is zero."""
    with np.errstate(invalid="ignore", over="ignore"):
        products = [np.where((x == 0) | (y == 0), 0.0, x * y) for x in a for y in b]
    return reduce(np.minimum, products), reduce(np.maximum, products)


def _point_times(a: Bounds, b: Bounds) -> Floats:
    return np.asarray(np.where(a.zero | b.zero, 0.0, a.point * b.point))


def _sum(parts: list[Bounds], unit: float) -> Three:
    low, high, point = (reduce(np.add, arrays) for arrays in _columns(parts))
    sizes = [reduce(np.add, map(np.abs, arrays)) for arrays in _columns(parts)[:2]]
    if len(parts) <= 2:  # rounded once, which keeps the order of results
        return *rounded(low, high, unit), point
    return *rounded(low, high, unit, len(parts), sizes), point


def _columns(parts: list[Bounds]) -> tuple[list[Floats], list[Floats], list[Floats]]:
    return [b.low for b in parts], [b.high for b in parts], [b.point for b in parts]


def _sub(parts: list[Bounds], unit: float) -> Three:
    a, b = parts
    return *rounded(a.low - b.high, a.high - b.low, unit), a.point - b.point


def _mul(parts: list[Bounds], unit: float) -> Three:
    a, b = parts
    return *rounded(*times((a.low, a.high), (b.low, b.high)), unit), _point_times(a, b)


def _div(parts: list[Bounds], unit: float) -> Three:
    a, b = parts
    away = (b.low > 0) | (b.high < 0)
    inverse = np.where(away, 1 / b.high, -np.inf), np.where(away, 1 / b.low, np.inf)
    low, high = rounded(*times((a.low, a.high), inverse), unit, 2)
    low, high = np.where(away, low, -np.inf), np.where(away, high, np.inf)
    point = np.where(a.zero & away, 0.0, a.point / b.point)
    return low, high, np.where(away, point, np.nan)


def _mean(parts: list[Bounds], unit: float) -> Three:
    low, high, point = _sum(parts, unit)
    count = float(len(parts))
    return *rounded(low / count, high / count, unit), point / count


def _max(parts: list[Bounds], _: float) -> Three:
    low, high, point = (reduce(np.maximum, arrays) for arrays in _columns(parts))
    return low, high, point


def _min(parts: list[Bounds], _: float) -> Three:
    low, high, point = (reduce(np.minimum, arrays) for arrays in _columns(parts))
    return low, high, point


def _prelu(parts: list[Bounds], unit: float) -> Three:
    x, slope = parts
    left = np.minimum(x.low, 0), np.minimum(x.high, 0)
    low, high = rounded(*times(left, (slope.low, slope.high)), unit)
    point = np.where(x.point < 0, x.point * slope.point, x.point)
    return low + np.maximum(x.low, 0), high + np.maximum(x.high, 0), point


def _where(parts: list[Bounds], _: float) -> Three:
    a, b = parts[1:]
    point = np.where(a.point == b.point, a.point, np.nan)
    return np.minimum(a.low, b.low), np.maximum(a.high, b.high), point


def _pow(parts: list[Bounds], unit: float) -> Three | None:
    """Squares only: other powers are not worth their cases."""
    x, exponent = parts
    if not (exponent.point == 2).all():
        return None
    size = np.maximum(np.abs(x.low), np.abs(x.high))
    least = np.maximum(np.maximum(x.low, -x.high), 0)
    return *rounded(least * least, size * size, unit, APPROXIMATE), x.point * x.point


_NARY: dict[str, Callable[[list[Bounds], float], Three | None]] = {
    "Add": _sum,
    "Sum": _sum,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Mean": _mean,
    "Max": _max,
    "Min": _min,
    "PRelu": _prelu,
    "Where": _where,
    "Pow": _pow,
}
