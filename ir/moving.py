"""Axes whose size moves with the binding of the symbolic dimensions, and what they hold.

An axis such as N * 4 is a moving factor times a static one. Its coordinates fall into digits of
the static factor, and units may form along those: they are the same under every binding, only
that each stands for more coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Layout:
    """How a moving axis holds a static factor of ``size``: coordinate i has the digit
    ``i // inner % size``, with one ``inner`` per binding of the symbolic dimensions."""

    size: int
    inner: tuple[int, int]

    def digit(self, total: int, binding: int = 0) -> Indices:
        """int64[total]: the position along the factor of every coordinate of the axis."""
        return np.arange(total, dtype=np.int64) // self.inner[binding] % self.size

    def kept(self, keep: Flags, total: int) -> Flags:
        """bool[total]: what stays under the second binding, given what does under the first."""
        digits: Flags = keep[: self.size * self.inner[0] : self.inner[0]]
        return digits[self.digit(total, 1)]


def agree(a: Layout, b: Layout, totals: tuple[int, int]) -> bool:
    """Whether two layouts of one axis (of sizes ``totals``) tie the same digits of their factors
    to each other under both bindings."""
    first, second = (
        np.unique(a.digit(total, k) * b.size + b.digit(total, k)) for k, total in enumerate(totals)
    )
    return np.array_equal(first, second)
