"""The masked original: the unpruned model with every removed unit multiplied by zero.

Pruning the coordinates R of an axis whose paths end in exact sinks must equal

    sink(x) -> sink(x * k),   k[i] = 0 for i in R, else 1,

in front of every sink. An inexact operator f becomes ``scatter(f(gather(x)))``: run on the
coordinates outside R, padded back with zeros so that its consumers still see the full axis.
Everything here edits plain protobuf; nothing is shared with the code that slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..ir.errors import ModelError
from ..ir.masks import Compaction, Mask
from ..ir.protos import Body, inner_graphs
from ..ir.wording import counted
from .signature import Types, value_types
from .zero_points import ZERO_POINTS, zero_shape

Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

# Element types that ONNX Runtime multiplies on the CPU, and the first opset that has them.
_LONG_SINCE = ("FLOAT", "DOUBLE", "FLOAT16", "INT32", "INT64", "UINT32", "UINT64")
_MULTIPLIED: dict[int, int] = {
    **{TensorProto.DataType.Value(name): 7 for name in _LONG_SINCE},
    **{TensorProto.DataType.Value(name): 14 for name in ("INT8", "UINT8", "INT16", "UINT16")},
}
# Those it selects with Where, from opset 9 on.
_CHOICE = ("FLOAT", "DOUBLE", "FLOAT16", "INT32", "INT64", "INT8", "UINT8")
_SELECTED = {TensorProto.DataType.Value(name) for name in _CHOICE}
_NO_ZERO = {TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128}


@dataclass
class _Plan:
    """Everything asked of one node: the coordinates to zero and to drop, per numbered axis."""

    masks: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    gathers: dict[tuple[int, int], tuple[int, set[int]]] = field(default_factory=dict)
    scatters: dict[tuple[int, int], tuple[int, set[int]]] = field(default_factory=dict)


@dataclass
class _Emitter:
    """Collects new nodes of one scope and hands out names that nothing else uses."""

    opset: int
    used: set[str]
    stored: dict[str, TensorProto] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def fresh(self, stem: str) -> str:
        name, number = stem, 0
        while name in self.used:
            number += 1
            name = f"{stem}.{number}"
        self.used.add(name)
        return name

    def constant(self, array: np.ndarray[Any, Any], stem: str) -> str:
        stem = f"{stem}/constant"
        if self.opset < 9 and array.dtype.kind != "f":  # Constant knew only floats then
            wide = self.constant(array.astype(np.float64), stem)
            to = helper.np_dtype_to_tensor_dtype(array.dtype)
            return self.add("Cast", [wide], stem, to=to)
        name = self.fresh(stem)
        tensor = numpy_helper.from_array(array, name)
        self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def add(self, op_type: str, inputs: Sequence[str], stem: str, **attributes: Any) -> str:
        name = self.fresh(stem)
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def zero(
        self, value: str, element: int, keep: Bools, fill: str = "", select: bool = False
    ) -> str:
        """``value`` where ``keep`` (it broadcasts), else zero, or else the scalar ``fill``.

        What is stored is multiplied here and now: some kernels prepare constant weights, and
        compute differently where anything that belongs to them is not constant.
        """
        stem = f"{value}/masked"
        tensor = self.stored.get(value)
        if tensor is not None and not fill:
            name = self.constant(numpy_helper.to_array(tensor) * keep, stem)
            self.stored[name] = self.nodes[-1].attribute[0].t
            return name
        if element in _NO_ZERO:
            raise ModelError(f"cannot mask {value!r}: its element type has no zero to multiply by")
        selected = self.opset >= 9 and element in _SELECTED
        direct = selected if fill else self.opset >= _MULTIPLIED.get(element, 99)
        work = element if direct else TensorProto.FLOAT
        source = value if direct else self.add("Cast", [value], stem, to=work)
        dtype = helper.tensor_dtype_to_np_dtype(work)
        fill = fill if direct or not fill else self.add("Cast", [fill], stem, to=work)
        if fill or (select and self.opset >= 9 and work in _SELECTED):
            other = fill or self.constant(np.zeros((), dtype), stem)
            result = self.add("Where", [self.constant(keep, stem), source, other], stem)
        else:
            result = self.add("Mul", [source, self.constant(keep.astype(dtype), stem)], stem)
        return result if direct else self.add("Cast", [result], stem, to=element)


def masked_model(
    original: onnx.ModelProto,
    masks: Sequence[Mask],
    compactions: Sequence[Compaction] = (),
    types: Types | None = None,
) -> onnx.ModelProto:
    """A copy of ``original`` with the masks and compactions inserted; interface unchanged.

    ``types`` maps value names to (element type, shape) and is asked before shape inference.
    Masks and compactions of the same axis of the same node are united. The weights are copied
    once. Raises ModelError when a node is missing or ambiguous, when an operand's type, rank or
    axis size is unknown, and below opset 7.
    """
    plans = _plans(masks, compactions)
    masked = onnx.ModelProto()
    masked.CopyFrom(original)
    if not plans:
        return masked
    known = _Known(original, types or {})
    used = {name for scope, _ in scopes(masked) for name in _names(scope)}
    done: set[str] = set()
    for bodies in (False, True):  # a function's names are its own: those of the graph go first
        left = {key: plan for key, plan in plans.items() if key not in done}
        for scope, imports in scopes(masked, graph=not bodies, functions=bodies):
            _edit(scope, imports, left, known, used, done)
    if missing := sorted(plans.keys() - done):
        raise ModelError(f"no node writes {missing[0]!r}: the masks belong to another model")
    return masked


@dataclass
class _Known:
    """Types of values: the caller's first, shape inference when those do not answer."""

    model: onnx.ModelProto
    given: Types
    inferred: Types | None = None

    def type(self, name: str) -> tuple[int, tuple[int | str | None, ...]]:
        if name in self.given:
            return self.given[name]
        if self.inferred is None:
            self.inferred = value_types(self.model)
        found = self.inferred.get(name)
        if found is None:
            raise ModelError(f"type and rank of {name!r} are unknown: cannot mask it")
        return found

    def axis(self, name: str, axis: int) -> tuple[int, int, int]:
        """Element type, rank, and ``axis`` counted from the front."""
        element, shape = self.type(name)
        if not -len(shape) <= axis < len(shape):
            raise ModelError(
                f"{name!r} has {counted(len(shape), 'axis', 'axes')}: axis {axis} cannot be masked"
            )
        return element, len(shape), axis % len(shape)

    def of_size(self, name: str, axis: int, size: int) -> int:
        """``axis`` counted from the front. Raises ModelError unless this may be its size."""
        _, _, axis = self.axis(name, axis)
        found = self.type(name)[1][axis]
        if size < 1 or (isinstance(found, int) and found != size):
            raise ModelError(f"axis {axis} of {name!r} is {found}, not {size}: cannot compact it")
        return axis


