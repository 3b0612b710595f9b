"""Branches in the place of the Ifs that take them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as oir

from .constants import initializers_are_inputs
from .graphs import detach
from .inlining import take_over


def ifs(graph: oir.Graph) -> list[oir.Node]:
    """The If nodes of a graph, those inside others not counted."""
    return [n for n in graph if n.op_type == "If" and n.domain in ("", "ai.onnx")]


def with_branches(model: oir.Model, taken: Mapping[str, bool]) -> oir.Model:
    """A copy of a flat model with the nodes of the branch in place of every If of the main graph
    whose condition is named in ``taken``, with what it is. Values keep their names, but results of
    the branch have those that the If gave them."""
    copy = model.clone()
    copy.meta.update(model.meta)
    for node in ifs(copy.graph):
        condition = node.inputs[0]
        if condition is not None and (name := str(condition.name)) in taken:
            branch = node.attributes["then_branch" if taken[name] else "else_branch"].as_graph()
            _put(copy, node, branch)
    return copy


def _put(model: oir.Model, node: oir.Node, branch: oir.Graph) -> None:
    graph, own = model.graph, list(branch)
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        graph.register_initializer(value)
        if initializers_are_inputs(model):
            graph.inputs.append(value)
    results: list[oir.Value] = list(branch.outputs)
    branch.outputs.clear()
    made = {value for inner in own for value in inner.outputs}
    for number, result in enumerate(results):
        if result not in made or result in results[:number]:  # from outside, or given twice
            own.append(oir.node("Identity", [result]))
            results[number] = own[-1].outputs[0]
    for inner in own:
        if inner.graph is not None:
            branch.remove(inner)
    graph.insert_before(node, own)
    for value, result in zip(node.outputs, results, strict=True):
        take_over(value, result)
        if value.name:
            name, value.name = value.name, None
            result.name = name
    detach(node)
