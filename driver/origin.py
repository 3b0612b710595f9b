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
from ..ir.rewrite import Slice, rewrite
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
    for weight in analysis.weights:
        if len(weight.axes) > 1:
            continue  # used with different units at different places: the others decide
        for index, axis in enumerate(weight.axes[0]):
            units = analysis.units_of(axis)
            if units is not None and (weight.name, index) in direct:
                chosen = units[list(direct[weight.name, index].indices)]
                flags[chosen[chosen >= 0]] = True
    slices = rewrite(analysis, flags).slices
    found = {(s.tensor, s.axis): s.indices for s in slices}
    if all(found.get(place) == s.indices for place, s in direct.items()):
        return Removed(slices, True)
    return Removed(list(direct.values()), False)


def _direct(analysis: Analysis, prunings: Sequence[Pruning]) -> dict[Place, Slice]:
    """Slices of tensors that the original has too, their indices counted there."""
    shapes = {w.name: w.shape for w in analysis.weights}
    kept: dict[Place, npt.NDArray[np.int64]] = {}
    gone: dict[Place, Slice] = {}
    for pruning in prunings:
        sizes = {w.name: w.shape for w in pruning.analysis.weights}
        for item in pruning.slices:
            place = (item.tensor, item.axis)
            shape = shapes.get(item.tensor, ())
            if len(shape) != len(sizes.get(item.tensor, ())):
                continue
            left = kept.setdefault(place, np.arange(shape[item.axis]))
            if left.size != sizes[item.tensor][item.axis]:
                continue
            cut = list(item.indices)
            before = gone[place].indices if place in gone else ()
            indices = tuple(sorted({*before, *left[cut].tolist()}))
            gone[place] = Slice(item.tensor, item.axis, indices, item.role)
            kept[place] = np.delete(left, cut)
    return gone
