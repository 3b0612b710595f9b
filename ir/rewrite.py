"""Rewriting: from the units to remove to the smaller model.

Every axis gets a keep-mask. Constants are sliced once along all their axes; what states a size is
restated by the node's rule; values are followed through shape arithmetic with the new sizes, and
where a node would now be given something else than it needs, its input is patched:

- a size (Reshape target, split sizes, …) must become the new one, entry by entry: static entries
  become constants, dynamic entries stay computed;
- a size used as a number (the 1/sqrt(d) of attention) must stay the original one.

The input model is not changed; weights that are not sliced are shared with the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as oir

from .analysis import Analysis
from .boundary import (
    correct_captured,
    correct_outputs,
    correct_results,
    follow_branch,
    replace_dead,
)
from .constants import constant_tensor, set_constant
from .coupling import Flags
from .flatten import restore
from .graphs import own_values
from .lists import about_lists
from .naming import output_name
from .patch import Patcher
from .pruned_lists import follow_list, restate_lists
from .restated import Restated, Sizes
from .roles import roles_of_axes
from .rules.base import Operand, Site
from .rules.registry import find_rule
from .shapes import Array, evaluate
from .slices import Copy, Slice, cut, sliced
from .static import Branches


@dataclass(frozen=True)
class Rewritten:
    """The rewritten model and every slice that was cut; indices and sizes are restated instead.
    A constant that is now stored several times is in ``slices`` with what all its copies lack, and
    in ``copies`` with what each lacks. ``notes`` say what else a reader of it should know."""

    model: oir.Model
    slices: list[Slice]
    copies: list[Copy] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def rewrite(analysis: Analysis, removed: Flags) -> Rewritten:
    """Removes the units flagged in ``removed`` (bool[unit_count]) from a copy of the model.

    Raises RewriteError when a dynamic size that must change cannot be expressed.
    """
    return _Rewriter(analysis, removed).run()


class _Rewriter:
    def __init__(self, analysis: Analysis, removed: Flags) -> None:
        self.analysis = analysis
        self.removed = removed
        self.model = analysis.model.clone()
        self.model.meta.update(analysis.model.meta)
        self.graph = self.model.graph
        parts = (self.graph, *self.graph.subgraphs())
        self.values = {str(value.name): value for part in parts for value in own_values(part)}
        branches = Branches(analysis.skeleton, analysis.facts)
        self.patcher = Patcher(self.model, self.values, branches.moves)
        self._keeps: dict[int, Flags] = {}
        self._cuts: dict[int, bool] = {}
        self.changed: dict[str, list[Array]] = {}
        self.sizes: set[str] = set()
        self.restated: set[str] = set()
        self.fronted: set[tuple[oir.Node, int]] = set()  # inputs that rules have put nodes before
        self._copies: list[Copy] = []
        self._types = [dict(f.types) for f in analysis.facts]

    def run(self) -> Rewritten:
        slices = self._slice_constants()
        self._restate_shapes()
        protos = self.analysis.skeleton.protos
        for site in self.analysis.sites:
            name = output_name(site.node)
            if name:
                node = self._node_of(site)
                wanted = self._restate(site, node)
                patched = self._correct_inputs(site, node, wanted, self._note_sizes(site))
                if not self._follow(site, protos[name], patched):
                    patched |= self._correct_inputs(site, node, wanted, False)
                    self._follow(site, protos[name], patched)
                self._give_back(site, name)
                if site.bodies:
                    follow_branch(self, site)
                    correct_results(self, site, node)
                    replace_dead(self, site, node)
        correct_captured(self)
        correct_outputs(self, self.graph)
        self.patcher.drop_abandoned()
        notes = restore(self.model, self.values)
        slices = [s for s in slices if s.tensor not in self.restated]
        return Rewritten(self.model, slices, self._copies, notes)

    # -- masks and sizes ----------------------------------------------------------------------

    def keep(self, axis: int) -> Flags:
        root = self.analysis.coupling.root(axis)
        if root not in self._keeps:
            self._keeps[root] = self.analysis.keep(axis, self.removed)
        return self._keeps[root]

    def touched(self, operand: Operand | None) -> bool:
        return operand is not None and any(map(self._is_cut, operand.axes))

    def _is_cut(self, axis: int) -> bool:
        root = self.analysis.coupling.root(axis)
        if root not in self._cuts:
            self._cuts[root] = not self.keep(axis).all()
        return self._cuts[root]

    def new_shape(self, operand: Operand) -> Sizes:
        count = len(self.analysis.facts)
        shapes = [[int(keep.sum()) for keep in self.keeps(operand, k)] for k in range(count)]
        return np.array(shapes, np.int64).reshape(count, -1)

    def keeps(self, operand: Operand, binding: int) -> list[Flags]:
        """For each axis, bool[size under that binding]: what stays."""
        keeps = [self.keep(axis) for axis in operand.axes]
        if binding == 0:
            return keeps
        later = self.analysis.coupling.kept_later
        return [later(axis, keep) for axis, keep in zip(operand.axes, keeps, strict=True)]

    def kept(self, operand: Operand, values: Sequence[Array]) -> list[Array]:
        """What is left of an operand's values under every binding."""
        return [cut(v, self.keeps(operand, k)) for k, v in enumerate(values)]

    def before(self, name: str) -> list[Array] | None:
        """The original value under every binding, or None."""
        found = [f.values.get(name) for f in self.analysis.facts]
        if found[0] is None:
            value = self.values.get(name)
            tensor = None if value is None else constant_tensor(value)
            return None if tensor is None else [tensor.numpy()] * len(found)
        known = [v for v in found if v is not None]
        return known if len(known) == len(found) else None

    # -- constants ----------------------------------------------------------------------------

    def _slice_constants(self) -> list[Slice]:
        uses: dict[str, list[tuple[Operand, tuple[int, int] | None]]] = {}
        for key, operand in self.analysis.operands.items():
            name, place = (key, None) if isinstance(key, str) else (key[0], key[1:])
            value = self.values.get(name)
            if value is not None and constant_tensor(value) is not None:
                uses.setdefault(name, []).append((operand, place))
        roles = roles_of_axes(self.analysis)
        slices: list[Slice] = []
        for name, operands in uses.items():
            if any(self.touched(operand) for operand, _ in operands):
                slices += self._slice_constant(name, operands, roles)
        return slices

    def _slice_constant(
        self,
        name: str,
        uses: list[tuple[Operand, tuple[int, int] | None]],
        roles: dict[int, str],
    ) -> list[Slice]:
        value = self.values[name]
        tensor = constant_tensor(value)
        assert tensor is not None
        # A use that needs all of it keeps the name, so that this tensor stays as it came.
        uses = sorted(uses, key=lambda use: self.touched(use[0]))
        masks = [[self.keep(a) for a in operand.axes] for operand, _ in uses]
        tensors: list[tuple[list[Flags], oir.Value]] = []
        for mask, (_, place) in zip(masks, uses, strict=True):
            same = next((v for m, v in tensors if _equal(m, mask)), None)
            if same is None:
                if tensors:
                    clone = f"{name}_{len(tensors)}"
                    same = self.patcher.new_constant(clone, sliced(tensor, mask))
                else:
                    same = value
                tensors.append((mask, same))
            if place is not None and same is not value:
                site, position = place
                node = self._node_of(self.analysis.sites[site])
                node.replace_input_with(position, same)
        if len(tensors) > 1:
            self._copies += [
                Copy(name, str(copy.name), axis, tuple(np.flatnonzero(~keep).tolist()))
                for mask, copy in tensors
                for axis, keep in enumerate(mask)
                if any(not other[axis].all() for other, _ in tensors)
            ]
        kept_everywhere = [np.logical_or.reduce(parts) for parts in zip(*masks, strict=True)]
        if self.touched(uses[0][0]):
            set_constant(value, sliced(tensor, tensors[0][0]))
            self._changed_constant(name, tensors[0][0])
        return [
            Slice(
                name,
                axis,
                tuple(np.flatnonzero(~keep).tolist()),
                roles.get(uses[0][0].axis(axis), "coupled"),
            )
            for axis, keep in enumerate(kept_everywhere)
            if not keep.all()
        ]

    def _changed_constant(self, name: str, mask: list[Flags]) -> None:
        before = self.before_constant(name)
        if before is not None:
            self.changed[name] = [cut(v, mask) for v in before]
        for types in self._types:
            dtype, _ = types[name]
            types[name] = (dtype, tuple(int(m.sum()) for m in mask))

    def before_constant(self, name: str) -> list[Array] | None:
        """Small constants only: larger ones take no part in shape arithmetic."""
        found = [f.values.get(name) for f in self.analysis.facts]
        known = [v for v in found if v is not None]
        return known if len(known) == len(found) else None

    def _node_of(self, site: Site) -> oir.Node:
        node = self.producer(output_name(site.node))
        assert node is not None
        return node

    def producer(self, name: str) -> oir.Node | None:
        value = self.values.get(name)
        return None if value is None else value.producer()

    # -- nodes --------------------------------------------------------------------------------

    def _restate_shapes(self) -> None:
        """Declared shapes of all touched values; symbolic dimensions keep their names."""
        for key, operand in self.analysis.operands.items():
            if not self.touched(operand) or not isinstance(key, str):
                continue
            new = self.new_shape(operand)
            for row, types in zip(new, self._types, strict=True):
                dtype, _ = types[operand.name]
                types[operand.name] = (dtype, tuple(row.tolist()))
            value = self.values.get(operand.name)  # None for elements of sequences
            if value is not None and value.shape is not None and constant_tensor(value) is None:
                dims = [
                    dim if self.keep(axis).all() else oir.SymbolicDim(None) if moves else int(size)
                    for dim, size, axis, moves in zip(
                        value.shape, new[0], operand.axes, operand.dynamic, strict=True
                    )
                ]
                value.shape = oir.Shape(dims)

        restate_lists(self)

    def _restate(self, site: Site, node: oir.Node) -> dict[int, Array]:
        rule = find_rule(site.node.domain, site.node.op_type)
        operands = (*site.inputs, *site.outputs)
        if rule is None or rule.restate is None or not any(self.touched(o) for o in operands):
            return {}
        restated = Restated(self, site, node)
        rule.restate(restated)
        return restated.wanted

    def _correct_inputs(
        self, site: Site, node: oir.Node, wanted: dict[int, Array], arithmetic: bool
    ) -> dict[int, list[Array]]:
        """Patches inputs that would not be what the node needs; returns the patched values. In
        shape ``arithmetic``, sizes may have changed."""
        patched: dict[int, list[Array]] = {}
        count = max(len(site.inputs), max(wanted, default=-1) + 1)
        for index in range(count):
            operand = site.input(index)
            name = operand.name if operand is not None else ""
            if index not in wanted and (arithmetic or not self.is_number(name)):
                continue
            if (node, index) in self.fronted:
                continue
            before = self.before(name) if name else None
            after = self.changed.get(name, before)
            if index in wanted:
                need = list(wanted[index])
                self.restated.add(name)
            else:
                assert operand is not None and before is not None
                need = self.kept(operand, before)
            if after is not None and all(map(np.array_equal, after, need)):
                continue
            self.patcher.patch(node, index, need, after)
            patched[index] = need
        return patched

    def _note_sizes(self, site: Site) -> bool:
        """Whether the node is shape arithmetic: it computes known values, as many at every size,
        from Shape and Size, and from constants that pruning leaves alone. Arithmetic on sliced
        weights is data, and so are lists as long as the batch, in which no entry can be patched."""
        outputs = [str(o.name) for o in site.node.outputs if o.name]
        inputs = [o.name for o in site.inputs if o is not None]
        if site.bodies:
            return False
        source = site.node.op_type in ("Shape", "Size")
        fresh = source or (
            any(name in self.sizes for name in inputs)
            and not any(name in self.changed and name not in self.sizes for name in inputs)
        )
        found = [self.before(name) for name in outputs]
        if not fresh or any(v is None or len({part.shape for part in v}) > 1 for v in found):
            return False
        self.sizes.update(outputs)
        return True

    def is_number(self, name: str) -> bool:
        """Whether this is a value of shape arithmetic that pruning has changed."""
        return name in self.changed and name in self.sizes

    def _follow(self, site: Site, proto: object, patched: dict[int, list[Array]]) -> bool:
        """Evaluates a node of shape arithmetic again if anything it depends on has changed. False,
        and nothing done, when the result no longer has the shape that pruning leaves it: then a
        size that it was given says how large data is."""
        assert isinstance(proto, onnx.NodeProto)
        facts = self.analysis.facts
        if about_lists(proto, facts[0]):
            follow_list(self, proto, patched)
            return True
        if not all(o in facts[0].values for o in proto.output if o) or not proto.output:
            return True
        moved = patched or any(i in self.changed for i in proto.input)
        if proto.op_type in ("Shape", "Size"):
            moved = self._types[0].get(proto.input[0]) != facts[0].types.get(proto.input[0])
        if not moved:
            return True
        results: list[dict[str, Array]] = []
        for k, fact in enumerate(facts):
            values = {
                i: self.changed[i][k] if i in self.changed else fact.values[i]
                for i in proto.input
                if i in self.changed or i in fact.values
            }
            values.update({proto.input[i]: need[k] for i, need in patched.items()})
            types = {i: self._types[k][i] for i in proto.input if i in self._types[k]}
            results.append(evaluate(proto, self.analysis.skeleton.opset, values, types))
        for operand in site.outputs:
            shapes = [] if operand is None else self.new_shape(operand).tolist()
            for shape, result in zip(shapes, results, strict=False):
                found = None if operand is None else result.get(operand.name)
                if found is None or found.shape != tuple(shape):
                    return False
        for name in proto.output:
            old = self.before(name)
            if all(name in r for r in results) and old is not None:
                new = [r[name] for r in results]
                if not all(map(np.array_equal, old, new)):
                    self.changed[name] = new
        return True

    def _give_back(self, site: Site, name: str) -> None:
        """Sizes that move get their original values back right behind Shape and Size: what the
        graph goes on to compute (the batch as N * heads / heads, say) is right at every size."""
        given, before = self.changed.get(name), self.before(name)
        if site.node.op_type not in ("Shape", "Size") or given is None or before is None:
            return
        moves = (np.stack(before) != before[0]).any(axis=0)
        need = [np.where(moves, b, g) for b, g in zip(before, given, strict=True)]
        value = self.values[name]
        if not value.is_graph_output() and not all(map(np.array_equal, given, need)):
            self.patcher.correct(value, need, given)
            self.changed[name] = need


def _equal(a: Sequence[Flags], b: Sequence[Flags]) -> bool:
    return all(map(np.array_equal, a, b))
