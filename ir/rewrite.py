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
import onnx_ir as oir

from .analysis import Analysis, output_name
from .constants import constant_tensor, set_constant
from .coupling import Flags, Indices
from .patch import Patcher
from .restated import Restated, Sizes
from .roles import roles_of_axes
from .rules.base import Operand, Site
from .rules.registry import find_rule
from .shapes import Array, evaluate


@dataclass(frozen=True)
class Slice:
    """What was cut from one constant: ``indices`` of ``axis``, counted in the original tensor.

    ``role`` is "producer" (the axis makes the channels), "consumer" (it contracts them) or
    "coupled" (it merely follows: biases, scales, statistics).
    """

    tensor: str
    axis: int
    indices: tuple[int, ...]
    role: str


@dataclass(frozen=True)
class Copy:
    """What was cut from one copy of a vector that several nodes shared and that now keep different
    parts of it: ``indices`` of ``axis`` of ``tensor`` are not in ``stored_as``."""

    tensor: str
    stored_as: str
    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Rewritten:
    """The rewritten model and every slice that was cut. A vector that is now stored several times
    is in ``slices`` with what all its copies lack, and in ``copies`` with what each lacks."""

    model: oir.Model
    slices: list[Slice]
    copies: list[Copy] = field(default_factory=list)


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
        self.values: dict[str, oir.Value] = {}
        for value in (*self.graph.inputs, *self.graph.initializers.values()):
            self.values[str(value.name)] = value
        for node in self.graph:
            for output in node.outputs:
                if output.name:
                    self.values[output.name] = output
        self.patcher = Patcher(self.model, self.values)
        self._keeps: dict[int, Flags] = {}
        self._cuts: dict[int, bool] = {}
        self._changed: dict[str, list[Array]] = {}
        self._sizes: set[str] = set()
        self._copies: list[Copy] = []
        self._types = [dict(f.types) for f in analysis.facts]

    def run(self) -> Rewritten:
        slices = self._slice_constants()
        self._restate_shapes()
        protos = {output: p for p in self.analysis.skeleton.nodes for output in p.output}
        for site in self.analysis.sites:
            name = output_name(site.node)
            if name:
                node = self._node_of(site)
                wanted = self._restate(site, node)
                patched = self._correct_inputs(site, node, wanted)
                self._follow(protos[name], patched)
        self._correct_captured()
        self._correct_outputs()
        self.patcher.drop_abandoned()
        return Rewritten(self.model, slices, self._copies)

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
        gone = [int((~self.keep(a)).sum()) for a in operand.axes]
        shapes = [f.types[operand.name][1] for f in self.analysis.facts]
        return np.array(shapes, np.int64).reshape(len(shapes), -1) - np.array(gone, np.int64)

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
        masks = [[self.keep(a) for a in operand.axes] for operand, _ in uses]
        tensors: list[tuple[list[Flags], oir.Value]] = []
        for mask, (_, place) in zip(masks, uses, strict=True):
            same = next((v for m, v in tensors if _equal(m, mask)), None)
            if same is None:
                if tensors:
                    clone = f"{name}_{len(tensors)}"
                    same = self.patcher.new_constant(clone, _sliced(tensor, mask))
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
            ]
        kept_everywhere = [np.logical_or.reduce(parts) for parts in zip(*masks, strict=True)]
        set_constant(value, _sliced(tensor, tensors[0][0]))
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
            self._changed[name] = [_cut(v, mask) for v in before]
        for types in self._types:
            dtype, _ = types[name]
            types[name] = (dtype, tuple(int(m.sum()) for m in mask))

    def before_constant(self, name: str) -> list[Array] | None:
        """Small constants only: larger ones take no part in shape arithmetic."""
        found = [f.values.get(name) for f in self.analysis.facts]
        known = [v for v in found if v is not None]
        return known if len(known) == len(found) else None

    def _node_of(self, site: Site) -> oir.Node:
        node = self.values[output_name(site.node)].producer()
        assert node is not None
        return node

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
            value = self.values[operand.name]
            if value.shape is not None and constant_tensor(value) is None:
                dims = [
                    int(size) if not self.keep(axis).all() else dim
                    for dim, size, axis in zip(value.shape, new[0], operand.axes, strict=True)
                ]
                value.shape = oir.Shape(dims)

    def _restate(self, site: Site, node: oir.Node) -> dict[int, Array]:
        rule = find_rule(site.node.domain, site.node.op_type)
        operands = (*site.inputs, *site.outputs)
        if rule is None or rule.restate is None or not any(self.touched(o) for o in operands):
            return {}
        restated = Restated(self, site, node)
        rule.restate(restated)
        return restated.wanted

    def _correct_inputs(
        self, site: Site, node: oir.Node, wanted: dict[int, Array]
    ) -> dict[int, list[Array]]:
        """Patches inputs that would not be what the node needs; returns the patched values."""
        patched: dict[int, list[Array]] = {}
        arithmetic = self._note_sizes(site)
        count = max(len(site.inputs), max(wanted, default=-1) + 1)
        for index in range(count):
            operand = site.input(index)
            name = operand.name if operand is not None else ""
            if index not in wanted and (arithmetic or name not in self._numbers()):
                continue
            before = self.before(name) if name else None
            after = self._changed.get(name, before)
            if index in wanted:
                need = list(wanted[index])
            else:
                assert operand is not None and before is not None
                need = [_cut(v, [self.keep(a) for a in operand.axes]) for v in before]
            if after is not None and all(map(np.array_equal, after, need)):
                continue
            self.patcher.patch(node, index, need, after)
            patched[index] = need
        return patched

    def _note_sizes(self, site: Site) -> bool:
        """Whether the node is shape arithmetic: it computes known values from Shape and Size, and
        from constants that pruning leaves alone. Arithmetic on sliced weights is data."""
        outputs = [str(o.name) for o in site.node.outputs if o.name]
        inputs = [o.name for o in site.inputs if o is not None]
        source = site.node.op_type in ("Shape", "Size")
        fresh = source or (
            any(name in self._sizes for name in inputs)
            and not any(name in self._changed and name not in self._sizes for name in inputs)
        )
        if not fresh or any(self.before(name) is None for name in outputs):
            return False
        self._sizes.update(outputs)
        return True

    def _numbers(self) -> set[str]:
        """Values of shape arithmetic that pruning has changed."""
        return self._sizes & self._changed.keys()

    def _correct_captured(self) -> None:
        """Sizes that control flow captures from the main graph stay what they were."""
        for name in sorted(self._numbers()):
            value, given, before = self.values[name], self._changed[name], self.before(name)
            assert before is not None
            for use in tuple(value.uses()):
                if use.node.graph is not self.graph:
                    self.patcher.patch(use.node, use.idx, before, given)

    def _correct_outputs(self) -> None:
        """An output of the model that is computed from sizes stays what it was."""
        for index, value in enumerate(self.graph.outputs):
            name, producer = str(value.name), value.producer()
            if name not in self._sizes or name not in self._changed:
                continue
            given, before = self._changed[name], self.before(name)
            assert before is not None and producer is not None
            operand = self.analysis.operands[name]
            need = [_cut(v, [self.keep(a) for a in operand.axes]) for v in before]
            if all(map(np.array_equal, given, need)):
                continue
            node = oir.node("Identity", [value])
            output = node.outputs[0]
            output.name, output.type, output.shape = name, value.type, value.shape
            value.name = f"{name}_computed"
            self.graph.insert_after(producer, node)
            self.graph.outputs[index] = output
            self.patcher.patch(node, 0, need, given)

    def _follow(self, proto: object, patched: dict[int, list[Array]]) -> None:
        """Evaluates a node of shape arithmetic again if anything it depends on has changed."""
        import onnx

        assert isinstance(proto, onnx.NodeProto)
        facts = self.analysis.facts
        if not all(o in facts[0].values for o in proto.output if o) or not proto.output:
            return
        moved = patched or any(i in self._changed for i in proto.input)
        if proto.op_type in ("Shape", "Size"):
            moved = self._types[0].get(proto.input[0]) != facts[0].types.get(proto.input[0])
        if not moved:
            return
        results: list[dict[str, Array]] = []
        for k, fact in enumerate(facts):
            values = {
                i: self._changed[i][k] if i in self._changed else fact.values[i]
                for i in proto.input
                if i in self._changed or i in fact.values
            }
            values.update({proto.input[i]: need[k] for i, need in patched.items()})
            types = {i: self._types[k][i] for i in proto.input if i in self._types[k]}
            results.append(evaluate(proto, self.analysis.skeleton.opset, values, types))
        for name in proto.output:
            old = self.before(name)
            if all(name in r for r in results) and old is not None:
                new = [r[name] for r in results]
                if not all(map(np.array_equal, old, new)):
                    self._changed[name] = new


