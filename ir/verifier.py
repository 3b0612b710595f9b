"""What must hold for a model to be well formed, and every place where it does not.

Three layers: the graph (names, uses, order, operators), the sizes of each node's operands
(ONNX's own shape inference checks neither Conv channels nor Gemm), and shape inference over the
whole model without its weights. Sizes are left out of a problem's identity, so the problems that
a model had before a change can be subtracted from those it has after.
"""

from __future__ import annotations

import math
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import onnx
import onnx.defs
import onnx.shape_inference
import onnx_ir as oir

from .constants import constant_tensor
from .errors import ModelError
from .io import inline_tensor, placeholder, replaced_tensors

Dims = tuple["int | None", ...]
Shapes = Callable[["oir.Value | None"], "Dims | None"]
Finding = tuple[str, str]  # what is wrong, and the numbers

_DATA_LIMIT = 1024  # bytes; larger floating-point tensors cannot be shapes and are left out
_INTEGER_LIMIT = 1 << 20
# ONNX's inference of these reads a null pointer when the type of an operand is unknown
_CRASHING = {"EyeLike", "RegexFullMatch", "DictVectorizer", "LabelEncoder", "TreeEnsemble"}
_OPAQUE = "secateur.opaque"
_INTEGERS = (oir.DataType.INT32, oir.DataType.INT64)


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


def verify_model(model: oir.Model) -> None:
    """Raises ModelError with the first problem of the model, and the number of the others."""
    problems = find_problems(model)
    if problems:
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ModelError(f"invalid model: {problems[0]}{more}")


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
            problems += _check_sizes(node, shapes)
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
    stated = _dims(value.shape)
    held = tuple(tensor.shape.numpy())
    if stated is not None and not _agree(stated, held):
        yield Problem(where, "has another shape than its tensor", f"{_text(stated)}, {_text(held)}")


def _check_operator(
    node: oir.Node, model: oir.Model, imports: Mapping[str, int]
) -> Iterator[Problem]:
    if node.op_identifier() in model.functions:
        return
    version = imports.get(node.domain)
    if version is None:
        yield Problem(_label(node), f"is of domain {node.domain!r}, which no opset import names")
    elif not node.domain:
        try:
            deprecated = onnx.defs.get_schema(node.op_type, version, node.domain).deprecated
        except onnx.defs.SchemaError:
            deprecated = True
        if deprecated:
            yield Problem(_label(node), f"is no operator of opset {version}")


# Sizes


def _dims(shape: oir.ShapeProtocol | None) -> Dims | None:
    if shape is None:
        return None
    return tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in shape)


def _agree(first: Sequence[int | None], second: Sequence[int | None]) -> bool:
    return len(first) == len(second) and all(
        a is None or b is None or a == b for a, b in zip(first, second, strict=True)
    )


def _text(dims: Sequence[int | None]) -> str:
    return "x".join("?" if dim is None else str(dim) for dim in dims) or "scalar"


def _shapes_from(inferred: Mapping[str, Dims]) -> Shapes:
    def shape(value: oir.Value | None) -> Dims | None:
        if value is None:
            return None
        if (tensor := constant_tensor(value)) is not None:
            return tuple(tensor.shape.numpy())
        stated = _dims(value.shape)
        found = inferred.get(value.name or "")
        if stated is None or found is None or len(stated) != len(found):
            return found if stated is None else stated
        return tuple(f if s is None else s for s, f in zip(stated, found, strict=True))

    return shape


def _check_sizes(node: oir.Node, shapes: Shapes) -> Iterator[Problem]:
    check = _CHECKS.get(node.op_type)
    if node.domain or check is None:
        return
    for what, detail in check(node, shapes):
        yield Problem(_label(node), what, detail)


def _operand(node: oir.Node, index: int) -> oir.Value | None:
    return node.inputs[index] if 0 <= index < len(node.inputs) else None


def _result(node: oir.Node, shapes: Shapes, index: int = 0) -> Dims | None:
    return shapes(node.outputs[index]) if index < len(node.outputs) else None


def _differ(first: int | None, second: int | None, what: str) -> Iterator[Finding]:
    if first is not None and second is not None and first != second:
        yield what, f"{first}, {second}"


