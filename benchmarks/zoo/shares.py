"""The share of parameters that a peer can prune, from the shapes that it changed.

Where pruning at ``ratio`` takes an axis from n to m, the coordinates that may go are a share
(n - m) / (ratio n) of it, at most 1; a tensor of several axes keeps the product of what its axes
keep. Nothing about the peer's own notion of a group is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]


def prunable_share(before: Shapes, after: Shapes, ratio: float) -> float:
    """Elements at coordinates that may go, of all elements of ``before``."""
    total = free = 0.0
    for name, shape in before.items():
        size = math.prod(shape)
        total += size
        free += size * (1 - _kept(shape, after.get(name), ratio))
    return free / total if total else 0.0


def elements(shapes: Shapes) -> int:
    """Elements of all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def _kept(shape: Sequence[int], after: Sequence[int] | None, ratio: float) -> float:
    if after is None or len(after) != len(shape):
        return 0.0
    return math.prod(
        1 - min(1.0, (n - m) / (ratio * n)) for n, m in zip(shape, after, strict=True) if n
    )
