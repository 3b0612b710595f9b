"""Proof graphs: attention, MLPs and embeddings (see `graph_builder` for the rules).

Unless said otherwise, attention has 4 heads of 4 and head counts are one exact group: the heads of
queries, keys, values and the output projection are coupled by the batch axis of both products.
"""

from __future__ import annotations

import numpy as np

from .graph_builder import Net, Weight, graph, net, scalar

TOKENS = "(float[N,T,16] x) => (float[N,T,16] y)"


def attend(scale: str = "Mul(qk, half)", bias: str = "") -> str:
    """Attention of q, k, v [N,H,T,D] into o [N,T,16], k turned here; `bias` is added to scores."""
    scores = f"sb = Add(ss, {bias})" if bias else "sb = Identity(ss)"
    return f"""kt = Transpose<perm=[0,1,3,2]>(k) qk = MatMul(q, kt) ss = {scale} {scores}
        pr = Softmax<axis=-1>(sb) av = MatMul(pr, v) at = Transpose<perm=[0,2,1,3]>(av)
        o = Reshape(at, merged)\n"""


def heads(source: str, name: str) -> str:
    """[N,T,H*D] to [N,H,T,D]."""
    return f"{name}4 = Reshape({source}, split4) {name} = Transpose<perm=[0,2,1,3]>({name}4)\n"


def qkv(x: str) -> str:
    """Separate projections of x (weights wq, wk, wv) into heads q, k, v."""
    return "".join(f"{n}m = MatMul({x}, w{n})\n" + heads(f"{n}m", n) for n in "qkv")


def layer_norm(x: str, y: str) -> str:
    """LayerNormalization in pieces, over the last axis, with weights `{y}_s`, `{y}_b`."""
    return f"""{y}0 = ReduceMean<axes=[-1]>({x}) {y}1 = Sub({x}, {y}0) {y}2 = Pow({y}1, two)
        {y}3 = ReduceMean<axes=[-1]>({y}2) {y}4 = Add({y}3, eps) {y}5 = Sqrt({y}4)
        {y}6 = Div({y}1, {y}5) {y}7 = Mul({y}6, {y}_s) {y} = Add({y}7, {y}_b)\n"""


def mlp(x: str, y: str) -> str:
    """Linear, erf-GELU, linear (w1, b1, w2, b2)."""
    return f"""{y}0 = MatMul({x}, w1) {y}1 = Add({y}0, b1) {y}2 = Div({y}1, root)
        {y}3 = Erf({y}2) {y}4 = Add({y}3, one) {y}5 = Mul({y}1, {y}4) {y}6 = Mul({y}5, half)
        {y}7 = MatMul({y}6, w2) {y} = Add({y}7, b2)\n"""


MERGE: dict[str, Weight] = {"merged": [0, 0, 16], "half": 0.5}
HEADS: dict[str, Weight] = {"split4": [0, 0, 4, 4], **MERGE}
SEPARATE: dict[str, Weight] = {f"w{n}": (16, 16) for n in "qkvo"}
MLP: dict[str, Weight] = {
    "w1": (16, 32), "b1": 32, "w2": (32, 16), "b2": 16, "root": 2.0**0.5, "one": 1.0, "half": 0.5,
}  # fmt: skip
NORM: dict[str, Weight] = {"two": 2.0, "eps": 1e-5}


# ---- attention ----------------------------------------------------------------------------


@graph(1, "wqkv bqkv wo", dims="N T")
def fused_qkv_gather() -> Net:
    """One MatMul to 3*H*D, Reshape to [0,0,3,H,D], Transpose, Gather 0, 1, 2. Group: heads."""
    return net(
        TOKENS,
        """m = MatMul(x, wqkv) a = Add(m, bqkv) r = Reshape(a, five)
        t = Transpose<perm=[2,0,3,1,4]>(r) q = Gather<axis=0>(t, i0) k = Gather<axis=0>(t, i1)
        v = Gather<axis=0>(t, i2)""" + attend() + "y = MatMul(o, wo)",
        wqkv=(16, 48), bqkv=48, wo=(16, 16), five=[0, 0, 3, 4, 4], i0=scalar(0), i1=scalar(1),
        i2=scalar(2), **MERGE,
    )  # fmt: skip


@graph(1, "wqkv bqkv wo", dims="N T")
def fused_qkv_split() -> Net:
    """One MatMul to 3*H*D, Split in three, heads by Reshape and Transpose. Group: heads."""
    return net(
        TOKENS,
        "m = MatMul(x, wqkv) a = Add(m, bqkv) qm, km, vm = Split<axis=-1>(a, sizes)"
        + "".join(heads(f"{n}m", n) for n in "qkv") + attend() + "y = MatMul(o, wo)",
        wqkv=(16, 48), bqkv=48, wo=(16, 16), sizes=[16, 16, 16], **HEADS,
    )  # fmt: skip


