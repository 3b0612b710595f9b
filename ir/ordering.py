"""The order of nodes: each behind those whose results it, or a subgraph of it, reads.

ONNX demands it, but not every tool keeps it: ONNX Runtime's quantiser looks at the inputs of a
node only, and may put an If in front of what its branches capture.
"""

from __future__ import annotations

import onnx_ir as oir

from .errors import ModelError
from .graphs import subgraphs
from .naming import node_label


def sort_nodes(model: oir.Model) -> None:
    """Sorts the nodes of all graphs and functions; those in order stay as they are.

    Raises:
        ModelError: nodes need each other's results.
    """
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        try:
            graph.sort()  # stable; subgraphs are sorted along
        except ValueError:
            raise ModelError(
                f"nodes form a cycle: {_cycle(graph)}; export the model again"
            ) from None


def _cycle(graph: oir.Graph) -> str:
    """One cycle among the nodes of a graph and its subgraphs, in words."""
    import networkx as nx

    reads: nx.DiGraph[oir.Node] = nx.DiGraph()
    for node in graph.all_nodes():
        makers = (value.producer() for value in node.inputs if value is not None)
        inner = (part for body in subgraphs(node) for part in body)
        reads.add_edges_from((node, other) for other in (*makers, *inner) if other is not None)
    pairs = [f"'{node_label(a)}' needs '{node_label(b)}'" for a, b in nx.find_cycle(reads)]
    return ", ".join(pairs[:5]) + (f" and so on ({len(pairs)} nodes)" if len(pairs) > 5 else "")
