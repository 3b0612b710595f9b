"""Branches that all samples take, laid open, so that passes which look at values see into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx
import onnx_ir as oir

from ..ir.conditionals import ifs, with_branches

if TYPE_CHECKING:
    from ..runtime.session import Feed

Pair = tuple[oir.Model, oir.Model]


def as_taken(
    models: Pair, feeds_of: Callable[[onnx.ModelProto], Sequence[Feed]], threads: int
) -> Pair:
    """Two flat models without those Ifs that take the same branch on all feeds in both: the branch
    stands in their place. ``feeds_of`` gives the feeds for both from the first model. Models that
    draw random numbers stay as they are."""
    from ..runtime.runnable import runnable
    from ..runtime.seeded import draws

    before, after = models
    while names := sorted(_conditions(before) & _conditions(after)):
        with runnable(before, after) as protos:
            if any(map(draws, protos)):
                break
            feeds = feeds_of(protos[0])
            seen = [_seen(proto, names, feeds, threads) for proto in protos]
        taken = {
            name: values.pop()
            for name, values in zip(names, map(set.union, *seen), strict=True)
            if len(values) == 1
        }
        if not taken:
            break
        before, after = with_branches(before, taken), with_branches(after, taken)
    return before, after


def _conditions(model: oir.Model) -> set[str]:
    return {str(node.inputs[0].name) for node in ifs(model.graph) if node.inputs[0] is not None}


def _seen(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed], threads: int
) -> list[set[bool]]:
    """What each of these conditions is on the feeds."""
    from ..runtime.runnable import run_feeds

    asking = onnx.ModelProto()
    asking.CopyFrom(model)
    del asking.graph.output[:]
    shown = [f"secateur.condition{number}" for number in range(len(names))]
    for name, output in zip(names, shown, strict=True):
        asking.graph.node.append(onnx.helper.make_node("Identity", [name], [output]))
        asking.graph.output.append(
            onnx.helper.make_tensor_value_info(output, onnx.TensorProto.BOOL, None)
        )
    found = list(run_feeds(asking, feeds, threads=threads))
    return [{bool(outputs[name].all()) for outputs in found} for name in shown]
