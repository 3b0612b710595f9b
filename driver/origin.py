"""What a pipeline removed, in terms of the original model.

The slices of a pruning name tensors of the model that its pass was given. Earlier passes may have
pruned that model already, or folded tensors that training frameworks know into others. So the
slices are first counted in the original tensors wherever these still exist; then the units that
own them in the original say what goes with them there (the scale and the shift of a folded batch
normalisation, say).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..ir.analysis import Analysis
from ..ir.constants import constants, tensor_shape
from ..ir.coupling import Flags
from ..ir.errors import SecateurError
from ..ir.rewrite import rewrite
from ..ir.slices import Slice
from ..passes.prune import Pruning

Place = tuple[str, int]


@dataclass(frozen=True)
class Removed:
    """All slices of the original; ``complete`` is False when tensors that earlier passes made
    could not be traced back to it."""

    slices: list[Slice]
    complete: bool


def removed_in_original(analysis: Analysis, prunings: Sequence[Pruning]) -> Removed:
    """The slices of all ``prunings``, in order, as slices of the model behind ``analysis``."""
    direct = _direct(analysis, prunings)
    flags = np.zeros(analysis.unit_count, np.bool_)
    for (name, index), item in direct.items():
        operand = analysis.operands.get(name)  # None: its uses differ, and others decide
        units = None if operand is None else analysis.units_of(operand.axis(index))
        if units is not None:
            chosen = units[list(item.indices)]
            flags[chosen[chosen >= 0]] = True
    if not all(_is_all_of(analysis, flags, item) for item in direct.values()):
        # Later passes cut along another factor of an axis than the original's units do.
        traced = {name for name, _ in direct}
        complete = all(cut.tensor in traced for p in prunings for cut in p.slices)
        return Removed(list(direct.values()), complete)
    try:
        slices = rewrite(analysis, flags).slices
    except SecateurError:  # what the passes before the pruning made is easier to rewrite
        return Removed(list(direct.values()), False)
    found = {(s.tensor, s.axis): s.indices for s in slices}
    if all(found.get(place) == s.indices for place, s in direct.items()):
        return Removed(slices, True)
    return Removed(list(direct.values()), False)


def _is_all_of(analysis: Analysis, flags: Flags, item: Slice) -> bool:
    """Whether a slice is all that the flagged units own of its axis."""
    operand = analysis.operands.get(item.tensor)
    if operand is None:
        return True
    keep = analysis.keep(operand.axis(item.axis), flags)
    return tuple(np.flatnonzero(~keep).tolist()) == item.indices


def _direct(analysis: Analysis, prunings: Sequence[Pruning]) -> dict[Place, Slice]:
    """Slices of tensors that the original has too, their indices counted there."""
    shapes = _shapes(analysis)
    kept: dict[Place, npt.NDArray[np.int64]] = {}
    gone: dict[Place, Slice] = {}
    for pruning in prunings:
        sizes = _shapes(pruning.analysis)
        for item in pruning.slices:
            shape, size = shapes.get(item.tensor), sizes[item.tensor]
            if shape is None or len(shape) != len(size):
                continue
            place = (item.tensor, item.axis)
            left = kept.setdefault(place, np.arange(shape[item.axis]))
            if left.size != size[item.axis]:
                continue
            cut = list(item.indices)
            before = gone[place].indices if place in gone else ()
            indices = tuple(sorted({*before, *left[cut].tolist()}))
            gone[place] = Slice(item.tensor, item.axis, indices, item.role)
            kept[place] = np.delete(left, cut)
    return gone


def _shapes(analysis: Analysis) -> dict[str, tuple[int, ...]]:
    return {str(v.name): tensor_shape(t) for v, t in constants(analysis.model.graph)}