@graph(1, "wq wk wv wo", dims="N T")
def separate_qkv() -> Net:
    """Three MatMuls. Group: heads."""
    return net(TOKENS, qkv("x") + attend() + "y = MatMul(o, wo)", **SEPARATE, **HEADS)


@graph(2, "wq wk wv wo", dims="N T")
def single_head_computed_scale() -> Net:
    """No head axis; scores are divided by sqrt(Shape(q)[-1]). Groups: the width of queries and
    keys (the divisor must remain 4), the width of values.
    """
    return net(
        TOKENS,
        """q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) kt = Transpose<perm=[0,2,1]>(k)
        qk = MatMul(q, kt) sh = Shape(q) d = Gather<axis=0>(sh, last) df = Cast<to=1>(d)
        sq = Sqrt(df) ss = Div(qk, sq) p = Softmax<axis=-1>(ss) o = MatMul(p, v)
        y = MatMul(o, wo)""",
        **SEPARATE, last=scalar(-1),
    )  # fmt: skip


@graph(1, "wq wk wv wo", dims="N T")
def computed_attention() -> Net:
    """Scale and every Reshape target computed from Shape, batch and sequence dynamic (PyTorch's
    export of view(b, t, h, d)). Group: heads; the divisor must stay sqrt(4).
    """
    take = "".join(f"n{i} = Gather<axis=0>(sh, i{i}) u{i} = Unsqueeze(n{i}, ax)\n" for i in (0, 1))
    split = "split4 = Concat<axis=0>(u0, u1, h4, d4) merged = Concat<axis=0>(u0, u1, c16)\n"
    size = "qs = Shape(q) d = Gather<axis=0>(qs, last) df = Cast<to=1>(d) sq = Sqrt(df)\n"
    body = "sh = Shape(x) " + take + split + qkv("x") + size + attend("Div(qk, sq)")
    return net(
        TOKENS, body + "y = MatMul(o, wo)",
        **SEPARATE, i0=scalar(0), i1=scalar(1), ax=[0], h4=[4], d4=[4], c16=[16],
        last=scalar(-1),
    )  # fmt: skip


@graph(1, "wq wo", dims="N T")
def multi_query_broadcast() -> Net:
    """One KV head, broadcast by MatMul. Group: the heads of queries and output."""
    one = "".join(f"{n}m = MatMul(x, w{n}) {n} = Unsqueeze({n}m, ax)\n" for n in "kv")
    body = "qm = MatMul(x, wq)" + heads("qm", "q") + one + attend() + "y = MatMul(o, wo)"
    return net(TOKENS, body, wq=(16, 16), wk=(16, 4), wv=(16, 4), wo=(16, 16), ax=[1], **HEADS)


@graph(1, "wq wo", dims="N T")
def multi_query_expand() -> Net:
    """One KV head, expanded to [1,4,1,1] by a constant target. Group: the heads, as before."""
    one = "".join(
        f"{n}m = MatMul(x, w{n}) {n}u = Unsqueeze({n}m, ax) {n} = Expand({n}u, target)\n"
        for n in "kv"
    )
    return net(
        TOKENS, "qm = MatMul(x, wq)" + heads("qm", "q") + one + attend() + "y = MatMul(o, wo)",
        wq=(16, 16), wk=(16, 4), wv=(16, 4), wo=(16, 16), ax=[1], target=[1, 4, 1, 1], **HEADS,
    )  # fmt: skip


@graph(1, "wq wo", dims="N T")
def grouped_query() -> Net:
    """Two KV heads, repeated for two query heads each by Unsqueeze, Expand, Reshape. At least one
    group: KV heads with the query heads that they serve, or the place inside each pair.
    """
    repeat = "".join(
        f"""{n}m = MatMul(x, w{n}) {n}r = Reshape({n}m, kv4)
        {n}h = Transpose<perm=[0,2,1,3]>({n}r) {n}u = Unsqueeze({n}h, ax)
        {n}e = Expand({n}u, target) {n}s = Shape({n}e) {n}l = Slice({n}s, three, five)
        {n}z = Concat<axis=0>(front, {n}l) {n} = Reshape({n}e, {n}z)\n"""
        for n in "kv"
    )
    return net(
        TOKENS, "qm = MatMul(x, wq)" + heads("qm", "q") + repeat + attend() + "y = MatMul(o, wo)",
        wq=(16, 16), wk=(16, 8), wv=(16, 8), wo=(16, 16), kv4=[0, 0, 2, 4], ax=[2],
        target=[1, 1, 2, 1, 1], three=[3], five=[5], front=[0, 4], **HEADS,
    )  # fmt: skip


