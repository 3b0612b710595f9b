"""Functions of one number: what bounds become.

A function that rises takes bounds to bounds; one that falls and then rises (x times a gate: GELU,
Swish, HardSwish, Mish) is smallest at its valley. A runtime computes exponentials and the like only
approximately: their bounds are widened by `APPROXIMATE` roundings. Where a function is flat (a
saturated sigmoid), both bounds round to the same number, and that is a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as oir

from .base import Bounds, Floats, Step, rounded

APPROXIMATE = 64
"""By how many roundings at 1, and of the result, a computed exponential may be wrong."""

Function = Callable[[Floats, Step], Floats]
Three = tuple[Floats, Floats, Floats]
"""Lower bounds, upper bounds, points."""


def _error_function(x: Floats) -> Floats:
    from scipy.special import erf

    return np.asarray(erf(x))


def _sigmoid(x: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(x))


def _softplus(x: Floats) -> Floats:
    return np.asarray(np.logaddexp(0.0, x))


def _elu(x: Floats, alpha: float, gamma: float = 1.0) -> Floats:
    return np.asarray(gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))))


def _gated(gate: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    return lambda x: np.asarray(np.where(np.isneginf(x), 0.0, x * gate(x)))


def _clip(x: Floats, step: Step) -> Floats:
    low, high = _limits(step)
    return np.asarray(np.minimum(np.maximum(x, low), high))


def _limits(step: Step) -> tuple[Floats, Floats]:
    """The limits of a Clip, NaN where one is not known."""
    found = []
    for index, name, open_end in ((1, "min", -np.inf), (2, "max", np.inf)):
        operand = step.given(index)
        if operand is None:
            found.append(np.array(step.real(name, open_end)))
        else:
            known = operand.low.size == 1 and (operand.low == operand.high).all()
            found.append(operand.low.reshape(()) if known else np.array(np.nan))
    return found[0], found[1]


EXACT: dict[str, Function] = {
    "Relu": lambda x, _: np.maximum(x, 0),
    "Clip": _clip,
    "Identity": lambda x, _: x,
    "ThresholdedRelu": lambda x, step: np.where(x > step.real("alpha", 1.0), x, 0),
    "Ceil": lambda x, _: np.ceil(x),
    "Floor": lambda x, _: np.floor(x),
    "Round": lambda x, _: np.round(x),
    "Sign": lambda x, _: np.sign(x),
}
"""Functions that never fall and are computed without rounding."""

CONTINUOUS = frozenset({"Relu", "Clip", "Identity"})
"""Those that take what is nearly a number to what is nearly its image."""

RISING: dict[str, Function] = {
    "Sigmoid": lambda x, _: _sigmoid(x),
    "Tanh": lambda x, _: np.tanh(x),
    "Erf": lambda x, _: _error_function(x),
    "Exp": lambda x, _: np.exp(x),
    "Atan": lambda x, _: np.arctan(x),
    "Softplus": lambda x, _: _softplus(x),
    "Softsign": lambda x, _: np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x))),
    "Sqrt": lambda x, _: np.sqrt(np.maximum(x, 0)),
    "LeakyRelu": lambda x, step: np.where(x > 0, x, step.real("alpha", 0.01) * x),
    "Elu": lambda x, step: _elu(x, step.real("alpha", 1.0)),
    "Celu": lambda x, step: _elu(x / step.real("alpha", 1.0), 1.0, step.real("alpha", 1.0)),
    "Selu": lambda x, step: _elu(
        x,
        step.real("alpha", 1.67326319217681884765625),
        step.real("gamma", 1.05070102214813232421875),
    ),
}
"""Functions that never fall, where the attributes let them (see `_rises`)."""

_ABSOLUTE = frozenset({"Sigmoid", "Exp", "Softplus", "Elu", "Celu", "Selu", "Tanh", "Erf"})
"""What is wrong by roundings at 1 even where it is small."""

VALLEYS: dict[str, tuple[float, Callable[[Floats], Floats]]] = {
    "HardSwish": (-1.5, _gated(lambda x: np.clip(x / 6 + 0.5, 0, 1))),
    "Gelu": (-0.751791524693564, _gated(lambda x: 0.5 + 0.5 * _error_function(x / math.sqrt(2)))),
    "Swish": (-1.278464542761074, _gated(_sigmoid)),
    "Mish": (-1.192431281, _gated(lambda x: np.tanh(_softplus(x)))),
}
"""Functions that fall up to a place, then rise, with that place."""


def _rises(step: Step) -> bool:
    return all(step.real(name, 1.0) >= 0 for name in ("alpha", "gamma"))


def _usual(step: Step) -> bool:
    """Whether the attributes are those that the valley belongs to."""
    if step.site.node.op_type == "Gelu":
        return step.site.string("approximate", "none") == "none"
    return step.real("alpha", 1.0) == 1.0


def _unary(op: str) -> Callable[[Bounds, Step], Three | None]:
    def apply(x: Bounds, step: Step) -> Three | None:
        unit = step.unit or 0.0
        if op in EXACT and _rises(step):
            function = EXACT[op]
            point = function(x.point, step) if op in CONTINUOUS else np.full(x.shape, np.nan)
            return function(x.low, step), function(x.high, step), point
        if op in RISING and _rises(step):
            low, high = (RISING[op](bound, step) for bound in (x.low, x.high))
            point = RISING[op](x.point, step)
            return _approximate(op, x, low, high, point, unit)
        if op in VALLEYS and _usual(step):
            place, function_ = VALLEYS[op]
            low = function_(np.clip(place, x.low, x.high))
            high = np.maximum(function_(x.low), function_(x.high))
            return _approximate(op, x, low, high, function_(x.point), unit)
        return None

    return apply


def _approximate(
    op: str, x: Bounds, low: Floats, high: Floats, point: Floats, unit: float
) -> Three:
    """Widened by what a computed function may be wrong; flat pieces are points."""
    size = np.maximum(np.abs(low), np.abs(high))
    flat = high - low <= unit * size
    point = np.where(flat & np.isnan(point), high, point)
    fixed = x.zero & (low == 0) & (high == 0)
    slack = np.where(fixed, 0, APPROXIMATE * unit * (size + (op in _ABSOLUTE or op in VALLEYS)))
    slack = np.where(np.isinf(slack), 0, slack)
    return low - slack, high + slack, point


def _hard_sigmoid(x: Bounds, step: Step) -> Three | None:
    return _ramp(x, step.real("alpha", 0.2), step.real("beta", 0.5), step.unit or 0.0)


def _ramp(x: Bounds, alpha: float, beta: float, unit: float) -> Three | None:
    """max(0, min(1, alpha x + beta)) for alpha >= 0."""
    if alpha < 0:
        return None
    ends = x.low, x.high
    sizes = [alpha * np.abs(end) + abs(beta) for end in ends]
    low, high = rounded(alpha * ends[0] + beta, alpha * ends[1] + beta, unit, 4, sizes)
    low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    point = np.where(low == high, low, np.clip(alpha * x.point + beta, 0, 1))
    return low, high, point


def _hard_swish(x: Bounds, step: Step) -> Three | None:
    """Exactly zero where the ramp is."""
    found, gate = _unary("HardSwish")(x, step), _ramp(x, 1 / 6, 0.5, step.unit or 0.0)
    if found is None or gate is None:
        return None
    off = gate[1] == 0
    low, high, point = (np.where(off, 0.0, array) for array in found)
    return low, high, point


def _negative(x: Bounds, _: Step) -> Three:
    return -x.high, -x.low, -x.point


def _absolute(x: Bounds, _: Step) -> Three:
    low = np.maximum(np.maximum(x.low, -x.high), 0)
    return low, np.maximum(np.abs(x.low), np.abs(x.high)), np.abs(x.point)


def _cast(x: Bounds, step: Step) -> Three | None:
    """Between floats with rounding; to integers without the fraction, where all fit."""
    target = step.dtype
    if step.unit is not None:
        return *rounded(x.low, x.high, step.unit), x.point
    if target == oir.DataType.BOOL or not target.is_integer():
        return None
    low, high = np.trunc(x.low), np.trunc(x.high)
    limit = 2.0 ** (target.bitwidth - target.is_signed())
    if low.min() < (-limit if target.is_signed() else 0) or high.max() > limit - 1:
        return None
    return low, high, np.full(x.shape, np.nan)


UNARY: dict[str, Callable[[Bounds, Step], Three | None]] = {
    **{op: _unary(op) for op in (*EXACT, *RISING, *VALLEYS)},
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Neg": _negative,
    "Abs": _absolute,
    "Cast": _cast,
}
"""What is known of the results of operators with one operand."""
