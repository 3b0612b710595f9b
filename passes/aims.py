"""What a layer of a pruned model is fitted to.

A layer aims at what the original gives in its place. Where only a sum with another branch reads
it, and that branch is already there, the sum is the aim: the layer then also takes back errors that
were made before. Where only a Relu reads what is aimed at, what is below zero need only stay there
(Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks", solve for the same).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

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
    rectified: tuple[bool, bool] = (False, False)
    """Whether only a Relu reads ``plain``, and ``joint``."""

    @property
    def names(self) -> set[str]:
        """The values of the original that the aim may need."""
        return {self.plain, self.joint} - {""}


@dataclass(frozen=True)
class Wanted:
    """What a layer should give, for every feed, once ``offsets`` are added to what it gives; of
    ``rectified`` targets only what is above zero matters."""

    targets: list[Array]
    offsets: list[Array] | None = None
    rectified: bool = False


def aim_of(layer: LinearLayer) -> Aim:
    """The aim that the graph around a layer gives it."""
    if layer.is_recurrent:
        return Aim(str(layer.input.name))
    output = layer.output
    readers = [node for node, _ in output.uses()]
    plain = _is_rectified(output)
    node = readers[0] if len(readers) == 1 and not output.is_graph_output() else None
    if node is not None and node.op_type == "Add" and node.domain in ("", "ai.onnx"):
        joint = node.outputs[0]
        for other in node.inputs:
            if other is not None and other is not output:
                rectified = plain, _is_rectified(joint)
                return Aim(str(output.name), str(joint.name), str(other.name), rectified)
    return Aim(str(output.name), rectified=(plain, False))


def _is_rectified(value: oir.Value) -> bool:
    readers = {(node.domain, node.op_type) for node, _ in value.uses()}
    return readers == {("", "Relu")} and not value.is_graph_output()


def wanted(
    layer: LinearLayer,
    aim: Aim,
    original: Stepwise,
    pruned: Stepwise,
    place: int,
    history: History,
    whole: tuple[Array, Array] | None,
) -> Wanted | None:
    """What the layer should give. ``pruned`` stands at ``place``, before the layer. ``whole`` are
    the original's weight and bias of a recurrent layer, whose products are nobody's output. None
    when the original has no such values."""
    if layer.is_recurrent:
        if whole is None or not original.has(aim.plain):
            return None
        return Wanted([x @ whole[0] + whole[1] for x in original.get(aim.plain)])
    stands = bool(aim.other) and pruned.position_of(aim.other) < place and pruned.has(aim.other)
    if stands and original.has(aim.joint) and original.has(aim.plain):
        found, own = _kept(layer, aim.joint, original, history), original.get(aim.plain)
        others = pruned.get(aim.other)
        if found and all(map(_are_summed, own, original.get(aim.joint), found, others)):
            return Wanted(found, others, aim.rectified[1])
    found = _kept(layer, aim.plain, original, history) if original.has(aim.plain) else None
    return None if found is None else Wanted(found, None, aim.rectified[0])


def _are_summed(own: Array, joint: Array, found: Array, other: Array) -> bool:
    """Whether numbers are added one by one, none of them to many and none infinite."""
    finite = np.isfinite(found).all() and np.isfinite(other).all()
    return own.shape == joint.shape and found.shape == other.shape and bool(finite)


def _kept(
    layer: LinearLayer, name: str, original: Stepwise, history: History
) -> list[Array] | None:
    """A value of the original, for every feed, without the channels that the layer has lost."""
    wholes = original.get(name)
    axis = layer.channel_axis
    kept = kept_coordinates(history, name, axis, wholes[0].shape[axis])
    if len(kept) != layer.outputs or wholes[0].dtype.kind != "f":
        return None
    return [w if len(kept) == w.shape[axis] else w.take(kept, axis) for w in wholes]