def _plans(masks: Iterable[Mask], compactions: Iterable[Compaction]) -> dict[str, _Plan]:
    plans: dict[str, _Plan] = {}
    for mask in masks:
        plan = plans.setdefault(mask.output, _Plan())
        plan.masks.setdefault((mask.input, mask.axis), set()).update(mask.indices)
    for item in compactions:
        plan = plans.setdefault(item.output, _Plan())
        for pairs, into in ((item.inputs, plan.gathers), (item.outputs, plan.scatters)):
            for pair in pairs:
                size, indices = into.setdefault(pair, (item.size, set()))
                if size != item.size:
                    raise ModelError(f"two compactions of {item.output!r} disagree on its size")
                indices.update(item.indices)
    return plans


def scopes(
    model: onnx.ModelProto, graph: bool = True, functions: bool = True
) -> Iterator[tuple[Body, Any]]:
    """Every graph, subgraph and function body with the opset imports that hold in it."""
    roots: list[tuple[Body, Any]] = [(model.graph, model.opset_import)] if graph else []
    roots += [(function, function.opset_import) for function in model.functions if functions]
    for root, imports in roots:
        yield root, imports
        for inner in inner_graphs(root):
            yield inner, imports


def _names(scope: Body) -> Iterator[str]:
    for node in scope.node:
        yield node.name
        yield from node.input
        yield from node.output
    if isinstance(scope, onnx.GraphProto):
        yield from (item.name for item in (*scope.input, *scope.output, *scope.initializer))
    else:
        yield from (*scope.input, *scope.output)


def _opset(imports: Any) -> int:
    for entry in imports:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    imports.add(domain="", version=17)
    return 17


def _edit(
    scope: Body,
    imports: Any,
    plans: Mapping[str, _Plan],
    known: _Known,
    used: set[str],
    done: set[str],
) -> None:
    """Insert what the plans ask for around the nodes of one scope, in place."""
    order: list[int] = []
    added: list[onnx.NodeProto] = []
    added_order: list[int] = []
    scattered: set[str] = set()
    stored = {t.name: t for t in getattr(scope, "initializer", ()) if _is_plain(t)}
    for position, node in enumerate(scope.node):
        order.append(position * 3 + 1)
        key = next((name for name in node.output if name), "")
        plan = plans.get(key)
        if plan is None:
            continue
        if key in done:
            raise ModelError(f"two nodes in different subgraphs write {key!r}: cannot mask one")
        done.add(key)
        opset = _opset(imports)
        if opset < 7:
            raise ModelError(f"opset {opset} cannot be masked: convert the model to 7 or later")
        before, after = _Emitter(opset, used, stored), _Emitter(opset, used)
        _feed(node, plan, known, before)
        scattered |= _restore(node, plan, known, after)
        for emitter, slot in ((before, 0), (after, 2)):
            added.extend(emitter.nodes)
            added_order.extend([position * 3 + slot] * len(emitter.nodes))
    if not added:
        return
    scope.node.extend(added)
    # Sorting moves references; rebuilding the list would copy every Constant once more.
    positions = iter(order + added_order)
    scope.node.sort(key=lambda _: next(positions))
    for index in reversed(range(len(scope.value_info))):
        if scope.value_info[index].name in scattered:
            del scope.value_info[index]


