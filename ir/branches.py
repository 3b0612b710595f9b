"""Residual branches: what lies between a value and the Add that joins it again.

An Add ``y = v + f`` closes a branch when ``f`` depends on ``v``. The branch consists of the nodes
that nothing else needs: all that they make ends in ``f``. Without it ``y`` is ``v``. Nothing here
knows an architecture; the blocks of residual networks, transformers and their kin come out alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import onnx_ir as oir

from .constants import constant_tensor
from .graphs import subgraphs
from .naming import output_name


@dataclass(frozen=True)
class Branch:
    """A residual branch, by names of values.

    ``joint`` is the output of the Add that closes it, ``operand`` the number of the Add's input
    at which it ends, ``source`` the value that the Add joins again, and ``nodes`` are the first
    outputs of the branch's own nodes, in the order of the graph.
    """

    joint: str
    operand: int
    source: str
    nodes: tuple[str, ...]


def residual_branches(graph: oir.Graph) -> list[Branch]:
    """All residual branches of a graph, in the order in which they are closed.

    Branches may lie within each other (a stack of blocks around which a shortcut leads).
    """
    cones = _Cones(graph)
    found = []
    for node in graph:
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        for operand, source in ((1, node.inputs[0]), (0, node.inputs[1])):
            end = node.inputs[operand]
            if source is None or end is None or source is end:
                continue
            nodes, reads = cones.of(node, end)
            if nodes and source in reads and constant_tensor(source) is None:
                names = tuple(output_name(n) for n in nodes)
                joint = str(node.outputs[0].name)
                found.append(Branch(joint, operand, str(source.name), names))
    return found


class _Cones:
    """Sets of nodes that only one value needs."""

    def __init__(self, graph: oir.Graph) -> None:
        self._nodes = list(graph)
        self._order = {node: k for k, node in enumerate(self._nodes)}
        self._hosts: dict[oir.Node, oir.Node] = {}
        self._captured: dict[oir.Node, list[oir.Value]] = {}
        for node in self._nodes:
            for inner in (n for sub in subgraphs(node) for n in sub.all_nodes()):
                self._hosts[inner] = node
                self._captured.setdefault(node, []).extend(v for v in inner.inputs if v)

    def of(self, joint: oir.Node, end: oir.Value) -> tuple[list[oir.Node], set[oir.Value]]:
        """The nodes whose every output leads to ``end``, an input of ``joint``, and nowhere else;
        and all that they read from outside."""
        inside: set[oir.Node] = set()
        reads: set[oir.Value] = set()
        waiting: list[int] = []  # latest first: all users of a node come before it
        seen: set[int] = set()

        def visit(value: oir.Value) -> None:
            number = self._order.get(value.producer())  # type: ignore[arg-type]
            if number is not None and number not in seen:
                seen.add(number)
                heappush(waiting, -number)

        visit(end)
        while waiting:
            node = self._nodes[-heappop(waiting)]
            if not all(self._leads(value, joint, end, inside) for value in node.outputs):
                continue
            inside.add(node)
            for value in (*node.inputs, *self._captured.get(node, ())):
                if value is not None:
                    reads.add(value)
                    visit(value)
        own = {value for node in inside for value in node.outputs}
        return sorted(inside, key=self._order.__getitem__), reads - own

    def _leads(
        self, value: oir.Value, joint: oir.Node, end: oir.Value, inside: set[oir.Node]
    ) -> bool:
        return not value.is_graph_output() and all(
            self._hosts.get(use.node, use.node) in inside or (value is end and use.node is joint)
            for use in value.uses()
        )
