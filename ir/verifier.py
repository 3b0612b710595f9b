"""What must hold for a model to be well formed, and every place where it does not.

Three layers: the graph (names, uses, order, operators), the sizes of each node's operands
(ONNX's own shape inference checks neither Conv channels nor Gemm), and shape inference over the
whole model without its weights. Sizes are left out of a problem's identity, so the problems that
a model had before a change can be subtracted from those it has after.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

import onnx
import onnx.defs
import onnx_ir as oir

from .constants import constant_tensor
from .external import inline_tensor, placeholder
from .inference import infer_shapes
from .operand_sizes import INTEGERS, Dims, Shapes, agree, check_sizes, dims_text, known_dims
from .tensors import replaced_tensors

_DATA_LIMIT = 1024  # bytes; larger floating-point tensors cannot be shapes and are left out
_INTEGER_LIMIT = 1 << 20
_AT_ANY_OPSET = ("LayerNormalization", "SimplifiedLayerNormalization")
"""ONNX Runtime has these in the standard's domain at every opset; its optimisations write them."""


@dataclass(frozen=True, order=True)
class Problem:
    """One violation: ``where`` names the node or value, ``what`` the rule, ``detail`` the sizes.

    Two problems are equal when place and rule are: sizes change in pruning, rules do not.
    """

    where: str
    what: str
    detail: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.detail})" if self.detail else "")


def find_problems(model: oir.Model) -> list[Problem]:
    """Every problem of the model, in graph order, each once.

    ``set(find_problems(pruned)) - set(find_problems(original))`` are the problems a change made.
    """
    problems = list(_check_graph(model.graph, model, model.opset_imports, ChainMap()))
    if not model.graph.outputs:
        problems.append(Problem("graph", "has no outputs"))
    for function in model.functions.values():
        imports = function.opset_imports or model.opset_imports
        problems += _check_graph(function.graph, model, imports, ChainMap())
    if not problems:  # sizes and inference need a graph that holds together
        inferred, complaints = _infer(model)
        shapes = _shapes_from(inferred)
        graphs = [model.graph, *model.graph.subgraphs()]
        for node in (node for graph in graphs for node in graph):
            found = check_sizes(node, shapes)
            problems += (Problem(_label(node), what, detail) for what, detail in found)
        problems += complaints
    return list(dict.fromkeys(problems))


# The graph


def _label(node: oir.Node) -> str:
    name = node.name or next((out.name for out in node.outputs if out.name), "")
    return f"node {name!r} ({node.op_type})"


def _check_graph(
    graph: oir.Graph,
    model: oir.Model,
    imports: Mapping[str, int],
    outer: ChainMap[str, oir.Value],
    outer_outputs: Set[int] = frozenset(),
) -> Iterator[Problem]:
    scope = outer.new_child()
    initializers = {id(value) for value in graph.initializers.values()}
    for value in (*graph.inputs, *graph.initializers.values()):
        if not value.name:
            yield Problem("graph", "an input or initializer has no name")
        elif scope.maps[0].setdefault(value.name, value) is not value:
            yield Problem(f"value {value.name!r}", "is defined twice")
        if id(value) in initializers:
            yield from _check_initializer(value)
    outputs = {id(out) for node in graph for out in node.outputs} | outer_outputs
    for node in graph:
        yield from _check_operator(node, model, imports)
        for used in node.inputs:
            if used is not None and scope.get(used.name or "") is not used:
                yield Problem(_label(node), _missing(used, id(used) in outputs, scope))
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == oir.AttributeType.GRAPH:
                yield from _check_graph(attribute.as_graph(), model, imports, scope, outputs)
            elif attribute.type == oir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    yield from _check_graph(inner, model, imports, scope, outputs)
        for out in node.outputs:
            if out.name and scope.maps[0].setdefault(out.name, out) is not out:
                yield Problem(f"value {out.name!r}", "is defined twice")
    for value in graph.outputs:
        if scope.get(value.name or "") is not value:
            yield Problem(f"output {value.name!r}", "is not produced by the graph")


def _missing(value: oir.Value, produced_later: bool, scope: Mapping[str, oir.Value]) -> str:
    if produced_later:
        return f"uses {value.name!r} before it is produced: the graph is not sorted"
    if value.name in scope:
        return f"uses a value {value.name!r} that is not the one its graph knows by that name"
    return f"uses {value.name!r}, which nothing produces"


