"""Proof graphs: what happens to queries, keys, scores and heads inside attention.

Rotary embeddings, biases, gates and norms; 4 heads of 6 (see `graphs_attention_forms`).
"""

from __future__ import annotations

import numpy as np

from .graph_builder import Net, Weight, net, scalar
from .graphs_attention_forms import HEADS, OUT, PLACES, ROWS, SEPARATE, TOKENS, form
from .graphs_sequence import attend, heads, qkv

LENGTH = """sh = Shape(x) t = Gather<axis=0>(sh, i1) tu = Unsqueeze(t, ax)\n"""
END: dict[str, Weight] = {"i1": scalar(1), "ax": [0]}
POSITIONS: dict[str, Weight] = {"i0": scalar(0), **END}
TABLE = LENGTH + "c = Slice(cos, ax, tu, ax) s = Slice(sin, ax, tu, ax)\n"


def _turned(before: str, turn: str, **more: Weight) -> Net:
    """Queries and keys pass `turn`, which makes {n} of {n}0 [N,H,T,D]."""
    names = {"q": "q0", "k": "k0", "v": "v"}
    project = "".join(f"{n}m = MatMul(x, w{n})" + heads(f"{n}m", m) for n, m in names.items())
    rotate = "".join(turn.format(n=n) + "\n" for n in "qk")
    return net(TOKENS, before + project + rotate + attend() + OUT, **SEPARATE, **more)


HALVES = """{n}a = Slice({n}0, z0, z3, z3) {n}b = Slice({n}0, z3, z6, z3) {n}n = Neg({n}b)
    {n}h = Concat<axis=-1>({n}n, {n}a) {n}c = Mul({n}0, c) {n}s = Mul({n}h, s)
    {n} = Add({n}c, {n}s)"""
CUTS: dict[str, Weight] = {"z0": [0], "z3": [3], "z6": [2**62]}


@form(ROWS, "3 wq wk cos sin; 6 wv wo", dims="N T")
def rotary_halves() -> Net:
    """x * cos + (-x2, x1) * sin with caches [16,6]: places d and d + 3 go together."""
    return _turned(TABLE, HALVES, cos=(16, 6), sin=(16, 6), **END, **CUTS)


@form(ROWS, "3 wq wk inv; 6 wv wo", dims="N T")
def rotary_computed() -> Net:
    """Angles are made of the positions Range(T) and three frequencies, doubled by Concat."""
    angles = """r = Range(i0, t, i1) rf = Cast<to=1>(r) ru = Unsqueeze(rf, i1u) f = Mul(ru, inv)
        e = Concat<axis=-1>(f, f) c = Cos(e) s = Sin(e)\n"""
    return _turned(LENGTH + angles, HALVES, i1u=[1], inv=3, **POSITIONS, **CUTS)


@form(ROWS, "2 wq wk; 2 wq wk; 6 wv wo", dims="N T")
def rotary_partial() -> Net:
    """Four of the six places turn, the others pass."""
    angles = """r = Range(i0, t, i1) rf = Cast<to=1>(r) ru = Unsqueeze(rf, i1u) f = Mul(ru, slow)
        c = Cos(f) s = Sin(f)\n"""
    return _turned(
        LENGTH + angles,
        """{n}p, {n}r = Split<axis=-1>({n}0, four_two) {n}a, {n}b = Split<axis=-1>({n}p, two_two)
        {n}n = Neg({n}b) {n}h = Concat<axis=-1>({n}n, {n}a) {n}c = Mul({n}p, c)
        {n}s = Mul({n}h, s) {n}y = Add({n}c, {n}s) {n} = Concat<axis=-1>({n}y, {n}r)""",
        i1u=[1], slow=0.1, four_two=[4, 2], two_two=[2, 2], **POSITIONS,
    )  # fmt: skip


PAIRS = """{n}ac = Mul({n}a, c) {n}bs = Mul({n}b, s) {n}as = Mul({n}a, s) {n}bc = Mul({n}b, c)
    {n}e = Sub({n}ac, {n}bs) {n}o = Add({n}as, {n}bc) {n}eu = Unsqueeze({n}e, end)
    {n}ou = Unsqueeze({n}o, end) {n}p = Concat<axis=-1>({n}eu, {n}ou) {n} = Reshape({n}p, flat)"""


