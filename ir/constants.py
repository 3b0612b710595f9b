"""Initializers and Constant nodes seen alike: both are named tensors that never change."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as oir

_FLOAT_TYPES = frozenset(t for t in oir.DataType if t.is_floating_point())


def constant_tensor(value: oir.Value) -> oir.TensorProtocol | None:
    """The tensor behind ``value``, or None when the value is computed or fed.

    An initializer that is also listed as a graph input (the rule before IR version 4) counts as
    a constant: it is a weight with a default, not part of the interface.
    """
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return _attribute_tensor(node)


def _attribute_tensor(node: oir.Node) -> oir.TensorProtocol | None:
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return attribute.as_tensor()
        if name == "value_float":
            return oir.tensor(np.array(attribute.as_float(), np.float32))
        if name == "value_int":
            return oir.tensor(np.array(attribute.as_int(), np.int64))
        if name == "value_floats":
            return oir.tensor(np.array(attribute.as_floats(), np.float32))
        if name == "value_ints":
            return oir.tensor(np.array(attribute.as_ints(), np.int64))
    return None  # strings and sparse tensors


def set_constant(value: oir.Value, tensor: oir.TensorProtocol) -> None:
    """Replaces the tensor of an initializer or of a Constant node, keeping every name."""
    node = value.producer()
    if node is None:
        value.const_value = tensor
    else:
        node.attributes.clear()
        node.attributes.add(oir.AttrTensor("value", tensor))
    if value.shape is not None:
        value.shape = oir.Shape(tensor_shape(tensor))


def initializers_are_inputs(model: oir.Model) -> bool:
    """Whether every initializer has to be an input of the model: below IR version 4."""
    return (model.ir_version or 4) < 4


def add_constant(
    graph: oir.Graph,
    name: str | None,
    tensor: oir.TensorProtocol,
    *,
    as_node: bool,
    before: oir.Node | None = None,
    node_name: str | None = None,
) -> oir.Value:
    """A new value that holds ``tensor``: an initializer, or ``as_node`` a Constant node in front of
    ``before``, else of all nodes (see `initializers_are_inputs`)."""
    kind, shape = oir.TensorType(tensor.dtype), oir.Shape(tensor_shape(tensor))
    value = oir.Value(name=name, type=kind, shape=shape)
    if as_node:
        attribute = oir.AttrTensor("value", tensor)
        node = oir.Node("", "Constant", [], [attribute], outputs=[value], name=node_name)
        graph.insert_before(graph[0] if before is None else before, node)
    else:
        value.const_value = tensor
        graph.register_initializer(value)
    return value


def remove_constant(value: oir.Value) -> None:
    """Removes an initializer or a Constant node that nothing reads."""
    node, graph = value.producer(), value.graph
    if node is not None and node.graph is not None:
        node.graph.remove(node, safe=True)
    elif isinstance(graph, oir.Graph):
        graph.initializers.pop(str(value.name))


def constants(graph: oir.Graph) -> Iterator[tuple[oir.Value, oir.TensorProtocol]]:
    """Every constant of the graph and its subgraphs; in each initializers, then Constant nodes."""
    for part in (graph, *graph.subgraphs()):
        for value in part.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
        for node in part:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                tensor = _attribute_tensor(node)
                if tensor is not None:
                    yield node.outputs[0], tensor


def tensor_shape(tensor: oir.TensorProtocol) -> tuple[int, ...]:
    """The sizes of a tensor as plain numbers."""
    return tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]


def is_float(dtype: oir.DataType | None) -> bool:
    """True for every floating-point element type, 4 and 8 bit ones included."""
    return dtype in _FLOAT_TYPES