def _equal(a: Sequence[Flags], b: Sequence[Flags]) -> bool:
    return all(map(np.array_equal, a, b))


def _cut(array: Array, masks: Sequence[Flags]) -> Array:
    for axis, keep in enumerate(masks):
        if not keep.all():
            array = np.compress(keep, array, axis=axis)
    return array


def _sliced(tensor: oir.TensorProtocol, masks: Sequence[Flags]) -> oir.TensorProtocol:
    """The kept part of a tensor; data on disk stays there until the result is written."""
    if all(m.all() for m in masks):
        return tensor
    shape = oir.Shape([int(m.sum()) for m in masks])

    def cut() -> oir.TensorProtocol:
        array = tensor.numpy()
        kept: list[Indices] = [np.flatnonzero(m) for m in masks]
        partial = [axis for axis, m in enumerate(masks) if not m.all()]
        if len(partial) == 1:
            array = np.take(array, kept[partial[0]], axis=partial[0])
        else:
            array = array[np.ix_(*kept)]
        return oir.Tensor(
            array,
            dtype=tensor.dtype,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )

    if isinstance(tensor, oir.ExternalTensor):
        lazy = oir.LazyTensor(cut, tensor.dtype, shape, name=tensor.name)
        lazy.meta["external_data"] = True
        return lazy
    return cut()
