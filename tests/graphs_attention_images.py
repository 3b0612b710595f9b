"""Proof graphs: attention in windows, over pooled maps and between patches of images.

The batch is dynamic and is multiplied with windows, heads or channels in one axis; 4 heads of 6
(see `graphs_attention_forms`).
"""

from __future__ import annotations

import numpy as np

from .graph_builder import Net, Weight, net, scalar
from .graphs_attention_forms import FUSED, HEADS, form
from .graphs_sequence import attend, heads

IMAGE = "(float[N,3,16,16] x) => (float[N,10] y)"
STEM = "s = Conv<strides=[2,2]>(x, w0)\n"
NHWC = STEM + "t = Transpose<perm=[0,2,3,1]>(s)\n"
MIX = """m = MatMul(win, wqkv) a = Add(m, bqkv) r = Reshape(a, five)
    h = Transpose<perm=[2,0,3,1,4]>(r) q = Gather<axis=0>(h, i0) k = Gather<axis=0>(h, i1)
    v = Gather<axis=0>(h, i2)\n"""
MEAN = "p = ReduceMean<axes=[1,2], keepdims=0>(e) y = MatMul(p, wy)"
BASE: dict[str, Weight] = {
    "w0": (24, 3, 2, 2), "wy": (24, 10), "five": [0, 0, 3, 4, 6], "i0": scalar(0),
    "i1": scalar(1), "i2": scalar(2), **FUSED,
}  # fmt: skip


def roll(x: str, y: str, by: int) -> str:
    """torch.roll along axes 1 and 2 of 8, by -`by`: Slice and Concat."""
    parts = ""
    for axis, (a, b) in ((1, (x, f"{y}r")), (2, (f"{y}r", y))):
        parts += f"""{b}1 = Slice({a}, n{by}, far, ax{axis}) {b}2 = Slice({a}, n0, n{by}, ax{axis})
            {b} = Concat<axis={axis}>({b}1, {b}2)\n"""
    return parts


@form("24 w0 wqkv wo wy; 4 wqkv bqkv wo table", "24 w0 wqkv wo wy; 6 wqkv bqkv wo")
def shifted_windows() -> Net:
    """Swin: rolled, cut into windows (batch times windows in one axis), a bias table, and a mask
    for each window, added with that axis taken apart. Groups: the stream, heads."""
    rows = np.arange(4)
    y, x = (a.ravel() for a in np.meshgrid(rows, rows, indexing="ij"))
    place = (y[:, None] - y + 3) * 7 + (x[:, None] - x + 3)
    return net(
        IMAGE,
        NHWC + roll("t", "u", 2) + """a6 = Reshape(u, windows)
        b6 = Transpose<perm=[0,1,3,2,4,5]>(a6) win = Reshape(b6, tokens)\n""" + MIX
        + """gt = Gather<axis=0>(table, place) g3 = Reshape(gt, pairs)
        gp = Transpose<perm=[2,0,1]>(g3) bias = Unsqueeze(gp, i0u)
        kt = Transpose<perm=[0,1,3,2]>(k) qk = MatMul(q, kt) ss = Mul(qk, half)
        sb = Add(ss, bias) s5 = Reshape(sb, apart) sm = Add(s5, mask) s4 = Reshape(sm, joined)
        pr = Softmax<axis=-1>(s4) av = MatMul(pr, v) at = Transpose<perm=[0,2,1,3]>(av)
        o = Reshape(at, merged) po = MatMul(o, wo) c6 = Reshape(po, windows4)
        d6 = Transpose<perm=[0,1,3,2,4,5]>(c6) image = Reshape(d6, whole)\n"""
        + roll("image", "back", 6) + "e = Add(t, back)" + MEAN,
        n0=[0], n2=[2], n6=[6], far=[2**62], ax1=[1], ax2=[2], windows=[0, 2, 4, 2, 4, 24],
        tokens=[-1, 16, 24], table=(49, 4), place=place.ravel(), pairs=[16, 16, 4], i0u=[0],
        apart=[-1, 4, 4, 16, 16], mask=(4, 1, 16, 16), joined=[-1, 4, 16, 16],
        windows4=[-1, 2, 2, 4, 4, 24], whole=[0, 8, 8, 24], **BASE,
    )  # fmt: skip


@form("24 w0 wqkv wo wy; 4 wqkv bqkv wo", "24 w0 wqkv wo wy; 6 wqkv bqkv; 6 wqkv bqkv wo")
def grid_attention() -> Net:
    """MaxViT: every second pixel in one grid; queries, keys and values inside the heads."""
    return net(
        IMAGE,
        NHWC + """a6 = Reshape(t, grid) b6 = Transpose<perm=[0,2,4,1,3,5]>(a6)
        win = Reshape(b6, tokens) m = MatMul(win, wqkv) a = Add(m, bqkv) r = Reshape(a, wide)
        h = Transpose<perm=[0,2,1,3]>(r) q, k, v = Split<axis=-1>(h, sizes)\n"""
        + attend() + """po = MatMul(o, wo) c6 = Reshape(po, back)
        d6 = Transpose<perm=[0,3,1,4,2,5]>(c6) image = Reshape(d6, whole)
        e = Add(t, image)""" + MEAN,
        w0=(24, 3, 2, 2), wy=(24, 10), grid=[0, 4, 2, 4, 2, 24], tokens=[-1, 16, 24],
        wide=[0, 0, 4, 18], sizes=[6, 6, 6], back=[-1, 2, 2, 4, 4, 24], whole=[-1, 8, 8, 24],
        **FUSED,
    )  # fmt: skip


