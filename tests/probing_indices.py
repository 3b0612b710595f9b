"""Which integers an operator takes as indices, labels or lengths, for inputs that are perturbed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from tests.probing_runs import Array

_NEGATIVE = ("GatherElements", "GatherND", "ScatterElements", "ScatterND")


def index_range(
    node: onnx.NodeProto, position: int, feeds: Mapping[str, Array]
) -> tuple[int, int] | None:
    """The least and the greatest integer that input ``position`` may hold; None for any."""
    shape = feeds[node.input[0]].shape if node.input[0] in feeds else ()
    sizes = _indexed(node, position, shape, feeds)
    if sizes is None:
        return {"TfIdfVectorizer": (0, 9)}.get(node.op_type)
    least = min(sizes)
    return -least if node.op_type in _NEGATIVE else 0, least - 1


def _indexed(
    node: onnx.NodeProto, position: int, shape: Sequence[int], feeds: Mapping[str, Array]
) -> Sequence[int] | None:
    """The sizes of all axes that an input indexes."""
    op, numbers = node.op_type, {a.name: a.i for a in node.attribute}
    if position == 1 and op in ("GatherElements", "Scatter", "ScatterElements"):
        return [shape[numbers.get("axis", 0)]]
    if position == 1 and op in ("GatherND", "ScatterND"):
        first = numbers.get("batch_dims", 0)
        return shape[first : first + feeds[node.input[1]].shape[-1]]
    if position == 1 and op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"):
        return [shape[1]]
    if position == 1 and op == "ArrayFeatureExtractor":
        return [shape[-1]]
    if position == 2 and op == "RoiAlign":
        return [shape[0]]
    if position == 1 and op == "ReverseSequence":
        return [shape[numbers.get("time_axis", 0)]]
    return None
