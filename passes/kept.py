"""Which coordinates of the original's values a pruned model still has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .base import PassResult
from .prune import Pruning

Indices = npt.NDArray[np.int64]
History = Sequence[PassResult]
"""The results of the passes that made a model of the original."""


def kept_coordinates(history: History, name: str, index: int, size: int) -> Indices:
    """int64[kept]: of the ``size`` coordinates that axis ``index`` of value ``name`` had before
    these passes, those that are left."""
    kept = np.arange(size)
    for result in history:
        pruning: Pruning | None = result.details.get("pruning")
        operand = None if pruning is None else pruning.analysis.operands.get(name)
        if pruning is not None and operand is not None and -operand.rank <= index < operand.rank:
            flags = pruning.analysis.keep(operand.axis(index), pruning.removed)
            if len(flags) == len(kept):
                kept = kept[flags]
    return kept
