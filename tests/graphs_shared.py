"""Proof graphs: constants that several nodes read (see `graph_builder`).

Weights are tied: a coordinate goes at all uses or at none. Tables, masks and vectors that are only
added or multiplied are cut for each use, and stored as often as their uses differ.
"""

from __future__ import annotations

import numpy as np

from .graph_builder import IMAGE, Array, Net, Weight, graph, net

IDS = "(int64[N,T] x) => (float[N,T,20] y)"
BLOCK = """a = MatMul(e, w1) r = Relu(a) d = MatMul(r, w2) o = Add(e, d)
"""
WIDTHS: dict[str, Weight] = {"emb": (20, 12), "w1": (12, 16), "w2": (16, 12)}


# ---- embeddings and output heads ----------------------------------------------------------------


@graph(2, "emb w1 w2", dims="N T")
def tied_head_transposed() -> Net:
    """The table of tokens is looked up, then transposed by a node and multiplied with. Groups: its
    columns with the stream, the hidden layer; its rows stay.
    """
    return net(
        IDS,
        f"e = Gather(emb, x) {BLOCK} t = Transpose<perm=[1,0]>(emb) y = MatMul(o, t)",
        **WIDTHS,
    )


@graph(2, "emb w1 w2", dims="N T")
def tied_head_gemm() -> Net:
    """The same by Gemm with transB. Groups as before."""
    return net(
        IDS,
        f"""e = Gather(emb, x) {BLOCK} rows = Reshape(o, flat)
        l = Gemm<transB=1>(rows, emb, bias) size = Shape(x) full = Concat<axis=0>(size, vocabulary)
        y = Reshape(l, full)""",
        **WIDTHS, bias=20, flat=[-1, 12], vocabulary=[20],
    )  # fmt: skip


@graph(2, "emb folded w1 w2", dims="N T")
def tied_head_folded() -> Net:
    """The transposed table became a tensor of its own. Groups: as before, through both."""
    return net(IDS, f"e = Gather(emb, x) {BLOCK} y = MatMul(o, folded)", **WIDTHS, folded=(12, 20))


@graph(2, "emb wk wv w1 w2", dims="N T S")
def tied_encoder_decoder() -> Net:
    """One table for encoder, decoder and head, scaled by the root of its width, which is a number
    and must not change. Groups: the stream of both sides, the hidden layer.
    """
    return net(
        "(int64[N,T] x, int64[N,S] z) => (float[N,T,20] y)",
        f"""size = Shape<start=1>(emb) real = Cast<to=1>(size) root = Sqrt(real)
        u = Gather(emb, z) s = Mul(u, root) q = Gather(emb, x) eq = Mul(q, root)
        k = MatMul(s, wk) kt = Transpose<perm=[0,2,1]>(k) p = MatMul(eq, kt)
        c = Softmax<axis=-1>(p) v = MatMul(s, wv) m = MatMul(c, v) e = Add(eq, m)
        {BLOCK} t = Transpose<perm=[1,0]>(emb) y = MatMul(o, t)""",
        **WIDTHS, wk=(12, 12), wv=(12, 12),
    )  # fmt: skip


# ---- shared layers ------------------------------------------------------------------------------


@graph(2, "w0 w1 b1 w2 b2 wy")
def shared_layers() -> Net:
    """One layer applied three times: all its nodes read the same weights. Groups: the stream and
    one hidden layer.
    """
    layer = """a{0} = MatMul(h{0}, w1) c{0} = Add(a{0}, b1) r{0} = Relu(c{0})
        d{0} = MatMul(r{0}, w2) f{0} = Add(d{0}, b2) h{1} = Add(h{0}, f{0})
        """
    layers = "".join(layer.format(k, k + 1) for k in range(3))
    return net(
        "(float[N,4] x) => (float[N,5] y)",
        f"h0 = MatMul(x, w0) {layers} y = MatMul(h3, wy)",
        w0=(4, 12), w1=(12, 16), b1=16, w2=(16, 12), b2=12, wy=(12, 5),
    )  # fmt: skip


