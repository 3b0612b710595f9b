"""Control flow in a rewritten model: what crosses the boundary of a subgraph, and dead branches.

Sizes that leave a body as numbers stay what they were. A branch that never runs is not rewritten:
when it uses what pruning has changed, it might not even load any more, so it is replaced by one
that gives zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from .graphs import captured, read_nothing
from .naming import output_name
from .rules.base import Body, Site
from .shapes import Array

if TYPE_CHECKING:
    from .rewrite import _Rewriter

_NUMBERS = "FLOAT16 FLOAT DOUBLE INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 BOOL"
_FILLED = frozenset(oir.DataType[name] for name in _NUMBERS.split())
"""The element types of ConstantOfShape since it exists."""


def follow_branch(rewriter: _Rewriter, site: Site) -> None:
    """What is known about the results of the branch that always runs holds for If's outputs."""
    body = _only_branch(site)
    for inner, outer in zip(body.outputs if body else (), site.outputs, strict=False):
        if inner is None or outer is None:
            continue
        if inner.name in rewriter.sizes:
            rewriter.sizes.add(outer.name)
        if inner.name in rewriter.changed:
            rewriter.changed[outer.name] = rewriter.changed[inner.name]


def _only_branch(site: Site) -> Body | None:
    """The branch that If always takes."""
    if site.node.op_type != "If" or len(site.bodies) != 1:
        return None
    return next(iter(site.bodies.values()))


def correct_captured(rewriter: _Rewriter) -> None:
    """Sizes that are captured where no rule holds stay what they were."""
    hidden = {rewriter.producer(output_name(node)) for node in rewriter.analysis.hidden}
    for name in sorted(filter(rewriter.is_number, rewriter.changed)):
        value, given, before = rewriter.values[name], rewriter.changed[name], rewriter.before(name)
        assert before is not None
        for use in tuple(value.uses()):
            if use.node in hidden:
                rewriter.patcher.patch(use.node, use.idx, before, given)


def correct_outputs(rewriter: _Rewriter, graph: oir.Graph) -> None:
    """An output of the graph that is computed from sizes stays what it was."""
    for index, value in enumerate(graph.outputs):
        name, producer = str(value.name), value.producer()
        if not rewriter.is_number(name):
            continue
        given, before = rewriter.changed[name], rewriter.before(name)
        assert before is not None and producer is not None
        operand = rewriter.analysis.operands[name]
        need = rewriter.kept(operand, before)
        if all(map(np.array_equal, given, need)):
            continue
        node = oir.node("Identity", [value])
        output = node.outputs[0]
        output.name, output.type, output.shape = name, value.type, value.shape
        value.name = rewriter.patcher.names.free(f"{name}_computed")
        graph.insert_after(producer, node)
        graph.outputs[index] = output
        rewriter.values[name] = output
        rewriter.patcher.patch(node, 0, need, given)


def correct_results(rewriter: _Rewriter, site: Site, node: oir.Node) -> None:
    """Bodies give the numbers that they gave before, unless If hands them on to what knows."""
    for name in site.bodies if _only_branch(site) is None else ():
        correct_outputs(rewriter, node.attributes[name].as_graph())


def replace_dead(rewriter: _Rewriter, site: Site, node: oir.Node) -> None:
    """Replaces a branch that never runs if pruning has changed anything that it uses."""
    for name, attribute in list(node.attributes.items()):
        if attribute.type != oir.AttributeType.GRAPH or name in site.bodies:
            continue
        dead = attribute.as_graph()
        used = {str(value.name) for value in captured(dead)}
        touched = any(rewriter.touched(rewriter.analysis.operands.get(value)) for value in used)
        if not touched and used.isdisjoint(rewriter.changed):
            continue
        for inner in dead.all_nodes():
            read_nothing(inner)
        node.attributes[name] = oir.AttrGraph(name, _zeros(rewriter, site, dead))


def _zeros(rewriter: _Rewriter, site: Site, dead: oir.Graph) -> oir.Graph:
    """A branch of constants: in the new shapes of what the other gives, with 1 where these move."""
    nodes: list[oir.Node] = []
    outputs: list[oir.Value] = []
    for old, given, result in zip(dead.outputs, site.node.outputs, site.outputs, strict=True):
        dtype = oir.DataType(rewriter.analysis.facts[0].types[str(given.name)][0])
        sizes: list[int] = []
        if result is not None:
            new = zip(rewriter.new_shape(result)[0].tolist(), result.dynamic, strict=True)
            sizes = [1 if moves else size for size, moves in new]
        if dtype not in _FILLED or rewriter.analysis.skeleton.opset < 9:
            nodes.append(_constant(np.zeros([1] * len(sizes), dtype.numpy()), dtype))
        else:
            nodes.append(_constant(np.array(sizes, np.int64), oir.DataType.INT64))
            nodes[-1].outputs[0].name = rewriter.patcher.names.free(f"{old.name}_shape")
            fill = oir.tensor(np.zeros(1, dtype.numpy()), dtype)
            nodes.append(oir.node("ConstantOfShape", [nodes[-1].outputs[0]], {"value": fill}))
        value = nodes[-1].outputs[0]
        value.name, value.type, value.shape = old.name, oir.TensorType(dtype), oir.Shape(sizes)
        rewriter.values[str(value.name)] = value
        outputs.append(value)
    return oir.Graph([], outputs, nodes=nodes, name=dead.name, doc_string=dead.doc_string)


def _constant(array: Array, dtype: oir.DataType) -> oir.Node:
    return oir.node("Constant", [], {"value": oir.tensor(array, dtype)})
