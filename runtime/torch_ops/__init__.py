"""The operators of the differentiable executor, one file per family.

Importing this package imports PyTorch; `secateur.runtime.torch_support.require_torch` says kindly
when there is none.
"""

from __future__ import annotations

from . import (
    attention,
    contrib,
    convolution,
    elementwise,
    generation,
    indexing,
    movement,
    normalization,
    pooling,
    product,
    quantization,
    recurrent,
    reduction,
    resize,
    shaping,
)
from .registry import Call, Operator, known_operators, operator

__all__ = [
    "Call",
    "Operator",
    "attention",
    "contrib",
    "convolution",
    "elementwise",
    "generation",
    "indexing",
    "known_operators",
    "movement",
    "normalization",
    "operator",
    "pooling",
    "product",
    "quantization",
    "recurrent",
    "reduction",
    "resize",
    "shaping",
]
