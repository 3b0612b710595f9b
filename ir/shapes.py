"""Concrete shapes of every value, and which axes are dynamic.

Coupling rules need numbers. Symbolic dimensions are bound to numbers twice, with different
sizes; an axis whose size moves with the binding is *dynamic*. Shapes come from ONNX's own
inference on a skeleton of the model (large weights become typed inputs); where inference stops,
small values (shape arithmetic) are evaluated and single nodes inferred again; what is still
unknown is asked of ``observe``, which the runtime implements by running the model once. Subgraphs
are followed by `control`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir

from .bindings import moved_alone, moved_but_one, moved_together
from .constants import constant_tensor, constants, tensor_shape
from .control import all_protos, bodies, follow, skeleton_node
from .errors import ModelError
from .flatten import flatten
from .graphs import RANDOM
from .inference import infer_shapes
from .lists import Elements, about_lists, infer_lists
from .maps import map_type
from .open_sizes import open_sizes

Array = npt.NDArray[np.generic]
Shape = tuple[int, ...]
Typed = tuple[int, Shape]
"""Element type (``onnx.TensorProto`` enumerator) and shape."""

Observer = Callable[[Mapping[str, int], list[str]], Mapping[str, Typed]]
"""``observe(binding, value names)`` gives the types of these values in one real run."""

SMALL = 16384
"""Values of up to this many elements are evaluated; more is data, not shape arithmetic."""

_SAME_SHAPE = frozenset(["GroupNormalization", "MeanVarianceNormalization"])
"""Functions of the standard whose bodies ONNX's inference does not always follow."""


@dataclass
class Facts:
    """What one binding of the symbolic dimensions fixes.

    ``types`` maps value names to (element type, shape); ``values`` holds the numpy arrays of
    constants and of whatever can be computed from constants and shapes, up to `SMALL` elements;
    ``trips`` holds the number of iterations of a Loop or Scan by its first output. ``lists`` are
    the sequences whose elements are known (see `lists`), and ``origins`` the elements of a body
    that those are of which a Loop makes one in each iteration.

    Where control flow or the data leave a size open, ``split`` is set and ``look`` says what to
    assume: 0 and 1 are two different possibilities, None leaves the size unknown. ``declared``
    are types that the model declares. Where all that leaves sizes of slices unknown, since the
    bounds are data, ``cut_open`` says that they are such sizes: in the main graph a run tells
    more.
    """

    binding: Mapping[str, int]
    types: dict[str, Typed] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    trips: dict[str, int] = field(default_factory=dict)
    lists: dict[str, Elements] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    look: int | None = 0
    split: bool = False
    declared: dict[str, Typed] = field(default_factory=dict)
    cut_open: bool = False


def infer_bindings(
    skeleton: Skeleton, binding: Mapping[str, int], observe: Observer | None = None
) -> list[Facts]:
    """Facts under the binding that `bindings.bind_dims` returned, and under a second that moves as
    many dimensions as the model can bear.

    A dimension that cannot take another size (a position table fixes it, say) counts as static.
    Several that only move together (past, new and all tokens) do so if at most one other is static.
    Sizes that control flow or the data leave open differ between the two as well.
    """
    first = skeleton.infer(binding, observe)

    def borne(other: Mapping[str, int]) -> Facts | None:
        second = skeleton.infer(other, observe, look=1)
        return second if _bears(skeleton, first, second) else None

    others = (*moved_together(binding), *moved_but_one(binding))
    second = next(filter(None, map(borne, others)), None)
    for alone in moved_alone(binding):
        moving = binding if second is None else second.binding
        (name,) = (name for name in binding if alone[name] != binding[name])
        if moving[name] == binding[name]:
            second = borne({**moving, name: alone[name]}) or second
    if second:
        return [first, second]
    if not first.split:
        return [first]
    second = borne(binding)
    return [first, second] if second else [skeleton.infer(binding, observe, look=None)]


def _bears(skeleton: Skeleton, first: Facts, second: Facts) -> bool:
    """Whether everything known under one binding is known, with the same rank, under another,
    and no reshape gains or loses elements (inference lets that pass)."""
    return all(
        name in second.types and len(second.types[name][1]) == len(shape)
        for name, (_, shape) in first.types.items()
    ) and all(
        math.prod(second.types[node.input[0]][1]) == math.prod(second.types[node.output[0]][1])
        for node in skeleton.nodes
        if node.op_type == "Reshape" and {node.input[0], node.output[0]} <= second.types.keys()
    )


