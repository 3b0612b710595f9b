"""ONNX's shape inference, kept away from the operators that bring the process down.

When the type of an operand is unknown, the inference of these operators reads a null pointer.
Inside a model they are therefore moved to a domain that inference does not know: their outputs
stay unknown, which it stands. With typed operands, node by node, they are safe.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.shape_inference

CRASHING = frozenset(
    {"EyeLike", "RegexFullMatch", "DictVectorizer", "LabelEncoder", "TreeEnsemble"}
)
_OPAQUE = "secateur.opaque"


def infer_shapes(proto: onnx.ModelProto, *, strict: bool = False) -> onnx.ModelProto:
    """The model with the value infos that inference finds, small values followed.

    It writes into ``proto`` and its result is good for its value infos only: nodes of `CRASHING`
    have lost their domain.

    Raises:
        onnx.shape_inference.InferenceError: the model is invalid; if ``strict``, also when a type
            does not fit an operator or a node cannot be inferred.
    """
    hidden = _hide(proto.graph.node)
    for function in proto.functions:
        hidden |= _hide(function.node)
    if hidden:
        for imports in (proto.opset_import, *(f.opset_import for f in proto.functions)):
            imports.add(domain=_OPAQUE, version=1)
    return onnx.shape_inference.infer_shapes(
        proto, check_type=strict, strict_mode=strict, data_prop=True
    )


def _hide(nodes: Iterable[onnx.NodeProto]) -> bool:
    """Moves the nodes away, subgraphs included; says whether there were any left to move."""
    found = False
    for node in nodes:
        if node.op_type in CRASHING and node.domain != _OPAQUE:
            node.domain, found = _OPAQUE, True
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found |= _hide(inner.node)
    return found
