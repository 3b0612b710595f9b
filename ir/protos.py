"""Graphs within graphs as ONNX writes them: walks over protos."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import onnx

Body: TypeAlias = "onnx.GraphProto | onnx.FunctionProto"


def subgraph_protos(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs in a node's attributes (If, Loop, Scan)."""
    return [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]


def inner_graphs(body: Body) -> Iterator[onnx.GraphProto]:
    """The subgraphs of a body's nodes at every depth, each in front of its own."""
    for node in body.node:
        for graph in subgraph_protos(node):
            yield graph
            yield from inner_graphs(graph)


def model_bodies(model: onnx.ModelProto) -> Iterator[Body]:
    """The main graph and the functions, each in front of its subgraphs."""
    for body in (model.graph, *model.functions):
        yield body
        yield from inner_graphs(body)


def model_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of all graphs, subgraphs and functions."""
    return (node for body in model_bodies(model) for node in body.node)
