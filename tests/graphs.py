"""The collection of proof graphs: small ONNX models that a coupling analysis must not get wrong.

`GRAPHS` builds them by name, `INFO` says what is known about each; importing the files of graphs
fills both. How a graph is written and counted stands in `graph_builder`.
"""

from __future__ import annotations

from . import (
    graphs_attention,
    graphs_attention_forms,
    graphs_attention_images,
    graphs_attention_inside,
    graphs_control,
    graphs_einsum,
    graphs_experts,
    graphs_forms,
    graphs_functions,
    graphs_layers,
    graphs_lists,
    graphs_meshes,
    graphs_movement,
    graphs_quantised,
    graphs_recurrent,
    graphs_sequence,
    graphs_shared,
    graphs_vision,
)
from .graph_builder import GRAPHS, INFO, Array, Info, feeds, graph, net

__all__ = [
    "GRAPHS",
    "INFO",
    "Array",
    "Info",
    "feeds",
    "graph",
    "graphs_attention",
    "graphs_attention_forms",
    "graphs_attention_images",
    "graphs_attention_inside",
    "graphs_control",
    "graphs_einsum",
    "graphs_experts",
    "graphs_forms",
    "graphs_functions",
    "graphs_layers",
    "graphs_lists",
    "graphs_meshes",
    "graphs_movement",
    "graphs_quantised",
    "graphs_recurrent",
    "graphs_sequence",
    "graphs_shared",
    "graphs_vision",
    "net",
]
