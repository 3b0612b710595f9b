"""Dependency analysis: from a model to its units and groups.

Every value's axes enter one table, every node's coupling rule writes links and pins, carriers are
chosen, and the connected components of all links are the units. A unit is prunable when none of
its coordinates is pinned and it owns a coordinate of a weight. Units that touch exactly the same
axes form a group.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as oir

from .constants import constant_tensor, constants, is_float
from .coupling import Coupling, Flags, Indices
from .errors import ModelError, UsageError
from .graphs import captured, subgraphs
from .naming import describe, node_label, output_name
from .rules.base import Body, Listed, Operand, Rule, Site, Statements
from .rules.registry import find_rule
from .shapes import Array, Facts, Observer, Skeleton, bind_dims, infer_bindings
from .sharing import is_shared, tie_weights
from .static import Branches
from .units import Group, form_units

GRAPH_INPUT, GRAPH_OUTPUT = -1, -2
"""Site numbers of pins that the model's interface states."""
PROTECTED = -3

RULE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class Weight:
    """A constant that pruning may slice, with its axes as used by ``operands``."""

    name: str
    shape: tuple[int, ...]
    dtype: oir.DataType
    axes: tuple[range, ...]


@dataclass
class Analysis:
    """The result of `analyze`: the axis table, the units, the groups and how to read them.

    ``model`` is flat (see `flatten`): values of all graphs are known by name, and ``sites`` are
    the nodes of all graphs that may run, those of a body before the node that it belongs to.
    """

    model: oir.Model
    skeleton: Skeleton
    facts: list[Facts]
    coupling: Coupling
    statements: Statements
    sites: list[Site]
    operands: dict[str | tuple[str, int, int], Operand]
    """By value name; constants used at several places by (name, site, input number), and by name
    as well where the uses of a weight are tied (see `sharing`)."""
    owners: list[tuple[str, int]]
    """For each axis: its value's name and axis index; ("", -1) for virtual axes."""
    weights: list[Weight]
    warnings: list[str] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    unit_count: int = 0
    lists: dict[str, Listed] = field(default_factory=dict)
    """The sequences whose elements are known, by name."""
    hidden: frozenset[oir.Node] = frozenset()
    """The nodes of subgraphs in which no rule holds."""
    written: oir.Model | None = None
    """The model as it was given, if it was not flat or if computed weights were stored in it."""
    stored: tuple[str, ...] = ()
    """Computed weights of that model that ``model`` stores instead (see `computed`)."""
    _unit_of_root: dict[int, Indices] = field(default_factory=dict)

    def units_of(self, axis: int) -> Indices | None:
        """For every coordinate of the axis the number of its unit, -1 where it must be kept.

        None when no coordinate of the axis can go.
        """
        return self._unit_of_root.get(self.coupling.root(axis))

    @property
    def source(self) -> oir.Model:
        """The model as it was given."""
        return self.model if self.written is None else self.written

    @cached_property
    def weight_names(self) -> frozenset[str]:
        """The names of all weights."""
        return frozenset(w.name for w in self.weights)

    @cached_property
    def group_of_unit(self) -> Indices:
        """The group number of every unit."""
        result = np.empty(self.unit_count, np.int64)
        for group in self.groups:
            result[group.units] = group.number
        return result

    def keep(self, axis: int, removed: Flags) -> Flags:
        """Which coordinates of the axis stay when the units flagged in ``removed`` go."""
        units = self.units_of(axis)
        if units is None:
            return np.ones(self.coupling.sizes[axis], np.bool_)
        return (units < 0) | ~removed[units]

    def new_size(self, axis: int, removed: Flags) -> int:
        """The size of the axis when the units flagged in ``removed`` go."""
        return int(self.keep(axis, removed).sum())


def analyze(
    model: oir.Model,
    dims: Mapping[str, int] | None = None,
    *,
    protect: Sequence[str] = (),
    prefer: str = "heads",
    observe: Observer | None = None,
    interface: bool = True,
    weights_only: bool = True,
) -> Analysis:
    """Finds the units and groups of ``model``.

    ``dims`` binds symbolic dimensions, ``protect`` are globs of node or tensor names that must
    stay whole, ``prefer`` chooses among carriers ("heads" or "head-dim"), ``observe`` supplies
    shapes that inference cannot find. With ``interface`` False, inputs and outputs are not
    pinned, and with ``weights_only`` False units need not own a weight: that is how rules are
    tested on single nodes. Raises UsageError for bad ``dims`` or a glob that matches nothing.
    """
    if not model.graph.outputs:
        raise ModelError("the model has no outputs, so nothing in it can be proved")
    skeleton = Skeleton(model)
    facts = infer_bindings(skeleton, bind_dims(model, dims or {}), observe)
    analysis = _Builder(skeleton.model, skeleton, facts).build(protect, prefer, interface)
    analysis.written = model if skeleton.model is not model else None
    form_units(analysis, weights_only)
    return analysis


