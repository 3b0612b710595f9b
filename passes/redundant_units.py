"""Which units are redundant: removed, they leave the outputs as they are.

A unit matters only at its sinks (see `secateur.ir.rules.base.Sink`). At a sink it may go if what it
adds there is

- nothing: its coordinates are exactly zero, or those of the other operand are;
- a constant: the sink is a convolution or matrix product with constant weights that sees the same
  number at every place (no padding), so that the bias takes it over.

It is redundant if that holds at all its sinks; so is a unit without any, which nobody reads. Two
units of a group whose slices are equal at all their sinks are duplicates: the consumers' weights of
one are added to those of the other. Groups that some node looks across are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from ..ir.analysis import Analysis
from ..ir.bounds import Bounds, Knowledge
from ..ir.bounds.base import Floats, Numbers, mix, unit_of
from ..ir.bounds.contraction import matrices, sees_padding
from ..ir.constants import is_float
from ..ir.coupling import Flags, Indices
from ..ir.inlining import CALL
from ..ir.naming import output_name
from ..ir.rules.base import Operand, Sink, Site

CAUSES = ("zero", "constant", "duplicate", "unread")


@dataclass(frozen=True)
class Consumer:
    """A convolution or matrix product with constant weights: input ``data`` of ``site`` is
    contracted along ``axis`` with axis ``contracted`` of input ``weight``."""

    site: Site
    data: int
    axis: int
    weight: int
    contracted: int

    @property
    def name(self) -> str:
        """The output that names the node."""
        return output_name(self.site.node)

    @property
    def operand(self) -> Operand:
        """The weight."""
        operand = self.site.inputs[self.weight]
        assert operand is not None
        return operand


@dataclass
class Redundant:
    """What may go: ``cause`` is for each unit an index of `CAUSES`, -1 where it must stay;
    ``twin`` the unit that takes over a duplicate, else -1."""

    cause: npt.NDArray[np.int8]
    twin: Indices

    @property
    def removed(self) -> Flags:
        """bool[unit_count]: which units go."""
        return np.asarray(self.cause >= 0)

    def spare(self, units: Flags | Indices) -> None:
        """Keeps these units after all, and with them duplicates that they stand for no longer."""
        self.cause[units] = -1
        self.twin[units] = -1


@dataclass(frozen=True)
class Change:
    """What is added to the outputs of a consumer (float64[outputs]), and its weight with the
    columns of duplicates added to those of their twins, before anything is cut. ``units`` are those
    whose share it is, ``dtype`` the type of the outputs."""

    consumer: Consumer
    added: Floats | None
    weight: Floats | None
    units: Indices
    dtype: oir.DataType


@dataclass
class _Seen:
    """What one sink sees: its consumer if it is one with known weights, the units of its
    coordinates, what is known of these, and where the other operand is zero."""

    sink: Sink
    consumer: Consumer | None
    units: Indices
    known: Bounds
    ignored: Flags


@dataclass
class Finder:
    """Finds redundant units from what is known of the values."""

    analysis: Analysis
    knowledge: Knowledge

    def find(self, constants: bool, duplicates: bool) -> Redundant:
        """All redundant units; of duplicates, all but the first of each kind."""
        count = self.analysis.unit_count
        fixed, folded, merged = (np.ones(count, np.bool_) for _ in range(3))
        folded[:] = False
        read = np.zeros(count, np.bool_)
        ignored = np.ones(count, np.bool_)
        signature = np.zeros(count, np.uint64)
        for seen in self._sinks:
            inside = seen.units >= 0
            units = seen.units[inside]
            nothing = (seen.known.zero | seen.ignored)[inside]
            constant = ~np.isnan(seen.known.point[inside])
            foldable = constants and seen.consumer is not None and self._folds(seen.consumer)
            gone = nothing | (constant & foldable)
            fixed[units[~gone]] = False
            folded[units[gone & ~nothing]] = True
            read[units] = True
            ignored[units[~seen.ignored[inside]]] = False
            if seen.consumer is None or not self._merges(seen.consumer):
                merged[units] = False
            _sign(signature, seen, len(self.analysis.sites))
        free = self._free()
        cause = np.full(count, -1, np.int8)
        for name, flags in (
            ("zero", fixed & ~folded & ~ignored),
            ("constant", fixed & folded),
            ("unread", fixed & ignored),
        ):
            cause[flags & free] = CAUSES.index(name)
        result = Redundant(cause, np.full(count, -1, np.int64))
        if duplicates:
            self._pair(result, free & read & merged & (cause < 0), signature)
        return result

    def _free(self) -> Flags:
        """Units of groups that nothing looks across, and whose weights no caller may override."""
        free = np.zeros(self.analysis.unit_count, np.bool_)
        for group in self.analysis.groups:
            free[group.units] = group.exact
        for weight in self.analysis.weights:
            if weight.name not in self.knowledge.tensors:
                for axis in (axis for axes in weight.axes for axis in axes):
                    units = self.analysis.units_of(axis)
                    if units is not None:
                        free[units[units >= 0]] = False
        return free

    def _pair(self, result: Redundant, candidates: Flags, signature: Numbers) -> None:
        units = np.flatnonzero(candidates)
        groups = self.analysis.group_of_unit[units].astype(np.uint64)
        keys = mix(signature[units], mix(groups, 0))
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        twins = units[first[inverse]]
        other = twins != units
        result.cause[units[other]] = CAUSES.index("duplicate")
        result.twin[units[other]] = twins[other]

    # -- sinks --------------------------------------------------------------------------------

    @cached_property
    def _sinks(self) -> list[_Seen]:
        return list(self._see())

    def _see(self) -> Iterator[_Seen]:
        for sink in self.analysis.statements.sinks:
            units = self.analysis.units_of(sink.axis)
            site = self.analysis.sites[sink.site]
            operand = site.inputs[sink.input]
            if units is None or operand is None:
                continue
            known = self.knowledge.of(operand).along(sink.index, operand.shape[sink.index])
            consumer = self._consumer(site, sink)
            weight = None if consumer is None else self._weight(consumer)
            if weight is None:
                consumer, ignored = None, self._ignored(site, sink, units)
            else:
                ignored = np.asarray((weight == 0).all(axis=(1, 3)).reshape(-1))
            if not is_float(self.dtype(operand)):  # quantised: zero is not what stands for zero
                known = Bounds(
                    np.full(units.size, -np.inf),
                    np.full(units.size, np.inf),
                    np.full(units.size, np.nan),
                    known.number,
                )
            yield _Seen(sink, consumer, units, known, ignored)

    def changes(self, redundant: Redundant) -> Iterator[Change]:
        """What becomes of the consumers' weights and biases."""
        for seen in self._sinks:
            if seen.consumer is not None:
                change = self._change(seen, seen.consumer, redundant)
                if change.added is not None or change.weight is not None:
                    yield change

    def _change(self, seen: _Seen, consumer: Consumer, redundant: Redundant) -> Change:
        inside = np.flatnonzero(seen.units >= 0)
        gone = inside[redundant.removed[seen.units[inside]]]
        added = weight = None
        constant = redundant.twin[seen.units[gone]] < 0
        folded = gone[constant & ~(seen.known.zero | seen.ignored)[gone]]
        if folded.size:
            matrix = self._weight(consumer)
            assert matrix is not None
            values = np.zeros(seen.units.size)
            values[folded] = seen.known.point[folded]
            groups, _, inputs, _ = matrix.shape
            added = np.einsum("goit,gi->go", matrix, values.reshape(groups, inputs)).reshape(-1)
        units = self.analysis.units_of(consumer.operand.axis(consumer.contracted))
        if (~constant).any() and units is not None:
            weight = self.knowledge.array(consumer.operand.name).astype(np.float64)
            columns = np.moveaxis(weight, consumer.contracted, 0)
            for unit, twin in zip(*_pairs(redundant, units), strict=True):
                columns[twin] += columns[unit]
        dtype = self.dtype(consumer.site.y)
        moved = np.concatenate([seen.units[folded], seen.units[gone[~constant]]])
        return Change(consumer, added, weight, moved, dtype)

    def _consumer(self, site: Site, sink: Sink) -> Consumer | None:
        """The consumer that a sink is; None if it is none."""
        node = site.node
        if node.domain or len(site.inputs) < 2 or sink.input > 1:
            return None
        other = 1 - sink.input
        operand = site.inputs[other]
        if operand is None or not operand.constant:
            return None
        if node.op_type in ("Conv", "ConvTranspose") and sink.input == 0:
            contracted = 1 if node.op_type == "Conv" else 0
        elif node.op_type == "Gemm" and sink.input == 0:
            contracted = 1 if site.integer("transB", 0) else 0
        elif node.op_type == "MatMul" and operand.rank == 2 and site.y.rank > 1:
            contracted = 0 if other == 1 else 1
        else:
            return None
        return Consumer(site, sink.input, sink.index, other, contracted)

    def _weight(self, consumer: Consumer) -> Floats | None:
        """float64[groups, outputs, inputs, taps], or None if it is not known."""
        weight = self.knowledge.weight(consumer.operand)
        return None if weight is None else matrices(consumer.site, weight, consumer.weight)

    def _ignored(self, site: Site, sink: Sink, units: Indices) -> Flags:
        """Where what the coordinates of a matrix product are multiplied by is zero."""
        if site.node.op_type == "MatMul" and not site.node.domain:
            other = site.inputs[1 - sink.input]
            if other is not None and other.rank > 1:
                axis = other.rank - (2 if sink.input == 0 else 1)
                return self.knowledge.of(other).along(axis, other.shape[axis]).zero
        return np.zeros(units.size, np.bool_)

    def _folds(self, consumer: Consumer) -> bool:
        """Whether a constant at this sink can be moved to a bias."""
        site = consumer.site
        node, bias = site.node, site.input(2)
        if not in_main_graph(self.analysis, site):
            return False
        if unit_of(self.dtype(site.y)) is None:
            return False
        if node.op_type in ("Conv", "ConvTranspose") and sees_padding(site):
            return False
        if node.op_type == "Gemm" and site.node.attributes.get_float("beta", 1.0) == 0:
            return False
        weight = node.inputs[consumer.weight]
        source = None if weight is None else weight.producer()
        if source is not None and source.op_type == "DequantizeLinear":
            return False  # a bias in floats keeps a runtime from computing with integers
        return bias is None or bias.name in self.knowledge.tensors

    def _merges(self, consumer: Consumer) -> bool:
        """Whether the weight may be changed for this consumer: it is stored, and read once."""
        value = consumer.site.node.inputs[consumer.weight]
        return (
            value is not None
            and consumer.operand.name in self.knowledge.tensors
            and len(value.uses()) == 1
            and not value.is_graph_output()
            and unit_of(self.dtype(consumer.operand)) is not None
            and in_main_graph(self.analysis, consumer.site)
        )

    def dtype(self, operand: Operand) -> oir.DataType:
        """The element type of a value."""
        return oir.DataType(self.analysis.facts[0].types[operand.name][0])


