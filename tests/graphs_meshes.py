"""Proof graphs: slices that are written or read through the mesh of all coordinates concerned.

PyTorch's first exporter writes ``x[:, 1:] = u`` like that: a list of positions for each axis, from
Range and the sizes of x, all lists spread over each other, and their Concat given to ScatterND.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from .graph_builder import IMAGE, Array, Net, Weight, graph, head, net, scalar

END = 2**63 - 1
PLACES: dict[str, Weight] = {
    "zero": scalar(0),
    "one": scalar(1),
    "i0": [0],
    "i1": [1],
    "i2": [2],
    "end": [END],
    "last": [-1],
    **{f"at{k}": scalar(k) for k in range(4)},
    **{f"column{k}": [-1] + [1] * k for k in range(4)},
}
ROWS = "(float[N,5,12] x) => (float[N,5,3] y)"


def _placed(signature: str, body: str, **weights: Weight) -> Net:
    """A net with those of `PLACES` that it reads."""
    read = set(re.findall(r"\w+", body))
    places = {name: value for name, value in PLACES.items() if name in read}
    return net(signature, body, **places | weights)


def mesh(data: str, *lists: str) -> str:
    """The indices ``at`` of a mesh, int64[..., rank of data], and its shape. Each list is a body
    that makes {c} of {r}, the positions on one axis of the data; empty for all of these."""
    rank, text = len(lists), f"s = Shape({data})\n"
    for k, body in enumerate(lists):
        text += f"n{k} = Gather<axis=0>(s, at{k}) r{k} = Range(zero, n{k}, one)\n"
        text += body.format(r=f"r{k}", c=f"c{k}") if body else f"c{k} = Identity(r{k})"
        text += f"\nl{k} = Reshape(c{k}, column{rank - 1 - k})\n"
    total = "l0"
    for k in range(1, rank):
        text += f"a{k} = Add({total}, l{k})\n"
        total = f"a{k}"
    text += f"shape = Shape({total})\n"
    for k in range(rank):
        text += f"e{k} = Expand(l{k}, shape) u{k} = Unsqueeze(e{k}, last)\n"
    return text + "at = Concat<axis=-1>(" + ", ".join(f"u{k}" for k in range(rank)) + ")\n"


FROM_ONE = "{c} = Slice({r}, i1, end, i0)"


def _heads(*names: str) -> str:
    text = """{n}m = MatMul(x, w{n}) {n}4 = Reshape({n}m, split)
        {n} = Transpose<perm=[0,2,1,3]>({n}4)\n"""
    return "".join(text.format(n=n) for n in names)


OUT = "o = Transpose<perm=[0,2,1,3]>(t) f = Reshape(o, join) y = MatMul(f, wo)"
HEADS: dict[str, Weight] = {"wq": (12, 12), "wv": (12, 12), "wo": (12, 3)}


@graph(1, "wq wv wo", dims="N T")
def written_tokens() -> Net:
    """v[:, :, 1:] += q[:, :, 1:], 3 heads of 4, as pooling attention adds its queries without the
    class token. Group: the heads."""
    body = """qs = Slice(q, i1, end, i2) vs = Slice(v, i1, end, i2) b = Add(qs, vs)
        w = Reshape(b, shape) t = ScatterND(v, at, w)\n"""
    return _placed(
        "(float[N,T,12] x) => (float[N,T,3] y)",
        _heads("q", "v") + mesh("v", "", "", FROM_ONE, "") + body + OUT,
        split=[0, 0, 3, 4], join=[0, 0, -1], **HEADS,
    )  # fmt: skip


@graph(1, "wq wv wo")
def written_folded() -> Net:
    """The same with heads and batch on one axis, which moves. Group: the heads."""
    body = """q3 = Reshape(q, fold) v3 = Reshape(v, fold)
        qs = Slice(q3, i1, end, i1) vs = Slice(v3, i1, end, i1) b = Add(qs, vs)\n"""
    tail = "t3 = ScatterND(v3, at, b) t = Reshape(t3, unfold)\n"
    return _placed(
        ROWS, _heads("q", "v") + body + mesh("v3", "", FROM_ONE, "") + tail + OUT,
        split=[0, 0, 3, 4], join=[0, 0, -1], fold=[-1, 5, 4], unfold=[-1, 3, 5, 4], **HEADS,
    )  # fmt: skip


@graph(2, "wa wb wo wu")
def written_wide() -> Net:
    """A mesh of more indices than are evaluated. Groups: channels, the hidden layer of what is
    written."""
    body = """a = MatMul(x, wa) h = MatMul(x, wu) hr = Relu(h) b = MatMul(hr, wb)
        bs = Slice(b, i1, end, i1)\n"""
    tail = "t = ScatterND(a, at, bs) r = Relu(t) y = MatMul(r, wo)"
    return _placed(
        "(float[N,48,6] x) => (float[N,48,3] y)", body + mesh("a", "", FROM_ONE, "") + tail,
        wa=(6, 90), wu=(6, 8), wb=(8, 90), wo=(90, 3),
    )  # fmt: skip


@graph(1, "wa wb wo")
def written_row() -> Net:
    """A vector is written over row 2 of a table of [5, 8], and that is added. Group: channels."""
    body = """a = MatMul(table, wa) b = MatMul(vector, wb)
        r = Range(zero, eight, one) c = Expand(two, i8) m = Unsqueeze(c, last)
        n = Unsqueeze(r, last) at = Concat<axis=1>(m, n) t = ScatterND(a, at, b)
        h = MatMul(x, wx) s = Add(h, t) y = MatMul(s, wo)"""
    return _placed(
        ROWS, body, table=(5, 4), vector=(4,), wa=(4, 8), wb=(4, 8), wx=(12, 8), wo=(8, 3),
        two=scalar(2), eight=scalar(8), i8=[8],
    )  # fmt: skip


@graph(2, "w0 w1 wy")
def written_channels() -> Net:
    """a[:, 2:] = b. Groups: the two channels of a that stay, the others with those of b."""
    body = "a = Conv3(x, w0) b = Conv3(x, w1)\n"
    lists = mesh("a", "", "{c} = Slice({r}, i2, end, i0)", "", "")
    return _placed(
        IMAGE, body + lists + "t = ScatterND(a, at, b) f = Relu(t)" + head("f"),
        w0=(8, 3, 3, 3), w1=(6, 3, 3, 3), wy=(10, 8),
    )  # fmt: skip


@graph(1, "wa wb wo")
def written_after_the_first() -> Net:
    """a[1:] = b[1:] along the batch, which moves, so only that list stays computed. Group: the
    channels."""
    body = "a = MatMul(x, wa) b = MatMul(x, wb) bs = Slice(b, i1, end, i0)\n"
    return _placed(
        ROWS, body + mesh("a", FROM_ONE, "", "") + "t = ScatterND(a, at, bs) y = MatMul(t, wo)",
        wa=(12, 8), wb=(12, 8), wo=(8, 3),
    )  # fmt: skip


@graph(1, "wa wb wo")
def written_after_a_number() -> Net:
    """The same, where the number of channels has a part in the list, though none in its length: it
    counts as it was. Group: the channels."""
    body = """a = MatMul(x, wa) b = MatMul(x, wb) bs = Slice(b, i1, end, i0)
        sa = Shape(a) na = Gather<axis=0>(sa, at2) none = Sub(na, eight)\n"""
    rows = "{r}s = Slice({r}, i1, end, i0) {c} = Add({r}s, none)"
    return _placed(
        ROWS, body + mesh("a", rows, "", "") + "t = ScatterND(a, at, bs) y = MatMul(t, wo)",
        wa=(12, 8), wb=(12, 8), wo=(8, 3), eight=scalar(8),
    )  # fmt: skip


@graph(1, "w0 w1 wy")
def written_rows_after_a_number() -> Net:
    """A list that is known, and the number of channels has a part in it. Group: the channels."""
    body = """a = Conv3(x, w0) ct = Transpose<perm=[1,2,0,3]>(a) b = Conv3(x, w1)
        bt = Transpose<perm=[1,2,0,3]>(b) bs = Slice(bt, i1, end, i1)
        sa = Shape(ct) na = Gather<axis=0>(sa, at0) none = Sub(na, eight)\n"""
    rows = "{r}s = Slice({r}, i1, end, i0) {c} = Add({r}s, none)"
    tail = "w = ScatterND(ct, at, bs) t = Transpose<perm=[2,0,1,3]>(w) f = Relu(t)\n"
    return _placed(
        IMAGE, body + mesh("ct", "", rows) + tail + head("f"), w0=(8, 3, 3, 3), w1=(8, 3, 3, 3),
        wy=(10, 8), eight=scalar(8),
    )  # fmt: skip


@graph(1, "wa wb wo")
def written_where_told() -> Net:
    """A cache is written at a place that an input gives. Group: the channels."""
    body = "a = MatMul(x, wa) b = MatMul(z, wb)\n" + mesh("a", "", "{c} = Identity(place)", "")
    return _placed(
        "(float[N,8,12] x, float[N,1,12] z, int64[1] place) => (float[N,8,3] y)",
        body + "t = ScatterND(a, at, b) y = MatMul(t, wo)",
        wa=(12, 8), wb=(12, 8), wo=(8, 3),
    )  # fmt: skip


@graph(1, "wu wb", stay="wa wo")
def written_turned() -> Net:
    """Channels are turned by a number that an input gives, so they stay. Group: the hidden layer
    of what is written."""
    turned = "{r}i = Add({r}, turn) {c} = Mod({r}i, eight)"
    body = "a = MatMul(x, wa) h = MatMul(x, wu) hr = Relu(h) b = MatMul(hr, wb)\n"
    return _placed(
        "(float[N,5,12] x, int64[1] turn) => (float[N,5,3] y)",
        body + mesh("a", "", "", turned) + "t = ScatterND(a, at, b) y = MatMul(t, wo)",
        wa=(12, 8), wu=(12, 6), wb=(6, 8), wo=(8, 3), eight=scalar(8),
    )  # fmt: skip


def _grid(*lists: Sequence[int]) -> Array:
    return np.stack(np.meshgrid(*lists, indexing="ij"), axis=-1)


def _written_stored(places: Array, channels: int, extra: str = "") -> Net:
    """Channels of a picture turned to [8, 8, N, 8] are written, from row 1 on; what is written
    has a hidden layer."""
    body = f"""a = Conv3(x, w0) at = Transpose<perm=[1,2,0,3]>(a) h = Conv3(x, wh) hr = Relu(h)
        b = Conv3(hr, w1) bt = Transpose<perm=[1,2,0,3]>(b) bs = Slice(bt, i1, end, i1)
        w = ScatterND{extra}(at, places, bs) t = Transpose<perm=[2,0,1,3]>(w) f = Relu(t)"""
    return _placed(
        IMAGE, body + head("f"), w0=(8, 3, 3, 3), wh=(4, 3, 3, 3), w1=(channels, 4, 3, 3),
        wy=(10, 8), places=places, i1=[1], end=[END],
    )  # fmt: skip


@graph(2, "w0 wh w1 wy")
def written_stored() -> Net:
    """A stored mesh of all channels and of rows. Groups: the channels of both layers, the hidden
    layer."""
    return _written_stored(_grid(range(8), range(1, 8)), 8)


@graph(2, "w0 wh w1 wy")
def written_stored_permuted() -> Net:
    """Channels in another order. Groups: each channel with the one that is written over it,
    the hidden layer."""
    return _written_stored(_grid([3, 1, -8, 2, 7, 6, 4, 5], range(1, 8)), 8)


@graph(3, "w0 wh w1 wy")
def written_stored_doubled() -> Net:
    """Two channels are added to each of the first four. Groups: these, the other four, the
    hidden layer."""
    places = _grid([0, 1, 2, 3, 3, 2, 1, 0], range(1, 8))
    return _written_stored(places, 8, '<reduction="add">')


@graph(1, "wh w1", stay="w0 wy")
def written_stored_crossed() -> Net:
    """Rows differ in the channels that they write: no channel can go without a row.
    Group: the hidden layer."""
    places = _grid(range(8), range(1, 8))
    places[..., 0] = (places[..., 0] + places[..., 1]) % 8
    return _written_stored(places, 8)


@graph(1, "wa wb wo")
def written_diagonal() -> Net:
    """p[:, i, i] = a - b for a product of vectors: one list for two axes. Group: the places."""
    body = """a = MatMul(x, wa) b = MatMul(x, wb) au = Unsqueeze(a, i2) bu = Unsqueeze(b, i1)
        p = Mul(au, bu) s = Shape(a) n = Gather<axis=0>(s, at0) m = Gather<axis=0>(s, at1)
        rn = Range(zero, n, one) rm = Range(zero, m, one) ln = Reshape(rn, column1)
        lm = Reshape(rm, column0) e0 = Expand(ln, s) e1 = Expand(lm, s) u0 = Unsqueeze(e0, last)
        u1 = Unsqueeze(e1, last) at = Concat<axis=-1>(u0, u1, u1) c = Sub(a, b)
        t = ScatterND(p, at, c) q = MatMul(t, wo) r = Relu(q) y = ReduceSum<keepdims=0>(r, i1)"""
    return _placed(
        "(float[N,12] x) => (float[N,3] y)", body, wa=(12, 8), wb=(12, 8), wo=(8, 3),
    )  # fmt: skip


@graph(1, "wv wo", dims="N T")
def read_tokens() -> Net:
    """v[:, :, 1:] by GatherND, 3 heads of 4. Group: the heads."""
    body = "t1 = GatherND(v, at) t = Relu(t1)\n"
    return _placed(
        "(float[N,T,12] x) => (float[N,M,3] y)",
        _heads("v") + mesh("v", "", "", FROM_ONE, "") + body + OUT,
        split=[0, 0, 3, 4], join=[0, 0, -1], wv=(12, 12), wo=(12, 3),
    )  # fmt: skip