@graph(2, "w1 b1 wd wp wy", dims="N")
def siamese() -> Net:
    """Two pictures through the same convolutions, a depthwise one among them, and the difference.
    Groups: channels before and behind the last convolution.
    """
    branch = """a{0} = Conv3({0}, w1, b1) r{0} = Relu(a{0}) d{0} = Conv<pads=[1,1,1,1], group=8>
        (r{0}, wd) s{0} = Relu(d{0}) p{0} = Conv(s{0}, wp) q{0} = Relu(p{0})
        g{0} = GlobalAveragePool(q{0}) f{0} = Flatten(g{0})
        """
    return net(
        "(float[N,3,8,8] x, float[N,3,8,8] z) => (float[N,10] y)",
        branch.format("x") + branch.format("z")
        + "t = Sub(fx, fz) u = Abs(t) y = Gemm<transB=1>(u, wy)",
        w1=(8, 3, 3, 3), b1=8, wd=(8, 1, 3, 3), wp=(12, 8, 1, 1), wy=(10, 12),
    )  # fmt: skip


@graph(4, "w1 w2 v1 v2 wy wd")
def siamese_on_two_streams() -> Net:
    """A depthwise convolution in two branches that are otherwise apart: it ties their channels.
    Groups: those, the layers behind, and what both end in.
    """
    branch = """a{0} = Conv3(x, w{0}) r{0} = Relu(a{0}) d{0} = Conv<pads=[1,1,1,1], group=8>
        (r{0}, wd) s{0} = Relu(d{0}) f{0} = Conv(s{0}, v{0}) t{0} = Relu(f{0})
        """
    return net(
        IMAGE,
        branch.format(1) + branch.format(2)
        + """c = Concat<axis=1>(t1, t2) e = Conv(c, wc) p = GlobalAveragePool(e) f = Flatten(p)
        y = Gemm<transB=1>(f, wy)""",
        w1=(8, 3, 3, 3), w2=(8, 3, 3, 3), wd=(8, 1, 3, 3), v1=(12, 8, 1, 1), v2=(16, 8, 1, 1),
        wc=(6, 28, 1, 1), wy=(10, 6),
    )  # fmt: skip


@graph(1, "w1 wy", stay="shape")
def weights_and_numbers() -> Net:
    """Constants that are also numbers: a vector of scales and its sum, the root of a weight's
    width, a target of a Reshape and the same three numbers as factors. Group: places in the two
    halves of the hidden layer. The scales stay whole where they are summed, the target where it
    is multiplied.
    """
    return net(
        "(float[N,4] x, float[N,3] z) => (float[N,5] y, float[N,3] u)",
        """a = MatMul(x, w1) b = Mul(a, scale) g = Reshape(b, shape) gr = Relu(g)
        gt = Reshape(gr, flat) o = MatMul(gt, wy)
        total = ReduceSum<keepdims=0>(scale) ot = Mul(o, total)
        size = Shape<start=1>(w1) real = Cast<to=1>(size) root = Sqrt(real) y = Div(ot, root)
        numbers = Cast<to=1>(shape) u = Mul(z, numbers)""",
        w1=(4, 16), scale=np.arange(1, 17, dtype=np.float32) / 8, wy=(16, 5), shape=[0, 2, 8],
        flat=[0, -1],
    )  # fmt: skip


# ---- constants that differ ----------------------------------------------------------------------


LAYER = """a{0} = MatMul({1}, u{0}) p{0} = Add(a{0}, table) r{0} = Relu(p{0})
    h{0} = MatMul(r{0}, v{0}) """


@graph(2, "u0 v0 u1 v1")
def table_added_twice() -> Net:
    """A table of positions, added to two hidden layers that have nothing to do with each other.
    Groups: both layers; the table is stored twice.
    """
    return net(
        "(float[N,6,4] x) => (float[N,6,4] y)",
        LAYER.format(0, "x") + "s = Add(x, h0)" + LAYER.format(1, "s") + "y = Add(s, h1)",
        u0=(4, 16), v0=(16, 4), u1=(4, 16), v1=(16, 4), table=(6, 16),
    )  # fmt: skip


@graph(2, "u0 v0 u1 v1", opset=13)
def table_in_two_layouts() -> Net:
    """The same by way of a Transpose, and scaled in a second layer: uses of what was computed from
    the table. Groups: both layers.
    """
    return net(
        "(float[N,6,4] x) => (float[N,6,4] y)",
        "straight = Transpose<perm=[1,0]>(c0)" + LAYER.format(0, "x").replace("table", "straight")
        + """s = Add(x, h0) a1 = MatMul(s, u1) turned = Transpose<perm=[1,0]>(c0)
        p1 = Mul(a1, turned) r1 = Relu(p1) h1 = MatMul(r1, v1) y = Add(s, h1)""",
        u0=(4, 16), v0=(16, 4), u1=(4, 16), v1=(16, 4), c0=(16, 6),
    )  # fmt: skip