@form(ROWS, "3 wq wk cos sin; 6 wv wo", dims="N T")
def rotary_strided() -> Net:
    """Pairs of neighbours, taken by slices with a step of 2 and put back by Concat and Reshape."""
    slices = "{n}a = Slice({n}0, z0, z6, z3, z2) {n}b = Slice({n}0, z1, z6, z3, z2)\n"
    return _turned(
        TABLE, slices + PAIRS, cos=(16, 3), sin=(16, 3), z1=[1], z2=[2], end=[4],
        flat=[0, 0, 0, -1], **END, **CUTS,
    )  # fmt: skip


@form(ROWS, "3 wq wk cos sin; 6 wv wo", dims="N T")
def rotary_pairs() -> Net:
    """Pairs of neighbours, by a Reshape to (…, 3, 2) and Split."""
    split = """{n}5 = Reshape({n}0, pairs) {n}a5, {n}b5 = Split<axis=-1>({n}5, ones)
        {n}a = Squeeze({n}a5, end) {n}b = Squeeze({n}b5, end)\n"""
    return _turned(
        TABLE, split + PAIRS, cos=(16, 3), sin=(16, 3), pairs=[0, 0, 0, 3, 2], ones=[1, 1],
        end=[4], flat=[0, 0, 0, 6], **END,
    )  # fmt: skip


@form(ROWS, "~6 wq wk qn_s kn_s; 6 wv wo", dims="N T")
def normalised_queries() -> Net:
    """RMS norms over the places of queries and keys: the mean looks across them, not the heads."""
    return _turned(
        "",
        """{n}2 = Mul({n}0, {n}0) {n}3 = ReduceMean<axes=[-1]>({n}2) {n}4e = Add({n}3, eps)
        {n}5 = Sqrt({n}4e) {n}6 = Div({n}0, {n}5) {n} = Mul({n}6, {n}n_s)""",
        eps=1e-5, qn_s=6, kn_s=6,
    )  # fmt: skip


@form("4 wq wk wv wo scales", PLACES, dims="N T")
def cosine_attention() -> Net:
    """F.normalize of queries and keys, a bounded scale for each head (Swin v2)."""
    return _turned(
        "",
        """{n}1 = ReduceL2<axes=[-1]>({n}0) {n}2 = Clip({n}1, eps) {n}3 = Shape({n}0)
        {n}e = Expand({n}2, {n}3) {n}f = Div({n}0, {n}e) {n}g = Min(scales, top)
        {n}h = Exp({n}g) {n} = Mul({n}f, {n}h)""",
        eps=1e-12, scales=(4, 1, 1), top=4.6,
    )  # fmt: skip


# ---- scores and heads ---------------------------------------------------------------------


@form("4 wq wk wv wo table", PLACES, dims="N T")
def bucketed_bias() -> Net:
    """Distances, bounded, look up a bias for each head in a table [8,4] (T5)."""
    bias = """r = Range(i0, t, i1) ru = Unsqueeze(r, ax) rv = Unsqueeze(r, i1u) df = Sub(ru, rv)
        dl = Min(df, high) dh = Max(dl, low) at0 = Add(dh, three) g = Gather<axis=0>(table, at0)
        gt = Transpose<perm=[2,0,1]>(g) bias = Unsqueeze(gt, ax)\n"""
    return net(
        TOKENS, LENGTH + bias + qkv("x") + attend(bias="bias") + OUT,
        i1u=[1], high=scalar(4), low=scalar(-3), three=scalar(3), table=(8, 4), **POSITIONS,
        **SEPARATE,
    )  # fmt: skip


@form("4 wq wk wv wo table", PLACES)
def indexed_bias() -> Net:
    """A table [9,4] gathered by constant positions, twice reshaped, turned (BEiT)."""
    place = (np.arange(5)[:, None] - np.arange(5) + 4).ravel()
    return net(
        "(float[N,5,24] x) => (float[N,5,24] y)",
        """g = Gather<axis=0>(table, place) g3 = Reshape(g, pairs) gt = Transpose<perm=[2,0,1]>(g3)
        bias = Unsqueeze(gt, ax)\n""" + qkv("x") + attend(bias="bias") + OUT,
        table=(9, 4), place=place, pairs=[5, 5, -1], ax=[0], **SEPARATE,
    )  # fmt: skip


