"""Proof graphs: Einsum (see `graph_builder` for the rules of counting)."""

from __future__ import annotations

from .graph_builder import Net, graph, net


@graph(4, "wq wk wv wo w1 w2", dims="N T")
def einsum_layer() -> Net:
    """Weights keep an axis of heads; projections, scores, and what is made of them are Einsums.
    Groups: the places inside the heads of Q and K, those of V, the hidden layer; the heads of
    all four weights."""
    body = """q = Einsum<equation="btd,dhk->bhtk">(x, wq)
        k = Einsum<equation="bsd,dhk->bhks">(x, wk)
        v = Einsum<equation="bsd,hdk->bshk">(x, wv) p = Einsum<equation="bhtk,bhks->bhts">(q, k)
        s = Softmax<axis=-1>(p) o = Einsum<equation="b h t s, b s h k -> b t h k">(s, v)
        z = Einsum<equation="...hk,hkd">(o, wo) a = Add(x, z)
        h = Einsum<equation="...d,df->...f">(a, w1) r = Relu(h)
        f = Einsum<equation="btf,ef->bte">(r, w2) y = Add(a, f)"""
    return net(
        "(float[N,T,12] x) => (float[N,T,12] y)", body,
        wq=(12, 4, 6), wk=(12, 4, 6), wv=(4, 12, 5), wo=(4, 5, 12), w1=(12, 20), w2=(12, 20),
    )  # fmt: skip


@graph(2, "u a b v", dims="N")
def einsum_of_three() -> Net:
    """A sum over three operands and a diagonal: two hidden layers, one of them met three times."""
    body = """h = Einsum<equation="ni,ij->nj">(x, u) r = Relu(h)
        d = Einsum<equation="jj->j">(b) g = Einsum<equation="nj,jk,j->nk">(r, a, d) t = Tanh(g)
        y = Einsum<equation="nk,ko">(t, v)"""
    return net(
        "(float[N,6] x) => (float[N,5] y)", body,
        u=(6, 10), a=(10, 8), b=(10, 10), v=(8, 5),
    )  # fmt: skip
