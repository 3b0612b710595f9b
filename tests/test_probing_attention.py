"""Attention and rotations, of the standard and of ONNX Runtime: heads, and head dimensions.

Every node is probed (see `probing`) with units along the heads and along their dimensions. How
many units the last axis of one operand then falls into is counted by hand.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from secateur.ir.analysis import analyze
from tests.probing import probe
from tests.probing_ranges import integer_range
from tests.probing_runs import Array, freeze
from tests.test_probing import node_cases

Counted = tuple[str, str, int, int]
"""Signature and node; an operand; units on its last axis: along heads, along dimensions."""

STANDARD: dict[str, Counted] = {
    "3D": (
        """(float[2,3,20] q, float[2,4,20] k, float[2,4,12] v) => (float[2,3,12] y)
        { y = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v) }""",
        *("q", 4, 5),
    ),
    "3D, dimensions of values": (
        """(float[2,3,20] q, float[2,4,20] k, float[2,4,12] v) => (float[2,3,12] y)
        { y = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v) }""",
        *("v", 4, 3),
    ),
    "3D, grouped": (
        """(float[2,3,30] q, float[2,4,10] k, float[2,4,6] v, float[6,1,4] mask)
        => (float[2,3,18] y)
        { y = Attention<q_num_heads=6, kv_num_heads=2>(q, k, v, mask) }""",
        *("q", 2, 5),
    ),
    "3D, one head of keys": (
        """(float[2,3,12] q, float[2,4,3] k, float[2,4,3] v) => (float[2,3,12] y)
        { y = Attention<q_num_heads=4, kv_num_heads=1>(q, k, v) }""",
        *("q", 4, 3),
    ),
    "3D, one head": (
        """(float[2,3,6] q, float[2,4,6] k, float[2,4,3] v) => (float[2,3,3] y)
        { y = Attention<q_num_heads=1, kv_num_heads=1, scale=0.3>(q, k, v) }""",
        *("q", 6, 6),
    ),
    "3D, with a cache": (
        """(float[2,3,20] q, float[2,3,20] k, float[2,3,12] v, float[2,1,1,1] mask,
            float[2,4,2,5] pk, float[2,4,2,3] pv)
        => (float[2,3,12] y, float[2,4,5,5] ok, float[2,4,5,3] ov)
        { y, ok, ov = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v, mask, pk, pv) }""",
        *("q", 4, 5),
    ),
    "4D, dimensions beside heads": (
        """(float[2,4,3,5] q, float[2,2,4,5] k, float[2,2,4,3] v) => (float[2,4,3,3] y)
        { y = Attention(q, k, v) }""",
        *("q", 5, 5),
    ),
    "rotary, 3D": (
        """(float[2,3,24] x, float[7,3] c, float[7,3] s, int64[2,3] at) => (float[2,3,24] y)
        { y = RotaryEmbedding<num_heads=4>(x, c, s, at) }""",
        *("x", 4, 3),
    ),
    "rotary, a part of the dimensions": (
        """(float[2,3,24] x, float[2,3,2] c, float[2,3,2] s) => (float[2,3,24] y)
        { y = RotaryEmbedding<num_heads=4, rotary_embedding_dim=4, interleaved=1>(x, c, s) }""",
        *("x", 4, 4),
    ),
}

RUNTIME: dict[str, Counted] = {
    "Attention": (
        """(float[2,3,6] x, float[6,60] w, float[60] b) => (float[2,3,20] y)
        { y = com.microsoft.Attention<num_heads=4>(x, w, b) }""",
        *("w", 4, 10),
    ),
    "Attention without a bias, unidirectional": (
        """(float[2,3,6] x, float[6,60] w) => (float[2,3,20] y)
        { y = com.microsoft.Attention<num_heads=4, unidirectional=1, scale=0.2>(x, w) }""",
        *("w", 4, 10),
    ),
    "Attention, other sizes of values, added scores": (
        """(float[2,3,6] x, float[6,52] w, float[52] b, float[1,4,3,3] add) => (float[2,3,12] y)
        { y = com.microsoft.Attention<num_heads=4, qkv_hidden_sizes=[20,20,12]>(x, w, b, , , add) }
        """,
        *("w", 4, 8),
    ),
    "Attention with a cache": (
        """(float[2,3,6] x, float[6,60] w, float[60] b, float[2,2,4,2,5] past)
        => (float[2,3,20] y, float[2,2,4,5,5] present)
        { y, present = com.microsoft.Attention<num_heads=4>(x, w, b, , past) }""",
        *("w", 4, 5),
    ),
    **{
        f"Attention with a mask {shape}": (
            f"""(float[2,3,6] x, float[6,24] w, float[24] b, int32[{shape}] mask)
            => (float[2,3,8] y)
            {{ y = com.microsoft.Attention<num_heads=2>(x, w, b, mask) }}""",
            *("w", 2, 8),
        )
        for shape in ("2", "4", "2,3", "2,3,3")
    },
    "MultiHeadAttention": (
        """(float[2,3,20] q, float[2,4,20] k, float[2,4,12] v, float[52] b) => (float[2,3,12] y)
        { y = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, b) }""",
        *("b", 4, 8),
    ),
    "MultiHeadAttention with outputs for a cache": (
        """(float[2,3,20] q, float[2,3,20] k, float[2,3,12] v, float[2,1,3,3] add)
        => (float[2,3,12] y, float[2,4,3,5] ok, float[2,4,3,3] ov)
        { y, ok, ov = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, , , add) }""",
        *("q", 4, 5),
    ),
    "MultiHeadAttention with a cache": (
        """(float[2,3,20] q, float[2,3,20] k, float[2,3,20] v, float[2,4,2,5] pk,
            float[2,4,2,5] pv) => (float[2,3,20] y, float[2,4,5,5] ok, float[2,4,5,5] ov)
        { y, ok, ov = com.microsoft.MultiHeadAttention<num_heads=4, unidirectional=1>
            (q, k, v, , , , pk, pv) }""",
        *("q", 4, 5),
    ),
    "MultiHeadAttention, keys with heads": (
        """(float[2,3,20] q, float[2,4,3,5] k, float[2,4,3,5] v, float[60] b)
        => (float[2,3,20] y)
        { y = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, b) }""",
        *("q", 4, 5),
    ),
    **{
        f"MultiHeadAttention with a mask {shape}": (
            f"""(float[2,3,8] q, float[2,4,8] k, float[2,4,8] v, int32[{shape}] mask)
            => (float[2,3,8] y)
            {{ y = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v, , mask) }}""",
            *("q", 2, 4),
        )
        for shape in ("2", "8", "2,4", "2,3,4")
    },
    "MultiHeadAttention, keys and values packed": (
        """(float[2,3,20] q, float[2,4,4,2,5] kv, float[60] b) => (float[2,3,20] y)
        { y = com.microsoft.MultiHeadAttention<num_heads=4>(q, kv, , b) }""",
        *("q", 4, 5),
    ),
    "MultiHeadAttention, all packed": (
        """(float[2,3,4,3,5] q) => (float[2,3,20] y)
        { y = com.microsoft.MultiHeadAttention<num_heads=4>(q) }""",
        *("q", 0, 5),
    ),
    "DecoderMaskedMultiHeadAttention": (
        """(float[2,1,20] q, float[2,4,3,5] k, float[2,4,3,5] v) => (float[2,1,20] y)
        { y = com.microsoft.DecoderMaskedMultiHeadAttention<num_heads=4>(q, k, v) }""",
        *("q", 4, 5),
    ),
    "GroupQueryAttention": (
        """(float[2,3,96] q, float[2,3,48] k, float[2,3,48] v, int32[2] ends, int32 total,
            float[6] sink) => (float[2,3,96] y, float[2,3,3,16] ok, float[2,3,3,16] ov)
        { y, ok, ov = com.microsoft.GroupQueryAttention<num_heads=6, kv_num_heads=3>
            (q, k, v, , , ends, total, , , , , sink) }""",
        *("q", 3, 2),
    ),
    "GroupQueryAttention, one head of keys": (
        """(float[2,3,64] q, float[2,3,16] k, float[2,3,16] v, int32[2] ends, int32 total)
        => (float[2,3,64] y)
        { y = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=1, scale=0.1>
            (q, k, v, , , ends, total) }""",
        *("q", 4, 2),
    ),
    "GroupQueryAttention, packed, turned": (
        """(float[1,3,256] q, int32[1] ends, int32 total, float[8,16] c, float[8,16] s)
        => (float[1,3,128] y)
        { y = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2, do_rotary=1>
            (q, , , , , ends, total, c, s) }""",
        *("q", 2, 2),
    ),
    "GroupQueryAttention, half of it turned": (
        """(float[1,3,256] q, float[1,3,128] k, float[1,3,128] v, int32[1] ends, int32 total,
            float[8,16] c, float[8,16] s, int64[1,3] at, float[1,4,3,3] add) => (float[1,3,256] y)
        { y = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2, do_rotary=1,
            rotary_interleaved=1>(q, k, v, , , ends, total, c, s, at, add) }""",
        *("q", 2, 4),
    ),
    "QAttention": (
        """(uint8[2,3,6] x, int8[6,60] w, float[60] b, float xs, float ws, int32[2] mask,
            uint8 xz, int8 wz) => (float[2,3,20] y)
        { y = com.microsoft.QAttention<num_heads=4>(x, w, b, xs, ws, mask, xz, wz) }""",
        *("w", 4, 5),
    ),
    "QAttention by columns": (
        """(uint8[2,3,6] x, int8[6,60] w, float[60] b, float xs, float[60] ws, int32[2] mask,
            uint8 xz, int8[60] wz) => (float[2,3,20] y)
        { y = com.microsoft.QAttention<num_heads=4>(x, w, b, xs, ws, mask, xz, wz) }""",
        *("w", 4, 4),
    ),
    "RotaryEmbedding": (
        """(float[2,3,24] x, int64[2,3] at, float[7,3] c, float[7,3] s) => (float[2,3,24] y)
        { y = com.microsoft.RotaryEmbedding(x, at, c, s) }""",
        *("x", 4, 3),
    ),
    "RotaryEmbedding, a part of the dimensions": (
        """(float[2,3,24] x, int64[1] at, float[7,2] c, float[7,2] s) => (float[2,3,24] y)
        { y = com.microsoft.RotaryEmbedding<num_heads=4, rotary_embedding_dim=4, interleaved=1>
            (x, at, c, s) }""",
        *("x", 4, 4),
    ),
    "RotaryEmbedding, 4D": (
        """(float[2,4,3,6] x, int64[2,3] at, float[7,3] c, float[7,3] s) => (float[2,4,3,6] y)
        { y = com.microsoft.RotaryEmbedding(x, at, c, s) }""",
        *("x", 3, 3),
    ),
}

CASES = {**STANDARD, **{f"com.microsoft.{name}": case for name, case in RUNTIME.items()}}

FIXED: dict[str, Array] = {
    "ends": np.array([2, 2]),
    "total": np.array(3),
    "xs": np.array(0.1),
    "xz": np.array(0),
    "wz": np.array(0),
}
"""Values of inputs that are not drawn; they become constants."""


def build(text: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model, and inputs that its node takes."""
    header = '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]> g '
    model = onnx.parser.parse_model(header + text)
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    ranges: dict[str, tuple[int, int]] = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value for d in kind.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if value.name in FIXED:
            feeds[value.name] = np.resize(FIXED[value.name], shape).astype(dtype)
        elif dtype.kind == "f":
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[value.name] = np.zeros(shape, dtype)
            ranges[value.name] = (0, 5)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in ranges:
                low, high = integer_range(node, position, feeds) or ranges[name]
                like = feeds[name]
                feeds[name] = rng.integers(low, high + 1, like.shape).astype(like.dtype)
    fixed = {name: feeds.pop(name) for name in FIXED if name in feeds}
    return freeze(model, fixed), feeds


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_backend_cases_along_dimensions() -> None:
    """`test_probing` compares the same cases along heads."""
    for name, model, feeds in node_cases()["attention"]:
        try:
            report = probe(model, feeds, prefer="head-dim")
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error
        assert report.links, name


@pytest.mark.parametrize("prefer", ["heads", "head-dim"])
@pytest.mark.parametrize("name", CASES)
def test_node(name: str, prefer: str) -> None:
    text, operand, heads, dims = CASES[name]
    model, feeds = build(text)
    report = probe(model, feeds, prefer=prefer, removals=12)
    assert report.links and report.removals and not report.refused
    source = oir.serde.deserialize_model(model)
    found = analyze(source, interface=False, weights_only=False, prefer=prefer)
    units = found.units_of(found.operands[operand].axis(-1))
    count = 0 if units is None else np.unique(units[units >= 0]).size
    assert count == (heads if prefer == "heads" else dims)