@form("24 w0 wqkv wo wy; 4 wqkv bqkv wo", "24 w0 wqkv wo wy; 6 wqkv bqkv wo")
def unfolded_patches() -> Net:
    """MobileViT: (B*C*4, 2, 4, 2) and back, so that batch and channels share an axis."""
    return net(
        IMAGE,
        STEM + """u4 = Reshape(s, rows) ut = Transpose<perm=[0,2,1,3]>(u4)
        p4 = Reshape(ut, patches) pt = Transpose<perm=[0,3,2,1]>(p4) win = Reshape(pt, tokens)\n"""
        + MIX + attend() + """po = MatMul(o, wo) b4 = Reshape(po, apart)
        bt = Transpose<perm=[0,3,2,1]>(b4) f4 = Reshape(bt, rows2)
        ft = Transpose<perm=[0,2,1,3]>(f4) image = Reshape(ft, whole) e = Add(s, image)
        p = ReduceMean<axes=[2,3], keepdims=0>(e) y = MatMul(p, wy)""",
        rows=[-1, 2, 4, 2], patches=[-1, 24, 16, 4], tokens=[-1, 16, 24], apart=[-1, 4, 16, 24],
        rows2=[-1, 4, 2, 2], whole=[-1, 24, 8, 8], **BASE,
    )  # fmt: skip


@form("24 w0 wq wk wv; 4 wq wk wv wo", "24 w0 wq wk wv; 6 wq wk pq pk; 6 wv wo pv")
def pooled_attention() -> Net:
    """MViT: the map of every head is pooled by a depthwise convolution, batch and heads in one
    axis. Groups: the stream, heads."""
    pool = "".join(
        f"{n}m = MatMul(z, w{n})" + heads(f"{n}m", f"{n}h")
        + f"""{n}i = Reshape({n}h, maps) {n}c = Transpose<perm=[0,3,1,2]>({n}i)
        {n}p = Conv<group=6, strides=[2,2], pads=[1,1,1,1]>({n}c, p{n}) {n}a = Reshape({n}p, apart)
        {n} = Transpose<perm=[0,1,3,2]>({n}a)\n"""
        for n in "qkv"
    )  # fmt: skip
    return net(
        "(float[N,3,16,16] x) => (float[N,16,10] y)",
        STEM + "f = Reshape(s, flat) z = Transpose<perm=[0,2,1]>(f)" + pool + attend()
        + "y = MatMul(o, wo)",
        w0=(24, 3, 2, 2), flat=[0, 24, -1], maps=[-1, 8, 8, 6], apart=[-1, 4, 6, 16],
        **{f"w{n}": (24, 24) for n in "qkv"}, **{f"p{n}": (6, 1, 3, 3) for n in "qkv"},
        **{**HEADS, "wo": (24, 10)},
    )  # fmt: skip


@form("24 w0 dq dk dv wq wk wv wo wy; 4 wq wk wv wo",
      "24 w0 dq dk dv wq wk wv wo wy; 6 wq wk; 6 wv wo")  # fmt: skip
def convolved_projections() -> Net:
    """CvT: depthwise convolutions in front of the projections, with a stride for keys and values;
    the result is a map again. Groups: the stream, heads."""
    project = "".join(
        f"""{n}d = Conv<group=24, strides={stride}, pads=[1,1,1,1]>(s, d{n})
        {n}f = Reshape({n}d, flat) {n}r = Transpose<perm=[0,2,1]>({n}f)
        {n}m = MatMul({n}r, w{n})\n"""
        + heads(f"{n}m", n)
        for n, stride in (("q", "[1,1]"), ("k", "[2,2]"), ("v", "[2,2]"))
    )
    return net(
        IMAGE,
        STEM + project + attend() + """po = MatMul(o, wo) b = Transpose<perm=[0,2,1]>(po)
        image = Reshape(b, whole) e = Add(s, image) p = ReduceMean<axes=[2,3], keepdims=0>(e)
        y = MatMul(p, wy)""",
        w0=(24, 3, 2, 2), wy=(24, 10), flat=[0, 24, -1], whole=[0, 24, 8, 8],
        **{f"w{n}": (24, 24) for n in "qkv"}, **{f"d{n}": (24, 1, 3, 3) for n in "qkv"}, **HEADS,
    )  # fmt: skip
