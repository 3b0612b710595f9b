"""Proof graphs: attention as one operator, of the standard and of ONNX Runtime, and its other fused
operators as its optimisations write them (see `graph_builder` for the rules).
"""

from __future__ import annotations

from .graph_builder import IMAGE, Net, graph, net, scalar
from .graphs_sequence import SEPARATE, TOKENS, qkv

PROJECTED = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)\n"


@graph(1, "wq wk wv wo", dims="N T", opset=23)
def attention_operator() -> Net:
    """Attention of [N,T,H*D]. Group: heads."""
    return net(
        TOKENS,
        PROJECTED + "o = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v) y = MatMul(o, wo)",
        **SEPARATE,
    )


@graph(1, "wq wk wv wo", dims="N T", opset=23)
def attention_operator_grouped() -> Net:
    """Eight heads of queries on two of keys. Group: heads of keys, four of queries with each."""
    return net(
        TOKENS,
        PROJECTED + """o = Attention<q_num_heads=8, kv_num_heads=2, is_causal=1>(q, k, v)
        y = MatMul(o, wo)""",
        wq=(16, 32), wk=(16, 8), wv=(16, 12), wo=(48, 16),
    )  # fmt: skip


@graph(1, "wq wk wv wo slope", dims="N T", opset=23)
def attention_operator_split() -> Net:
    """Queries and keys [N,H,T,D] turned (a part of D), a number per head added. Group: heads."""
    return net(
        "(float[N,T,16] x, int64[N,T] at) => (float[N,T,16] y)",
        qkv("x")
        + """qr = RotaryEmbedding<rotary_embedding_dim=2>(q, cos, sin, at)
        kr = RotaryEmbedding<rotary_embedding_dim=2>(k, cos, sin, at)
        sh = Shape(x) t = Slice(sh, k1, k2) square = Concat<axis=0>(k1, t, t)
        bias = Expand(slope, square) av = Attention<scale=0.4, softcap=3.0>(qr, kr, v, bias)
        at4 = Transpose<perm=[0,2,1,3]>(av) o = Reshape(at4, merged) y = MatMul(o, wo)""",
        **SEPARATE, split4=[0, 0, 4, 4], merged=[0, 0, 16], cos=(8, 1),
        sin=(8, 1), slope=(4, 1, 1), k1=[1], k2=[2],
    )  # fmt: skip


@graph(1, "wq wo", stay="wk wv", dims="N T P", opset=23)
def attention_operator_cached() -> Net:
    """Keys and values of the past are inputs, so their two heads stay. Group: the same one of the
    four heads of queries of each."""
    return net(
        """(float[N,T,16] x, float[N,2,P,4] pk, float[N,2,P,4] pv)
        => (float[N,T,16] y, float[N,2,L,4] ok, float[N,2,L,4] ov)""",
        PROJECTED + """o, ok, ov = Attention<q_num_heads=8, kv_num_heads=2>(q, k, v, , pk, pv)
        y = MatMul(o, wo)""",
        wq=(16, 32), wk=(16, 8), wv=(16, 8), wo=(32, 16),
    )  # fmt: skip


@graph(2, "wqkv bqkv wo w1 b1 w2", dims="N T")
def encoder_fused() -> Net:
    """BERT as ONNX Runtime fuses it. Groups: heads, the hidden axis; inexact: the stream."""
    return net(
        "(int32[N,T] x) => (float[N,T,10] y)",
        """e, unused = com.microsoft.EmbedLayerNormalization(x, , words, places, , e_s, e_b)
        o = com.microsoft.Attention<num_heads=4>(e, wqkv, bqkv) p = MatMul(o, wo)
        a = com.microsoft.SkipLayerNormalization(p, e, a_s, a_b, bo)
        h = MatMul(a, w1) g = com.microsoft.BiasGelu(h, b1) d = MatMul(g, w2)
        f = com.microsoft.SkipLayerNormalization(d, a, f_s, f_b, b2) y = MatMul(f, wy)""",
        words=(32, 16), places=(24, 16), e_s=16, e_b=16, wqkv=(16, 48), bqkv=48, wo=(16, 16),
        bo=16, a_s=16, a_b=16, w1=(16, 32), b1=32, w2=(32, 16), b2=16, f_s=16, f_b=16, wy=(16, 10),
    )  # fmt: skip