def _attention(k: int, x: str, bias: str = "", turn: str = "") -> str:
    """Four heads of 8 on 16 channels; ``bias`` is added to the scores."""
    parts = "".join(
        f"{n}{k} = MatMul({x}, w{n}{k}) {n}h{k} = Reshape({n}{k}, heads)\n"
        f"{n}t{k} = Transpose<perm=[0,2,1,3]>({n}h{k})\n"
        for n in "qkv"
    )
    q, key = (f"{n}r{k}" if turn else f"{n}t{k}" for n in "qk")
    return f"""{parts} {turn.format(k)}
        kk{k} = Transpose<perm=[0,1,3,2]>({key}) s{k} = MatMul({q}, kk{k})
        b{k} = Add(s{k}, {bias or "never"}) p{k} = Softmax<axis=-1>(b{k}) c{k} = MatMul(p{k}, vt{k})
        ct{k} = Transpose<perm=[0,2,1,3]>(c{k}) cf{k} = Reshape(ct{k}, flat)
        o{k} = MatMul(cf{k}, wo{k}) """


def _heads(layers: int = 2) -> dict[str, Weight]:
    shapes = {"wq": (16, 32), "wk": (16, 32), "wv": (16, 32), "wo": (32, 16)}
    weights: dict[str, Weight] = {f"{n}{k}": s for k in range(layers) for n, s in shapes.items()}
    return {**weights, "heads": [0, 0, 4, 8], "flat": [0, 0, 32]}


QKVO = "wq0 wk0 wv0 wo0 wq1 wk1 wv1 wo1"


@graph(2, QKVO)
def bias_of_heads() -> Net:
    """A bias for each head, added to the scores of two layers. Groups: the heads of each layer;
    the bias is stored twice.
    """
    return net(
        "(float[N,6,16] x) => (float[N,6,16] y)",
        _attention(0, "x", "bias") + "e = Add(x, o0)" + _attention(1, "e", "bias")
        + "y = Add(e, o1)",
        **_heads(), bias=(1, 4, 6, 6),
    )  # fmt: skip


@graph(2, QKVO, dims="N T")
def bias_of_heads_sliced() -> Net:
    """The same for a sequence of any length: each layer takes its part of the bias by Slice.
    Groups: the heads of each layer.
    """
    cut = """size{0} = Shape<start=1, end=2>(x) row{0} = Slice(bias, i0, size{0}, i2)
        part{0} = Slice(row{0}, i0, size{0}, i3) """
    return net(
        "(float[N,T,16] x) => (float[N,T,16] y)",
        cut.format(0) + _attention(0, "x", "part0") + "e = Add(x, o0)"
        + cut.format(1) + _attention(1, "e", "part1") + "y = Add(e, o1)",
        **_heads(), bias=(1, 4, 16, 16), i0=[0], i2=[2], i3=[3],
    )  # fmt: skip


ROTATED = """qa{0}, qb{0} = Split<axis=-1>(qt{0}, halves) qn{0} = Neg(qb{0})
    qx{0} = Concat<axis=-1>(qn{0}, qa{0}) qc{0} = Mul(qt{0}, cos) qs{0} = Mul(qx{0}, sin)
    qr{0} = Add(qc{0}, qs{0})
    ka{0}, kb{0} = Split<axis=-1>(kt{0}, halves) kn{0} = Neg(kb{0})
    kx{0} = Concat<axis=-1>(kn{0}, ka{0}) kc{0} = Mul(kt{0}, cos) ks{0} = Mul(kx{0}, sin)
    kr{0} = Add(kc{0}, ks{0}) """


@graph(2, QKVO)
def rotations_of_two_layers() -> Net:
    """Tables of cosines and sines that two layers share. Groups: the heads of each layer, or the
    dimensions of each, in pairs; the tables are stored twice then.
    """
    return net(
        "(float[N,6,16] x) => (float[N,6,16] y)",
        _attention(0, "x", turn=ROTATED) + "e = Add(x, o0)" + _attention(1, "e", turn=ROTATED)
        + "y = Add(e, o1)",
        **_heads(), cos=_angles(np.cos), sin=_angles(np.sin), halves=[4, 4],
        never=np.zeros((1, 1, 1, 1), np.float32),
    )  # fmt: skip


def _angles(wave: np.ufunc) -> Array:
    """[6, 8]: both halves alike."""
    angles = np.outer(np.arange(6), 10.0 ** -np.arange(4))
    return np.tile(wave(angles), 2).astype(np.float32)
