"""What is known of values before the run: bounds, constants and equalities, by coordinate."""

from . import contraction, elementwise, movement, pooling, quantization  # noqa: F401  (these register)
from .base import Bounds
from .propagate import Knowledge, propagate

__all__ = ["Bounds", "Knowledge", "propagate"]
