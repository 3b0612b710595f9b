"""What is known of a value before the run, coordinate by coordinate.

Four arrays of one shape stand for a tensor. Along an axis that is *tracked* they have the tensor's
size, along all others size 1: then one entry speaks of the whole slice.

- ``low`` and ``high``: every element x of the slice has low <= x <= high in every run, the
  rounding of the model's own arithmetic included;
- ``point``: the number that every element equals on every input, up to rounding; NaN if none;
- ``number``: slices of one value with equal numbers are equal on every input, up to rounding.

Numbers are 64-bit hashes of what computes a slice: of the operator, of the numbers of its inputs,
and of constants bit by bit. Where slices depend on their place, the place is hashed with them.
All of this holds for runs in which every value is finite. Axes whose size moves are not tracked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from ..rules.base import Operand, Site

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

LIMIT = 1 << 20
"""A value is known in at most so many pieces."""

_UNITS = {
    oir.DataType.FLOAT: 2.0**-24,
    oir.DataType.DOUBLE: 2.0**-53,
    oir.DataType.FLOAT16: 2.0**-11,
    oir.DataType.BFLOAT16: 2.0**-8,
}
_SMALLEST = 2.0**-149


@dataclass(frozen=True)
class Bounds:
    """What is known of one value (see the module); all arrays have the same shape."""

    low: Floats
    high: Floats
    point: Floats
    number: Numbers

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's size along tracked axes, 1 along the others."""
        return self.number.shape

    @property
    def zero(self) -> Flags:
        """Which slices hold nothing but exact zeros."""
        return np.asarray((self.low == 0) & (self.high == 0))

    def move(self, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Bounds:
        """The same function of an array applied to all four."""
        return Bounds(*map(change, (self.low, self.high, self.point, self.number)))

    def marked(self, mark: Numbers | int) -> Bounds:
        """With ``mark`` hashed into the numbers."""
        return Bounds(self.low, self.high, self.point, mix(self.number, mark))

    def reshaped(self, *shape: int) -> Bounds:
        """In another shape with as many entries."""
        return self.move(lambda array: array.reshape(shape))

    def collapsed(self, axes: Iterable[int]) -> Bounds:
        """No longer tracked along ``axes``."""
        axes = tuple(axis for axis in axes if self.shape[axis] > 1)
        if not axes:
            return self
        least, most = (f(self.point, axis=axes, keepdims=True) for f in (np.min, np.max))
        number = self.number
        for axis in axes:
            number = mix_along(number, axis)
        return Bounds(
            self.low.min(axis=axes, keepdims=True),
            self.high.max(axis=axes, keepdims=True),
            np.where(least == most, least, np.nan),
            number,
        )

    def tracked(self, axis: int, size: int) -> Bounds:
        """Tracked along ``axis``, of this size in the tensor."""
        if self.shape[axis] == size:
            return self
        positions = np.arange(size, dtype=np.uint64)
        positions = positions.reshape([-1 if k == axis else 1 for k in range(len(self.shape))])
        number = mix(self.number, positions)
        low, high, point = (
            np.broadcast_to(array, number.shape) for array in (self.low, self.high, self.point)
        )
        return Bounds(low, high, point, number)

    def along(self, axis: int, size: int) -> Bounds:
        """One entry for each of the ``size`` coordinates of an axis: arrays of shape (size,)."""
        others = [k for k in range(len(self.shape)) if k != axis]
        return self.collapsed(others).tracked(axis, size).reshaped(size)


def mix(first: Numbers, second: Numbers | int) -> Numbers:
    """A hash of two numbers in this order (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = np.asarray(first * np.uint64(0x9E3779B97F4A7C15))
        x = x ^ (np.asarray(second, np.uint64) * np.uint64(0xD1342543DE82EF95) + np.uint64(1))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))


def mix_along(number: Numbers, axis: int) -> Numbers:
    """A hash of all numbers along an axis, which keeps size 1."""
    size = number.shape[axis]
    positions = np.arange(size, dtype=np.uint64)
    positions = positions.reshape([-1 if k == axis else 1 for k in range(number.ndim)])
    return mix(mix(number, positions).sum(axis=axis, keepdims=True, dtype=np.uint64), size)


def mark_of(text: str) -> int:
    """A number of 63 bits for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numbers_of(values: Floats) -> Numbers:
    """The numbers of constants: the same for the same bits, and for both zeros."""
    return mix(bits_of(values), mark_of("constant"))


def bits_of(values: Floats) -> Numbers:
    """The bits of every value; those of both zeros are the same."""
    return np.asarray(np.asarray(values + 0.0).view(np.uint64))


def settle(low: Floats, high: Floats, point: Floats, number: Numbers) -> Bounds:
    """Bounds of these arrays, broadcast: NaN is no bound, and a point if low equals high."""
    low, high, point, number = np.broadcast_arrays(low, high, point, number)
    low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
    point = np.where(low == high, low, point)
    return Bounds(low, high, np.where(np.isfinite(point), point, np.nan), number)


def rounded(
    low: Floats, high: Floats, unit: float, terms: int = 1, sizes: Sequence[Floats] = ()
) -> tuple[Floats, Floats]:
    """Bounds that hold for a sum of ``terms`` terms computed with unit roundoff ``unit``.

    In any order, a sum is wrong by at most (terms - 1) u times the sum of the absolute values
    (Higham 2002, section 4.2); t - e |t| grows with t, so what counts is that sum at the lower and
    at the upper bounds of the terms: ``sizes``, by default those of one number. Exact zeros stay.
    """
    share = (terms + 3) * unit
    share = share if share < 1 else np.inf
    below, above = sizes or (np.abs(low), np.abs(high))
    with np.errstate(invalid="ignore"):
        return (
            np.asarray(low - np.where(below > 0, share * below + _SMALLEST, 0)),
            np.asarray(high + np.where(above > 0, share * above + _SMALLEST, 0)),
        )


def constant(array: npt.NDArray[np.generic]) -> Bounds | None:
    """What is known of a constant: all, unless it is too large or no number."""
    if array.dtype.kind in "OUScV" and "float" not in array.dtype.name:
        return None
    values = array.astype(np.float64)
    if array.dtype.kind in "iu" and array.size and np.abs(values).max() >= 2.0**53:
        return None
    low = high = point = values
    if values.size > LIMIT or not values.size or np.isnan(values).any():
        return None
    return settle(low, high, point, numbers_of(values))


def unit_of(dtype: oir.DataType) -> float | None:
    """The unit roundoff of a type of floats that is computed with; else None."""
    return _UNITS.get(dtype)


def range_of(dtype: oir.DataType) -> tuple[float, float]:
    """The numbers that fit into a type of integers; no limit for others."""
    if dtype == oir.DataType.BOOL:
        return 0.0, 1.0
    if dtype.is_integer() and dtype.bitwidth <= 32:
        signed = dtype.is_signed()
        high = 2.0 ** (dtype.bitwidth - signed) - 1
        return (-high - 1 if signed else 0.0), high
    return -np.inf, np.inf


def unknown(rank: int, dtype: oir.DataType, mark: int) -> Bounds:
    """A value of which only the type is known."""
    shape = (1,) * rank
    low, high = range_of(dtype)
    return Bounds(
        np.full(shape, low),
        np.full(shape, high),
        np.full(shape, np.nan),
        np.full(shape, mark, np.uint64),
    )


@dataclass(frozen=True)
class Step:
    """One node with what is known of its inputs (None where one is left out).

    ``weight(k)`` is the whole of input ``k`` in float64 if it is a constant; ``dtype`` and
    ``shape`` are those of the first output, ``mark`` a number for the node.
    """

    site: Site
    inputs: Sequence[Bounds | None]
    weight: Callable[[int], Floats | None]
    dtype: oir.DataType
    mark: int

    @property
    def x(self) -> Bounds:
        """What is known of the first input."""
        bounds = self.inputs[0]
        assert bounds is not None
        return bounds

    @property
    def unit(self) -> float | None:
        """The unit roundoff of the output; None for integers and narrow floats."""
        return unit_of(self.dtype)

    def given(self, index: int) -> Bounds | None:
        """What is known of input ``index``; None when it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def operand(self, index: int) -> Operand:
        """The operand of an input that is there."""
        operand = self.site.inputs[index]
        assert operand is not None
        return operand

    def real(self, name: str, default: float) -> float:
        """A float attribute."""
        attribute = self.site.node.attributes.get(name)
        return default if attribute is None else attribute.as_float()


def aligned(operands: Sequence[Bounds], shapes: Sequence[Sequence[int]], rank: int) -> list[Bounds]:
    """Operands that are broadcast against each other, in ``rank`` axes, with numbers that tell
    places apart wherever another operand is tracked. ``shapes`` are those of the tensors."""
    padded = [b.reshaped(*(1,) * (rank - len(b.shape)), *b.shape) for b in operands]
    full = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    sizes = [max((b.shape[k] for b in padded), default=1) for k in range(rank)]
    while math.prod(sizes) > LIMIT:
        widest = max(range(rank), key=sizes.__getitem__)
        padded = [b.collapsed([widest]) for b in padded]
        sizes[widest] = 1
    for axis, size in enumerate(sizes):
        if size > 1:
            padded = [
                b if shape[axis] == 1 else b.tracked(axis, size)
                for b, shape in zip(padded, full, strict=True)
            ]
    return padded


Transfer = Callable[[Step], "Bounds | Sequence[Bounds | None] | None"]
"""What is known of the outputs; None: nothing."""

TRANSFERS: dict[tuple[str, str], Transfer] = {}
"""By domain and operator; filled when `secateur.ir.bounds` is imported."""


def transfer(*ops: str, domain: str = "") -> Callable[[Transfer], Transfer]:
    """Registers the decorated function for these operators."""

    def register(function: Transfer) -> Transfer:
        TRANSFERS.update({(domain, op): function for op in ops})
        return function

    return register