@graph(2, "wq wk wv b wo w1 b1 w2", dims="N T S")
def decoder_fused() -> Net:
    """Attention to a second input and an MLP. Groups: heads, the hidden axis."""
    return net(
        "(float[N,T,16] x, float[N,S,8] z) => (float[N,T,16] y)",
        """q = MatMul(x, wq) k = MatMul(z, wk) v = MatMul(z, wv)
        o = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, b) p = MatMul(o, wo)
        h = com.microsoft.FusedMatMul<alpha=0.5>(p, w1) g = com.microsoft.FastGelu(h, b1)
        y = com.microsoft.FusedMatMul<transB=1>(g, w2)""",
        wq=(16, 20), wk=(8, 20), wv=(8, 12), b=52, wo=(12, 16), w1=(16, 32), b1=32, w2=(16, 32),
    )  # fmt: skip


@graph(2, "wqkv wo wg wu wd", dims="N T", opset=23)
def llama_fused() -> Net:
    """Grouped queries, packed and turned, a gated MLP. Groups: heads of keys with two of queries,
    the hidden axis; inexact: the stream."""
    return net(
        "(int64[N,T] x) => (float[N,T,10] y)",
        """e = Gather<axis=0>(table, x) n = RMSNormalization(e, n_s) m = MatMul(n, wqkv)
        sh = Shape(x) t = Gather<axis=0>(sh, i1) total = Cast<to=6>(t) u = Sub(t, i1)
        u32 = Cast<to=6>(u) batch = Slice(sh, k0, k1) ends = Expand(u32, batch)
        o, ok, ov = com.microsoft.GroupQueryAttention<num_heads=8, kv_num_heads=4, do_rotary=1>(
            m, , , , , ends, total, cos, sin)
        p = MatMul(o, wo)
        a, s0, s1, r = com.microsoft.SkipSimplifiedLayerNormalization(e, p, a_s)
        g = MatMul(a, wg) q = com.microsoft.QuickGelu<alpha=1.0>(g) w = MatMul(a, wu)
        h = Mul(q, w) d = MatMul(h, wd)
        f = com.microsoft.SkipSimplifiedLayerNormalization(r, d, f_s) y = MatMul(f, wy)""",
        table=(32, 16), n_s=16, wqkv=(16, 16 * 16), wo=(8 * 16, 16), a_s=16, wg=(16, 24),
        wu=(16, 24), wd=(24, 16), f_s=16, wy=(16, 10), cos=(24, 8), sin=(24, 8), i1=scalar(1),
        k0=[0], k1=[1],
    )  # fmt: skip


@graph(1, "wq wk wv wo", dims="N T")
def rotary_fused() -> Net:
    """Queries and keys [N,T,H*D] turned in neighbouring pairs. Group: heads."""
    return net(
        TOKENS,
        PROJECTED
        + """qr = com.microsoft.RotaryEmbedding<interleaved=1>(q, first, cos, sin)
        kr = com.microsoft.RotaryEmbedding<interleaved=1>(k, first, cos, sin)
        o = com.microsoft.MultiHeadAttention<num_heads=4>(qr, kr, v) y = MatMul(o, wo)""",
        **SEPARATE, first=[0], cos=(24, 2), sin=(24, 2),
    )  # fmt: skip


@graph(3, "w0 b0 w1 w2 w3 wf bf wy")
def convolutions_fused() -> Net:
    """Convolutions with their activations, one with a sum, one in groups, and a Gemm with one.
    Groups: the stream with the grouped layer, inside the branch, the Gemm's output."""
    return net(
        IMAGE,
        """a = com.microsoft.FusedConv<pads=[1,1,1,1], activation="Relu">(x, w0, b0)
        b = com.microsoft.FusedConv<pads=[1,1,1,1], activation="LeakyRelu",
            activation_params=[0.1]>(a, w1)
        c = com.microsoft.FusedConv<activation="Relu">(b, w2, b2, a)
        d = com.microsoft.FusedConv<group=4, activation="Relu">(c, w3)
        e = GlobalAveragePool(d) f = Flatten(e)
        g = com.microsoft.FusedGemm<transB=1, activation="Relu">(f, wf, bf)
        y = Gemm<transB=1>(g, wy)""",
        w0=(8, 3, 3, 3), b0=8, w1=(12, 8, 3, 3), w2=(8, 12, 1, 1), b2=8, w3=(16, 2, 3, 3),
        wf=(12, 16), bf=12, wy=(10, 12),
    )  # fmt: skip