def _convolution(
    data: int, weight: int, bias: int
) -> Callable[[oir.Node, Shapes], Iterator[Finding]]:
    def check(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
        w = shapes(_operand(node, weight))
        if w is None or len(w) < 2:
            return
        group = node.attributes.get_int("group", 1)
        transposed = node.op_type == "ConvTranspose"
        per_group = w[0] if transposed else w[1]
        inputs = per_group if transposed or per_group is None else per_group * group
        outputs = w[0]
        if transposed:
            outputs = None if w[1] is None else w[1] * group
        grouped = w[0]
        if group < 1 or (grouped is not None and grouped % group):
            yield "the weight's first axis is no multiple of group", f"{grouped}, {group}"
        x, b, y = shapes(_operand(node, data)), shapes(_operand(node, bias)), _result(node, shapes)
        if x is not None and len(x) > 1:
            yield from _differ(x[1], inputs, "input channels differ from the weight's")
        if b is not None and len(b) == 1:
            yield from _differ(b[0], outputs, "the bias differs from the output channels")
        if y is not None and len(y) > 1:
            yield from _differ(y[1], outputs, "output channels differ from the weight's")
        kernel = node.attributes.get_ints("kernel_shape")
        if kernel is not None and not _agree(tuple(kernel), w[2:]):
            yield "kernel_shape differs from the weight's", f"{_text(kernel)}, {_text(w[2:])}"

    return check


def _gemm(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
    a, b, c = (shapes(_operand(node, index)) for index in range(3))
    turned = [bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB")]
    a = a[::-1] if a and turned[0] else a
    b = b[::-1] if b and turned[1] else b
    if a and b and len(a) == len(b) == 2:
        yield from _differ(a[1], b[0], "inner dimensions differ")
    result = (a[0] if a else None, b[1] if b and len(b) == 2 else None)
    for axis, dim in enumerate(reversed(c or ())):
        if dim != 1 and axis < 2:
            yield from _differ(dim, result[1 - axis], "C does not broadcast to the product")


def _matmul(first: int, second: int) -> Callable[[oir.Node, Shapes], Iterator[Finding]]:
    def check(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
        a, b = shapes(_operand(node, first)), shapes(_operand(node, second))
        if a and b:
            yield from _differ(a[-1], b[-2] if len(b) > 1 else b[0], "inner dimensions differ")

    return check


def _per_channel(*vectors: int) -> Callable[[oir.Node, Shapes], Iterator[Finding]]:
    def check(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
        x = shapes(_operand(node, 0))
        for index in vectors:
            vector = shapes(_operand(node, index))
            if x is not None and len(x) > 1 and vector is not None and len(vector) == 1:
                what = f"operand {index} differs from the input's channels"
                yield from _differ(vector[0], x[1], what)

    return check


def _layer_normalization(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
    x = shapes(_operand(node, 0))
    for index in (1, 2):
        vector = shapes(_operand(node, index))
        if not x or vector is None or len(vector) > len(x):
            continue
        for mine, theirs in zip(vector[::-1], x[::-1], strict=False):
            if mine != 1:
                yield from _differ(mine, theirs, f"operand {index} differs from the input")


def _recurrent(gates: int) -> Callable[[oir.Node, Shapes], Iterator[Finding]]:
    def check(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
        x, w, r, b = (shapes(_operand(node, index)) for index in range(4))
        hidden = node.attributes.get_int("hidden_size", None)
        if not w or not r or len(w) != 3 or len(r) != 3:
            return
        hidden = r[2] if hidden is None else hidden
        rows = None if hidden is None else gates * hidden
        yield from _differ(r[2], hidden, "hidden_size differs from R")
        yield from _differ(w[1], rows, "rows of W differ from the gates")
        yield from _differ(r[1], rows, "rows of R differ from the gates")
        if x and len(x) == 3:
            yield from _differ(x[2], w[2], "input size differs from W")
        if b and len(b) == 2 and rows is not None:
            yield from _differ(b[1], 2 * rows, "B differs from the gates")

    return check


def _integers(value: oir.Value | None) -> list[int] | None:
    """The numbers of a small constant integer vector."""
    tensor = None if value is None else constant_tensor(value)
    if tensor is None or tensor.dtype not in _INTEGERS or tensor.size > _DATA_LIMIT:
        return None
    return [int(number) for number in tensor.numpy().ravel()]


def _split(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
    x, axis = shapes(_operand(node, 0)), node.attributes.get_int("axis", 0)
    sizes = _integers(_operand(node, 1))
    attribute = node.attributes.get_ints("split")
    sizes = list(attribute) if attribute is not None else sizes
    if sizes is None:
        return
    yield from _differ(len(sizes), len(node.outputs), "split has another number of parts")
    if x is not None and -len(x) <= axis < len(x):
        yield from _differ(sum(sizes), x[axis], "split does not add up to the axis")


def _reshape(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
    x, target = shapes(_operand(node, 0)), _integers(_operand(node, 1))
    if x is None or target is None:
        return
    dims: list[int | None] = list(target)
    if not node.attributes.get_int("allowzero", 0):
        if any(dim == 0 and axis >= len(x) for axis, dim in enumerate(target)):
            yield "copies an axis that the input does not have", f"{target}"
            return
        dims = [x[axis] if dim == 0 else dim for axis, dim in enumerate(target)]
    if None in x or None in dims:
        return
    count = math.prod(dim for dim in x if dim is not None)
    known = math.prod(dim for dim in dims if dim is not None and dim != -1)
    if count != known if -1 not in dims else (known == 0 or count % known):
        yield "the target has another number of elements", f"{_text(x)} to {target}"


def _concat(node: oir.Node, shapes: Shapes) -> Iterator[Finding]:
    axis = node.attributes.get_int("axis", 1)
    known = [dims for dims in map(shapes, node.inputs) if dims is not None]
    if not known:
        return
    rank = len(known[0])
    if any(len(dims) != rank for dims in known) or not -rank <= axis < rank:
        yield "operands have different ranks or no such axis", f"axis {axis}"
        return
    for dims in known[1:]:
        for index in set(range(rank)) - {axis % rank}:
            yield from _differ(dims[index], known[0][index], "operands differ off the axis")
    y = _result(node, shapes)
    parts = [dims[axis] for dims in known]
    if y is not None and len(y) == rank and len(known) == len(node.inputs) and None not in parts:
        total = sum(part for part in parts if part is not None)
        yield from _differ(total, y[axis], "the output differs from the sum of the operands")


_CHECKS: dict[str, Callable[[oir.Node, Shapes], Iterator[Finding]]] = {
    "Conv": _convolution(0, 1, 2),
    "ConvTranspose": _convolution(0, 1, 2),
    "ConvInteger": _convolution(0, 1, -1),
    "QLinearConv": _convolution(0, 3, 8),
    "DeformConv": _convolution(0, 1, 3),
    "Gemm": _gemm,
    "MatMul": _matmul(0, 1),
    "MatMulInteger": _matmul(0, 1),
    "QLinearMatMul": _matmul(0, 3),
    "BatchNormalization": _per_channel(1, 2, 3, 4),
    "InstanceNormalization": _per_channel(1, 2),
    "LayerNormalization": _layer_normalization,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    "Split": _split,
    "Reshape": _reshape,
    "Concat": _concat,
}


# Shape inference


def stripped_proto(model: oir.Model) -> onnx.ModelProto:
    """The model without its weights: large tensors of the main graph become typed graph inputs."""

    def strip(tensor: oir.TensorProtocol, value: oir.Value | None) -> oir.TensorProtocol:
        if tensor.dtype == oir.DataType.STRING:
            return tensor
        limit = _INTEGER_LIMIT if tensor.dtype in _INTEGERS else _DATA_LIMIT
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
        function.opset_import.add(domain=_OPAQUE, version=1)
    proto.opset_import.add(domain=_OPAQUE, version=1)
    problems: list[Problem] = []
    try:
        done = _run_inference(proto, strict=True)
    except Exception as error:
        problems = _complaints(str(error))
        try:
            done = _run_inference(proto, strict=False)
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
        if node.op_type in _CRASHING:
            node.domain = _OPAQUE
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _prepare(inner.node)


def _run_inference(proto: onnx.ModelProto, *, strict: bool) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(
        proto, check_type=strict, strict_mode=strict, data_prop=True
    )


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
