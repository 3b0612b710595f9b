"""The analytic cost model: MACs, parameters, bytes and activation memory, from the axes.

Multiply-accumulates of a contraction and elements of a tensor are both products of axis sizes.
An axis shrinks by a fixed number of coordinates for every unit of a group that goes, so the cost
of an allocation (how many units each group loses) takes microseconds to evaluate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from ..ir.analysis import Analysis, Weight
from ..ir.coupling import Flags
from ..ir.naming import node_label
from ..ir.rules.base import Site

Counts = npt.NDArray[np.int64]
Sizes = npt.NDArray[np.float64]

_NONE = np.empty(0, np.int64)


class Products:
    """A sum of products of axis sizes, evaluated for whole allocations.

    ``terms`` lists the axes of each product. Units of one group that own unequally many
    coordinates of an axis count with their mean.
    """

    def __init__(self, analysis: Analysis, terms: Sequence[Sequence[int]]) -> None:
        axes = sorted({axis for term in terms for axis in term})
        number = {axis: k for k, axis in enumerate(axes)}
        width = max((len(term) for term in terms), default=1)
        self._terms = np.full((len(terms), max(width, 1)), len(axes), np.int64)
        for row, term in enumerate(terms):
            self._terms[row, : len(term)] = [number[a] for a in term]
        sizes = [analysis.coupling.sizes[a] for a in axes]
        self._sizes = np.array([*sizes, 1], np.float64)
        # Entry e: axis `_axis[e]` loses `_per_unit[e]` coordinates with every unit of `_group[e]`.
        self._groups = len(analysis.groups)
        found: list[tuple[int, Counts, Sizes]] = []
        for axis, k in number.items():
            units = analysis.units_of(axis)
            if units is not None:
                groups, counts = np.unique(
                    analysis.group_of_unit[units[units >= 0]], return_counts=True
                )
                found.append((k, groups, counts / [len(analysis.groups[g].units) for g in groups]))
        lengths = [len(groups) for _, groups, _ in found]
        self._axis = np.repeat(np.array([k for k, _, _ in found], np.int64), lengths)
        self._group = np.concatenate([_NONE, *(groups for _, groups, _ in found)])
        self._per_unit = np.concatenate([np.empty(0), *(per for _, _, per in found)])

    def each(self, removed: Counts) -> Sizes:
        """Every product when group g loses ``removed[g]`` units."""
        values: Sizes = self._factors(removed).prod(axis=1)
        return values

    def total(self, removed: Counts) -> float:
        """The sum over all layers when every group g loses ``removed[g]`` units."""
        return float(self.each(removed).sum())

    def gains(self, removed: Counts, back: Counts) -> Sizes:
        """For every group g, how much the total grows when g alone gets ``back[g]`` units back."""
        term, group, per_unit = self._pairs
        factors = self._factors(removed)
        values = factors.prod(axis=1)
        grown = (factors[term] + per_unit * back[group, None]).prod(axis=1)
        return np.bincount(group, grown - values[term], self._groups).astype(np.float64)

    def _factors(self, removed: Counts) -> Sizes:
        gone = np.bincount(self._axis, self._per_unit * removed[self._group], len(self._sizes))
        factors: Sizes = (self._sizes - gone)[self._terms]
        return factors

    @cached_property
    def _pairs(self) -> tuple[Counts, Counts, Sizes]:
        """Every (term, group) that meet, and what each factor of the term loses per unit."""
        width = self._terms.shape[1]
        first = np.searchsorted(self._axis, self._terms.ravel(), side="left")
        count = np.searchsorted(self._axis, self._terms.ravel(), side="right") - first
        place = np.repeat(np.arange(self._terms.size), count)
        offset = np.arange(place.size) - np.repeat(np.cumsum(count) - count, count)
        entry = first[place] + offset
        keys, pair = np.unique(
            place // width * self._groups + self._group[entry], return_inverse=True
        )
        per_unit = np.zeros((keys.size, width))
        per_unit[pair, place % width] = self._per_unit[entry]
        return keys // max(self._groups, 1), keys % max(self._groups, 1), per_unit


@dataclass(frozen=True)
class LayerCost:
    """Costs of one node: multiply-accumulates, the parameters it reads and their bytes, the bytes
    of its outputs, and the bytes of all values alive while it runs."""

    name: str
    op_type: str
    macs: int
    parameters: int
    weight_bytes: int
    activation_bytes: int
    live_bytes: int


@dataclass(frozen=True)
class Costs:
    """Costs of a model at the first binding of its symbolic dimensions. The body of a loop counts
    its multiply-accumulates once for every iteration where their number is known, else once.

    ``weight_bytes`` counts all constants; ``peak_activation_bytes`` is the largest sum of
    values alive at once when nodes run in order and nothing is computed in place.
    """

    macs: int
    parameters: int
    weight_bytes: int
    peak_activation_bytes: int
    layers: tuple[LayerCost, ...]


class CostModel:
    """Costs of an analysed model and of what is left of it."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis

    @cached_property
    def macs(self) -> Products:
        """All contractions as products."""
        return Products(self.analysis, [c.axes for c in self.analysis.statements.contractions])

    @cached_property
    def parameters(self) -> Products:
        """All weights as products."""
        return Products(self.analysis, [tuple(w.axes[0]) for w in self.analysis.weights])

    def costs(self, removed: Flags | None = None) -> Costs:
        """Exact costs with the units flagged in ``removed`` (default: none) gone."""
        sizes = self._sizes(removed)
        analysis = self.analysis
        macs = np.zeros(len(analysis.sites), np.int64)
        for contraction in analysis.statements.contractions:
            macs[contraction.site] += int(sizes[list(contraction.axes)].prod())
        layers, bytes_of = [], self._activation_bytes(sizes)
        live = self._live_bytes(bytes_of)
        for site in analysis.sites:
            made = sum(bytes_of.get(o.name, 0) for o in site.outputs if o is not None)
            read, stored = self._weights_read(site, sizes)
            if macs[site.number] or read:
                layers.append(
                    LayerCost(
                        node_label(site.node),
                        site.node.op_type,
                        int(macs[site.number]),
                        read,
                        stored,
                        made,
                        live[site.number],
                    )
                )
        return Costs(
            int(macs.sum()),
            sum(self._elements(w, removed) for w in analysis.weights),
            self._weight_bytes(sizes, removed),
            max(live, default=0),
            tuple(layers),
        )

    def _elements(self, weight: Weight, removed: Flags | None) -> int:
        """Elements of a weight; a constant whose uses keep different parts is stored for each."""
        if removed is None:
            return math.prod(weight.shape)
        analysis = self.analysis
        kept = {
            tuple(analysis.keep(axis, removed).tobytes() for axis in axes): axes
            for axes in weight.axes
        }
        return sum(
            math.prod(analysis.new_size(axis, removed) for axis in axes) for axes in kept.values()
        )

    def _sizes(self, removed: Flags | None) -> Counts:
        analysis = self.analysis
        sizes = np.array(analysis.coupling.sizes, np.int64)
        if removed is not None and removed.any():
            new: dict[int, int] = {}
            for axis in range(len(sizes)):
                root = analysis.coupling.root(axis)
                if analysis.units_of(axis) is not None:
                    if root not in new:
                        new[root] = analysis.new_size(axis, removed)
                    sizes[axis] = new[root]
        return sizes

    def _weights_read(self, site: Site, sizes: Counts) -> tuple[int, int]:
        """Elements and bytes of the weights that are inputs of a node."""
        names = self.analysis.weight_names
        found = {o.name: o for o in site.inputs if o is not None and o.name in names}
        counts = {name: int(sizes[list(o.axes)].prod()) for name, o in found.items()}
        types = self.analysis.skeleton.constants
        stored = sum(_bytes(count, types[name][0]) for name, count in counts.items())
        return sum(counts.values()), stored

    def _weight_bytes(self, sizes: Counts, removed: Flags | None) -> int:
        """Bytes of all constants, integers included."""
        types = self.analysis.skeleton.constants
        counts = {name: math.prod(shape) for name, (_, shape) in types.items()}
        counts |= {
            o.name: int(sizes[list(o.axes)].prod())
            for o in self.analysis.operands.values()
            if o.name in types
        }
        counts |= {w.name: self._elements(w, removed) for w in self.analysis.weights}
        return sum(_bytes(count, types[name][0]) for name, count in counts.items())

    def _activation_bytes(self, sizes: Counts) -> dict[str, int]:
        """Bytes of every computed or fed value."""
        types = self.analysis.facts[0].types
        return {
            o.name: _bytes(int(sizes[list(o.axes)].prod()), types[o.name][0])
            for o in self.analysis.operands.values()
            if not o.constant
        }

    def _live_bytes(self, bytes_of: dict[str, int]) -> list[int]:
        """For every node the bytes of all values alive while it runs, in the order of nodes."""
        graph = self.analysis.model.graph
        last: dict[str, int] = {}
        for step, site in enumerate(self.analysis.sites):
            for operand in (*site.inputs, *site.outputs):
                if operand is not None:
                    last[operand.name] = step
        last.update({str(v.name): len(self.analysis.sites) for v in graph.outputs})
        ends: dict[int, list[str]] = {}
        for name, step in last.items():
            ends.setdefault(step, []).append(name)
        begun = {str(v.name) for v in graph.inputs}
        alive = sum(bytes_of.get(name, 0) for name in begun)
        live = []
        for step, site in enumerate(self.analysis.sites):
            # A body's inputs begin where they are read first.
            named = {o.name for o in (*site.inputs, *site.outputs) if o is not None} - begun
            begun |= named
            alive += sum(bytes_of.get(name, 0) for name in named)
            live.append(alive)
            alive -= sum(bytes_of.get(name, 0) for name in ends.get(step, ()))
        return live


def _bytes(elements: int, dtype: int) -> int:
    """Bytes of a dense tensor; strings count as pointers of 8 bytes."""
    kind = oir.DataType(dtype)
    return -(-elements * (64 if kind == oir.DataType.STRING else kind.bitwidth) // 8)
