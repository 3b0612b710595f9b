"""A criterion: prefer the units that come last, whatever they hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from secateur.ir.analysis import Analysis


def last(analysis: Analysis) -> npt.NDArray[np.float64]:
    """Score units, shape (units,): 1 for the first unit, 2 for the second, …"""
    return np.arange(1, analysis.unit_count + 1, dtype=np.float64)
