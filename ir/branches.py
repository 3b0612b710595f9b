"""Residual branches: what lies between a value and the sum that joins it again.

A sum ``y = v + f`` closes a branch when ``f`` depends on ``v`` and is no formula without weights, as
in ``x + x * x * x``. The branch consists of the nodes that nothing else needs: all that they
make ends in ``f``. Without it ``y`` is ``v``. Which nodes add, and what, is said by the rules of
the operators (`secateur.ir.rules.sums`): an Add, a normalisation with a skip input, a convolution
that adds a further input to its own product. Nothing here knows an architecture; the blocks of
residual networks, transformers and their kin come out alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

import onnx_ir as oir

from .constants import constant_tensor
from .graphs import subgraphs
from .naming import output_name
from .rules.registry import find_rule
from .rules.sums import Sum


@dataclass(frozen=True)
class Branch:
    """A residual branch, by names of values.

    ``joint`` is the first output of the node that adds it, ``operands`` are the inputs of that
    node, by number and name, that are zero without the branch: that at which it ends, then biases
    that the node adds itself. ``source`` is the value that is joined again, ``output`` the number
    of the output that is the sum, or is computed from it alone. ``nodes`` are the first outputs of
    the branch's own nodes, in the order of the graph.
    """

    joint: str
    operands: tuple[tuple[int, str], ...]
    source: str
    output: int
    nodes: tuple[str, ...]


def node_sum(node: oir.Node) -> Sum | None:
    """The sum that a node computes, if its rule knows one."""
    rule = find_rule(node.domain, node.op_type)
    return None if rule is None or rule.sums is None else rule.sums(node)


def residual_branches(graph: oir.Graph) -> list[Branch]:
    """All residual branches of a graph, in the order in which they are closed.

    Branches may lie within each other (a stack of blocks around which a shortcut leads).
    """
    cones = _Cones(graph)
    return [branch for node in graph for branch in _closed(node, cones)]


def _closed(node: oir.Node, cones: _Cones) -> Iterator[Branch]:
    """The branches that this node adds to something."""
    total = node_sum(node)
    if total is None:
        return
    inputs = dict(enumerate(node.inputs))
    for ends in filter(None, (*((k,) for k in total.terms), total.product)):
        others = [v for k in total.terms if k not in ends and (v := inputs[k])]
        if all(constant_tensor(v) is not None for v in others):
            continue
        nodes, reads = cones.of(node, ends)
        if ends != total.product and all(map(_is_formula, nodes)):
            continue
        if ends == total.product:  # the node itself belongs to the branch
            reads |= {inputs[k] for k in ends}
        source = next((v for v in others if _is_source(v, reads)), None)
        if source is not None:
            yield Branch(
                output_name(node),
                tuple((k, str(v.name)) for k in (ends[0], *total.biases) if (v := inputs[k])),
                str(source.name),
                total.output or 0,
                tuple(output_name(n) for n in cones.of(node, (*ends, *total.biases))[0]),
            )


def _is_formula(node: oir.Node) -> bool:
    """Whether a node computes element by element, with single numbers at the most."""
    rule = find_rule(node.domain, node.op_type)
    constants = (constant_tensor(v) for v in node.inputs if v is not None)
    return (
        rule is not None
        and rule.family == "elementwise"
        and all(tensor is None or tensor.size == 1 for tensor in constants)
    )


def _is_source(value: oir.Value, reads: Collection[oir.Value | None]) -> bool:
    """Whether a branch that reads these values starts at ``value``: at itself, or where it is a
    sum, at what the same node computes from it."""
    node = value.producer()
    total = None if node is None else node_sum(node)
    alike = [value]
    if node is not None and total is not None and node.outputs.index(value) == total.output:
        alike += node.outputs
    return constant_tensor(value) is None and any(v in reads for v in alike)


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

    def of(
        self, joint: oir.Node, ends: tuple[int, ...]
    ) -> tuple[list[oir.Node], set[oir.Value | None]]:
        """The nodes whose every output leads to these inputs of ``joint`` and nowhere else; and
        all that they read from outside."""
        inside: set[oir.Node] = set()
        reads: set[oir.Value | None] = set()
        waiting: list[int] = []  # latest first: all users of a node come before it
        seen: set[int] = set()

        def visit(value: oir.Value) -> None:
            number = self._order.get(value.producer())  # type: ignore[arg-type]
            if number is not None and number not in seen:
                seen.add(number)
                heappush(waiting, -number)

        for number in ends:
            if (end := joint.inputs[number]) is not None:
                visit(end)
        while waiting:
            node = self._nodes[-heappop(waiting)]
            if not all(self._leads(value, joint, ends, inside) for value in node.outputs):
                continue
            inside.add(node)
            for value in (*node.inputs, *self._captured.get(node, ())):
                if value is not None:
                    reads.add(value)
                    visit(value)
        reads.difference_update(value for node in inside for value in node.outputs)
        return sorted(inside, key=self._order.__getitem__), reads

    def _leads(
        self, value: oir.Value, joint: oir.Node, ends: tuple[int, ...], inside: set[oir.Node]
    ) -> bool:
        return not value.is_graph_output() and all(
            self._hosts.get(use.node, use.node) in inside or (use.node is joint and use.idx in ends)
            for use in value.uses()
        )