def _check_initializer(value: oir.Value) -> Iterator[Problem]:
    where, tensor = f"initializer {value.name!r}", value.const_value
    if tensor is None:
        yield Problem(where, "has no data")
        return
    if value.dtype is not None and value.dtype not in (tensor.dtype, oir.DataType.UNDEFINED):
        yield Problem(where, "has another type than its tensor", f"{value.dtype}, {tensor.dtype}")
    stated = known_dims(value.shape)
    held = tuple(tensor.shape.numpy())
    if stated is not None and not agree(stated, held):
        yield Problem(
            where, "has another shape than its tensor", f"{dims_text(stated)}, {dims_text(held)}"
        )


def _check_operator(
    node: oir.Node, model: oir.Model, imports: Mapping[str, int]
) -> Iterator[Problem]:
    if node.op_identifier() in model.functions:
        return
    version = imports.get(node.domain)
    if version is None:
        yield Problem(_label(node), f"is of domain {node.domain!r}, which no opset import names")
    elif not node.domain and node.op_type not in _AT_ANY_OPSET:
        try:
            deprecated = onnx.defs.get_schema(node.op_type, version, node.domain).deprecated
        except onnx.defs.SchemaError:
            deprecated = True
        if deprecated:
            yield Problem(_label(node), f"is no operator of opset {version}")


# Shape inference


def _shapes_from(inferred: Mapping[str, Dims]) -> Shapes:
    def shape(value: oir.Value | None) -> Dims | None:
        if value is None:
            return None
        if (tensor := constant_tensor(value)) is not None:
            return tuple(tensor.shape.numpy())
        stated = known_dims(value.shape)
        found = inferred.get(value.name or "")
        if stated is None or found is None or len(stated) != len(found):
            return found if stated is None else stated
        return tuple(f if s is None else s for s, f in zip(stated, found, strict=True))

    return shape


def stripped_proto(model: oir.Model) -> onnx.ModelProto:
    """The model without its weights: large tensors of the main graph become typed graph inputs."""

    def strip(tensor: oir.TensorProtocol, value: oir.Value | None) -> oir.TensorProtocol:
        if tensor.dtype == oir.DataType.STRING:
            return tensor
        limit = _INTEGER_LIMIT if tensor.dtype in INTEGERS else _DATA_LIMIT
        if tensor.nbytes <= limit:
            return inline_tensor(tensor)
        return placeholder(tensor, value.name if value else None)

    with replaced_tensors(model, strip):
        proto = oir.serde.serialize_model(model)
    graph = proto.graph
    inputs = {info.name for info in graph.input}
    kept = [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.name not in inputs:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(info)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return proto


def _infer(model: oir.Model) -> tuple[dict[str, Dims], list[Problem]]:
    """Shapes of the main graph's values by name, and what inference complains about."""
    try:
        proto = stripped_proto(model)
    except Exception as error:
        return {}, [Problem("model", "cannot be serialized", " ".join(str(error).split()))]
    _prepare(proto.graph.node)
    for function in proto.functions:
        _prepare(function.node)
    problems: list[Problem] = []
    try:
        done = infer_shapes(proto, strict=True)
    except Exception as error:
        problems = _complaints(str(error))
        try:
            done = infer_shapes(proto)
        except Exception:
            done = proto
    infos = (*done.graph.input, *done.graph.value_info, *done.graph.output)
    return {
        info.name: tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
            for dim in info.type.tensor_type.shape.dim
        )
        for info in infos
        if info.type.tensor_type.HasField("shape")
    }, problems


def _prepare(nodes: Iterable[onnx.NodeProto]) -> None:
    """Complaints tell nodes by name only: the unnamed get that of their output, as in _label."""
    for node in nodes:
        node.name = node.name or next((name for name in node.output if name), "")
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _prepare(inner.node)


def _complaints(text: str) -> list[Problem]:
    """One problem per node that an InferenceError names; numbers go into the detail."""
    pattern = r"\(op_type:(?P<op>[^,)\n]*)(?:, node name: (?P<name>[^\n]*?))?\): (?P<why>[^\n]*)"
    found = [
        Problem(
            f"node {match['name'] or ''!r} ({match['op']})",
            f"shape inference fails: {re.sub(r'[0-9]+', '#', match['why'])}",
            match["why"],
        )
        for match in re.finditer(pattern, text)
    ]
    line = " ".join(text.split())
    return found or [
        Problem("model", f"shape inference fails: {re.sub(r'[0-9]+', '#', line)}", line)
    ]
