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
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from .analysis import Analysis, node_label
from .constants import constant_tensor, set_constant
from .coupling import Flags, Indices
from .errors import SecateurError
from .roles import roles_of_axes
from .rules.base import Operand, Site, attribute_int, attribute_ints
from .rules.registry import find_rule
from .shapes import Array, evaluate

Sizes = npt.NDArray[np.int64]


class RewriteError(SecateurError):
    """A size that cannot be restated; the message names the node. Exit code 1."""


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
class Rewritten:
    """The rewritten model and every slice that was cut."""

    model: oir.Model
    slices: list[Slice]


def rewrite(analysis: Analysis, removed: Flags) -> Rewritten:
    """Removes the units flagged in ``removed`` (bool[unit_count]) from a copy of the model.

    Raises RewriteError when a dynamic size that must change cannot be expressed.
    """
    return _Rewriter(analysis, removed).run()


class Restated:
    """A touched node as its rule's ``restate`` half sees it: old and new sizes, and what to edit.

    Arrays of sizes have one row per binding of the symbolic dimensions.
    """

    def __init__(self, rewriter: _Rewriter, site: Site, node: oir.Node) -> None:
        self._rewriter = rewriter
        self._site = site
        self._node = node
        self.wanted: dict[int, Array] = {}
        self.op_type = node.op_type
        self.opset = site.opset
        self.outputs = len(site.outputs)
        self.carrier = rewriter.analysis.coupling.carriers.get(site.number, "")

    def _operand(self, side: Sequence[Operand | None], index: int) -> Operand:
        operand = side[index]
        assert operand is not None
        return operand

    def has_input(self, index: int) -> bool:
        return self._site.input(index) is not None

    def input_rank(self, index: int) -> int:
        return self._operand(self._site.inputs, index).rank

    def output_rank(self, index: int) -> int:
        return self._operand(self._site.outputs, index).rank

    def old_size(self, index: int, axis: int) -> int:
        """The original size of an input's axis."""
        return self._operand(self._site.inputs, index).shape[axis]

    def new_size(self, index: int, axis: int) -> int:
        """The size of an input's axis after pruning."""
        return int(self.keep(index, axis).sum())

    def new_output_size(self, index: int, axis: int) -> int:
        return int(self.output_keep(index, axis).sum())

    def new_shape(self, output: int) -> Sizes:
        """int64[bindings, rank]: the output's shape after pruning, for every binding."""
        return self._rewriter.new_shape(self._operand(self._site.outputs, output))

    def keep(self, index: int, axis: int) -> Flags:
        """bool[size]: which coordinates of an input's axis stay."""
        return self._rewriter.keep(self._operand(self._site.inputs, index).axis(axis))

    def output_keep(self, index: int, axis: int) -> Flags:
        return self._rewriter.keep(self._operand(self._site.outputs, index).axis(axis))

    def values(self, index: int) -> Array | None:
        """[bindings, …]: the original value of an input; None when it is not known, or when its
        length moves with the binding."""
        operand = self._site.input(index)
        found = None if operand is None else self._rewriter.before(operand.name)
        if found is None or len({v.shape for v in found}) > 1:
            return None
        return np.stack(found)

    def int(self, name: str, default: int) -> int:
        return attribute_int(self._node, name, default)

    def ints(self, name: str) -> tuple[int, ...] | None:
        return attribute_ints(self._node, name)

    def set_int(self, name: str, value: int) -> None:
        self._node.attributes[name] = oir.AttrInt64(name, int(value))

    def set_ints(self, name: str, values: Sequence[int]) -> None:
        self._node.attributes[name] = oir.AttrInt64s(name, [int(v) for v in values])

    def remove_attribute(self, name: str) -> None:
        self._node.attributes.pop(name, None)

    def want(self, index: int, value: Array) -> None:
        """States what an input must be now: [bindings, …], one row per binding."""
        self.wanted[index] = value[: len(self._rewriter.analysis.facts)]


