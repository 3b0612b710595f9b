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

from .bindings import bind_dims
from .constants import is_float
from .coupling import Coupling, Flags, Indices
from .errors import ModelError, UsageError
from .graphs import own_values
from .rules.base import Listed, Operand, Site, Statements
from .rules.registry import find_rule
from .shapes import Facts, Observer, Skeleton, infer_bindings
from .sharing import tie_weights
from .units import Group, form_units
from .visitor import Visitor

GRAPH_INPUT, GRAPH_OUTPUT = -1, -2
"""Site numbers of pins that the model's interface states."""
PROTECTED = -3
ANNOTATED = -4


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
    builder = _Builder(skeleton.model, skeleton, facts)
    analysis = builder.build(protect, prefer, interface)
    analysis.written = model if skeleton.model is not model else None
    form_units(analysis, weights_only)
    return analysis


class _Builder(Visitor):
    """Adds to the rules what is said from outside, and settles what they left open."""

    def build(self, protect: Sequence[str], prefer: str, interface: bool) -> Analysis:
        self.visit()
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
        self._pin_annotated()
        self._protect(protect, self.sites)
        self.coupling.products = [c.axes for c in self.statements.contractions]
        self.coupling.across = [i.axis for i in self.statements.inexact]
        self.coupling.resolve(prefer)
        self.owners += [("", -1)] * (len(self.coupling.sizes) - len(self.owners))
        analysis.weights = self._weights()
        return analysis

    # -- pins from outside --------------------------------------------------------------------

    def _pin_interface(self) -> None:
        for values, reason, site in (
            (self.model.graph.inputs, "an input of the model", GRAPH_INPUT),
            (self.model.graph.outputs, "an output of the model", GRAPH_OUTPUT),
        ):
            for value in values:
                if site == GRAPH_INPUT and value.is_initializer():
                    continue
                listed = self.lists_of([value])[0]
                elements = () if listed is None else listed.operands
                for operand in (*self._by_name.get(str(value.name), ()), *elements):
                    for axis in operand.axes:
                        self.coupling.pin(axis, None, reason, site)

    def _pin_annotated(self) -> None:
        """A quantization annotation names no axis: where it gives more than one scale or zero
        point, these and the tensor that they belong to stay."""
        for graph in (self.model.graph, *self.model.graph.subgraphs()):
            for value in own_values(graph):
                names = value.meta.get("quant_parameter_tensor_names", {}).values()
                several = [n for n in names if n in self.tensors and self.tensors[n][1].size > 1]
                for name in (str(value.name), *several) if several else ():
                    for operand in self._by_name.get(name, ()):
                        for axis in operand.axes:
                            reason = f"annotated with several scales or zero points ({several[0]})"
                            self.coupling.pin(axis, None, reason, ANNOTATED)

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
                raise UsageError(f"`protect` '{glob}' matches no node and no tensor")
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