class Skeleton:
    """The flat model (see `flatten`) as protobuf nodes without weights: what inference works on.

    ``nodes`` are those of the main graph, ``protos`` all of them by the name of each output.
    """

    def __init__(self, model: oir.Model) -> None:
        self.model = model = flatten(model)
        graph = model.graph
        self.nodes = [skeleton_node(n) for n in graph if n.op_type != "Constant"]
        self.constants: dict[str, Typed] = {}
        self.small: dict[str, Array] = {}
        for value, tensor in constants(graph):
            name, shape = str(value.name), tensor_shape(tensor)
            self.constants[name] = (int(tensor.dtype), shape)
            if math.prod(shape) <= SMALL and tensor.dtype != oir.DataType.STRING:
                self.small[name] = tensor.numpy()
        # Constants that are not plain tensors (strings, sparse) stay nodes.
        self.nodes[:0] = [
            oir.serde.serialize_node(n)
            for n in graph
            if n.op_type == "Constant" and constant_tensor(n.outputs[0]) is None
        ]
        self.protos = {o: proto for proto in all_protos(self.nodes) for o in proto.output if o}
        self.inputs = [v for v in graph.inputs if not v.is_initializer()]
        self.opset = graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 1))
        self.functions = [oir.serde.serialize_function(f) for f in model.functions.values()]

    def infer(
        self,
        binding: Mapping[str, int],
        observe: Observer | None = None,
        look: int | None = 0,
    ) -> Facts:
        """Shapes, types and small values under ``binding``; ``look`` is that of `Facts`. Never
        raises for odd nodes: what cannot be known is simply absent from the result."""
        facts = Facts(binding, values=dict(self.small), look=look)
        facts.types.update(self.constants)
        for value in self.inputs:
            if _is_tensor(value):
                facts.types[str(value.name)] = self._input_type(value, binding)
        self._infer_whole(facts)
        self.infer_nodes(self.nodes, facts)
        facts.declared = self._declared(facts)
        if facts.declared:
            self.infer_nodes(self.nodes, facts)
        if observe is not None:
            known = facts.types.keys() | facts.lists.keys()
            missing = [o for n in self.nodes for o in n.output if o and o not in known]
            if missing:
                facts.types.update(observe(binding, missing))
                self.infer_nodes(self.nodes, facts)
        if self.protos.keys() - facts.types.keys() - facts.lists.keys():
            facts.cut_open = True
            self.infer_nodes(self.nodes, facts)
        return facts

    def _declared(self, facts: Facts) -> dict[str, Typed]:
        """Where inference stopped, what the model itself declares is better than nothing."""
        found: dict[str, Typed] = {}
        for node in self.model.graph.all_nodes():
            for value in node.outputs:
                name = str(value.name)
                if not name or name in facts.types or not _is_tensor(value):
                    continue  # of no tensor, dtype and shape are those of what it holds
                if value.shape is None or value.dtype is None:
                    continue
                dims = [
                    dim if isinstance(dim, int) else facts.binding.get(str(dim.value))
                    for dim in value.shape
                ]
                if all(dim is not None for dim in dims):
                    found[name] = (int(value.dtype), tuple(d for d in dims if d is not None))
        return found

    def _input_type(self, value: oir.Value, binding: Mapping[str, int]) -> Typed:
        if value.shape is None or value.dtype is None:
            raise ModelError(f"input '{value.name}' has no tensor type or no rank")
        shape = tuple(
            dim
            if isinstance(dim, int)
            else binding[str(dim.value) if dim.value is not None else f"{value.name}.{axis}"]
            for axis, dim in enumerate(value.shape)
        )
        return int(value.dtype), shape

    def _infer_whole(self, facts: Facts) -> None:
        proto = onnx.ModelProto(ir_version=max(self.model.ir_version or 8, 8))
        for domain, version in self.model.graph.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        proto.functions.extend(self.functions)
        graph = proto.graph
        graph.name = "skeleton"
        graph.node.extend(self.nodes)
        for name, (dtype, shape) in facts.types.items():
            if name in self.small:
                graph.initializer.append(_tensor_proto(self.small[name], dtype, name))
            else:
                graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, shape))
        graph.input.extend(_bound(v, facts.binding) for v in self.inputs if not _is_tensor(v))
        for value in self.model.graph.outputs:
            graph.output.add(name=str(value.name))
        try:
            inferred = infer_shapes(proto).graph
        except Exception:  # inference is a help, not a judge: the loop below goes on without it
            return
        for info in (*inferred.value_info, *inferred.output):
            typed = _typed(info.type)
            if typed is not None:
                facts.types.setdefault(info.name, typed)

    def infer_nodes(self, nodes: Iterable[onnx.NodeProto], facts: Facts) -> None:
        """Evaluates or infers what is not known yet of these nodes' outputs, in order."""
        for proto in nodes:
            if bodies(proto):
                follow(self, proto, facts)
            elif about_lists(proto, facts):
                infer_lists(proto, facts)
            else:
                results = evaluate(proto, self.opset, facts.values, facts.types)
                for name, array in results.items():
                    facts.values[name] = array
                    dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                    facts.types[name] = (dtype, array.shape)
                if any(o and o not in facts.types for o in proto.output):
                    self._infer_node(proto, facts)
                    open_sizes(proto, facts)
            for name in proto.output if facts.declared else ():
                if name in facts.declared:
                    facts.types.setdefault(name, facts.declared[name])

    def _infer_node(self, proto: onnx.NodeProto, facts: Facts) -> None:
        if any(i and i not in facts.types for i in proto.input):
            return  # besides, some operators crash without the types (see inference.py)
        if proto.op_type in _SAME_SHAPE and not proto.domain:
            facts.types[proto.output[0]] = facts.types[proto.input[0]]
            return
        try:
            schema = onnx.defs.get_schema(proto.op_type, self.opset, proto.domain)
            types = {
                i: onnx.helper.make_tensor_type_proto(*facts.types[i]) for i in proto.input if i
            }
            data = {
                i: _tensor_proto(facts.values[i], facts.types[i][0], i)
                for i in proto.input
                if i in facts.values
            }
            outputs = onnx.shape_inference.infer_node_outputs(schema, proto, types, data)
        except Exception:
            return
        for name, kind in outputs.items():
            typed = _typed(kind)
            if typed is not None:
                facts.types.setdefault(name, typed)


