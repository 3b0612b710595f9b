"""``eliminate-dead``: remove what no graph output depends on.

One reverse sweep per graph: a node goes when none of its outputs is used, by a node, by a
graph output, or inside a subgraph (a captured value is a use). Then unused initializers go,
unless they are graph inputs, and local functions that nothing calls. Operators that ONNX does
not define may have side effects and stay. Inputs, outputs and opset imports never change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as oir

from ..ir.graphs import detach, subgraphs
from .base import Contract, Pass, PassContext, PassResult

_QUANTIZATION = "quant_parameter_tensor_names"  # where onnx-ir keeps TensorAnnotation entries

Functions = dict[oir.OperatorIdentifier, oir.Function]


@dataclass(frozen=True)
class EliminateDead(Pass):
    """Remove unused nodes, initializers and local functions."""

    name: ClassVar[str] = "eliminate-dead"
    contract: ClassVar[Contract] = Contract.PRESERVES
    summary: ClassVar[str] = "remove nodes, weights and functions that no output depends on"

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        pure = _PureOperators(dict(model.functions))
        nodes = _sweep(model.graph, pure)
        functions = _remove_functions(model)
        bodies = [function.graph for function in model.functions.values()]
        nodes += sum(_sweep(body, pure) for body in bodies)
        functions += _remove_functions(model)
        graphs = [g for body in [model.graph, *bodies] for g in (body, *body.subgraphs())]
        statistics = {
            "nodes-removed": nodes,
            "initializers-removed": sum(remove_initializers(graph) for graph in graphs),
            "functions-removed": functions,
        }
        return PassResult(model, any(statistics.values()), statistics)


class _PureOperators:
    """Answers whether a node may be removed when its outputs are unused."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._known: dict[tuple[str, str, str], bool] = {}

    def __call__(self, node: oir.Node) -> bool:
        key = node.op_identifier()
        if key not in self._known:
            self._known[key] = False  # a function that calls itself is invalid: leave it alone
            self._known[key] = self._look_up(node)
        return self._known[key] and all(
            self(inner) for graph in subgraphs(node) for inner in graph.all_nodes()
        )

    def _look_up(self, node: oir.Node) -> bool:
        import onnx.defs

        function = self._functions.get(node.op_identifier())
        if function is not None:
            return all(self(inner) for inner in function.all_nodes())
        return node.domain == "com.microsoft" or bool(onnx.defs.has(node.op_type, node.domain))


def _sweep(graph: oir.Graph, pure: _PureOperators) -> int:
    removed = 0
    for node in reversed(graph):
        if pure(node) and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            detach(node)
            removed += 1
            continue
        removed += sum(_sweep(inner, pure) for inner in subgraphs(node))
    return removed


def remove_initializers(graph: oir.Graph, among: Collection[oir.Value] | None = None) -> int:
    """Removes initializers (of ``among``, if given) that nothing uses; returns how many."""
    annotated = {
        tensor_name
        for value in _values(graph)
        for tensor_name in value.meta.get(_QUANTIZATION, {}).values()
    }
    dead = [
        name
        for name, value in graph.initializers.items()
        if not (value.uses() or value.is_graph_output() or value.is_graph_input())
        and name not in annotated
        and (among is None or value in among)
    ]
    for name in dead:
        del graph.initializers[name]
    return len(dead)


def _values(graph: oir.Graph) -> Iterator[oir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _remove_functions(model: oir.Model) -> int:
    used: set[oir.OperatorIdentifier] = set()
    waiting = [node.op_identifier() for node in model.graph.all_nodes()]
    while waiting:
        key = waiting.pop()
        if key in used or key not in model.functions:
            continue
        used.add(key)
        waiting.extend(node.op_identifier() for node in model.functions[key].all_nodes())
    dead = [key for key in model.functions if key not in used]
    for key in dead:
        del model.functions[key]
    return len(dead)
