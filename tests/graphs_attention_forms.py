"""Proof graphs: attention of tokens as exporters write it (see `graph_builder` for the rules).

All have 4 heads of 6, so that heads and head dimensions cannot be taken for each other. What must
be found with either carrier is stated by `form`, group by group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from .graph_builder import Net, Weight, graph, net, scalar
from .graphs_sequence import attend, heads, qkv

FORMS: dict[str, dict[str, str]] = {}
"""By graph and carrier the groups of more than one unit: ``units weight weight; …``, with a ``~``
in front of an inexact one."""


def form(
    by_heads: str, by_dims: str, **options: Any
) -> Callable[[Callable[[], Net]], Callable[[], onnx.ModelProto]]:
    """`graph`, with the groups that either carrier must find."""
    groups = [group.split() for group in by_heads.split(";")]
    shrink = sorted({weight for _, *weights in groups for weight in weights})
    register = graph(len(groups), " ".join(shrink), **options)

    def remember(function: Callable[[], Net]) -> Callable[[], onnx.ModelProto]:
        FORMS[function.__name__] = {"heads": by_heads, "head-dim": by_dims}
        return register(function)

    return remember


TOKENS = "(float[N,T,24] x) => (float[N,T,24] y)"
OUT = "y = MatMul(o, wo)"
MERGE: dict[str, Weight] = {"merged": [0, 0, 24], "half": 0.5, "wo": (24, 24)}
HEADS: dict[str, Weight] = {"split4": [0, 0, 4, 6], **MERGE}
SEPARATE: dict[str, Weight] = {**{f"w{n}": (24, 24) for n in "qkv"}, **HEADS}
FUSED: dict[str, Weight] = {"wqkv": (24, 72), "bqkv": 72, **MERGE}
MIXED = "m = MatMul(x, wqkv) a = Add(m, bqkv)\n"
ROWS = "4 wq wk wv wo"
PLACES = "6 wq wk; 6 wv wo"


# ---- fused queries, keys and values -------------------------------------------------------


@form("4 wqkv bqkv wo", "6 wqkv bqkv wo", dims="N T")
def fused_five_split() -> Net:
    """(B,T,3,H,D), turned, Split in three, Squeeze. One Reshape ties the places of all three."""
    cut = "".join(f"{n} = Squeeze({n}5, first)\n" for n in "qkv")
    return net(
        TOKENS,
        MIXED + "r = Reshape(a, five) t = Transpose<perm=[2,0,3,1,4]>(r)"
        + "q5, k5, v5 = Split<axis=0>(t, ones)" + cut + attend() + OUT,
        five=[0, 0, 3, 4, 6], ones=[1, 1, 1], first=[0], **FUSED,
    )  # fmt: skip


@form("4 wqkv bqkv wo", "6 wqkv bqkv wo", dims="N T")
def fused_five_slice() -> Net:
    """(B,T,3,H,D), Slice of the 3, Squeeze."""
    cut = "".join(
        f"{n}5 = Slice(r, at{i}, at{i + 1}, two) {n}4 = Squeeze({n}5, two)"
        f" {n} = Transpose<perm=[0,2,1,3]>({n}4)\n"
        for i, n in enumerate("qkv")
    )
    return net(
        TOKENS, MIXED + "r = Reshape(a, five)" + cut + attend() + OUT,
        five=[0, 0, 3, 4, 6], at0=[0], at1=[1], at2=[2], at3=[3], two=[2], **FUSED,
    )  # fmt: skip


@form("4 wqkv bqkv wo", "6 wqkv bqkv; 6 wqkv bqkv wo", dims="N T")
def fused_inside_heads() -> Net:
    """(B,H,T,3D): queries, keys and values of one head lie together (GPT-NeoX)."""
    return net(
        TOKENS,
        MIXED + """r = Reshape(a, wide) t = Transpose<perm=[0,2,1,3]>(r)
        q, k, v = Split<axis=-1>(t, sizes)""" + attend() + OUT,
        wide=[0, 0, 4, 18], sizes=[6, 6, 6], **FUSED,
    )  # fmt: skip


@form("4 wqkv bqkv wo slopes", "6 wqkv bqkv wo", dims="N T")
def batched_heads_alibi() -> Net:
    """(B,T,H,3,D), Gather of the 3, batch times heads in one axis, one slope per head, and the
    batch found again by dividing that axis (BLOOM)."""
    flat = "".join(
        f"{n}5 = Gather<axis=3>(r, i{i}) {n}t = Transpose<perm={perm}>({n}5)"
        f" {n} = Reshape({n}t, {target})\n"
        for i, (n, perm, target) in enumerate(
            [("q", "[0,2,1,3]", "btd"), ("k", "[0,2,3,1]", "bdt"), ("v", "[0,2,1,3]", "btd")]
        )
    )
    return net(
        TOKENS,
        """sh = Shape(x) n = Gather<axis=0>(sh, i0) t = Gather<axis=0>(sh, i1) nh = Mul(n, c4)
        nu = Unsqueeze(n, ax) tu = Unsqueeze(t, ax) nhu = Unsqueeze(nh, ax)
        btd = Concat<axis=0>(nhu, tu, d6) bdt = Concat<axis=0>(nhu, d6, tu)
        four = Concat<axis=0>(nu, h4, tu, tu) three = Concat<axis=0>(nhu, tu, tu)\n"""
        + MIXED + "r = Reshape(a, five)" + flat
        + """qk = MatMul(q, k) ss = Mul(qk, half) s4 = Reshape(ss, four)
        tr = Range(i0, t, i1) tf = Cast<to=1>(tr) al = Mul(slopes, tf) sb = Add(s4, al)
        p4 = Softmax<axis=-1>(sb) p = Reshape(p4, three) av = MatMul(p, v) vs = Shape(av)
        bh = Gather<axis=0>(vs, i0) b = Div(bh, c4) bu = Unsqueeze(b, ax)
        split = Concat<axis=0>(bu, h4, tu, d6) a4 = Reshape(av, split)
        at = Transpose<perm=[0,2,1,3]>(a4) o = Reshape(at, merged)""" + OUT,
        i0=scalar(0), i1=scalar(1), i2=scalar(2), c4=scalar(4), ax=[0], d6=[6], h4=[4],
        five=[0, 0, 4, 3, 6], slopes=(4, 1, 1), **FUSED,
    )  # fmt: skip


# ---- modules of PyTorch -------------------------------------------------------------------


@form("4 wq wk wv wo", "6 wq wk; 6 wv wo", dims="T N")
def batched_heads() -> Net:
    """nn.MultiheadAttention: (T,N,E) to (T,N*H,D) by a computed product, and back to (T*N,E)."""
    split = "".join(f"{n}m = MatMul(x, w{n}) {n}r = Reshape({n}m, three)\n" for n in "qkv")
    return net(
        "(float[T,N,24] x) => (float[T,N,24] y)",
        """sh = Shape(x) t = Gather<axis=0>(sh, i0) n = Gather<axis=0>(sh, i1) nh = Mul(n, c4)
        nu = Unsqueeze(n, ax) tu = Unsqueeze(t, ax) nhu = Unsqueeze(nh, ax)
        three = Concat<axis=0>(tu, nhu, d6)\n""" + split
        + """q = Transpose<perm=[1,0,2]>(qr) k = Transpose<perm=[1,2,0]>(kr)
        v = Transpose<perm=[1,0,2]>(vr) qs = Mul(q, half) qk = MatMul(qs, k)
        p = Softmax<axis=-1>(qk) av = MatMul(p, v) at = Transpose<perm=[1,0,2]>(av)
        tn = Mul(t, n) tnu = Unsqueeze(tn, ax) rows = Concat<axis=0>(tnu, e24)
        ar = Reshape(at, rows) g = Gemm<transB=1>(ar, wo, bo)
        back = Concat<axis=0>(tu, nu, e24) y = Reshape(g, back)""",
        i0=scalar(0), i1=scalar(1), c4=scalar(4), ax=[0], d6=[6], e24=[24], half=0.5,
        **{f"w{n}": (24, 24) for n in "qkvo"}, bo=24,
    )  # fmt: skip


@form("4 wq wk wv wo", "6 wq wk; 6 wv wo", dims="T N")
def batched_heads_inferred() -> Net:
    """The same with -1 for the batch times heads, which are then told apart for a product with
    four axes, scaled by a number computed from Shape."""
    split = "".join(
        f"{n}m = MatMul(x, w{n}) {n}r = Reshape({n}m, three) {n}b = Transpose<perm=[1,0,2]>({n}r)"
        f" {n} = Reshape({n}b, four)\n"
        for n in "qkv"
    )
    return net(
        "(float[T,N,24] x) => (float[T,N,24] y)",
        "three = Concat<axis=0>(same, rest, d6) sh = Shape(x) tu = Slice(sh, k0, k1)"
        "four = Concat<axis=0>(rest, h4, tu, d6)" + split
        + """s = Shape(q) d = Slice(s, last, end) df = Cast<to=1>(d) sq = Sqrt(df)
        sc = Div(one, sq) root = Sqrt(sc) kt = Transpose<perm=[0,1,3,2]>(k) qs = Mul(q, root)
        ks = Mul(kt, root) qk = MatMul(qs, ks) p = Softmax<axis=-1>(qk) av = MatMul(p, v)
        at = Transpose<perm=[2,0,1,3]>(av) ar = Reshape(at, rows) g = MatMul(ar, wo)
        y = Reshape(g, sh)""",
        same=[0], rest=[-1], d6=[6], h4=[4], k0=[0], k1=[1], last=[-1], end=[2**62],
        one=np.array([1], np.float32), rows=[-1, 24], **{f"w{n}": (24, 24) for n in "qkvo"},
    )  # fmt: skip


@form(ROWS, PLACES, dims="N T")
def masked_attention() -> Net:
    """A causal mask made from Shape fills the scores through Where."""
    return net(
        TOKENS,
        qkv("x") + """sh = Shape(x) t = Gather<axis=0>(sh, i1) tu = Unsqueeze(t, ax)
        tt = Concat<axis=0>(tu, tu) full = Expand(yes, tt) lower = Trilu<upper=0>(full)
        kt = Transpose<perm=[0,1,3,2]>(k) qk = MatMul(q, kt) ss = Mul(qk, half)
        keep = Cast<to=9>(lower) sb = Where(keep, ss, low) pr = Softmax<axis=-1>(sb)
        av = MatMul(pr, v) at = Transpose<perm=[0,2,1,3]>(av) o = Reshape(at, merged)""" + OUT,
        i1=scalar(1), ax=[0], yes=np.ones((1, 1), np.float32), low=-1e9, **SEPARATE,
    )  # fmt: skip


@form("4 wq wk wv wo", PLACES, dims="N T S")
def cross_attention() -> Net:
    """Keys and values of another sequence and width."""
    both = "qm = MatMul(x, wq)" + heads("qm", "q")
    both += "".join(f"{n}m = MatMul(z, w{n})" + heads(f"{n}m", n) for n in "kv")
    return net(
        "(float[N,T,24] x, float[N,S,10] z) => (float[N,T,24] y)", both + attend() + OUT,
        **{**SEPARATE, "wk": (10, 24), "wv": (10, 24)},
    )  # fmt: skip


@form("24 wo w1; 32 w1 w2", "24 wo w1; 32 w1 w2", dims="N T P", stay="wq wk wv")
def cached_attention() -> Net:
    """Keys and values are joined with inputs of the model and are outputs: heads stay; an MLP."""
    return net(
        "(float[N,T,24] x, float[N,4,P,6] pk, float[N,4,P,6] pv)"
        " => (float[N,T,24] y, float[N,4,S,6] k, float[N,4,S,6] v)",
        qkv("x").replace("k =", "kn =").replace("v =", "vn =")
        + "k = Concat<axis=2>(pk, kn) v = Concat<axis=2>(pv, vn)" + attend()
        + "p = MatMul(o, wo) h = MatMul(p, w1) r = Relu(h) y = MatMul(r, w2)",
        **SEPARATE, w1=(24, 32), w2=(32, 24),
    )  # fmt: skip


@form(ROWS, PLACES, dims="N T")
def einsum_attention() -> Net:
    """Both products are Einsums and no axis is turned."""
    return net(
        TOKENS,
        "".join(f"{n}m = MatMul(x, w{n}) {n} = Reshape({n}m, split4)\n" for n in "qkv")
        + """qk = Einsum<equation="bqhd,bkhd->bhqk">(q, k) ss = Mul(qk, half)
        pr = Softmax<axis=-1>(ss) av = Einsum<equation="bhqk,bkhd->bqhd">(pr, v)
        o = Reshape(av, merged)""" + OUT,
        **SEPARATE,
    )  # fmt: skip


@form("6 wv w1; 6 w1 b1 w2; 6 w2 wo", "6 wv w1; 6 w1 b1 w2; 6 w2 wo", dims="N T")
def merged_sequence() -> Net:
    """(B,T,H,D) to (B,T*H,D), where a matrix mixes D; no product has heads."""
    return net(
        TOKENS,
        """m = MatMul(x, wv) v = Reshape(m, flat) h = MatMul(v, w1) b = Add(h, b1) r = Relu(b)
        c = MatMul(r, w2) o = Reshape(c, merged)""" + OUT,
        wv=(24, 24), flat=[0, -1, 6], w1=(6, 6), b1=6, w2=(6, 6), merged=[0, -1, 24], wo=(24, 24),
    )  # fmt: skip


# ---- grouped queries ----------------------------------------------------------------------


def _grouped(repeat: str, **more: Weight) -> Net:
    """Two heads of keys and values, repeated for four of queries; `repeat` makes {n} of {n}h."""
    pair = "".join(
        f"{n}m = MatMul(x, w{n}) {n}r = Reshape({n}m, split2)"
        f" {n}h = Transpose<perm=[0,2,1,3]>({n}r)\n" + repeat.format(n=n)
        for n in "kv"
    )
    weights = {**SEPARATE, "wk": (24, 12), "wv": (24, 12), "split2": [0, 0, 2, 6], **more}
    return net(TOKENS, "qm = MatMul(x, wq)" + heads("qm", "q") + pair + attend() + OUT, **weights)


@form("2 wq wk wv wo", PLACES, dims="N T")
def grouped_tile() -> Net:
    """Tile: head h uses keys h % 2."""
    return _grouped("{n} = Tile({n}h, times)\n", times=[1, 2, 1, 1])


@form("2 wq wk wv wo", PLACES, dims="N T")
def grouped_gather() -> Net:
    """Gather by constant positions: head h uses keys h // 2."""
    return _grouped("{n} = Gather<axis=1>({n}h, place)\n", place=[0, 0, 1, 1])


