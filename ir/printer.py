"""The printed form of a model: stable text for people, diffs and golden tests.

Weights are elided to a hash of their bytes, so any change of a weight shows. Small integer
constants, which are mostly shapes and axes, print their values as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as oir

_PLAIN_NAME = re.compile(r"[\w./:\-]+")
_SHOWN_ELEMENTS = 8


def format_model(model: oir.Model) -> str:
    """The model as text: versions, functions, then the main graph. Ends with a newline."""
    opsets = ", ".join(f"{domain or 'ai.onnx'}={v}" for domain, v in model.opset_imports.items())
    lines = [f"model ir_version={model.ir_version} opsets[{opsets}]"]
    for function in model.functions.values():
        lines += _function(function)
    return "\n".join([*lines, *_graph(model.graph)]) + "\n"


def _function(function: oir.Function) -> Iterator[str]:
    overload = f":{function.overload}" if function.overload else ""
    opsets = ", ".join(
        f"{domain or 'ai.onnx'}={version}" for domain, version in function.opset_imports.items()
    )
    yield f"function {function.domain}::{function.name}{overload} opsets[{opsets}]"
    for attribute in function.attributes.values():
        default = "" if attribute.value is None else f" = {_attribute(attribute)}"
        yield f"  attribute {attribute.name}{default}"
    yield from _body(function.graph)


def _graph(graph: oir.Graph) -> Iterator[str]:
    yield f"graph {_quoted(graph.name or '')}"
    yield from _body(graph)


def _body(graph: oir.Graph) -> Iterator[str]:
    for value in graph.inputs:
        yield f"  input {_name(value)}{_type(value)}"
    for value in graph.initializers.values():
        text = "no data" if value.const_value is None else _tensor(value.const_value)
        yield f"  {_name(value)} = {text}"
    for node in graph:
        for line in _node(node):
            yield f"  {line}"
    for value in graph.outputs:
        yield f"  output {_name(value)}{_type(value)}"


def _node(node: oir.Node) -> Iterator[str]:
    attributes, inner = [], []
    for attribute in node.attributes.values():
        graphs: Sequence[oir.Graph] = ()
        if not attribute.is_ref() and attribute.type == oir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif not attribute.is_ref() and attribute.type == oir.AttributeType.GRAPHS:
            graphs = attribute.as_graphs()
        else:
            attributes.append(f"{attribute.name}={_attribute(attribute)}")
        inner += [(attribute.name, graph) for graph in graphs]
    domain = f"{node.domain}." if node.domain else ""
    overload = f":{node.overload}" if node.overload else ""
    results = ", ".join(_name(value) for value in node.outputs)
    operands = ", ".join("_" if value is None else _name(value) for value in node.inputs)
    types = [_type(value).removeprefix(": ") or "?" for value in node.outputs if value.name]
    known = f": {', '.join(types)}" if any(kind != "?" for kind in types) else ""
    yield (
        f"{results} = {domain}{node.op_type}{overload}({', '.join(attributes)})({operands}){known}"
    )
    for name, graph in inner:
        first, *rest = _graph(graph)
        yield f"  {name}: {first}"
        yield from (f"  {line}" for line in rest)


def _quoted(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else json.dumps(name)


def _name(value: oir.Value) -> str:
    return f"%{_quoted(value.name)}" if value.name else "_"


def _type(value: oir.Value) -> str:
    """``: float32[N,3,?]``, ``: seq(float32[2])``, or nothing when nothing is known."""
    if value.type is None:
        return "" if value.shape is None else f": ?{_shape(value.shape)}"
    return f": {_type_text(value.type, value.shape)}"


def _type_text(kind: oir.TypeProtocol, shape: oir.ShapeProtocol | None) -> str:
    if isinstance(kind, oir.SequenceType):
        return f"seq({_type_text(kind.elem_type, shape)})"
    if isinstance(kind, oir.OptionalType):
        return f"optional({_type_text(kind.elem_type, shape)})"
    text = _dtype(kind.dtype) + ("" if shape is None else _shape(shape))
    return f"sparse({text})" if isinstance(kind, oir.SparseTensorType) else text


def _dtype(dtype: oir.DataType) -> str:
    return "float32" if dtype == oir.DataType.FLOAT else dtype.name.lower()


def _shape(shape: oir.ShapeProtocol) -> str:
    dims = (dim if isinstance(dim, int) else dim.value for dim in shape)
    return f"[{','.join('?' if dim is None else str(dim) for dim in dims)}]"


def _tensor(tensor: oir.TensorProtocol) -> str:
    text = f"{_dtype(tensor.dtype)}{_shape(tensor.shape)} #{_digest(tensor)}"
    if tensor.dtype.is_integer() and 0 < tensor.size <= _SHOWN_ELEMENTS:
        numbers = np.asarray(tensor.numpy()).astype(
            np.int64 if tensor.dtype.is_signed() else np.uint64
        )
        text += f" {json.dumps(numbers.tolist())}"
    return text


def _digest(tensor: oir.TensorProtocol) -> str:
    if isinstance(tensor, oir.StringTensor):
        data = b"".join(b"%d:%s" % (len(text), text) for text in tensor.string_data())
    else:
        data = tensor.tobytes() if tensor.size else b""
    return hashlib.sha256(data).hexdigest()[:8]


def _attribute(attribute: oir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    form = _FORMS.get(attribute.type)
    if form is None:
        return attribute.type.name.lower()
    value = attribute.value
    if attribute.type.name.endswith("S") and attribute.type != oir.AttributeType.GRAPHS:
        return f"[{', '.join(form(item) for item in value)}]"
    return form(value)


def _string(text: str | bytes) -> str:
    return json.dumps(text if isinstance(text, str) else text.decode("latin-1"))


def _typed(kind: oir.TypeAndShape) -> str:
    return "?" if kind.type is None else _type_text(kind.type, kind.shape)


def _float(number: float) -> str:
    """The shortest text that reads back as the same float32."""
    return str(np.float32(number))


_KINDS: dict[str, Callable[..., str]] = {
    "INT": str,
    "FLOAT": _float,
    "STRING": _string,
    "TENSOR": _tensor,
    "TYPE_PROTO": _typed,
}
_FORMS: dict[oir.AttributeType, Callable[..., str]] = {
    oir.AttributeType[name + plural]: form for name, form in _KINDS.items() for plural in ("", "S")
}
