"""Where two models are compared in training: their outputs, as what they are read, and values
inside.

Each output is traced back through operators that only move numbers. What comes before a Softmax,
LogSoftmax or Sigmoid is compared as *logits*: class by class along the axis of the softmax, or one
by one. So is an output whose softmax or largest place is taken elsewhere in the graph. An output
straight from a contraction whose last axis has at least two places may be logits or measures: it is
compared as both. Everything else is compared as *values*. An output without gradient (classes,
chosen boxes) stands for the floating-point values that it is computed from.

Values inside are those after residual sums, or else those after contractions, of which both models
have some in equal shape.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as oir

from ..ir.constants import constant_tensor
from ..ir.errors import UsageError
from ..ir.trainable import FLOATS

_MOVES = frozenset("Cast Flatten Identity Reshape Squeeze Transpose Unsqueeze".split())
_CONTRACTIONS = frozenset("Conv ConvTranspose Einsum Gemm MatMul FusedMatMul".split())
_CHOOSING = frozenset("ArgMax LogSoftmax Softmax Hardmax TopK".split())
_OPEN = frozenset("Compress NonMaxSuppression NonZero Unique".split())
"""Operators whose outputs have a size that depends on the data."""
_WHOLE = frozenset("ArgMax ArgMin Shape Size".split())
"""Operators that give whole numbers."""

Operator = tuple[str, str]
Kind = Literal["logits", "binary", "values", "either"]
Transform = Literal["", "log", "logit"]


@dataclass(frozen=True)
class Target:
    """A value that two models must agree on.

    ``kind``: "logits" of a softmax along ``axis``, or of all axes from there on if ``joint``;
    "binary" logits of sigmoids; "values"; "either" logits or values. ``transform`` makes logits of
    what is a probability.
    """

    value: str
    kind: Kind
    axis: int = -1
    joint: bool = False
    transform: Transform = ""


def output_targets(
    model: oir.Model, known: Collection[Operator], others: Collection[str] | None = None
) -> list[Target]:
    """The targets of a flat model, at least one for each output that has a gradient. ``known`` are
    the operators (domain and type) that can be run. With ``others``, only values of these names are
    used besides the outputs themselves: those that the other model has, too.

    Raises UsageError when no output depends on floating-point numbers.
    """
    beyond = _beyond(model.graph, known)
    found: dict[str, Target] = {}
    for output in model.graph.outputs:
        for value in _differentiable(output, beyond, others):
            target = _target(value, model.opset_imports.get("", 1), others)
            found.setdefault(target.value, target)
    if not found:
        raise UsageError("no output is made of floating-point numbers, so nothing can be learned")
    return list(found.values())


def _beyond(graph: oir.Graph, known: Collection[Operator]) -> set[oir.Value]:
    """The values that operators make which cannot be run, or whose sizes depend on the data, and
    all that follows from them."""
    found: set[oir.Value] = set()
    for node in graph:
        unknown = (node.domain, node.op_type) not in known and node.op_type != "Constant"
        follows = any(v in found for v in node.inputs if v is not None)
        if unknown or follows or node.op_type in _OPEN:
            found.update(node.outputs)
    return found


def blocking_node(
    graph: oir.Graph, known: Collection[Operator], trained: Collection[str]
) -> oir.Node | None:
    """A node that cannot be run, or has outputs of open sizes, and stands before the use of a
    trained weight, which could learn nothing; None if there is none."""
    behind: dict[oir.Value, oir.Node] = {}
    for node in graph:
        inputs = [v for v in node.inputs if v is not None]
        unknown = (node.domain, node.op_type) not in known and node.op_type != "Constant"
        source = next((behind[v] for v in inputs if v in behind), None)
        if source is None and (unknown or node.op_type in _OPEN):
            source = node
        if source is not None:
            if any(v.name in trained for v in inputs):
                return source
            behind.update(dict.fromkeys(node.outputs, source))
    return None


def _differentiable(
    output: oir.Value, beyond: Collection[oir.Value], others: Collection[str] | None
) -> Iterator[oir.Value]:
    """The value itself if a gradient may reach it, else the values of these names that it is
    computed from."""
    front, seen = [output], {output}
    while front:
        value = front.pop()
        node = value.producer()
        if node is None or constant_tensor(value) is not None:
            continue
        real = value.dtype is None or value.dtype in FLOATS
        real = real and (value is output or others is None or str(value.name) in others)
        if real and value not in beyond and node.op_type not in _WHOLE:
            yield value
            continue
        fresh = [v for v in node.inputs if v is not None and v not in seen]
        seen.update(fresh)
        front += reversed(fresh)


def _target(value: oir.Value, opset: int, others: Collection[str] | None) -> Target:
    source = _unmoved(value)
    node = source.producer()
    if node is not None and node.op_type in ("Softmax", "LogSoftmax"):
        axis, joint = _softmax_axis(node, opset)
        logits = node.inputs[0]
        if logits is not None and (others is None or str(logits.name) in others):
            return Target(str(logits.name), "logits", axis, joint)
        if source is value:
            transform: Transform = "log" if node.op_type == "Softmax" else ""
            return Target(str(value.name), "logits", axis, joint, transform)
    if node is not None and node.op_type == "Sigmoid":
        logits = node.inputs[0]
        if logits is not None and (others is None or str(logits.name) in others):
            return Target(str(logits.name), "binary")
        return Target(str(value.name), "binary", transform="logit")
    name = str(value.name)
    for user, index in value.uses():
        if user.op_type in _CHOOSING and index == 0:
            axis, joint = _softmax_axis(user, opset)
            return Target(name, "logits", axis, joint)
    if source is value and node is not None and _from_contraction(node) and _is_wide(value):
        return Target(name, "either")
    return Target(name, "values")


def _softmax_axis(node: oir.Node, opset: int) -> tuple[int, bool]:
    flat = opset < 13 and node.op_type.endswith("max") and node.op_type != "ArgMax"
    default = {"ArgMax": 0, "TopK": -1}.get(node.op_type, 1 if flat else -1)
    return node.attributes.get_int("axis", default), flat


def _unmoved(value: oir.Value) -> oir.Value:
    """What the value is a copy of, in another shape."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _from_contraction(node: oir.Node) -> bool:
    """Whether a node is a contraction, or adds a constant to one."""
    if node.op_type == "Add":
        data = [v for v in node.inputs if v is not None and constant_tensor(v) is None]
        maker = data[0].producer() if len(data) == 1 else None
        return maker is not None and maker.op_type in _CONTRACTIONS
    return node.op_type in _CONTRACTIONS