def evaluate(
    proto: onnx.NodeProto,
    opset: int,
    values: Mapping[str, Array],
    types: Mapping[str, Typed],
) -> dict[str, Array]:
    """The outputs of one node if they follow from ``values`` and shapes; else an empty dict."""
    if proto.domain not in ("", "ai.onnx") or proto.op_type in RANDOM:
        return {}
    if proto.op_type in ("Shape", "Size"):
        return _evaluate_shape(proto, types)
    if not proto.input or any(i and i not in values for i in proto.input):
        return {}
    if any(o in types and math.prod(types[o][1]) > SMALL for o in proto.output):
        return {}
    if any(a.HasField("g") or a.graphs for a in proto.attribute):
        return {}
    from onnx.reference import ReferenceEvaluator

    feed = {i: values[i] for i in proto.input if i}
    outputs = [o for o in proto.output if o]
    # In a model of its own, since a bare node would run as the newest version of its operator.
    model = onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(name="node", node=[proto]))
    model.opset_import.add(version=opset)
    for name in feed:
        model.graph.input.add(name=name)
    for name in outputs:
        model.graph.output.add(name=name)
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, feed)
    except Exception:  # an operator the reference does not know: its value stays unknown
        return {}
    return {
        name: np.asarray(array)
        for name, array in zip(outputs, results, strict=True)
        if isinstance(array, (np.ndarray, np.generic)) and np.size(array) <= SMALL
    }


def _evaluate_shape(proto: onnx.NodeProto, types: Mapping[str, Typed]) -> dict[str, Array]:
    if proto.input[0] not in types:
        return {}
    shape = types[proto.input[0]][1]
    if proto.op_type == "Size":
        return {proto.output[0]: np.array(math.prod(shape), np.int64)}
    bounds = {a.name: a.i for a in proto.attribute}
    return {proto.output[0]: np.array(shape[bounds.get("start", 0) : bounds.get("end")], np.int64)}


def _bound(value: oir.Value, binding: Mapping[str, int]) -> onnx.ValueInfoProto:
    """A sequence or optional, its symbolic dimensions as numbers."""
    info = oir.serde.serialize_value(value)
    info.type.MergeFrom(map_type(value) or onnx.TypeProto())
    kind = info.type
    while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
        kind = getattr(kind, kind.WhichOneof("value")).elem_type
    for axis, dim in enumerate(kind.tensor_type.shape.dim):
        if not dim.HasField("dim_value"):
            dim.dim_value = binding[dim.dim_param or f"{value.name}.{axis}"]
    return info


def _is_tensor(value: oir.Value) -> bool:
    """False for sequences, optionals and maps; what has no type at all is taken for a tensor."""
    if map_type(value) is not None:
        return False
    return value.type is None or isinstance(value.type, oir.TensorType)


def _typed(kind: onnx.TypeProto) -> Typed | None:
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if any(not d.HasField("dim_value") or d.dim_value < 0 for d in dims):
        return None
    return kind.tensor_type.elem_type, tuple(d.dim_value for d in dims)


def _tensor_proto(array: Array, dtype: int, name: str) -> onnx.TensorProto:
    tensor = oir.Tensor(np.asarray(array, order="C"), dtype=oir.DataType(dtype), name=name)
    return oir.serde.serialize_tensor(tensor)