def in_main_graph(analysis: Analysis, site: Site) -> bool:
    """Whether the node stands in the main graph of the model as it was written, where it can be
    changed: not in a subgraph, nor in the body of a call, which may come back."""
    return site.node.graph is analysis.model.graph and CALL not in site.node.meta


def _sign(signature: Numbers, seen: _Seen, sites: int) -> None:
    """Adds to every unit's signature what this sink sees of it: its slices, in order."""
    order = np.argsort(seen.units, kind="stable")
    order = order[seen.units[order] >= 0]
    units = seen.units[order]
    starts = np.flatnonzero(np.diff(units, prepend=-1))
    rank = np.arange(units.size) - np.repeat(starts, np.diff(starts, append=units.size))
    place = (seen.sink.input * sites + seen.sink.site) * 64 + seen.sink.index
    seen_as = mix(mix(seen.known.number[order], rank.astype(np.uint64)), place)
    np.add.at(signature, units, seen_as)


def _pairs(redundant: Redundant, units: Indices) -> tuple[Indices, Indices]:
    """Coordinates of duplicates on an axis, and those of their twins, place by place. ``units`` are
    those of the axis, of which equal ones are told apart by their order."""
    order = np.argsort(units, kind="stable")
    starts = np.searchsorted(units[order], np.arange(redundant.twin.size + 1))
    gone = np.flatnonzero((units >= 0) & (redundant.twin[units] >= 0))
    rank = np.empty(units.size, np.int64)
    rank[order] = np.arange(units.size) - starts[np.maximum(units[order], 0)]
    return gone, order[starts[redundant.twin[units[gone]]] + rank[gone]]
