"""Constants that nodes compute, and of which nothing may go unless they are computed beforehand.

Exporters write standardised and normalised weights as a subgraph over initializers: a mean that is
subtracted, a norm that is divided by. Such a node looks across channels of the weight, or keeps
them whole, so that nothing could be removed exactly; yet what it computes is the same in every run.
Stored as one tensor, it is a weight like any other.

A *computed constant* follows from constants alone and is read where data flows. Along the links
that nodes over constants state, each of its axes reaches a set of other axes in its computation; it
is *held* when one of these nodes pins an axis of the set, sums it away or looks across it. Only
what is held needs to be stored, and then as little as will do: a result larger than the constants
that it follows from (dequantised or expanded weights) stays computed, if what holds it can be
stored before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from .analysis import PROTECTED, Analysis
from .constants import constant_tensor, is_float
from .rules.base import Site
from .rules.registry import find_rule


@dataclass(frozen=True)
class Held:
    """A computed constant: its name; those of its axes that are held, each with the number of
    coordinates that can go all the same; and the names of what must be stored to free them."""

    name: str
    axes: dict[int, int]
    store: frozenset[str]


def held_constants(analysis: Analysis) -> list[Held]:
    """All held constants of an analysis that can be stored, in the order of the nodes."""
    return _Finder(analysis).run()


def free_coordinates(analysis: Analysis, name: str, index: int) -> int:
    """How many coordinates of axis ``index`` of a value belong to units, at the use where it is
    most of them."""
    found = [0]
    for key, operand in analysis.operands.items():
        if (key if isinstance(key, str) else key[0]) == name and index < operand.rank:
            units = analysis.units_of(operand.axis(index))
            found.append(0 if units is None else int((units >= 0).sum()))
    return max(found)


def ancestors(value: oir.Value) -> tuple[list[oir.Node], list[oir.Value]]:
    """The nodes that compute a value, inputs first, and the constants that they start from."""
    nodes: dict[oir.Node, None] = {}
    roots: dict[oir.Value, None] = {}
    stack: list[tuple[oir.Value, bool]] = [(value, False)]
    while stack:
        here, done = stack.pop()
        node = here.producer()
        if node is None or constant_tensor(here) is not None:
            roots[here] = None
        elif done:
            nodes[node] = None
        elif node not in nodes:
            stack.append((here, True))
            stack += [(v, False) for v in node.inputs if v is not None]
    return list(nodes), list(roots)


class _Finder:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.types = analysis.facts[0].types
        self.fixed = {site.node: site for site in analysis.sites if _over_constants(site)}

    def run(self) -> list[Held]:
        if not self.fixed or not self._label():
            return []
        found: dict[str, Held] = {}
        for site in self.analysis.sites:
            for value in site.node.inputs if site.node not in self.fixed else ():
                if value is not None and value.producer() in self.fixed:
                    held = None if str(value.name) in found else self._held(value)
                    if held is not None:
                        found[held.name] = held
        return list(found.values())

    def _label(self) -> bool:
        """Numbers the sets of axes that nodes over constants link; notes by number which of these
        nodes hold them, and those that are held whole or protected. False when none is held."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        coupling, statements = self.analysis.coupling, self.analysis.statements
        sites = {site.number for site in self.fixed.values()}
        pairs = [(link.a, link.b) for link in coupling.links if link.site in sites]
        count = len(coupling.sizes)
        a, b = np.array(pairs, np.int64).reshape(-1, 2).T
        graph = coo_array((np.ones(a.size, np.int8), (a, b)), shape=(count, count))
        self.labels = connected_components(graph, directed=False)[1]
        whole = [(e.site, e.axis) for e in statements.inexact]
        whole += [(e.site, e.axis) for e in statements.sinks]
        pins = [(p.site, p.axis) for p in coupling.pins if coupling.sizes[p.axis] > 1]
        self.whole = {int(self.labels[axis]) for site, axis in whole if site in sites}
        self.protected = {int(self.labels[axis]) for site, axis in pins if site == PROTECTED}
        # What others pin whatever the computation says; a choice may have pinned because of it.
        others = {choice.site for choice in coupling.choices} | sites
        self.kept = {
            coupling.root(pin.axis)
            for pin in coupling.pins
            if pin.index is None and pin.site not in others
        }
        self.holders: dict[int, set[int]] = {}
        for site, axis in (*whole, *pins):
            if site in sites:
                self.holders.setdefault(int(self.labels[axis]), set()).add(site)
        return bool(self.holders)

    def _held(self, value: oir.Value) -> Held | None:
        name = str(value.name)
        operand = self.analysis.operands.get(name)
        if operand is None or not is_float(oir.DataType(self.types[name][0])):
            return None
        labels = {
            index: int(self.labels[axis])
            for index, axis in enumerate(operand.axes)
            if operand.shape[index] > 1
        }
        if self.protected & set(labels.values()):
            return None
        axes = {
            index: 0 if label in self.whole else free_coordinates(self.analysis, name, index)
            for index, label in labels.items()
            if label in self.holders
            and self.analysis.coupling.root(operand.axis(index)) not in self.kept
        }
        holders = set[int]().union(*(self.holders[labels[index]] for index in axes))
        store = self._store(value, holders) if axes else None
        return Held(name, axes, frozenset(store)) if store else None

    def _store(self, value: oir.Value, holders: set[int]) -> set[str] | None:
        """What to store so that none of ``holders`` takes part any more; None if that is more
        than the constants that it follows from."""
        nodes = ancestors(value)[0]
        if any(node not in self.fixed for node in nodes):
            return None
        holding = {node for node in nodes if self.fixed[node].number in holders}
        reach: set[oir.Node] = set()
        for node in nodes:
            inputs = {v.producer() for v in node.inputs if v is not None}
            if node in holding or inputs & reach:
                reach.add(node)
        store: set[str] = set()
        front, seen = [value], {value}
        while front:
            here = front.pop()
            maker = here.producer()
            if maker is None or maker not in reach:
                continue
            if self._fits(here) and (maker in holding or not _moves_shared(maker)):
                store.add(str(here.name))
            elif maker in holding:
                return None
            else:
                fresh = [v for v in maker.inputs if v is not None and v not in seen]
                seen.update(fresh)
                front += fresh
        return store

    def _fits(self, value: oir.Value) -> bool:
        """Whether a result takes no more bytes than the constants that it is computed from."""
        if str(value.name) not in self.types:
            return False
        dtype, shape = self.types[str(value.name)]
        roots = (constant_tensor(root) for root in ancestors(value)[1])
        size = np.prod(shape, dtype=np.int64) * oir.DataType(dtype).itemsize
        return bool(size <= sum(t.nbytes for t in roots if t is not None))


def _over_constants(site: Site) -> bool:
    given = [o for v, o in zip(site.node.inputs, site.inputs, strict=True) if v is not None]
    return bool(given) and not site.bodies and all(o is not None and o.constant for o in given)


def _moves_shared(node: oir.Node) -> bool:
    """Whether a node only moves data that others read, too: storing its result would store the
    data twice."""
    rule = find_rule(node.domain, node.op_type)
    moves = rule is not None and rule.family in ("movement", "reshape")
    return moves and any(v is not None and len(v.uses()) > 1 for v in node.inputs[:1])
