"""Pruned proof graphs against references written by hand.

The reference is the original with the consumers of chosen channels set to zero; which those are was
worked out by hand, without `secateur.runtime.certificate`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest

import secateur
from secateur.ir.analysis import Analysis
from secateur.ir.coupling import Flags
from secateur.ir.io import to_proto

from .graphs import GRAPHS, feeds
from .pruning_checks import analysis, assert_same, constants, dims, run, zeroed


@dataclass(frozen=True)
class Hand:
    """Channels ``gone`` of one weight axis are pruned; ``zeros`` are all places that read them."""

    weight: str
    axis: int
    gone: tuple[int, ...]
    zeros: tuple[tuple[str, int, tuple[int, ...]], ...]


HAND: dict[str, list[Hand]] = {
    "weights_in_constants": [Hand("w1", 0, (1, 5), (("w2", 1, (1, 5)),))],
    "weights_as_inputs": [Hand("w2", 0, (0, 23), (("wy", 0, (0, 23)),))],
    "fp16": [Hand("w1", 0, (2, 3, 9), (("w2", 1, (2, 3, 9)),))],
    "dq_weights": [Hand("w1", 0, (2, 3, 9), (("w2", 1, (2, 3, 9)),))],
    "opset7": [Hand("w1", 0, (15,), (("w2", 1, (15,)),))],
    "gemm_forms": [
        Hand("w2", 0, (0, 7), (("w3", 0, (0, 7)),)),
        Hand("w3", 1, (5, 6, 7), (("w4", 1, (5, 6, 7)),)),
        Hand("w1", 1, (3,), (("w2", 1, (3,)),)),
    ],
    "gemm_transposed_weight": [Hand("w1", 1, (4,), (("w2", 1, (4,)),))],
    "matmul_experts_4d": [
        Hand("w1", 1, (2,), (("w2", 1, (2,)),)),
        Hand("w1", 3, (6, 7), (("w2", 2, (6, 7)),)),
    ],
    "tied_convs": [Hand("w1", 0, (4,), (("w2", 1, (4,)), ("wy", 1, (4,))))],
    "residual_identity": [
        Hand("w0", 0, (2, 3), (("w1", 1, (2, 3)), ("w3", 1, (2, 3)), ("wy", 1, (2, 3))))
    ],
    "option_a": [  # four channels are padded in front of the eight of the stream
        Hand("w0", 0, (1,), (("w1", 1, (1,)), ("w3", 1, (1,)), ("wy", 1, (5,)))),
        Hand("w4", 0, (0, 15), (("wy", 1, (0, 15)),)),
    ],
    "option_a_computed_pads": [
        Hand("w2", 0, (6,), (("w1", 1, (6,)), ("w3", 1, (6,)), ("wy", 1, (10,))))
    ],
    "dense_concat": [Hand("w1", 0, (2,), (("w2", 1, (18,)), ("wt", 1, (18,))))],
    "inception": [
        Hand("wb2", 0, (3,), (("wo", 1, (11,)),)),
        Hand("wd", 0, (7,), (("wo", 1, (35,)),)),
    ],
    "split_unequal": [
        Hand("w0", 0, (0,), (("wa", 1, (0,)),)),
        Hand("w0", 0, (10,), (("wb", 1, (6,)),)),
    ],
    "chunk_by_slices": [Hand("w0", 0, (11,), (("wy", 1, (3,)),))],
    "channel_shuffle": [Hand("w1", 0, (2,), (("w2", 1, (2,)),))],
    "pixel_shuffle_crd": [Hand("w2", 0, (5,), (("w3", 1, (1,)),))],
    "pixel_shuffle_dcr": [Hand("w2", 0, (10,), (("w3", 1, (2,)),))],
    "space_to_depth": [Hand("w2", 0, (3,), (("w3", 1, (3, 11, 19, 27)),))],
    "squeeze_excite_pool_conv": [
        Hand("w0", 0, (4,), (("w1", 1, (4,)), ("wy", 1, (4,)))),
        Hand("w1", 0, (6, 7), (("w2", 1, (6, 7)),)),
    ],
    "unet_transpose": [
        Hand("wu", 1, (5,), (("w3", 1, (5,)),)),
        Hand("w1", 0, (2,), (("w2", 1, (2,)), ("w3", 1, (14,)))),
    ],
    "depthwise_multiplier": [Hand("w0", 0, (1,), (("w2", 1, (2, 3)),))],
    "grouped_conv": [  # the same place in every group
        Hand("w0", 0, (0,), (("w1", 1, (0,)),)),
        Hand("w1", 0, (1,), (("wy", 1, (1, 5, 9, 13)),)),
    ],
    "conv_transpose": [Hand("w0", 0, (9,), (("w1", 0, (9,)),))],
    "conv_transpose_depthwise": [Hand("w0", 0, (9,), (("wy", 1, (9,)),))],
    "instance_norm": [Hand("w1", 0, (8, 12), (("w2", 1, (8, 12)),))],
    "group_norm_reshape": [Hand("w1", 0, (5,), (("w2", 1, (4, 5)),))],
    "flatten_gemm": [Hand("w1", 0, (2,), (("w2", 1, tuple(range(32, 48))),))],
    "tile_channels": [Hand("w1", 0, (3,), (("wy", 1, (3, 19)),))],
    "fused_qkv_gather": [Hand("wqkv", 1, (9,), (("wo", 0, (8, 9, 10, 11)),))],
    "multi_query_expand": [Hand("wq", 1, (15,), (("wo", 0, (12, 13, 14, 15)),))],
    "single_head_computed_scale": [
        Hand("wq", 1, (1,), (("wk", 1, (1,)),)),
        Hand("wv", 1, (2,), (("wo", 0, (2,)),)),
    ],
    "computed_attention": [Hand("wv", 1, (0,), (("wo", 0, (0, 1, 2, 3)),))],
    "swiglu_fused": [Hand("wgu", 1, (40,), (("wd", 0, (8,)),))],
    "tied_embedding": [Hand("table", 1, (3,), (("w1", 0, (3,)), ("table", 1, (3,))))],
    "computed_rows": [Hand("w1", 1, (0, 1, 2), (("w2", 0, (0, 1, 2)),))],
}  # fmt: skip


def units_at(found: Analysis, weight: str, axis: int, channels: Iterable[int]) -> Flags:
    operand = next(w for w in found.weights if w.name == weight)
    units = found.units_of(operand.axes[0][axis])
    assert units is not None
    removed = np.zeros(found.unit_count, np.bool_)
    removed[units[list(channels)]] = True
    return removed


@pytest.mark.parametrize(
    ("name", "hand"),
    [(n, h) for n, hands in HAND.items() for h in hands],
    ids=lambda v: str(v)[:60],
)
def test_equals_the_reference_written_by_hand(name: str, hand: Hand) -> None:
    found = analysis(name)
    plan = secateur.Plan(found, units_at(found, hand.weight, hand.axis, hand.gone))
    pruned = to_proto(secateur.rewrite(plan).model)
    original = GRAPHS[name]()
    before, after = constants(original), constants(pruned)
    for tensor, axis, indices in hand.zeros:
        assert after[tensor].dims[axis] == before[tensor].dims[axis] - len(indices), tensor
    reference = zeroed(original, hand.zeros)
    for size in (2, 4):
        feed = feeds(original, seed=size, **dims(name, size))
        wanted = run(reference, feed)
        assert_same(run(pruned, feed), wanted)
        unpruned = run(original, feed)
        assert any(not np.allclose(unpruned[k], wanted[k], atol=1e-4) for k in wanted)