@graph(2, "wqkv bqkv wo table w1 b1 w2")
def swin_block() -> Net:
    """Window partition by Reshape and Transpose, attention with a gathered relative position bias,
    windows put back, MLP. Groups: heads (with the columns of the bias table), MLP hidden layer;
    the stream is inexact.
    """
    rows = np.arange(4)
    y, x = (a.ravel() for a in np.meshgrid(rows, rows, indexing="ij"))
    index = (y[:, None] - y + 3) * 7 + (x[:, None] - x + 3)
    bias = """gt = Gather<axis=0>(table, index) g3 = Reshape(gt, pairs)
        gp = Transpose<perm=[2,0,1]>(g3) bias = Unsqueeze(gp, ax)\n"""
    return net(
        "(float[N,3,16,16] x) => (float[N,8,8,10] y)",
        """s = Conv<strides=[2,2]>(x, w0) t = Transpose<perm=[0,2,3,1]>(s)
        l = LayerNormalization<axis=-1>(t, l_s, l_b) a6 = Reshape(l, windows)
        b6 = Transpose<perm=[0,1,3,2,4,5]>(a6) win = Reshape(b6, tokens)
        m = MatMul(win, wqkv) a = Add(m, bqkv) r = Reshape(a, five)
        h = Transpose<perm=[2,0,3,1,4]>(r) q = Gather<axis=0>(h, i0) k = Gather<axis=0>(h, i1)
        v = Gather<axis=0>(h, i2)""" + bias + attend(bias="bias")
        + """po = MatMul(o, wo) c6 = Reshape(po, windows4) d6 = Transpose<perm=[0,1,3,2,4,5]>(c6)
        back = Reshape(d6, image) e = Add(t, back)
        f = LayerNormalization<axis=-1>(e, f_s, f_b)""" + mlp("f", "u")
        + "z = Add(e, u) y = MatMul(z, wy)",
        w0=(16, 3, 2, 2), l_s=16, l_b=16, f_s=16, f_b=16, windows=[0, 2, 4, 2, 4, 16],
        tokens=[-1, 16, 16], wqkv=(16, 48), bqkv=48, five=[0, 0, 3, 4, 4], i0=scalar(0),
        i1=scalar(1), i2=scalar(2), table=(49, 4), index=index.ravel(), pairs=[16, 16, 4], ax=[0],
        wo=(16, 16), windows4=[-1, 2, 2, 4, 4, 16], image=[0, 8, 8, 16], wy=(16, 10),
        **{**MERGE, **MLP},
    )  # fmt: skip


# ---- transformer blocks -------------------------------------------------------------------


def _block(first: str, second: str, **more: Weight) -> Net:
    """Pre-norm block; the norms read e, g and write l, m."""
    return net(
        "(float[N,T,8] x) => (float[N,T,10] y)",
        "e = MatMul(x, we)" + first + qkv("l") + attend() + "p = MatMul(o, wo) g = Add(e, p)"
        + second + mlp("m", "u") + "f = Add(g, u) y = MatMul(f, wy)",
        we=(8, 16), l_s=16, l_b=16, m_s=16, m_b=16, wy=(16, 10),
        **{**SEPARATE, **HEADS, **MLP, **more},
    )  # fmt: skip


@graph(2, "wq wk wv wo w1 b1 w2", dims="N T")
def transformer_decomposed_norm() -> Net:
    """LayerNormalization in pieces. Groups: heads, MLP hidden layer; the stream is inexact."""
    return _block(layer_norm("e", "l"), layer_norm("g", "m"), **NORM)


@graph(2, "wq wk wv wo w1 b1 w2", dims="N T")
def transformer_layer_norm() -> Net:
    """LayerNormalization operators. Groups: heads, MLP hidden layer; the stream is inexact."""
    return _block(
        "l = LayerNormalization<axis=-1>(e, l_s, l_b)\n",
        "m = LayerNormalization<axis=-1>(g, m_s, m_b)\n",
    )


@graph(2, "wt1 bt1 wt2 w1 b1 w2", dims="N")
def mlp_mixer() -> Net:
    """Token mixing between two Transposes, then channel mixing. Groups: both hidden layers; the
    stream is inexact, tokens are spatial.
    """
    return net(
        "(float[N,3,8,8] x) => (float[N,10] y)",
        """s = Conv<strides=[2,2]>(x, w0) v = Reshape(s, flat) e = Transpose<perm=[0,2,1]>(v)
        l = LayerNormalization<axis=-1>(e, l_s, l_b) t = Transpose<perm=[0,2,1]>(l)
        a = MatMul(t, wt1) b = Add(a, bt1) r = Relu(b) c = MatMul(r, wt2)
        d = Transpose<perm=[0,2,1]>(c) g = Add(e, d)
        m = LayerNormalization<axis=-1>(g, m_s, m_b)""" + mlp("m", "u")
        + "f = Add(g, u) p = ReduceMean<axes=[1], keepdims=0>(f) y = MatMul(p, wy)",
        w0=(16, 3, 2, 2), flat=[0, 16, -1], l_s=16, l_b=16, wt1=(16, 24), bt1=24, wt2=(24, 16),
        m_s=16, m_b=16, wy=(16, 10), **MLP,
    )  # fmt: skip


