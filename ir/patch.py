"""Patching node inputs: constants where a value is static, arithmetic where it is computed.

A computed vector of sizes keeps its right entries. Entries that must be static are replaced by
``computed * keep + constant``; entries that move with the binding but are off by one factor are
scaled; a single dynamic entry of a Reshape target that is neither becomes -1. A right entry stays
computed even where both bindings give it the same value, if it comes from a size that moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import onnx_ir as oir

from .constants import add_constant, constant_tensor, initializers_are_inputs, set_constant
from .errors import TargetError
from .graphs import Names
from .inlining import CALL, adopt
from .naming import node_label
from .shapes import Array


class RewriteError(TargetError):
    """A size that cannot be restated; the message names the node."""


class Patcher:
    """Edits a model. ``values`` maps the names of all its graphs to their values; it is kept up.
    ``moves`` flags the elements of a named value that come from moving sizes. New constants stand
    in the main graph, where every subgraph sees them; ``names`` hands out those that none has."""

    def __init__(
        self, model: oir.Model, values: dict[str, oir.Value], moves: Callable[[str], Array]
    ) -> None:
        self.graph = model.graph
        self.values = values
        self.names = Names(values)
        self._moves = moves
        self._as_nodes = initializers_are_inputs(model)
        self._clones: dict[oir.Value, list[oir.Value]] = {}
        self._abandoned: list[oir.Value] = []

    def new_constant(self, name: str, tensor: oir.TensorProtocol) -> oir.Value:
        """A new initializer, or Constant node where initializers would be inputs; the name gets a
        number if it is taken."""
        name = self.names.free(name)
        value = add_constant(self.graph, name, tensor, as_node=self._as_nodes, node_name=name)
        self.values[name] = value
        return value

    def patch(
        self, node: oir.Node, index: int, need: list[Array], given: list[Array] | None
    ) -> None:
        """Makes input ``index`` of ``node`` equal to ``need`` under every binding."""
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        dtype = need[0].dtype if given is None else given[0].dtype
        need = [np.asarray(v).astype(dtype) for v in need]
        same = all(np.array_equal(need[0], v) for v in need[1:])
        if same and not self._right_by_chance(old, need[0], given):
            clone = self._clone_of(old, need[0])
            if old is not None and _is_own_constant(old):
                set_constant(old, oir.Tensor(need[0]))
                if clone is not None:  # the last of those that read it, all with the same need
                    clone.replace_all_uses_with(old)
                    self.abandon(clone)
                return
            if clone is None:
                label = f"{old.name if old is not None else node_label(node)}_pruned"
                clone = self.new_constant(label, oir.Tensor(need[0]))
                if old is not None:
                    self._clones.setdefault(old, []).append(clone)
            node.replace_input_with(index, clone)
        else:
            assert old is not None
            node.replace_input_with(index, self._patch_entries(node, old, need, given))
        if old is not None:
            self.abandon(old)

    def _clone_of(self, old: oir.Value | None, need: Array) -> oir.Value | None:
        """What stands in for ``old`` elsewhere already, if it is what is needed here."""
        for clone in self._clones.get(old, ()) if old is not None else ():
            tensor = constant_tensor(clone)
            if clone.uses() and tensor is not None and np.array_equal(tensor.numpy(), need):
                return clone
        return None

    def _right_by_chance(
        self, old: oir.Value | None, need: Array, given: list[Array] | None
    ) -> bool:
        """Whether some entry that is right under both bindings may be another under a third."""
        if old is None or given is None or constant_tensor(old) is not None:
            return False
        if any(v.shape != need.shape for v in given):
            return False
        right = np.all([v == need for v in given], axis=0)
        return bool((right & (self._moves(str(old.name)) != 0)).any())

    def correct(self, value: oir.Value, need: list[Array], given: list[Array]) -> None:
        """Makes ``value``, which is not known before the run, ``need`` for all that read it."""
        uses, producer = tuple(value.uses()), value.producer()
        assert producer is not None and producer.graph is not None
        anchor = oir.node("Identity", [value])
        if CALL in producer.meta:
            anchor.meta[CALL] = producer.meta[CALL]
        producer.graph.insert_after(producer, anchor)
        corrected = self._patch_entries(anchor, value, need, given)
        producer.graph.remove(anchor, safe=True)
        for use in uses:
            use.node.replace_input_with(use.idx, corrected)

    def _patch_entries(
        self, node: oir.Node, old: oir.Value, need: list[Array], given: list[Array] | None
    ) -> oir.Value:
        """Keeps right entries as computed; replaces the others by a constant or scales them."""
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
                    " keep its channels with `protect`"
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
        operand = self.new_constant(f"{base}_by", oir.Tensor(constant))
        name = self.names.free(base)
        inserted = oir.node(op, [value, operand], name=name)
        output = inserted.outputs[0]
        output.name, output.type, output.shape = name, value.type, value.shape
        self.values[name] = output
        self._insert_before(node, inserted, [value])
        return output

    def insert(
        self,
        node: oir.Node,
        op: str,
        base: str,
        inputs: Sequence[oir.Value | Array],
        attributes: Mapping[str, int],
    ) -> oir.Value:
        """A new node in front of ``node``; its result is named after ``base``."""
        base = f"{base}_{op.lower()}"
        given = [
            v if isinstance(v, oir.Value) else self.new_constant(f"{base}_by", oir.Tensor(v))
            for v in inputs
        ]
        inserted = oir.node(op, given, attributes, name=self.names.free(base))
        output = inserted.outputs[0]
        output.name = inserted.name
        self.values[str(output.name)] = output
        self._insert_before(node, inserted, given)
        return output

    def _insert_before(
        self, node: oir.Node, inserted: oir.Node, inputs: Sequence[oir.Value]
    ) -> None:
        assert node.graph is not None
        node.graph.insert_before(node, inserted)
        adopt(inserted, node, inputs)

    def abandon(self, value: oir.Value) -> None:
        """Says that a node no longer reads this value, so that it can go if no other does."""
        self._abandoned.append(value)

    def drop_abandoned(self) -> None:
        """Removes shape arithmetic that nothing reads any more because of our patches."""
        while self._abandoned:
            value = self._abandoned.pop()
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            node = value.producer()
            if node is None:
                self.graph.initializers.pop(str(value.name), None)
            elif node.graph is not None and not any(
                o.uses() or o.is_graph_output() for o in node.outputs
            ):
                sources = [v for v in node.inputs if v is not None]
                node.graph.remove(node, safe=True)
                self._abandoned += sources


def _is_own_constant(value: oir.Value) -> bool:
    """True for a constant that a single input reads, so that it may be edited in place."""
    return (
        constant_tensor(value) is not None
        and len(value.uses()) == 1
        and not value.is_graph_output()
    )


def _ratio(given: Array, wanted: Array, static: bool) -> Fraction:
    """The one factor that takes ``given`` to ``wanted`` under every binding; 0 if there is none."""
    if static:
        return Fraction(1)
    pairs = zip(given, wanted, strict=True)
    ratios = {Fraction(int(w), int(g)) if g else Fraction(0) for g, w in pairs}
    return ratios.pop() if len(ratios) == 1 else Fraction(0)
