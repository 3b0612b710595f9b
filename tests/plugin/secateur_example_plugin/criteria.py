"""A criterion: the median magnitude of the weights that a unit owns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def median(weights: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Score units, shape (units,), from their weights, shape (units, weights of one unit)."""
    return np.median(np.abs(weights.astype(np.float64)), axis=1)