# ---- gates, embeddings, computed targets --------------------------------------------------


@graph(1, "wg wu wd", dims="N T")
def swiglu_separate() -> Net:
    """silu(x wg) * (x wu), down. Group: the hidden axis."""
    return net(
        TOKENS,
        """g = MatMul(x, wg) s = Sigmoid(g) a = Mul(g, s) u = MatMul(x, wu) h = Mul(a, u)
        y = MatMul(h, wd)""",
        wg=(16, 32), wu=(16, 32), wd=(32, 16),
    )  # fmt: skip


@graph(1, "wgu bgu wd", dims="N T")
def swiglu_fused() -> Net:
    """One MatMul, Split in gate and value. Group: the hidden axis, two columns of wgu each."""
    return net(
        TOKENS,
        """m = MatMul(x, wgu) b = Add(m, bgu) g, u = Split<axis=-1>(b, sizes) s = Sigmoid(g)
        a = Mul(g, s) h = Mul(a, u) y = MatMul(h, wd)""",
        wgu=(16, 64), bgu=64, wd=(32, 16), sizes=[32, 32],
    )  # fmt: skip


@graph(2, "table w1 b1 w2 b2", dims="N T")
def tied_embedding() -> Net:
    """The table [32,16] embeds tokens and, transposed, makes logits. Groups: the stream, the
    hidden axis of the MLP; the vocabulary is an output.
    """
    return net(
        "(int64[N,T] x) => (float[N,T,32] y)",
        "e = Gather<axis=0>(table, x)" + mlp("e", "u")
        + "f = Add(e, u) t = Transpose<perm=[1,0]>(table) y = MatMul(f, t)",
        table=(32, 16), **MLP,
    )  # fmt: skip


@graph(3, "table position w1 b1 w2 b2 wy", dims="N T")
def positional_embedding() -> Net:
    """Positions Range(T), a second table, sum, MLP. Groups: sum, hidden axis, output of the MLP."""
    return net(
        "(int64[N,T] x) => (float[N,T,10] y)",
        """sh = Shape(x) t = Gather<axis=0>(sh, i1) r = Range(i0, t, i1)
        p = Gather<axis=0>(position, r) w = Gather<axis=0>(table, x) e = Add(w, p)"""
        + mlp("e", "u") + "y = MatMul(u, wy)",
        i0=scalar(0), i1=scalar(1), table=(32, 16), position=(24, 16), **MLP, wy=(16, 10),
    )  # fmt: skip


@graph(2, "w1 b1 w2 b2 w3", dims="N T")
def computed_product() -> Net:
    """A target that is one number, N*T*16, and back to [-1, 16]. Groups: the outputs of w1 and
    w2; of the axis N*T*16 the same share stays at every N and T.
    """
    return net(
        "(float[N,T,8] x) => (float[M,8] y)",
        """m = MatMul(x, w1) a = Add(m, b1) r = Relu(a) sh = Shape(r)
        n = Gather<axis=0>(sh, i0) t = Gather<axis=0>(sh, i1) nt = Mul(n, t)
        ntc = Mul(nt, c16) u = Unsqueeze(ntc, ax) v = Reshape(r, u) w = Reshape(v, rows)
        h = MatMul(w, w2) hb = Add(h, b2) hr = Relu(hb) y = MatMul(hr, w3)""",
        w1=(8, 16), b1=16, w2=(16, 24), b2=24, w3=(24, 8), i0=scalar(0), i1=scalar(1),
        c16=scalar(16), ax=[0], rows=[-1, 16],
    )  # fmt: skip


@graph(1, "w1 b1 w2", dims="N T")
def computed_rows() -> Net:
    """A target (N*T, 16) whose rows are computed, then (N, T, 8). Group: w1's output."""
    return net(
        "(float[N,T,8] x) => (float[N,T,8] y)",
        """m = MatMul(x, w1) a = Add(m, b1) r = Relu(a) sh = Shape(r)
        n = Slice(sh, k0, k1) t = Slice(sh, k1, k2) nt = Mul(n, t)
        u = Concat<axis=0>(nt, c16) v = Reshape(r, u) w = MatMul(v, w2)
        back = Concat<axis=0>(n, t, c8) y = Reshape(w, back)""",
        w1=(8, 16), b1=16, w2=(16, 8), k0=[0], k1=[1], k2=[2], c16=[16], c8=[8],
    )  # fmt: skip