@form("2 wq wk wv wo", PLACES, dims="N T")
def grouped_interleave() -> Net:
    """repeat_interleave: Unsqueeze, Expand by a computed shape, Reshape by -1."""
    return _grouped(
        """{n}u = Unsqueeze({n}h, two) {n}s = Shape({n}h) {n}f = Slice({n}s, zero, two)
        {n}b = Slice({n}s, two, four) {n}z = Concat<axis=0>({n}f, two, {n}b)
        {n}e = Expand({n}u, {n}z) {n}o = Concat<axis=0>(copy, h4, {n}b) {n} = Reshape({n}e, {n}o)
        """,
        zero=[0], two=[2], four=[4], copy=[0], h4=[4],
    )  # fmt: skip


@form("2 wq wk wv wo", PLACES, dims="N T")
def grouped_broadcast() -> Net:
    """Queries (B,G,H/G,T,D) against keys (B,G,1,T,D): the product repeats them."""
    five = "".join(
        f"{n}m = MatMul(x, w{n}) {n}r = Reshape({n}m, split2) {n}t = Transpose<perm={perm}>({n}r)"
        f" {n} = Unsqueeze({n}t, two)\n"
        for n, perm in (("k", "[0,2,3,1]"), ("v", "[0,2,1,3]"))
    )
    return net(
        TOKENS,
        "qm = MatMul(x, wq) qr = Reshape(qm, split5) q = Transpose<perm=[0,2,3,1,4]>(qr)" + five
        + """qk = MatMul(q, k) ss = Mul(qk, half) pr = Softmax<axis=-1>(ss) av = MatMul(pr, v)
        at = Transpose<perm=[0,3,1,2,4]>(av) o = Reshape(at, merged)""" + OUT,
        wq=(24, 24), wk=(24, 12), wv=(24, 12), split2=[0, 0, 2, 6], split5=[0, 0, 2, 2, 6],
        two=[2], **MERGE,
    )  # fmt: skip
