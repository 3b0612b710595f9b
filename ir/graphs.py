"""Graphs within graphs: subgraphs of nodes, the values that a graph defines, and their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as oir

RANDOM = frozenset(
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split()
)
"""The standard's operators that draw; Dropout does so in training mode only."""


def subgraphs(node: oir.Node) -> list[oir.Graph]:
    """The graphs in a node's attributes (If, Loop, Scan)."""
    found: list[oir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == oir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == oir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def own_values(graph: oir.Graph) -> Iterator[oir.Value]:
    """The named values that a graph defines itself: inputs, initializers, then results."""
    yield from dict.fromkeys((*graph.inputs, *graph.initializers.values()))
    for node in graph:
        yield from (o for o in node.outputs if o.name)


def captured(graph: oir.Graph) -> list[oir.Value]:
    """Values of enclosing graphs that a subgraph uses."""
    own: set[oir.Value] = set()
    used: list[oir.Value] = []

    def enter(graph: oir.Graph) -> None:
        own.update(graph.inputs, graph.initializers.values())
        for inner in graph:
            used.extend(v for v in inner.inputs if v is not None)
            own.update(inner.outputs)
            for sub in subgraphs(inner):
                enter(sub)
        used.extend(graph.outputs)

    enter(graph)
    return [v for v in dict.fromkeys(used) if v not in own]


def read_nothing(node: oir.Node) -> None:
    """A node stops using its inputs."""
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)


def detach(node: oir.Node) -> None:
    """Remove a node whose outputs are unused from its graph, with all it uses inside.

    Nodes in its subgraphs stop using captured values too, or their producers could not die.
    """
    for graph in subgraphs(node):
        for inner in graph.all_nodes():
            read_nothing(inner)
            for nested in subgraphs(inner):
                nested.outputs.clear()
        graph.outputs.clear()
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def value_names(graph: oir.Graph) -> Iterator[str]:
    """The names of all values of a graph and its subgraphs."""
    for part in (graph, *graph.subgraphs()):
        yield from (str(value.name) for value in own_values(part))


class Names:
    """Hands out names that are not taken, each once."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._count: dict[str, int] = {}

    def free(self, name: str) -> str:
        """The name itself, or with a number if it is taken."""
        unique, count = name, self._count.get(name, 0)
        while unique in self._taken:
            count += 1
            unique = f"{name}_{count}"
        self._count[name] = count
        self._taken.add(unique)
        return unique
