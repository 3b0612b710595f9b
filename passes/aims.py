"""What a layer of a pruned model is fitted to.

A layer aims at what the original gives in its place. Where only a sum with another branch reads it,
and that branch is already there, it aims at the original's sum less what the branch carries now: so
it also takes back errors that were made before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..ir.linear import LinearLayer
from .kept import History, kept_coordinates

if TYPE_CHECKING:
    from ..runtime.session import Array
    from ..runtime.stepwise import Stepwise


@dataclass(frozen=True)
class Aim:
    """The layer's own output by name (``plain``; of a recurrent layer its input); or the sum
    ``joint`` and the branch ``other`` that is added in it, where there is such a sum."""

    plain: str
    joint: str = ""
    other: str = ""

    @property
    def names(self) -> set[str]:
        """The values of the original that the aim may need."""
        return {self.plain, self.joint} - {""}


def aim_of(layer: LinearLayer) -> Aim:
    """The aim that the graph around a layer gives it."""
    if layer.is_recurrent:
        return Aim(str(layer.input.name))
    output = layer.output
    readers = tuple(output.uses())
    node = readers[0][0] if len(readers) == 1 and not output.is_graph_output() else None
    if node is None or node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
        return Aim(str(output.name))
    other = next((v for v in node.inputs if v is not None and v is not output), None)
    if other is None:  # the sum of the output with itself
        return Aim(str(output.name))
    return Aim(str(output.name), str(node.outputs[0].name), str(other.name))


def targets(
    layer: LinearLayer,
    aim: Aim,
    original: Stepwise,
    pruned: Stepwise,
    history: History,
    whole: tuple[Array, Array] | None,
) -> list[Array] | None:
    """What the layer should give, for every feed, in the shape of what it gives.

    ``pruned`` stands before the layer. ``whole`` are the original's weight and bias of a recurrent
    layer, whose products are nobody's output. None when the original has no such values.
    """
    place = pruned.position_of(str(layer.node.outputs[0].name))
    if layer.is_recurrent:
        if whole is None or not original.has(aim.plain):
            return None
        return [x @ whole[0] + whole[1] for x in original.get(aim.plain)]
    stands = bool(aim.other) and pruned.position_of(aim.other) < place and pruned.has(aim.other)
    name = aim.joint if stands and original.has(aim.joint) else aim.plain
    if not original.has(name):
        return None
    wholes = original.get(name)
    axis = layer.channel_axis
    kept = kept_coordinates(history, name, axis, wholes[0].shape[axis])
    if len(kept) != layer.outputs:
        return None
    found = [w if len(kept) == w.shape[axis] else w.take(kept, axis) for w in wholes]
    if name == aim.plain:
        return found
    others = pruned.get(aim.other)
    sums = [np.subtract(w, other) for w, other in zip(found, others, strict=True)]
    same = all(a.shape == b.shape for a, b in zip(sums, found, strict=True))
    return sums if same else None
