"""A graph as steps that PyTorch can run: what the executor is built from.

A step is a node with its operator looked up, its attributes as Python values, and the names of
what is needed no more after it. Names are those of a flat model (see `ir.flatten`), so one table of
values serves the main graph and the bodies of If and Loop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as oir

from ..ir.constants import constant_tensor
from ..ir.errors import UsageError
from ..ir.graphs import captured, subgraphs
from ..ir.naming import output_name
from .torch_ops.registry import Call, Operator, Unsupported, known_operators
from .torch_ops.tensors import to_torch

CONTROL = frozenset(["If", "Loop"])


@dataclass(frozen=True)
class Step:
    """One node: ``inputs`` and ``outputs`` are names ("" where left out); ``release`` are the
    values that nobody reads afterwards; ``bodies`` the subgraphs by attribute."""

    node: oir.Node
    operator: Operator | None
    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    release: tuple[str, ...]
    bodies: Mapping[str, Program]

    @property
    def where(self) -> str:
        """The node in a message."""
        return describe(self.node)


@dataclass(frozen=True)
class Program:
    """The steps of a graph, and the names of what goes in and comes out."""

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def compile_graph(
    graph: oir.Graph, versions: Mapping[str, int], wanted: Sequence[str], renew: bool = False
) -> Program:
    """The steps that compute the values called ``wanted``, in the order of the graph.

    Raises UsageError for an operator that the executor does not know.
    """
    needed = _needed(graph, wanted)
    order = [node for node in graph if node in needed]
    last = _last_uses(order)
    made = {str(v.name) for node in order for v in node.outputs if v.name}
    made |= {str(v.name) for v in graph.inputs}
    held = frozenset(wanted)
    gone: dict[oir.Node, list[str]] = {}
    for name, node in last.items():
        if name in made and name not in held:
            gone.setdefault(node, []).append(name)
    steps = [_step(node, versions, gone.get(node, ()), renew) for node in order]
    return Program(tuple(steps), tuple(str(v.name) for v in graph.inputs), tuple(wanted))


def describe(node: oir.Node) -> str:
    """``node 'name' (Op)``."""
    return f"node '{node.name or output_name(node)}' ({node.op_type})"


def unsupported(node: oir.Node, form: str = "") -> UsageError:
    """The error for an operator, or a form of it, that the executor does not know, or through
    which it has no gradient."""
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    what = f"{name} with {form}" if form else f"{name} (it knows {len(known_operators())} others)"
    return UsageError(
        f"{describe(node)}: the differentiable executor does not know {what}; use recover, and "
        "criteria other than taylor, which need no gradients"
    )


def reads(node: oir.Node) -> list[oir.Value]:
    """What a node reads, bodies included."""
    own = [v for v in node.inputs if v is not None]
    return own + [v for body in subgraphs(node) for v in captured(body)]


def _needed(graph: oir.Graph, wanted: Collection[str]) -> set[oir.Node]:
    """The nodes of the graph that the wanted values depend on."""
    makers = {str(v.name): node for node in graph for v in node.outputs if v.name}
    front = [makers[name] for name in wanted if name in makers]
    found: set[oir.Node] = set(front)
    while front:
        for value in reads(front.pop()):
            node = makers.get(str(value.name))
            if node is not None and node not in found:
                found.add(node)
                front.append(node)
    return {node for node in found if constant_tensor(node.outputs[0]) is None}


def _last_uses(order: Iterable[oir.Node]) -> dict[str, oir.Node]:
    """For every value the last node that reads it, or makes it if none does."""
    last: dict[str, oir.Node] = {}
    for node in order:
        last.update((str(v.name), node) for v in node.outputs if v.name)
        last.update((str(v.name), node) for v in reads(node))
    return last


def _step(node: oir.Node, versions: Mapping[str, int], release: Sequence[str], renew: bool) -> Step:
    domain = "" if node.domain == "ai.onnx" else node.domain
    operator = known_operators().get((domain, node.op_type))
    control = domain == "" and node.op_type in CONTROL
    if operator is None and not control:
        raise unsupported(node)
    bodies = {
        name: compile_graph(body, versions, [str(v.name) for v in body.outputs], renew)
        for name, attribute in node.attributes.items()
        if attribute.type == oir.AttributeType.GRAPH
        for body in (attribute.as_graph(),)
    }
    try:
        attributes = {
            name: _attribute(attribute)
            for name, attribute in node.attributes.items()
            if name not in bodies
        }
    except Unsupported as error:
        raise unsupported(node, str(error)) from error
    used = [k for k, v in enumerate(node.outputs) if v.name and (v.uses() or v.is_graph_output())]
    types = tuple(0 if v is None else _element(v) for v in node.inputs)
    call = Call(
        node.op_type,
        versions.get(domain, 1),
        max(used, default=0) + 1 if node.op_type != "Split" else len(node.outputs),
        attributes,
        types,
        renew,
    )
    return Step(
        node,
        operator,
        call,
        tuple("" if v is None else str(v.name) for v in node.inputs),
        tuple(str(v.name or "") for v in node.outputs),
        tuple(release),
        bodies,
    )


def _element(value: oir.Value) -> int:
    tensor = constant_tensor(value)
    dtype = value.dtype if tensor is None else tensor.dtype
    return 0 if dtype is None else int(dtype)


def _attribute(attribute: oir.Attr) -> Any:
    value = attribute.value
    if attribute.type == oir.AttributeType.TENSOR:
        return to_torch(attribute.as_tensor().numpy())
    if attribute.type in (oir.AttributeType.INTS, oir.AttributeType.FLOATS):
        return tuple(value)
    return value
