"""Whether a model that was read and written again is the same, field by field.

`normalised` makes exactly the changes that the docstring of `secateur.ir.serialization` allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx


def assert_same_model(original: onnx.ModelProto, saved: onnx.ModelProto) -> None:
    """Nothing differs but what may; neither model is changed."""
    found = list(differences(normalised(original), saved))
    assert not found, "\n".join(found[:20])


def normalised(original: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model as it is expected back from reading and writing."""
    proto = onnx.ModelProto()
    proto.CopyFrom(original)
    _drop_empty(proto)
    for imported in (*proto.opset_import, *(i for f in proto.functions for i in f.opset_import)):
        imported.domain = "" if imported.domain == "ai.onnx" else imported.domain
    bodies = [f"{f.domain}::{f.name}/" for f in proto.functions] if proto.ir_version < 10 else []
    for graph in _graphs(proto):
        values = {info.name for info in (*graph.input, *graph.output)}
        values |= {tensor.name for tensor in graph.initializer}
        values |= {name for node in graph.node for name in node.output if name}
        stated = {info.name: info for info in graph.value_info}
        kept = [
            info
            for name, info in stated.items()
            if name in values or (graph is proto.graph and name.startswith(tuple(bodies)))
        ]
        del graph.value_info[:]
        graph.value_info.extend(kept)
    return proto


def _drop_empty(message: Any) -> None:
    """Unsets texts, versions and types that are set but say nothing; tensors stay as they are."""
    if isinstance(message, onnx.TensorProto):
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in [value] if hasattr(value, "ListFields") else value:
                _drop_empty(inner)
        if (
            (field.type == field.TYPE_STRING and not value)
            or (field.name == "model_version" and not value)
            or (isinstance(value, onnx.TypeProto) and not value.ListFields())
        ):
            message.ClearField(field.name)
    if isinstance(message, onnx.NodeProto) and message.domain == "ai.onnx":
        message.ClearField("domain")


def _graphs(message: Any) -> Iterator[onnx.GraphProto]:
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in [value] if hasattr(value, "ListFields") else value:
                if isinstance(inner, onnx.GraphProto):
                    yield inner
                yield from _graphs(inner)


def differences(first: Any, second: Any, path: str = "model") -> Iterator[str]:
    """Every field, presence included, in which the messages differ; NaN equals itself."""
    fields = {field.name: (field, value) for field, value in first.ListFields()}
    others = {field.name: value for field, value in second.ListFields()}
    for name in sorted(fields.keys() ^ others.keys()):
        yield f"{path}.{name} is set in one only"
    for name in fields.keys() & others.keys():
        field, one = fields[name]
        other = others[name]
        single = hasattr(one, "ListFields") or isinstance(one, str | bytes | int | float)
        ones, twos = ([one], [other]) if single else (list(one), list(other))
        if len(ones) != len(twos):
            yield f"{path}.{name} has {len(ones)} and {len(twos)} entries"
            continue
        for index, (left, right) in enumerate(zip(ones, twos, strict=True)):
            where = f"{path}.{name}" if single else f"{path}.{name}[{index}]"
            if field.type == field.TYPE_MESSAGE:
                yield from differences(left, right, where)
            elif left != right and repr(left) != repr(right):
                yield f"{where}: {left!r:.60} and {right!r:.60}"
