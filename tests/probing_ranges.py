"""Which integers attention and embeddings take as inputs: positions, lengths, masks."""

from __future__ import annotations

import onnx

from tests.probing_runs import Feeds

LOOKED_UP = {
    ("", "RotaryEmbedding"): {3: 1},
    ("com.microsoft", "RotaryEmbedding"): {1: 2},
    ("com.microsoft", "GroupQueryAttention"): {9: 7},
    ("com.microsoft", "EmbedLayerNormalization"): {0: 2, 1: 4, 8: 3},
    ("com.microsoft", "QEmbedLayerNormalization"): {0: 2, 1: 4},
}
"""Inputs that are positions on the first axis of another input."""

LENGTHS = {
    ("", "Attention"): {6: (1, -2)},
    ("com.microsoft", "Attention"): {3: (0, 1)},
    ("com.microsoft", "QAttention"): {5: (0, 1)},
    ("com.microsoft", "MultiHeadAttention"): {4: (1, -2)},
    ("com.microsoft", "DecoderMaskedMultiHeadAttention"): {3: (1, -2)},
    ("com.microsoft", "EmbedLayerNormalization"): {7: (0, 1)},
    ("com.microsoft", "QEmbedLayerNormalization"): {7: (0, 1)},
}
"""Inputs that are lengths up to the size of an axis (input, index), or masks if not vectors."""


def integer_range(node: onnx.NodeProto, position: int, feeds: Feeds) -> tuple[int, int] | None:
    """The least and the greatest integer of an input, or None for any."""
    key = node.domain, node.op_type
    table = LOOKED_UP.get(key, {}).get(position)
    if table is not None:
        return 0, feeds[node.input[table]].shape[0] - 1
    length = LENGTHS.get(key, {}).get(position)
    if length is None:
        return None
    if feeds[node.input[position]].ndim > 1:
        return 0, 1
    number, axis = length
    return 1, feeds[node.input[number]].shape[axis]