class _Rewriter:
    def __init__(self, analysis: Analysis, removed: Flags) -> None:
        self.analysis = analysis
        self.removed = removed
        self.model = analysis.model.clone()
        self.graph = self.model.graph
        self.values: dict[str, oir.Value] = {}
        for value in (*self.graph.inputs, *self.graph.initializers.values()):
            self.values[str(value.name)] = value
        for node in self.graph:
            for output in node.outputs:
                if output.name:
                    self.values[output.name] = output
        self._keeps: dict[int, Flags] = {}
        self._changed: dict[str, list[Array]] = {}
        self._types = [dict(f.types) for f in analysis.facts]
        self._abandoned: list[oir.Value] = []

    def run(self) -> Rewritten:
        slices = self._slice_constants()
        self._restate_shapes()
        nodes = {str(n.outputs[0].name): n for n in self.graph if n.outputs}
        protos = {p.output[0]: p for p in self.analysis.skeleton.nodes if p.output}
        for site in self.analysis.sites:
            name = str(site.node.outputs[0].name)
            node = nodes[name]
            wanted = self._restate(site, node)
            patched = self._correct_inputs(site, node, wanted)
            self._follow(protos[name], patched)
        self._correct_outputs()
        self._drop_abandoned()
        return Rewritten(self.model, slices)

    # -- masks and sizes ----------------------------------------------------------------------

    def keep(self, axis: int) -> Flags:
        root = self.analysis.coupling.root(axis)
        if root not in self._keeps:
            self._keeps[root] = self.analysis.keep(axis, self.removed)
        return self._keeps[root]

    def touched(self, operand: Operand | None) -> bool:
        return operand is not None and not all(self.keep(a).all() for a in operand.axes)

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
                    same = self._new_constant(f"{name}_{len(tensors)}", _sliced(tensor, mask))
                else:
                    same = value
                tensors.append((mask, same))
            if place is not None and same is not value:
                site, position = place
                node = self._node_of(self.analysis.sites[site])
                node.replace_input_with(position, same)
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
        node = self.values[str(site.node.outputs[0].name)].producer()
        assert node is not None
        return node

    def _new_constant(self, name: str, tensor: oir.TensorProtocol) -> oir.Value:
        unique, count = name, 0
        while unique in self.values:
            count += 1
            unique = f"{name}_{count}"
        value = oir.Value(
            name=unique,
            type=oir.TensorType(tensor.dtype),
            shape=oir.Shape(tensor.shape),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        self.values[unique] = value
        return value

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
        computed = all(self.before(str(o.name)) is not None for o in site.node.outputs if o.uses())
        count = max(len(site.inputs), max(wanted, default=-1) + 1)
        for index in range(count):
            operand = site.input(index)
            name = operand.name if operand is not None else ""
            if index not in wanted and (computed or name not in self._changed):
                continue
            before = self.before(name) if name else None
            after = self._changed.get(name, before)
            if index in wanted:
                need = list(wanted[index])
            else:
                assert operand is not None and before is not None
                if self.values[name].producer() is None or name in self.analysis.weight_names:
                    continue  # a sliced constant, not a computed number
                need = [_cut(v, [self.keep(a) for a in operand.axes]) for v in before]
            if after is not None and all(map(np.array_equal, after, need)):
                continue
            self._patch(node, index, need, after)
            patched[index] = need
        return patched

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

    # -- patching inputs ----------------------------------------------------------------------

    def _patch(
        self, node: oir.Node, index: int, need: list[Array], given: list[Array] | None
    ) -> None:
        """Makes input ``index`` of ``node`` equal to ``need`` under every binding."""
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        dtype = need[0].dtype if given is None else given[0].dtype
        need = [np.asarray(v).astype(dtype) for v in need]
        if all(np.array_equal(need[0], v) for v in need[1:]):
            tensor = oir.Tensor(need[0])
            if old is not None and constant_tensor(old) is not None and len(old.uses()) == 1:
                set_constant(old, tensor)
                return
            label = f"{old.name if old is not None else node_label(node)}_pruned"
            node.replace_input_with(index, self._new_constant(label, tensor))
        else:
            assert old is not None
            node.replace_input_with(index, self._patch_entries(node, old, need, given))
        if old is not None:
            self._abandoned.append(old)

    def _patch_entries(
        self, node: oir.Node, old: oir.Value, need: list[Array], given: list[Array] | None
    ) -> oir.Value:
        """Keeps computed entries that are right, replaces the others by a constant or scales them."""
        wanted = np.stack(need)
        static = (wanted == wanted[0]).all(axis=0)
        if given is None:
            right, scale = ~static, [Fraction(1)] * wanted[0].size
        else:
            computed = np.stack(given)
            if computed.shape != wanted.shape:
                raise RewriteError(
                    f"node '{node_label(node)}': the computed '{old.name}' changes its length"
                )
            right = (computed == wanted).all(axis=0)
            scale = [
                Fraction(1) if fine else _ratio(given_, wanted_, fixed)
                for fine, fixed, given_, wanted_ in zip(
                    np.ravel(right | static),
                    np.ravel(static),
                    computed.reshape(len(computed), -1).T,
                    wanted.reshape(len(wanted), -1).T,
                    strict=True,
                )
            ]
        if any(s == 0 for s in scale):
            wrong = [k for k, s in enumerate(scale) if s == 0]
            if node.op_type == "Reshape" and len(wrong) == 1 and not (wanted[0] == -1).any():
                wanted[:, wrong[0]] = -1
                right[wrong[0]], static[wrong[0]], scale[wrong[0]] = False, True, Fraction(1)
            else:
                raise RewriteError(
                    f"node '{node_label(node)}': the dynamic size '{old.name}' cannot be restated;"
                    " keep its channels with --protect"
                )
        value = old
        shape = wanted[0].shape
        for op, part in (
            ("Mul", [s.numerator for s in scale]),
            ("Div", [s.denominator for s in scale]),
        ):
            if any(p != 1 for p in part):
                value = self._insert(node, op, value, np.array(part, wanted.dtype).reshape(shape))
        fixed = static & ~right
        if fixed.any():
            # computed * keep + constant: works at every opset, unlike Where on integers
            value = self._insert(node, "Mul", value, (~fixed).astype(wanted.dtype))
            value = self._insert(node, "Add", value, np.where(fixed, wanted[0], 0))
        return value

    def _insert(self, node: oir.Node, op: str, value: oir.Value, constant: Array) -> oir.Value:
        base = f"{value.name}_{op.lower()}"
        operand = self._new_constant(f"{base}_by", oir.Tensor(constant.astype(constant.dtype)))
        name, count = base, 0
        while name in self.values:
            count += 1
            name = f"{base}_{count}"
        inserted = oir.node(op, [value, operand], name=name)
        output = inserted.outputs[0]
        output.name, output.type, output.shape = name, value.type, value.shape
        self.values[name] = output
        self.graph.insert_before(node, inserted)
        return output

    def _correct_outputs(self) -> None:
        """An output of the model that is computed from sizes stays what it was."""
        for index, value in enumerate(self.graph.outputs):
            name, producer = str(value.name), value.producer()
            given, before = self._changed.get(name), self.before(name)
            if given is None or before is None or producer is None:
                continue
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
            self._patch(node, 0, need, given)

    def _drop_abandoned(self) -> None:
        """Removes shape arithmetic that nothing reads any more because of our patches."""
        while self._abandoned:
            value = self._abandoned.pop()
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            node = value.producer()
            if node is None:
                if value.is_initializer() and value.name in self.graph.initializers:
                    del self.graph.initializers[value.name]
            elif node.graph is self.graph and not any(
                o.uses() or o.is_graph_output() for o in node.outputs
            ):
                sources = [v for v in node.inputs if v is not None]
                self.graph.remove(node, safe=True)
                self._abandoned += sources


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

    def cut() -> oir.Tensor:
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
        lazy.meta["external"] = True
        return lazy
    return cut()


def _ratio(given: Array, wanted: Array, static: bool) -> Fraction:
    """The one factor that takes ``given`` to ``wanted`` under every binding; 0 if there is none."""
    if static:
        return Fraction(1)
    ratios = {Fraction(int(w), int(g)) if g else Fraction(0) for g, w in zip(given, wanted, strict=True)}
    return ratios.pop() if len(ratios) == 1 else Fraction(0)
