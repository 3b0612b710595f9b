"""Comparing two arrays of any element type, element by element."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from .session import Array

Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


def differences(wanted: Array, got: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Absolute errors; 0 where both are the same NaN or infinity, infinite where one is."""
    equal = same(wanted, got)
    if wanted.dtype.kind in "OUSb":
        return np.where(equal, 0.0, 1.0)
    both = finite(wanted) & finite(got)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(wide(wanted) - wide(got))
    return np.where(equal, 0.0, np.where(both, difference, np.inf)).astype(np.float64)


def same(wanted: Array, got: Array) -> Bools:
    """Which elements are equal; NaN is equal to NaN."""
    equal = np.asarray(wanted == got)
    if is_float(wanted) or wanted.dtype.kind == "c":
        equal = equal | (np.isnan(wide(wanted)) & np.isnan(wide(got)))
    return equal


def finite(array: Array) -> Bools:
    """Which elements are finite; strings and bools are."""
    return (
        np.ones(array.shape, np.bool_) if array.dtype.kind in "OUSb" else np.isfinite(wide(array))
    )


def wide(array: Array) -> Array:
    """The elements in float64; complex numbers stay."""
    return array if array.dtype.kind == "c" else array.astype(np.float64)


def is_float(array: Array) -> bool:
    """Whether the elements are floats of any width."""
    return array.dtype.kind == "f" or "float" in array.dtype.name


def epsilon(dtype: np.dtype[Any]) -> float:
    """The spacing of numbers at 1; 8-bit floats are taken for their finest."""
    if dtype.type.__module__ == "numpy":
        return float(np.finfo(dtype).eps)
    return 2.0**-7 if dtype.name == "bfloat16" else 2.0**-3