def _is_wide(value: oir.Value) -> bool:
    size = value.shape[-1] if value.shape is not None and value.shape.rank() in (2, 3) else 0
    return isinstance(size, int) and size > 1


def inner_values(
    model: oir.Model,
    others: Collection[str],
    trained: Collection[str],
    globs: Sequence[str] = (),
) -> list[list[str]]:
    """Values inside a flat model that another one has, too, in the order of the graph: those that
    match ``globs``, or else first residual sums, then contractions. Only values that depend on a
    weight named in ``trained`` can learn anything.

    Raises UsageError for a glob that matches none.
    """
    moving = _reached(model.graph, trained)
    outputs = {str(v.name) for v in model.graph.outputs}
    makers = {
        str(v.name): node
        for node in model.graph
        for v in node.outputs
        if str(v.name) in moving and str(v.name) in others and str(v.name) not in outputs
    }
    if globs:
        found: dict[str, None] = {}
        for glob in globs:
            hit = fnmatch.filter(makers, glob)
            if not hit:
                raise UsageError(f"no value inside both models matches '{glob}'")
            found.update(dict.fromkeys(hit))
        return [[name for name in makers if name in found]]
    sums = [name for name, node in makers.items() if _is_sum(node)]
    return [sums, [name for name, node in makers.items() if node.op_type in _CONTRACTIONS]]


def _is_sum(node: oir.Node) -> bool:
    computed = [v for v in node.inputs if v is not None and constant_tensor(v) is None]
    return node.op_type == "Add" and len(computed) == 2


def _reached(graph: oir.Graph, trained: Collection[str]) -> Mapping[str, None]:
    """The values that depend on a trained weight, subgraphs left aside."""
    reached: dict[str, None] = dict.fromkeys(trained)
    for node in graph:
        if any(v is not None and str(v.name) in reached for v in node.inputs):
            reached.update((str(v.name), None) for v in node.outputs if v.name)
    for name in trained:
        del reached[name]
    return reached


def value_names(graph: oir.Graph) -> frozenset[str]:
    """The names of all results of the main graph's nodes."""
    return frozenset(str(v.name) for node in graph for v in node.outputs if v.name)
