"""Computing constants: nodes over known tensors alone, in an ONNX Runtime session of their own.

All optimisation is off and one thread computes: the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from ..ir.errors import CertificateError
from ..ir.graphs import RANDOM

if TYPE_CHECKING:
    import onnx

_DOMAINS = frozenset({"", "ai.onnx.ml"})
_INLINE_BYTES = 1024
_MODEL_BYTES = 1 << 30


def computable(node: oir.Node, model: oir.Model) -> bool:
    """Whether the node is an operator of the standard that gives the same result every time and
    runs no graph of its own."""
    return (
        node.domain in _DOMAINS
        and node.op_type not in RANDOM | {"Dropout"}
        and node.op_identifier() not in model.functions
        and (bool(node.inputs) or node.op_type == "Constant")
        and not any(
            a.is_ref() or a.type in (oir.AttributeType.GRAPH, oir.AttributeType.GRAPHS)
            for a in node.attributes.values()
        )
    )


def reads_inline(tensor: oir.TensorProtocol) -> bool:
    """Whether a tensor is small enough for shape inference to read its values."""
    return tensor.nbytes <= _INLINE_BYTES


@dataclass(frozen=True)
class Computation:
    """Nodes as a model of their own, the tensors to feed it, and the types of its outputs. It
    holds no graph, and weights only as the tensors that they were given as."""

    model: onnx.ModelProto
    feed: Mapping[str, oir.TensorProtocol]
    wanted: Mapping[str, oir.DataType]

    @classmethod
    def of(
        cls,
        nodes: Sequence[oir.Node],
        tensors: Mapping[oir.Value, oir.TensorProtocol],
        wanted: Mapping[oir.Value, oir.DataType],
        model: oir.Model,
    ) -> Computation | None:
        """What computes ``wanted`` by ``nodes`` of ``model`` from ``tensors``, outputs in that
        order. None if the tensors do not fit into one message."""

        def inline(tensor: oir.TensorProtocol) -> bool:  # numpy has no arrays of narrow types
            return reads_inline(tensor) or tensor.dtype.bitwidth < 8

        names = name_values(nodes)
        inputs = {v for n in nodes for v in n.inputs if v is not None and v in tensors}
        if sum(tensors[v].nbytes for v in inputs if inline(tensors[v])) > _MODEL_BYTES:
            return None
        proto = extract(nodes, tensors, names, model, inline, wanted)
        feed = {names[v]: tensors[v] for v in inputs if not inline(tensors[v])}
        return cls(proto, feed, {names[v]: dtype for v, dtype in wanted.items()})

    def run(self) -> list[oir.TensorProtocol] | None:
        """The wanted tensors, in order. None if ONNX Runtime cannot compute them."""
        from ..runtime.session import make_session, run

        feed = {name: np.ascontiguousarray(t.numpy()) for name, t in self.feed.items()}
        try:
            outputs = run(make_session(self.model, threads=1, optimize=False), feed)
        except CertificateError:  # no kernel, or a node that fails
            return None
        results = [(outputs[name], dtype) for name, dtype in self.wanted.items()]
        if any(array.dtype != dtype.numpy() for array, dtype in results):
            return None
        return [oir.Tensor(array, dtype=dtype) for array, dtype in results]


def name_values(nodes: Sequence[oir.Node]) -> dict[oir.Value, str]:
    """A name of its own for everything that nodes read and write."""
    names: dict[oir.Value, str] = {}
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            if value is not None and (value.name or value.uses()):
                names.setdefault(value, f"v{len(names)}")
    return names


def extract(
    nodes: Sequence[oir.Node],
    tensors: Mapping[oir.Value, oir.TensorProtocol],
    names: Mapping[oir.Value, str],
    model: oir.Model,
    inline: Callable[[oir.TensorProtocol], bool],
    wanted: Mapping[oir.Value, oir.DataType],
) -> onnx.ModelProto:
    """A model of ``nodes`` alone; known tensors are its initializers or, not inline, inputs."""
    import onnx

    proto = onnx.ModelProto(ir_version=max(model.ir_version, 8))
    for domain, version in model.graph.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    graph = proto.graph
    graph.name = "constants"
    for value in dict.fromkeys(v for n in nodes for v in n.inputs if v is not None):
        tensor = tensors.get(value)
        if tensor is None:
            continue
        if inline(tensor):
            graph.initializer.append(oir.serde.serialize_tensor(tensor))
            graph.initializer[-1].name = names[value]
        else:
            shape = [int(d) for d in tensor.shape.numpy()]
            dtype = int(tensor.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(names[value], dtype, shape))
    for node in nodes:
        own = oir.serde.serialize_node(node)
        del own.input[:], own.output[:]
        own.input.extend("" if v is None else names[v] for v in node.inputs)
        own.output.extend(names.get(v, "") for v in node.outputs)
        graph.node.append(own)
    for value, dtype in wanted.items():
        graph.output.append(onnx.helper.make_tensor_value_info(names[value], int(dtype), None))
    return proto
