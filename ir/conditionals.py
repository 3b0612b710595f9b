"""Branches in the place of the Ifs that take them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as oir

from .graphs import captured, detach
from .inlining import put_in_place

_LISTS = ("Sequence", "Optional", "SplitToSequence", "If", "Loop", "Scan")
"""What operators are called that may give something else than a tensor."""


def ifs(graph: oir.Graph) -> list[oir.Node]:
    """The If nodes of a graph, those inside others not counted."""
    return [n for n in graph if n.op_type == "If" and n.domain in ("", "ai.onnx")]


def with_branches(model: oir.Model, taken: Mapping[str, bool]) -> oir.Model:
    """A copy of a flat model with the nodes of the branch in place of every If of the main graph
    whose condition is named in ``taken``, with what it is. Values keep their names, but results of
    the branch have those that the If gave them. What the other branch read has a reader still, a
    Shape node that nothing needs: who asks whether a value has but one sees that there are more."""
    copy = model.clone()
    copy.meta.update(model.meta)
    for node in ifs(copy.graph):
        condition = node.inputs[0]
        if condition is not None and (name := str(condition.name)) in taken:
            branches = [node.attributes[f"{kind}_branch"].as_graph() for kind in ("else", "then")]
            for value in filter(_is_tensor, captured(branches[not taken[name]])):
                copy.graph.insert_before(node, oir.node("Shape", [value]))
            _put(node, branches[taken[name]])
    return copy


def _put(node: oir.Node, branch: oir.Graph) -> None:
    assert node.graph is not None
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        node.graph.register_initializer(value)
    own, results = list(branch), list[oir.Value](branch.outputs)
    branch.outputs.clear()
    made = {value for inner in own if inner.op_type != "Constant" for value in inner.outputs}
    for number, result in enumerate(results):
        if result not in made or result in results[:number]:  # constants keep their names
            own.append(oir.node("Identity", [result]))
            results[number] = own[-1].outputs[0]
    for inner in own:
        if inner.graph is not None:
            branch.remove(inner)
    put_in_place(node, own, results)
    detach(node)


def _is_tensor(value: oir.Value) -> bool:
    if value.type is not None:
        return isinstance(value.type, oir.TensorType)
    node = value.producer()
    return node is None or not node.op_type.startswith(_LISTS)