class _Builder:
    """Fills the axis table and applies the rules."""

    def __init__(self, model: oir.Model, skeleton: Skeleton, facts: list[Facts]) -> None:
        self.model = model
        self.facts = facts
        self.coupling = Coupling()
        self.owners: list[tuple[str, int]] = []
        self.statements = Statements()
        self.warnings: list[str] = []
        self._shared: dict[str, bool] = {}
        self.lists: dict[str, Listed] = {}
        self.operands: dict[str | tuple[str, int, int], Operand] = {}
        self.tensors = {str(v.name): (v, t) for v, t in constants(model.graph)}
        self.constant = set(self.tensors)
        self.skeleton = skeleton
        self.sites: list[Site] = []
        self.branches = Branches(skeleton, facts)
        self.hidden = frozenset(self.branches.hidden(model.graph))

    def build(self, protect: Sequence[str], prefer: str, interface: bool) -> Analysis:
        self._visit_graph(self.model.graph, ())
        analysis = Analysis(
            self.model,
            self.skeleton,
            self.facts,
            self.coupling,
            self.statements,
            self.sites,
            self.operands,
            self.owners,
            [],
            self.warnings,
            lists=self.lists,
            hidden=self.hidden,
        )
        tie_weights(analysis)
        if interface:
            self._pin_interface()
        self._protect(protect, self.sites)
        self.coupling.products = [c.axes for c in self.statements.contractions]
        self.coupling.across = [i.axis for i in self.statements.inexact]
        self.coupling.resolve(prefer)
        self.owners += [("", -1)] * (len(self.coupling.sizes) - len(self.owners))
        analysis.weights = self._weights()
        return analysis

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

    def _lists(self, values: Sequence[oir.Value | None]) -> list[Listed | None]:
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
        return known if len(known) == len(values) else None

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
        return Body(inputs, outputs, self._lists(graph.inputs), self._lists(graph.outputs))

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
            self.coupling,
            self.statements,
            bodies,
            trips,
            (self._lists(node.inputs), self._lists(node.outputs)),
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
                self._barrier(site, f"the coupling rule does not fit: {error}")

    def _barrier(self, site: Site, why: str) -> None:
        site.pin_all(why)
        for body in site.bodies.values():
            site.pin_all(why, (*body.inputs, *body.outputs))
            site.pin_lists(why, (*body.lists_in, *body.lists_out))
        self.warnings.append(f"node '{node_label(site.node)}': {why}; everything it touches stays")

    # -- subgraphs ----------------------------------------------------------------------------

    def _pin_hidden(self, site: Site, live: Mapping[str, oir.Graph]) -> None:
        """Pins what subgraphs touch in which no rule holds: constants of their own, and, unless
        they never run, what they use of the graphs around."""
        for graph in subgraphs(site.node):
            if graph in live.values():
                continue
            why = "in a branch that never runs" if live else f"used inside {describe(site.node)}"
            inside = [value for value, _ in constants(graph)]
            for value in inside if live else (*inside, *captured(graph)):
                site.pin_all(why, [self._operand(value)])
                site.pin_lists(why, self._lists([value]))

    def _trips(self, node: oir.Node) -> tuple[int, ...]:
        """An axis as long as a loop has iterations, where that is known."""
        count = self.facts[0].trips.get(output_name(node))
        if count is None:
            return ()
        axis = self.coupling.add_axes((count,))[0]
        self.coupling.pin(axis, None, "counts iterations", -1)
        return (axis,)

    # -- pins from outside --------------------------------------------------------------------

    def _pin_interface(self) -> None:
        for values, reason, site in (
            (self.model.graph.inputs, "an input of the model", GRAPH_INPUT),
            (self.model.graph.outputs, "an output of the model", GRAPH_OUTPUT),
        ):
            for value in values:
                if site == GRAPH_INPUT and value.is_initializer():
                    continue
                listed = self._lists([value])[0]
                elements = () if listed is None else listed.operands
                for operand in (*self._by_name.get(str(value.name), ()), *elements):
                    for axis in operand.axes:
                        self.coupling.pin(axis, None, reason, site)

    def _protect(self, globs: Sequence[str], sites: Sequence[Site]) -> None:
        by_name = self._by_name
        for glob in globs:
            names = fnmatch.filter(by_name, glob)
            hit = [o for name in names for o in by_name[name]]
            for site in sites:
                if site.node.name and fnmatch.fnmatchcase(site.node.name, glob):
                    hit += [o for o in (*site.inputs, *site.outputs) if o and o.constant]
                    hit += [o for o in site.outputs if o]
            if not hit:
                raise UsageError(f"--protect '{glob}' matches no node and no tensor")
            for operand in hit:
                for axis in operand.axes:
                    self.coupling.pin(axis, None, f"protected by '{glob}'", PROTECTED)

    def _weights(self) -> list[Weight]:
        """Constants that units may own: floating-point ones, and integers that stand for others."""
        result = []
        quantised = self._quantised()
        for name, (value, tensor) in self.tensors.items():
            operands = self._by_name.get(name)
            if operands and (is_float(tensor.dtype) or value in quantised):
                # Uses that are tied to each other count as one.
                uses = {tuple(map(self.coupling.root, o.axes)): o.axes for o in operands[::-1]}
                axes = tuple(uses.values())[::-1]
                result.append(Weight(name, operands[0].shape, tensor.dtype, axes))
        return result

    def _quantised(self) -> set[oir.Value]:
        """Values that rules call quantised, and what these are moved from."""
        found = set(self.statements.quantised)
        front = list(found)
        while front:
            node = front.pop().producer()
            rule = None if node is None else find_rule(node.domain, node.op_type)
            if node is None or rule is None or rule.family not in ("movement", "reshape"):
                continue
            source = node.inputs[0]
            if source is not None and source not in found:
                found.add(source)
                front.append(source)
        return found

    @cached_property
    def _by_name(self) -> dict[str, list[Operand]]:
        """All operands of each value; asked for only once every node has been visited."""
        found: dict[str, list[Operand]] = {}
        for key, operand in self.operands.items():
            found.setdefault(key if isinstance(key, str) else key[0], []).append(operand)
        return found


def constant_tensor_of(node: oir.Node) -> oir.TensorProtocol | None:
    """The tensor of a Constant node; None for any other node."""
    return constant_tensor(node.outputs[0]) if node.op_type == "Constant" else None