def _is_plain(tensor: TensorProto) -> bool:
    """Floats that numpy multiplies, at hand."""
    kinds = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    return tensor.data_type in kinds and tensor.data_location != TensorProto.EXTERNAL


def _feed(node: onnx.NodeProto, plan: _Plan, known: _Known, emit: _Emitter) -> None:
    """Put the masks, then the gathers, in front of the node's operands."""
    originals = list(node.input)
    for (number, axis), indices in plan.masks.items():
        name = _operand(node, originals, number)
        element, rank, axis = known.axis(name, axis)
        size = known.type(name)[1][axis]
        if not isinstance(size, int):
            raise ModelError(f"size of axis {axis} of {name!r} is unknown: cannot mask it")
        keep = keep_flags(indices, size, name).reshape([size] + [1] * (rank - 1 - axis))
        fill = _zero_point(node, originals, number, known, emit)
        node.input[number] = emit.zero(node.input[number], element, keep, fill)
    for (number, axis), (size, indices) in plan.gathers.items():
        name = _operand(node, originals, number)
        axis = known.of_size(name, axis, size)
        kept = np.flatnonzero(keep_flags(indices, size, name))
        if kept.size == 0:
            raise ModelError(f"a compaction removes every coordinate of {name!r}")
        index = emit.constant(kept.astype(np.int64), name)
        stem = f"{name}/compact"
        node.input[number] = emit.add("Gather", [node.input[number], index], stem, axis=axis)
        if number == 0 and node.op_type in ("GroupNormalization", "GroupNorm", "SkipGroupNorm"):
            _restate_groups(node, size, indices)


def _restore(node: onnx.NodeProto, plan: _Plan, known: _Known, emit: _Emitter) -> set[str]:
    """Scatter compact outputs back to full size under their old names, which are returned."""
    scattered: dict[int, str] = {}
    for number, _ in plan.scatters:
        if number >= len(node.output) or not node.output[number]:
            raise ModelError(
                f"output {number} of the node that writes {node.output[0]!r} is unused"
            )
        if number not in scattered:
            scattered[number] = node.output[number]
            node.output[number] = emit.fresh(f"{node.output[number]}/compact")
    for number, name in scattered.items():
        value = node.output[number]
        for (output, axis), (size, indices) in plan.scatters.items():
            if output != number:
                continue
            axis = known.of_size(name, axis, size)
            element, rank, _ = known.axis(name, axis)
            keep = keep_flags(indices, size, name)
            # Removed places borrow coordinate 0 and are zeroed afterwards.
            source = np.where(keep, np.cumsum(keep) - 1, 0).astype(np.int64)
            full = emit.add(
                "Gather", [value, emit.constant(source, name)], f"{name}/full", axis=axis
            )
            shape = [size] + [1] * (rank - 1 - axis)
            value = emit.zero(full, element, keep.reshape(shape), select=True)
        emit.nodes[-1].output[0] = name
    return set(scattered.values())


def _operand(node: onnx.NodeProto, originals: Sequence[str], number: int) -> str:
    if not 0 <= number < len(originals) or not originals[number]:
        raise ModelError(f"the node that writes {node.output[0]!r} has no input {number} to mask")
    return originals[number]


def keep_flags(indices: Iterable[int], size: int, name: str) -> Bools:
    """bool[size]: False at ``indices``; ModelError when one is out of range."""
    keep = np.ones(size, np.bool_)
    index = np.fromiter(indices, np.int64)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ModelError(
            f"{name!r} has {counted(size, 'coordinate')}: {index.max()} cannot be masked"
        )
    keep[index] = False
    return keep


def _zero_point(
    node: onnx.NodeProto, names: Sequence[str], number: int, known: _Known, emit: _Emitter
) -> str:
    """What stands for zero in a quantised operand, in a shape that broadcasts; "" in others."""
    place = ZERO_POINTS.get(node.op_type, {}).get(number)
    if place is None:
        return ""
    element, shape = known.type(names[number])
    if place >= len(names) or not names[place]:
        zero = np.zeros((), helper.tensor_dtype_to_np_dtype(element))
        return emit.constant(zero, names[number])
    point = known.type(names[place])[1]
    meeting = zero_shape(node, number, len(shape), point)
    if meeting == tuple(point) or set(point) == {1}:
        return names[place]
    sizes = [size if isinstance(size, int) else -1 for size in meeting]
    target = emit.constant(np.array(sizes, np.int64), names[place])
    return emit.add("Reshape", [names[place], target], f"{names[place]}/along")


def _restate_groups(node: onnx.NodeProto, size: int, removed: set[int]) -> None:
    """Whole groups removed: fewer groups. The same number from each: the same groups."""
    for attribute in node.attribute:
        if attribute.name not in ("num_groups", "groups") or size % attribute.i:
            continue
        kept = keep_flags(removed, size, node.output[0]).reshape(attribute.i, -1).sum(axis=1)
        filled = kept[kept > 0]
        if len(set(filled.tolist())) > 1:
            raise ModelError(f"the removal leaves unequal groups in {node.output[0]!r}")
        attribute.i = len(filled)
