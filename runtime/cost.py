"""The analytic cost model: MACs, parameters, bytes and activation memory, from the axes.

Multiply-accumulates of a contraction and elements of a tensor are both products of axis sizes, so
the cost of an allocation (how many units each group loses) takes microseconds to evaluate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..ir.analysis import Analysis, Weight
from ..ir.coupling import Flags
from ..ir.naming import node_label
from ..ir.rules.base import Site
from .live_bytes import LiveBytes, bits, lifetimes
from .products import Counts, Products


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

    @cached_property
    def weight_bytes(self) -> Products:
        """The bytes of all constants that hang on units as products; a share of one byte counts
        as such."""
        types = self.analysis.skeleton.constants
        found = {o.name: o for o in self.analysis.operands.values() if o.name in types}
        return Products(
            self.analysis,
            [tuple(o.axes) for o in found.values()],
            [bits(types[name][0]) / 8 for name in found],
        )

    @cached_property
    def live_bytes(self) -> LiveBytes:
        """The bytes of all values alive while each node runs."""
        return LiveBytes(self.analysis)

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
        changes = np.zeros(len(self.analysis.sites) + 1, np.int64)
        for name, (first, last) in lifetimes(self.analysis).items():
            changes[first] += bytes_of.get(name, 0)
            changes[last + 1 :][:1] -= bytes_of.get(name, 0)
        return [int(n) for n in np.cumsum(changes)[:-1]]


def _bytes(elements: int, dtype: int) -> int:
    """Bytes of a dense tensor; strings count as pointers of 8 bytes."""
    return -(-elements * bits(dtype) // 8)
