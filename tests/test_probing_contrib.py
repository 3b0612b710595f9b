"""The fused operators of ONNX Runtime (see `probing`); attention is in `test_probing_attention`."""

from __future__ import annotations

import numpy as np
import pytest

from tests.probing import probe
from tests.test_probing_attention import FIXED, build

CASES = {
    "BiasAdd": "(float[2,3,4] x, float[4] b, float[2,3,4] z) => (float[2,3,4] y)\n"
    "{ y = com.microsoft.BiasAdd(x, b, z) }",
    "BiasGelu": "(float[2,3,4] x, float[4] b) => (float[2,3,4] y)\n"
    "{ y = com.microsoft.BiasGelu(x, b) }",
    "FastGelu": "(float[2,3,4] x) => (float[2,3,4] y) { y = com.microsoft.FastGelu(x) }",
    "FastGelu with a bias": "(float[2,3,4] x, float[4] b) => (float[2,3,4] y)\n"
    "{ y = com.microsoft.FastGelu(x, b) }",
    "Gelu": "(float[2,3] x) => (float[2,3] y) { y = com.microsoft.Gelu(x) }",
    "QuickGelu": "(float[2,3] x) => (float[2,3] y) { y = com.microsoft.QuickGelu<alpha=1.5>(x) }",
    "BiasSplitGelu": "(float[2,3,8] x, float[8] b) => (float[2,3,4] y)\n"
    "{ y = com.microsoft.BiasSplitGelu(x, b) }",
    "BiasSoftmax": "(float[2,3,4] x, float[2,1,4] b) => (float[2,3,4] y)\n"
    "{ y = com.microsoft.BiasSoftmax<axis=2, is_inner_broadcast=1>(x, b) }",
    "RelativePositionBias": "(float[8,6] t, int64[1] rows, int64[1] columns) =>"
    "(float[1,6,3,4] y)\n{ y = com.microsoft.RelativePositionBias(t, rows, columns) }",
    "FusedMatMul": "(float[2,3,4] a, float[4,5] b) => (float[2,3,5] y)\n"
    "{ y = com.microsoft.FusedMatMul<alpha=0.5>(a, b) }",
    "FusedMatMul, transposed": "(float[2,4,3] a, float[1,5,4] b) => (float[2,3,5] y)\n"
    "{ y = com.microsoft.FusedMatMul<transA=1, transB=1>(a, b) }",
    "FusedMatMul, batch in the middle": "(float[3,2,6,4] a, float[2,6,4,5] b) =>"
    "(float[2,6,3,5] y)\n{ y = com.microsoft.FusedMatMul<transBatchA=1>(a, b) }",
    "FusedMatMul, all transposed": "(float[4,2,6,3] a, float[5,2,6,4] b) =>"
    "(float[2,6,3,5] y)\n{ y = com.microsoft.FusedMatMul<transBatchA=1, transA=1,"
    " transBatchB=1, transB=1>(a, b) }",
    "TransposeMatMul": "(float[4,3] a, float[4,5] b) => (float[3,5] y)\n"
    "{ y = com.microsoft.TransposeMatMul<transA=1>(a, b) }",
    "FusedGemm": "(float[3,4] a, float[5,4] b, float[5] c) => (float[3,5] y)\n"
    '{ y = com.microsoft.FusedGemm<transB=1, activation="Relu">(a, b, c) }',
    "GemmFastGelu": "(float[2,3,4] a, float[4,5] b, float[5] c) => (float[2,3,5] y)\n"
    "{ y = com.microsoft.GemmFastGelu(a, b, c) }",
    "FusedConv": "(float[2,3,4,4] x, float[6,3,3,3] w, float[6] b, float[2,6,2,2] z) =>"
    '(float[2,6,2,2] y)\n{ y = com.microsoft.FusedConv<activation="Relu">(x, w, b, z) }',
    "FusedConv in groups": "(float[2,6,4,4] x, float[8,3,3,3] w, float[8] b) =>"
    '(float[2,8,2,2] y)\n{ y = com.microsoft.FusedConv<group=2, activation="LeakyRelu",'
    " activation_params=[0.1]>(x, w, b) }",
    "FusedConv that keeps sizes": "(float[2,4,4,4] x, float[6,2,3,3] w, float[6] b,"
    "float[2,6,4,4] z) => (float[2,6,4,4] y)\n"
    '{ y = com.microsoft.FusedConv<group=2, pads=[1,1,1,1], activation="Relu">(x, w, b, z) }',
    "NhwcConv": "(float[2,4,4,6] x, float[5,1,1,6] w, float[5] b) => (float[2,4,4,5] y)\n"
    "{ y = com.microsoft.NhwcConv(x, w, b) }",
    "NhwcConv in groups": "(float[2,4,4,6] x, float[8,1,1,3] w) => (float[2,4,4,8] y)\n"
    "{ y = com.microsoft.NhwcConv<group=2>(x, w) }",
    "NhwcConv over places": "(float[2,4,4,6] x, float[5,3,1,6] w, float[5] b) =>"
    "(float[2,4,4,5] y)\n{ y = com.microsoft.NhwcConv<pads=[1,0,1,0]>(x, w, b) }",
    "NhwcMaxPool": "(int8[2,4,4,6] x) => (int8[2,3,3,6] y)\n"
    "{ y = com.microsoft.NhwcMaxPool<kernel_shape=[2,2]>(x) }",
    "SimplifiedLayerNormalization": "(float[2,3,6] x, float[6] g) => (float[2,3,6] y)\n"
    "{ y = SimplifiedLayerNormalization(x, g) }",
    "SkipLayerNormalization": "(float[2,3,6] x, float[2,3,6] s, float[6] g, float[6] h,"
    "float[6] b) => (float[2,3,6] y, float[2,3,6] sum)\n"
    "{ y, m, v, sum = com.microsoft.SkipLayerNormalization(x, s, g, h, b) }",
    "SkipLayerNormalization, broadcast": "(float[2,3,6] x, float[1,3,6] s, float[6] g) =>"
    "(float[2,3,6] y)\n{ y = com.microsoft.SkipLayerNormalization(x, s, g) }",
    "SkipSimplifiedLayerNormalization": "(float[2,3,6] x, float[2,3,6] s, float[6] g,"
    "float[6] b) => (float[2,3,6] y, float[2,3,6] sum)\n"
    "{ y, m, v, sum = com.microsoft.SkipSimplifiedLayerNormalization(x, s, g, b) }",
    "EmbedLayerNormalization": "(int32[2,3] ids, int32[2,3] kinds, float[9,6] words,"
    "float[4,6] places, float[2,6] kind, float[6] g, float[6] b, int32[2,3] mask) =>"
    "(float[2,3,6] y, int32[2] lengths)\n{ y, lengths = com.microsoft.EmbedLayerNormalization("
    "ids, kinds, words, places, kind, g, b, mask) }",
    "EmbedLayerNormalization, positions given": "(int32[2,3] ids, float[9,6] words,"
    "float[4,6] places, float[6] g, float[6] b, int32[2,3] at) => (float[2,3,6] y,"
    "float[2,3,6] sum)\n{ y, lengths, sum = com.microsoft.EmbedLayerNormalization("
    "ids, , words, places, , g, b, , at) }",
    "GroupNorm": "(float[2,2,3,8] x, float[8] g, float[8] b) => (float[2,2,3,8] y)\n"
    "{ y = com.microsoft.GroupNorm<groups=4, activation=1>(x, g, b) }",
    "GroupNorm, one group": "(float[2,2,3,5] x, float[5] g, float[5] b) => (float[2,2,3,5] y)\n"
    "{ y = com.microsoft.GroupNorm<groups=1, activation=0>(x, g, b) }",
    "SkipGroupNorm, one group": "(float[2,2,3,5] x, float[5] g, float[5] b, float[2,5] s) =>"
    "(float[2,2,3,5] y)\n{ y = com.microsoft.SkipGroupNorm<groups=1, activation=0>(x, g, b, s) }",
    "SkipGroupNorm": "(float[2,2,3,8] x, float[8] g, float[8] b, float[2,8] s, float[8] c) =>"
    "(float[2,2,3,8] y, float[2,2,3,8] sum)\n"
    "{ y, sum = com.microsoft.SkipGroupNorm<groups=4, activation=0>(x, g, b, s, c) }",
}

NO_KERNEL = frozenset(
    "BiasAdd BiasSplitGelu BiasSoftmax GemmFastGelu GroupNorm NhwcConv RelativePositionBias "
    "SkipGroupNorm".split()
)
"""Operators that ONNX Runtime has no CPU kernel of: numpy stands in (see `numpy_contrib`)."""

PINNED = {
    "FusedConv": {"z[2] -> y[2]", "z[3] -> y[3]"},
    "EmbedLayerNormalization": {"ids[1] -> y[1]", "kinds[1] -> y[1]"},
    "SkipGroupNorm": {"x[1] -> sum[1]", "x[2] -> sum[2]"},
}
"""Axes that stay though each coordinate has its own in the output: spatial ones, and positions."""

FIXED.update(rows=np.array(3), columns=np.array(4))


@pytest.mark.parametrize("name", CASES)
def test_node(name: str) -> None:
    model, feeds = build(CASES[name])
    report = probe(model, feeds, removals=12, find_pinned=True)
    assert set(report.pinned) == PINNED.get(name, set())
    assert report.links and report.removals and not report.refused
    assert report.reference == (model.graph.node[0].op_type in NO_KERNEL)
