"""An order of a model's nodes in which some of them stand next to each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import networkx as nx
import onnx

from .segments import node_reads


def stand_together(model: onnx.ModelProto, groups: Sequence[Collection[str]]) -> list[bool]:
    """Sorts the nodes of ``model``, in place, so that those that make the values of a group follow
    each other, and all that they read comes before the first; else as they stood. Gives, for each
    group, whether that is possible: it is not where one of its nodes depends on another.
    """
    nodes = list(model.graph.node)
    maker = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    wanted = [sorted({maker[name] for name in group if name in maker}) for group in groups]
    possible = []
    block = list(range(len(nodes)))
    for numbers in wanted:
        if len(numbers) < 2:
            possible.append(True)
            continue
        before = list(block)
        for number in numbers:
            block[number] = numbers[0]
        possible.append(nx.is_directed_acyclic_graph(_dependencies(nodes, maker, block)))
        if not possible[-1]:
            block = before
    if any(len(numbers) > 1 for numbers in wanted):
        members: dict[int, list[int]] = {}
        for number, first in enumerate(block):
            members.setdefault(first, []).append(number)
        order = nx.lexicographical_topological_sort(_dependencies(nodes, maker, block))
        del model.graph.node[:]
        model.graph.node.extend(nodes[number] for first in order for number in members[first])
    return possible


def _dependencies(
    nodes: Sequence[onnx.NodeProto], maker: dict[str, int], block: Sequence[int]
) -> nx.DiGraph[int]:
    """An edge from every block of nodes to those that read it; a node that reads one of its own
    block is a cycle."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(block)
    graph.add_edges_from(
        (block[maker[name]], block[number])
        for number, node in enumerate(nodes)
        for name in node_reads(node)
        if name in maker
    )
    return graph
