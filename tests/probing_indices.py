"""Which integers an operator takes: sizes, indices, labels, lengths, divisors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from tests.probing_ranges import integer_range
from tests.probing_runs import Array, size_inputs

_NEGATIVE = ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND")

_NUMBERS = {
    ("BitShift", 1): (0, 7),
    ("Div", 1): (1, 100),
    ("Mod", 1): (1, 100),
    ("Pow", 1): (0, 3),
    ("TfIdfVectorizer", 0): (0, 9),
}


def integer_bounds(
    node: onnx.NodeProto, position: int, feeds: Mapping[str, Array]
) -> tuple[int, int] | None:
    """The least and the greatest integer that input ``position`` may hold: no zero divisors, no
    positions outside an axis; (0, 0) for sizes, None for any."""
    known = integer_range(node, position, feeds)
    if known is not None:
        return known
    shape = feeds[node.input[0]].shape if node.input[0] in feeds else ()
    if node.op_type in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM") and position == 4:
        return 1, shape[next((a.i for a in node.attribute if a.name == "layout"), 0)]
    sizes = _indexed(node, position, shape, feeds)
    if sizes is not None:
        return -min(sizes) if node.op_type in _NEGATIVE else 0, min(sizes) - 1
    if position in size_inputs(node.op_type):
        return 0, 0
    return _NUMBERS.get((node.op_type, position))


def _indexed(
    node: onnx.NodeProto, position: int, shape: Sequence[int], feeds: Mapping[str, Array]
) -> Sequence[int] | None:
    """The sizes of all axes that an input indexes."""
    op, numbers = node.op_type, {a.name: a.i for a in node.attribute}
    if position == 1 and op in ("Gather", "GatherElements", "Scatter", "ScatterElements"):
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
