"""One walk over a model: every value's axes enter one table, every node's rule speaks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx_ir as oir

from .bindings import moved_alone, moved_together
from .columns import Column, columns
from .constants import constant_tensor, constants
from .coupling import Coupling
from .graphs import captured, subgraphs
from .naming import describe, node_label, output_name
from .rules.base import Body, Listed, Operand, Rule, Site, Statements
from .rules.registry import find_rule
from .shapes import Array, Facts, Skeleton
from .sharing import is_shared
from .static import Branches

RULE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


class Visitor:
    """Fills the axis table and applies the rules, node by node (`visit`).

    ``facts`` hold under bindings that the model bears.
    """

    def __init__(self, model: oir.Model, skeleton: Skeleton, facts: list[Facts]) -> None:
        self.model = model
        self.facts = facts
        self.coupling = Coupling()
        self.owners: list[tuple[str, int]] = []
        self.statements = Statements()
        self.warnings: list[str] = []
        self.lists: dict[str, Listed] = {}
        self.operands: dict[str | tuple[str, int, int], Operand] = {}
        self.tensors = {str(v.name): (v, t) for v, t in constants(model.graph)}
        self.constant = set(self.tensors)
        self.skeleton = skeleton
        self.sites: list[Site] = []
        self.branches = Branches(skeleton, facts)
        self._shared: dict[str, bool] = {}
        self.hidden = frozenset(self.branches.hidden(model.graph))

    def visit(self) -> None:
        """Applies the rules to all graphs of the model."""
        self._visit_graph(self.model.graph, ())

    # -- operands -----------------------------------------------------------------------------

    def _operand(self, value: oir.Value, site: int = -1, position: int = -1) -> Operand | None:
        name = str(value.name)
        key: str | tuple[str, int, int] = name
        if name in self.tensors and position >= 0 and self._is_shared(value):
            key = (name, site, position)
        return self._typed_operand(name, key, site)

    def _typed_operand(
        self, name: str, key: str | tuple[str, int, int], site: int
    ) -> Operand | None:
        if key in self.operands:
            return self.operands[key]
        types = [f.types.get(name) for f in self.facts]
        if types[0] is None:
            return None
        shape = types[0][1]
        later = self.facts[-1].types[name][1]
        axes = self.coupling.add_axes(shape, later, site)
        self.owners += [("", -1)] * (axes.start - len(self.owners))
        self.owners += [(name, index) for index in range(len(shape))]
        dynamic = self._dynamic(name, len(shape))
        operand = Operand(name, shape, axes, name in self.constant, dynamic, later)
        self.operands[key] = operand
        return operand

    def lists_of(self, values: Sequence[oir.Value | None]) -> list[Listed | None]:
        """The sequences among values, where they hold the same elements under every binding."""
        return [None if value is None else self._list(str(value.name)) for value in values]

    def _list(self, name: str) -> Listed | None:
        found = [f.lists.get(name) for f in self.facts]
        if found[0] is None or any(other != found[0] for other in found):
            return None
        origins = [self.facts[0].origins.get(part, "") for part in found[0].names]
        made = [
            [self._typed_operand(part, part, -1) for part in parts]
            for parts in (found[0].names, origins)
        ]
        known = tuple(operand for operand in made[0] if operand is not None)
        if len(known) < len(made[0]):
            return None
        self.lists[name] = Listed(known, found[0].exact, tuple(made[1]))
        return self.lists[name]

    def _dynamic(self, name: str, rank: int) -> tuple[bool, ...]:
        if len(self.facts) == 1:
            return (False,) * rank
        first, second = (f.types[name][1] for f in self.facts)
        return tuple(a != b for a, b in zip(first, second, strict=True))

    def _is_shared(self, value: oir.Value) -> bool:
        name = str(value.name)
        if name not in self._shared:
            self._shared[name] = is_shared(value, self.tensors[name][1], self.hidden)
        return self._shared[name]

    def _value_of(self, name: str) -> Array | None:
        """A value known before the run and equal in both bindings."""
        values = [f.values.get(name) for f in self.facts]
        if values[0] is None:
            tensor = self.tensors.get(name)
            return None if tensor is None else tensor[1].numpy()
        if any(v is None or not np.array_equal(v, values[0]) for v in values[1:]):
            return None
        return values[0]

    def _values_of(self, name: str) -> list[Array] | None:
        """A value under every binding, where it is known before the run under all."""
        values = [f.values.get(name) for f in self.facts]
        known = [value for value in values if value is not None]
        if not known and name in self.tensors:
            return [self.tensors[name][1].numpy()] * len(values)
        return known if len(known) == len(values) else None

    def _columns_of(self, name: str, sizes: Sequence[Sequence[int]]) -> list[Column]:
        def fixed(source: str) -> bool:
            return source in self.tensors or not self.branches.moves(source).any()

        given = sizes[: len(self.facts)]
        return columns(name, given, self.skeleton.protos, self.facts, self._values_of, fixed)

    # -- nodes --------------------------------------------------------------------------------

    def _visit_graph(self, graph: oir.Graph, trips: tuple[int, ...]) -> Body:
        """Applies the rules to a graph that runs as often as the axes ``trips`` are long."""
        for value in graph.inputs:
            if not value.is_initializer():
                self._operand(value)
        for node in graph:
            if constant_tensor_of(node) is None:
                self._visit(node, trips)
        if graph is self.model.graph:
            return Body((), ())
        inputs = [self._operand(value) for value in graph.inputs]
        outputs = [self._operand(value) for value in graph.outputs]
        return Body(inputs, outputs, self.lists_of(graph.inputs), self.lists_of(graph.outputs))

    def _visit(self, node: oir.Node, trips: tuple[int, ...]) -> None:
        rule = find_rule(node.domain, node.op_type)
        live = self.branches.live(node)
        inner = (*trips, *self._trips(node)) if live else ()
        bodies = {name: self._visit_graph(graph, inner) for name, graph in live.items()}
        number = len(self.sites)
        given = [v is None or str(v.name) in self.constant for v in node.inputs]
        if given and all(given) and not subgraphs(node):
            self.constant.update(str(o.name) for o in node.outputs)
        inputs = [
            None if v is None else self._operand(v, number, i) for i, v in enumerate(node.inputs)
        ]
        outputs = [self._operand(v, number) if v.name else None for v in node.outputs]
        every = rule is not None and rule.all_outputs
        outputs = [
            o if every or v.uses() or v.is_graph_output() or i == 0 else None
            for i, (o, v) in enumerate(zip(outputs, node.outputs, strict=True))
        ]
        site = Site(
            number,
            node,
            self.model.graph.opset_imports.get(node.domain, self.skeleton.opset),
            inputs,
            outputs,
            self._value_of,
            self._values_of,
            self._columns_of,
            self.coupling,
            self.statements,
            bodies,
            trips,
            (self.lists_of(node.inputs), self.lists_of(node.outputs)),
        )
        self.sites.append(site)
        self._pin_hidden(site, live)
        self._couple(site, rule)

    def _couple(self, site: Site, rule: Rule | None) -> None:
        node, operands = site.node, (*site.inputs, *site.outputs)
        lists = (*site.lists_in, *site.lists_out)
        unknown = [
            str(v.name)
            for v, o, listed in zip((*node.inputs, *node.outputs), operands, lists, strict=True)
            if v is not None
            and o is None
            and listed is None
            and v.name
            and (v.uses() or v.is_graph_output())
        ]
        if rule is None or (subgraphs(node) and not site.bodies):
            self._barrier(site, f"no coupling rule for {describe(node)}")
        elif unknown and not site.bodies:
            self._barrier(site, f"the shape of '{unknown[0]}' is not known")
        else:
            try:
                rule.couple(site)
            except RULE_ERRORS as error:
                if os.environ.get("SECATEUR_DEBUG"):
                    raise
                what = f"{type(error).__name__}: {error}"
                self._barrier(site, f"the coupling rule does not fit: {what}")

    def _barrier(self, site: Site, why: str) -> None:
        site.pin_all(why)
        for body in site.bodies.values():
            site.pin_all(why, (*body.inputs, *body.outputs))
            site.pin_lists(why, (*body.lists_in, *body.lists_out))
        self.warnings.append(f"node '{node_label(site.node)}': {why}; everything it touches stays")

    # -- subgraphs ----------------------------------------------------------------------------

    @cached_property
    def _elsewhere(self) -> Branches:
        """Which branches run at other sizes too, those included that the model does not bear as a
        whole: where an If gives another rank, say."""
        binding = self.facts[0].binding
        sizes = (*moved_together(binding), *moved_alone(binding))
        others = (self.skeleton.infer(other, look=1) for other in sizes)
        return Branches(self.skeleton, [self.facts[0], *others])

    def _pin_hidden(self, site: Site, live: Mapping[str, oir.Graph]) -> None:
        """Pins what subgraphs touch in which no rule holds: constants of their own, and, unless
        they never run at any size, what they use of the graphs around."""
        for graph in subgraphs(site.node):
            if graph in live.values():
                continue
            why, touched = f"used inside {describe(site.node)}", captured(graph)
            if live and self._elsewhere.taken(site.node):
                why, touched = "in a branch that never runs", []
            elif live:
                why = "in a branch that runs at other sizes only"
            for value in (*(value for value, _ in constants(graph)), *touched):
                site.pin_all(why, [self._operand(value)])
                site.pin_lists(why, self.lists_of([value]))

    def _trips(self, node: oir.Node) -> tuple[int, ...]:
        """An axis as long as a loop has iterations, where that is known."""
        count = self.facts[0].trips.get(output_name(node))
        if count is None:
            return ()
        axis = self.coupling.add_axes((count,))[0]
        self.coupling.pin(axis, None, "counts iterations", -1)
        return (axis,)


def constant_tensor_of(node: oir.Node) -> oir.TensorProtocol | None:
    """The tensor of a Constant node; None for any other node."""
    return constant_tensor(node.outputs[0]) if node.op_type == "Constant" else None
