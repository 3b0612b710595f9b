"""Discrete choices: operators whose output jumps where their float operands cross a border.

TopK, ArgMax, a comparison, Round: two models that differ by nothing but the order of additions
choose differently where two scores are nearly equal, and from there on compute something else.
A choice is *held* by making its result an input of the model:

    i = ArgMax(x)            ->   i is fed
    v, i = TopK(x, k)        ->   i is fed, v = GatherElements(x, i)

so that what continues from it still moves with x. In return, what the operator chooses *from* is
shown as outputs of the model: its operands, and for TopK, ArgMax and ArgMin the best values in
order, and those at the held places. These are continuous functions of the weights. Where they
agree in two models, and the operator is the same in both, each one's own choice is as good under
the other's operands, up to what they differ by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .session import Array

_ELEMENTWISE = frozenset(
    "Cast Ceil Equal Floor Greater GreaterOrEqual Less LessOrEqual Round Sign".split()
)
_CHOSEN = {
    **dict.fromkeys((*_ELEMENTWISE, "ArgMax", "ArgMin", "Hardmax", "NonMaxSuppression"), 0),
    "NonZero": 0,
    "MaxPool": 1,
    "TopK": 1,
}
"""The output that is a choice, for every operator that makes one."""

_OPSET = 11
"""GatherElements came with this one, and TopK in its present form."""


@dataclass(frozen=True)
class Choice:
    """A node of the main graph that chooses; ``result`` is the value that can be held."""

    node: onnx.NodeProto
    result: str

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.node.op_type} {self.node.name or self.result!r}"

    @property
    def elementwise(self) -> bool:
        """Whether every element is chosen by itself."""
        return self.node.op_type in _ELEMENTWISE

    def same(self, other: Choice) -> bool:
        """Whether both do the same to their operands."""

        def kind(choice: Choice) -> tuple[object, ...]:
            node = choice.node
            attributes = {a.name: a.SerializeToString(deterministic=True) for a in node.attribute}
            return node.op_type, [bool(name) for name in node.input], attributes

        return kind(self) == kind(other)


def opset(model: onnx.ModelProto) -> int:
    """The version of the standard's operators that the model uses."""
    return max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=1)


def find_choices(model: onnx.ModelProto) -> dict[str, Choice]:
    """The choices of the main graph by their results, in order."""
    if opset(model) < _OPSET:
        return {}
    found = {}
    for node in model.graph.node:
        place = _CHOSEN.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if place is None or place >= len(node.output) or not node.output[place]:
            continue
        to = _attribute(node, "to", 0)
        if node.op_type == "Cast" and to in _NOT_HELD:
            continue
        if node.op_type == "MaxPool" and _attribute(node, "storage_order", 0):
            continue
        found[node.output[place]] = Choice(node, node.output[place])
    return found


_NOT_HELD = frozenset(
    kind
    for name, kind in TensorProto.DataType.items()
    if name == "DOUBLE" or "FLOAT" in name or name in ("STRING", "COMPLEX64", "COMPLEX128")
)
"""Types to cast to: floats move with what is cast; strings and complex numbers are rare."""


@dataclass(frozen=True)
class Kept:
    """The coordinates of an axis, counted from the end, that the smaller model has."""

    axis: int
    indices: tuple[int, ...]
    operands: frozenset[int]
    """Numbers of the operands that have this axis at full size in the larger model."""


@dataclass(frozen=True)
class Holding:
    """A result to hold: what it is in one run of the larger model, and what the smaller one has
    of it (None: all)."""

    value: Array
    kept: Kept | None = None


def fed(result: str) -> str:
    """The name of the input that a held result comes from."""
    return f"{result}/held"


def hold(
    model: onnx.ModelProto, held: Mapping[str, Holding], smaller: bool
) -> tuple[onnx.ModelProto, frozenset[str]]:
    """A copy in which the results ``held`` are inputs, and the names of its additional outputs,
    ``<result>/held/<what>``. The ``smaller`` model takes of an input what it has; the larger one
    shows of an operand what the smaller one has."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, shown = copy.graph, list[str]()
    chosen = find_choices(model)
    emit = _Emitter(opset(model))
    for node in model.graph.node:
        result = next((name for name in node.output if name in held), None)
        if result is None:
            emit.nodes.append(node)
        else:
            shown += _show(emit, chosen[result], held[result], smaller)
    del graph.node[:]
    graph.node.extend(emit.nodes)
    for name, holding in held.items():
        kind = helper.np_dtype_to_tensor_dtype(holding.value.dtype)
        graph.input.append(helper.make_tensor_value_info(fed(name), kind, None))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
    return copy, frozenset(shown)


class _Emitter:
    """The nodes of the new graph."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.nodes: list[onnx.NodeProto] = []

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def take(self, name: str, kept: Kept | None, output: str) -> str:
        """The value, or what is kept of it."""
        if kept is None:
            return self.add("Identity", [name], output)
        indices = self.constant(kept.indices, f"{output}/kept")
        return self.add("Gather", [name, indices], output, axis=kept.axis)

    def constant(self, values: Sequence[int], name: str) -> str:
        array = numpy_helper.from_array(np.array(values, np.int64))
        return self.add("Constant", [], name, value=array)


def _show(emit: _Emitter, choice: Choice, held: Holding, smaller: bool) -> Iterator[str]:
    """Puts what is computed in place of the node; the outputs to show."""
    node, stem, kept = choice.node, fed(choice.result), held.kept
    emit.take(stem, kept if smaller else None, choice.result)
    for number, name in enumerate(node.input):
        if name:
            part = kept if kept and not smaller and number in kept.operands else None
            yield emit.take(name, part, f"{stem}/operand {number}")
    if node.op_type == "MaxPool":
        rest = onnx.NodeProto()
        rest.CopyFrom(node)
        del rest.output[1:]
        emit.nodes.append(rest)
        flat = emit.add("Reshape", [node.input[0], emit.constant([-1], f"{stem}/all")], f"{stem}/x")
        yield emit.add("Gather", [flat, choice.result], f"{stem}/chosen")
    elif node.op_type in ("TopK", "ArgMax", "ArgMin"):
        yield from _show_best(emit, choice, held.value.ndim)


def _show_best(emit: _Emitter, choice: Choice, rank: int) -> Iterator[str]:
    """The best values in order, and those at the held places."""
    node, stem, index = choice.node, fed(choice.result), choice.result
    top = node.op_type == "TopK"
    axis = _attribute(node, "axis", -1 if top else 0)
    if not top and not _attribute(node, "keepdims", 1):
        index = f"{stem}/places"
        if emit.version < 13:
            emit.add("Unsqueeze", [choice.result], index, axes=[axis % (rank + 1)])
        else:
            emit.add("Unsqueeze", [choice.result, emit.constant([axis], f"{stem}/axes")], index)
    count = node.input[1] if top else emit.constant([1], f"{stem}/one")
    largest = _attribute(node, "largest", 1) if top else int(node.op_type == "ArgMax")
    best = helper.make_node("TopK", [node.input[0], count], [f"{stem}/best", f"{stem}/best places"])
    best.attribute.extend(
        helper.make_attribute(key, value) for key, value in (("axis", axis), ("largest", largest))
    )
    emit.nodes.append(best)
    yield best.output[0]
    values = (node.output[0] if top else "") or f"{stem}/values"
    emit.add("GatherElements", [node.input[0], index], values, axis=axis)
    yield emit.add("Identity", [values], f"{stem}/chosen")


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
