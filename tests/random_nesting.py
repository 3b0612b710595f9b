"""Random blocks inside a branch, a loop, a scan or a function, whose weights they capture."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.random_graphs import Graph

Block = Callable[[Graph, str], str]


def taken(g: Graph, block: Block, x: str) -> tuple[list[onnx.NodeProto], str]:
    """The nodes that a block adds, taken out of the graph, and their result."""
    start = len(g.nodes)
    y = block(g, x)
    nodes = g.nodes[start:]
    del g.nodes[start:]
    return nodes, y


def body(
    g: Graph, nodes: Iterable[onnx.NodeProto], inputs: list[str], outputs: list[str]
) -> onnx.GraphProto:
    """A subgraph on values of the graph's batch and their known shapes."""

    def infos(names: list[str]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", *g.shapes[n]]) for n in names
        ]

    return helper.make_graph(list(nodes), g.name(), infos(inputs), infos(outputs))


def branches(g: Graph, x: str, block: Block, other: Block) -> str:
    """The one block or the other, as an input of the model says. Both keep the shape of x."""
    graphs = {}
    for attribute, inside in (("then_branch", block), ("else_branch", other)):
        nodes, y = taken(g, inside, x)
        graphs[attribute] = body(g, nodes, [], [y])
    condition = g.feed(f"c{g.name()}", [], TensorProto.BOOL)
    return g.add("If", [condition], g.shapes[x], **graphs)


def loop(g: Graph, x: str, block: Block) -> str:
    """The block two or three times. It keeps the shape of x."""
    state, number, going = g.name(), g.name(), g.name()
    g.shapes[state] = g.shapes[x]
    nodes, y = taken(g, block, state)
    on = helper.make_node("Identity", [going], [g.name()])
    inside = body(g, [*nodes, on], [state], [y])
    for position, (name, kind) in enumerate(
        ((number, TensorProto.INT64), (going, TensorProto.BOOL))
    ):
        inside.input.insert(position, helper.make_tensor_value_info(name, kind, []))
    inside.output.insert(0, helper.make_tensor_value_info(on.output[0], TensorProto.BOOL, []))
    trips = g.constant(np.array(g.d.number(2, 3), np.int64))
    return g.add("Loop", [trips, "", x], g.shapes[x], body=inside)


def call(g: Graph, x: str, block: Block) -> str:
    """The block as a local function that is given inputs of the model and its weights, or holds
    these, called once, or twice where it keeps the shape of x."""
    operand = g.name()
    g.shapes[operand] = g.shapes[x]
    nodes, y = taken(g, block, operand)
    if not nodes:  # ONNX Runtime takes no function without any
        return x
    weights = {tensor.name: tensor for tensor in g.weights}
    around = weights.keys() | {value.name for value in g.inputs}
    used = sorted({name for node in nodes for name in node.input if name in around})
    if g.d.flag():
        held = [name for name in used if name in weights]
        g.inside.update(held)
        nodes = [*(helper.make_node("Constant", [], [n], value=weights[n]) for n in held), *nodes]
        used = [name for name in used if name not in weights]
    imports = [helper.make_opsetid("", g.opset), helper.make_opsetid("com.microsoft", 1)]
    name = f"block{len(g.functions)}"
    g.functions.append(helper.make_function("m", name, [operand, *used], [y], nodes, imports))
    for _ in range(2 if g.shapes[y] == g.shapes[x] and g.d.flag() else 1):
        x = g.add(name, [x, *used], g.shapes[y], domain="m")
    return x


def nested(g: Graph, x: str, block: Block, keeping: list[Block]) -> str:
    """A block where it may stand: in the graph itself, mostly, and always unless the graph
    ``nests``; those that are ``keeping`` the shape also in branches and loops."""
    where = g.d.number(0, 7) if g.nests else 7
    if where == 0:
        return call(g, x, block)
    if where == 1:
        return branches(g, x, g.d.pick(keeping), g.d.pick(keeping))
    return loop(g, x, g.d.pick(keeping)) if where == 2 else block(g, x)
