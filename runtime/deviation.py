"""How far the outputs of two models are apart, as one number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .session import Array

Outputs = Mapping[str, Sequence[Array]]
"""For every output, what it is for each feed."""


def deviation(wanted: Outputs, found: Outputs) -> float:
    """The root mean square of the difference, over the deviation of what is wanted from its mean,
    root of the mean square over all outputs of floats. 0 for models without such outputs."""
    shares = []
    for name, arrays in wanted.items():
        if arrays and arrays[0].dtype.kind == "f":
            a, b = (_row(values) for values in (arrays, found[name]))
            shares.append(float(np.square(a - b).mean()) / max(float(a.var()), 1e-30))
    return math.sqrt(sum(shares) / len(shares)) if shares else 0.0


def _row(arrays: Sequence[Array]) -> Array:
    return np.concatenate([array.ravel() for array in arrays]).astype(np.float64)