@form("4 wq wk p1; 4 p1 c1 p2; 4 p2 c2 wv wo", "6 wq wk; 4 p1 c1 p2; 6 wv wo", dims="N T")
def talking_heads() -> Net:
    """Matrices mix the heads of the scores before and after the softmax."""
    mix = """{b}t = Transpose<perm=[0,2,3,1]>({a}) {b}m = MatMul({b}t, {w}) {b}a = Add({b}m, {c})
        {b} = Transpose<perm=[0,3,1,2]>({b}a)\n"""
    return net(
        TOKENS,
        qkv("x") + "kt = Transpose<perm=[0,1,3,2]>(k) qk = MatMul(q, kt) ss = Mul(qk, half)\n"
        + mix.format(a="ss", b="s1", w="p1", c="c1") + "pr = Softmax<axis=-1>(s1)\n"
        + mix.format(a="pr", b="s2", w="p2", c="c2")
        + "av = MatMul(s2, v) at = Transpose<perm=[0,2,1,3]>(av) o = Reshape(at, merged)" + OUT,
        p1=(4, 4), c1=4, p2=(4, 4), c2=4, **SEPARATE,
    )  # fmt: skip


@form("24 we bo gamma wq wk wv wg wo wy; 4 wq wk wv wg wo",
      "24 we bo gamma wq wk wv wg wo wy; 6 wq wk; 6 wv wo", dims="N T")  # fmt: skip
def gated_heads() -> Net:
    """A gate for each head, and a scale for each channel of the branch (LayerScale)."""
    return net(
        TOKENS,
        "e = MatMul(x, we)" + qkv("e")
        + """gm = MatMul(e, wg) gs = Sigmoid(gm) gt = Transpose<perm=[0,2,1]>(gs)
        gate = Unsqueeze(gt, end) kt = Transpose<perm=[0,1,3,2]>(k) qk = MatMul(q, kt)
        ss = Mul(qk, half) pr = Softmax<axis=-1>(ss) av = MatMul(pr, v) ag = Mul(av, gate)
        at = Transpose<perm=[0,2,1,3]>(ag) o = Reshape(at, merged) p = MatMul(o, wo)
        b = Add(p, bo) l = Mul(gamma, b) f = Add(e, l) y = MatMul(f, wy)""",
        we=(24, 24), wg=(24, 4), end=[3], bo=24, gamma=24, wy=(24, 24), **SEPARATE,
    )  # fmt: skip


@form("4 wq wk wv wo heat", "6 wq wo", dims="N T")
def channel_attention() -> Net:
    """Attention between the places of a head (XCA): those of keys and values stay, since the
    softmax runs over them; those of queries go with the output."""
    turned = "".join(
        f"{n}m = MatMul(x, w{n}) {n}4 = Reshape({n}m, split4)"
        f" {n} = Transpose<perm=[0,2,3,1]>({n}4)\n"
        for n in "qkv"
    )
    unit = "".join(f"{n}n = LpNormalization<axis=-1, p=2>({n})\n" for n in "qk")
    return net(
        TOKENS,
        turned + unit + """kt = Transpose<perm=[0,1,3,2]>(kn) qk = MatMul(qn, kt)
        ss = Mul(qk, heat) pr = Softmax<axis=-1>(ss) av = MatMul(pr, v)
        at = Transpose<perm=[0,3,1,2]>(av) o = Reshape(at, merged)""" + OUT,
        heat=(4, 1, 1), **{k: w for k, w in SEPARATE.items() if k != "half"},
    )  # fmt: skip


@form(ROWS, PLACES, dims="N T")
def linear_attention() -> Net:
    """(q (k' v)) / (q sum(k)), without a softmax."""
    return net(
        TOKENS,
        qkv("x") + """qp = Relu(q) kp = Relu(k) kt = Transpose<perm=[0,1,3,2]>(kp)
        kv = MatMul(kt, v) ks = ReduceSum(kp, two) kst = Transpose<perm=[0,1,3,2]>(ks)
        z = MatMul(qp, kst) n = MatMul(qp, kv) za = Add(z, one)
        av = Div(n, za) at = Transpose<perm=[0,2,1,3]>(av)
        o = Reshape(at, merged)""" + OUT,
        one=1.0, two=[2], **{f"w{n}": (24, 24) for n in "qkv"},
        **{k: w for k, w in HEADS.items() if k != "half"},
    )  # fmt: skip
