"""Proof graphs: mixtures of experts, as graphs and as operators (see `graph_builder`).

Tokens of 12 channels, 3 experts of 16 hidden channels, 2 of which serve each token. Everywhere
the stream is one group (its channels are contracted by router, experts and output), and the
experts themselves stay, since the router chooses among all of them.
"""

from __future__ import annotations

import numpy as np

from .graph_builder import Array, Net, Weight, graph, net

FLAT = "(float[N,4] x) => (float[N,5] y)"
STREAM: dict[str, Weight] = {"w0": (4, 12), "wr": (12, 3), "wy": (12, 5)}
STACKED: dict[str, Weight] = {**STREAM, "w1": (3, 12, 16), "w2": (3, 16, 12)}
ROUTED = "h = MatMul(x, w0) l = MatMul(h, wr) p = Softmax<axis=-1>(l)\n"
TOP = ROUTED + "v, k = TopK(p, two)\n"
BACK = "o = Add(h, s) y = MatMul(o, wy)"


# ---- all experts at once ------------------------------------------------------------------------


@graph(2, "w0 wr w1 b1 w2 b2 wy")
def experts_batched() -> Net:
    """A product with an expert axis, weighted by the router and summed. Groups: stream, and one
    hidden axis of all experts.
    """
    return net(
        FLAT,
        ROUTED + """t = Unsqueeze(h, i0) a = MatMul(t, w1) ab = Add(a, b1) r = Relu(ab)
        d = MatMul(r, w2) db = Add(d, b2)
        pt = Transpose<perm=[1,0]>(p) pu = Unsqueeze(pt, i2) m = Mul(db, pu)
        s = ReduceSum<keepdims=0>(m, i0)""" + BACK,
        **STACKED, b1=(3, 1, 16), b2=(3, 1, 12), i0=[0], i2=[2],
    )  # fmt: skip


@graph(3, "w0 wr w1 b1 w2 b2 wy")
def experts_weighed_one_by_one() -> Net:
    """A sigmoid for each expert and a sum over all: here an expert may go. Groups: stream, hidden
    channels, experts.
    """
    return net(
        FLAT,
        """h = MatMul(x, w0) l = MatMul(h, wr) p = Sigmoid(l)
        t = Unsqueeze(h, i0) a = MatMul(t, w1) ab = Add(a, b1) r = Relu(ab)
        d = MatMul(r, w2) db = Add(d, b2)
        pt = Transpose<perm=[1,0]>(p) pu = Unsqueeze(pt, i2) m = Mul(db, pu)
        s = ReduceSum<keepdims=0>(m, i0)""" + BACK,
        **STACKED, b1=(3, 1, 16), b2=(3, 1, 12), i0=[0], i2=[2],
    )  # fmt: skip


@graph(2, "w0 wr w1 w2 wy")
def experts_einsum() -> Net:
    """Einsum over the experts, weights of the chosen ones scattered into zeros. Groups: stream and
    hidden channels.
    """
    return net(
        FLAT,
        TOP + """size = Shape(p) zeros = ConstantOfShape(size)
        g = ScatterElements<axis=1>(zeros, k, v)
        a = Einsum<equation="nd,edi->nei">(h, w1) r = Relu(a)
        d = Einsum<equation="nei,eid->ned">(r, w2) s = Einsum<equation="ned,ne->nd">(d, g)"""
        + BACK,
        **STACKED, two=[2],
    )  # fmt: skip


@graph(2, "w0 wr w1 b1 w2 wy")
def experts_gates_interleaved() -> Net:
    """Gates in every other column, experts by OneHot, weights of the chosen ones renormalised.
    Groups: stream and hidden channels (two columns each).
    """
    return net(
        FLAT,
        TOP + """total = ReduceSum<keepdims=1>(v, i1) vn = Div(v, total) vu = Unsqueeze(vn, i2)
        hot = OneHot<axis=-1>(k, three, onoff) hv = Mul(hot, vu) g = ReduceSum<keepdims=0>(hv, i1)
        t = Unsqueeze(h, i0) a = MatMul(t, w1) ab = Add(a, b1)
        ga = Slice(ab, i0, end, i2, two) up = Slice(ab, i1, end, i2, two)
        gs = Sigmoid(ga) gg = Mul(ga, gs) q = Mul(gg, up) d = MatMul(q, w2)
        gt = Transpose<perm=[1,0]>(g) gu = Unsqueeze(gt, i2) m = Mul(d, gu)
        s = ReduceSum<keepdims=0>(m, i0)""" + BACK,
        **{**STACKED, "w1": (3, 12, 32)}, b1=(3, 1, 32), three=[3],
        onoff=np.array([0, 1], np.float32), end=[2**31], i0=[0], i1=[1], i2=[2], two=[2],
    )  # fmt: skip


@graph(2, "w0 wr w1 w2 wy", dims="N T")
def experts_tokens_repeated() -> Net:
    """Every token once for each expert, scaled by its (masked) score, in one batched product; the
    hidden columns are gates, then the rest. Groups: stream and hidden channels.
    """
    return net(
        "(float[N,T,4] x) => (float[N,T,5] y)",
        """h3 = MatMul(x, w0) h = Reshape(h3, rows) l = MatMul(h, wr) v, k = TopK(l, two)
        least = ReduceMin<axes=[1]>(v) low = Less(l, least) lm = Where(low, never, l)
        p = Sigmoid(lm) pt = Transpose<perm=[1,0]>(p) scores = Reshape(pt, column)
        t = Tile(h, times) ts = Mul(t, scores) tb = Reshape(ts, stacked)
        a = MatMul(tb, w1) ga, up = Split<axis=-1>(a, halves) gs = Sigmoid(ga) gg = Mul(ga, gs)
        q = Mul(gg, up) d = MatMul(q, w2) df = Reshape(d, stacked)
        s2 = ReduceSum<keepdims=0>(df, i0) size = Shape(h3) s = Reshape(s2, size)
        o = Add(h3, s) y = MatMul(o, wy)""",
        **{**STACKED, "w1": (3, 12, 32)}, rows=[-1, 12], column=[-1, 1], times=[3, 1],
        stacked=[3, -1, 12], halves=[16, 16], never=np.array(-1e30, np.float32), i0=[0], two=[2],
    )  # fmt: skip


@graph(2, "w0 wr w1 w2 wy")
def experts_looked_up() -> Net:
    """The weights of the chosen experts, gathered for each token. Groups: stream and hidden
    channels.
    """
    return net(
        FLAT,
        TOP + """t = Unsqueeze(h, i12) wa = Gather<axis=0>(w1, k) wb = Gather<axis=0>(w2, k)
        a = MatMul(t, wa) r = Relu(a) d = MatMul(r, wb) ds = Squeeze(d, i2)
        vu = Unsqueeze(v, i2) m = Mul(ds, vu) s = ReduceSum<keepdims=0>(m, i1)""" + BACK,
        **STACKED, i12=[1, 2], i1=[1], i2=[2], two=[2],
    )  # fmt: skip


# ---- one expert after the other -----------------------------------------------------------------


def _expert(e: int) -> str:
    return f"""g{e} = Slice(p, i{e}, i{e + 1}, i1)
        a{e} = MatMul(h, u{e}) r{e} = Relu(a{e}) d{e} = MatMul(r{e}, v{e}) m{e} = Mul(d{e}, g{e})
        """


@graph(5, "w0 wr u0 v0 u1 v1 u2 v2 us vs wg wy")
def experts_apart() -> Net:
    """Experts with weights of their own, and one that every token goes to, behind a gate. Groups:
    stream, and the hidden channels of each of the four.
    """
    return net(
        FLAT,
        ROUTED + _expert(0) + _expert(1) + _expert(2)
        + """gl = MatMul(h, wg) gs = Sigmoid(gl) as = MatMul(h, us) rs = Relu(as)
        ds = MatMul(rs, vs) ms = Mul(ds, gs) s = Sum(m0, m1, m2, ms)""" + BACK,
        **STREAM, u0=(12, 16), v0=(16, 12), u1=(12, 16), v1=(16, 12), u2=(12, 8), v2=(8, 12),
        us=(12, 20), vs=(20, 12), wg=(12, 1), i0=[0], i1=[1], i2=[2], i3=[3],
    )  # fmt: skip


def _hit(e: int) -> str:
    """The tokens that chose expert e, through it, and added to where they came from."""
    return f"""hit{e} = Equal(k, e{e}) at{e} = NonZero(hit{e})
        row{e}, slot{e} = Split<axis=0>(at{e}, ones) tok{e} = Squeeze(row{e}, i0)
        t{e} = Gather<axis=0>(h, tok{e})
        a{e} = MatMul(t{e}, u{e}) r{e} = Relu(a{e}) d{e} = MatMul(r{e}, v{e})
        pair{e} = Transpose<perm=[1,0]>(at{e}) g{e} = GatherND(v, pair{e})
        gu{e} = Unsqueeze(g{e}, i1) m{e} = Mul(d{e}, gu{e}) to{e} = Unsqueeze(tok{e}, i1)
        s{e + 1} = ScatterND<reduction="add">(s{e}, to{e}, m{e})
        """


@graph(4, "w0 wr u0 v0 u1 v1 u2 v2 wy")
def experts_hit() -> Net:
    """Only the tokens that chose an expert go through it, and are added where they came from.
    Groups: stream, and the hidden channels of each.
    """
    return net(
        FLAT,
        TOP + "size = Shape(h) s0 = ConstantOfShape(size)\n" + _hit(0) + _hit(1) + _hit(2)
        + BACK.replace("s)", "s3)"),
        **STREAM, u0=(12, 16), v0=(16, 12), u1=(12, 16), v1=(16, 12), u2=(12, 8), v2=(8, 12),
        e0=_number(0), e1=_number(1), e2=_number(2), ones=[1, 1], i0=[0], i1=[1],
        two=[2],
    )  # fmt: skip


def _number(value: int) -> Array:
    return np.array(value, np.int64)


@graph(2, "w0 wr w1 w2 wy")
def experts_loop() -> Net:
    """A loop over the experts, which looks up the weights of each. Groups: stream and hidden
    channels.
    """
    return net(
        FLAT,
        ROUTED + """size = Shape(h) s0 = ConstantOfShape(size)
        s = Loop(count, , s0) <body = expert (int64 e, bool c, float[N,12] sum)
            => (bool c, float[N,12] more) {
            wa = Gather<axis=0>(w1, e) wb = Gather<axis=0>(w2, e) g = Gather<axis=1>(p, e)
            gu = Unsqueeze(g, i1) a = MatMul(h, wa) r = Relu(a) d = MatMul(r, wb)
            m = Mul(d, gu) more = Add(sum, m) }>
        """ + BACK,
        **STACKED, count=_number(3), i1=[1],
    )  # fmt: skip


@graph(3, "w0 wr u0 v0 u1 v1 wy")
def experts_if() -> Net:
    """An expert runs only if some token likes it. Groups: stream, and the hidden channels of
    each.
    """
    branch = """g{e} = Slice(p, i{e}, i{n}, i1) most{e} = ReduceMax<keepdims=0>(g{e})
        on{e} = Less(some, most{e})
        m{e} = If(on{e}) <
            then_branch = on () => (float[N,12] t{e}) {{
                a{e} = MatMul(h, u{e}) r{e} = Relu(a{e}) d{e} = MatMul(r{e}, v{e})
                t{e} = Mul(d{e}, g{e}) }},
            else_branch = off () => (float[N,12] z{e}) {{
                size{e} = Shape(h) z{e} = ConstantOfShape(size{e}) }}>
        """
    return net(
        FLAT,
        ROUTED + branch.format(e=0, n=1) + branch.format(e=1, n=2) + "s = Add(m0, m1)" + BACK,
        **STREAM, u0=(12, 16), v0=(16, 12), u1=(12, 16), v1=(16, 12),
        some=np.array(0.3, np.float32), i0=[0], i1=[1], i2=[2],
    )  # fmt: skip


# ---- operators ----------------------------------------------------------------------------------


@graph(2, "w0 wr w1 b1 w2 b2 wy")
def experts_operator() -> Net:
    """MoE of ONNX Runtime. Groups: stream and hidden channels."""
    return net(
        FLAT,
        """h = MatMul(x, w0) l = MatMul(h, wr)
        s = com.microsoft.MoE<k=2, activation_type="gelu", normalize_routing_weights=1>
            (h, l, w1, b1, w2, b2)""" + BACK,
        **{**STREAM, "w1": (3, 16, 12), "w2": (3, 12, 16)}, b1=(3, 16), b2=(3, 12),
    )  # fmt: skip


@graph(2, "w0 wr w1 b1 w2 b2 wy", dims="N T")
def experts_operator_gated() -> Net:
    """MoE with interleaved gates, on samples of tokens. Groups: stream and hidden channels (two
    rows each).
    """
    return net(
        "(float[N,T,4] x) => (float[N,T,5] y)",
        """h = MatMul(x, w0) rows = Reshape(h, flat) l = MatMul(rows, wr)
        s = com.microsoft.MoE<k=2, activation_type="swiglu", swiglu_fusion=1,
            activation_alpha=1.702, activation_beta=1.0, swiglu_limit=7.0>
            (h, l, w1, b1, w2, b2)""" + BACK,
        **{**STREAM, "w1": (3, 32, 12), "w2": (3, 12, 16)}, b1=(3, 32), b2=(3, 12), flat=[-1, 12],
    )  # fmt: skip


def _quantised(seed: int, rows: int, columns: int, bits: int, block: int) -> dict[str, Weight]:
    """Weights, scales and zero points of 3 experts."""
    rng = np.random.default_rng(seed)
    scales = (3, rows, columns // block) if block else (3, rows)
    packed = -(-scales[-1] * bits // 8)
    return {
        f"w{seed}": rng.integers(0, 256, (3, rows, columns * bits // 8)).astype(np.uint8),
        f"s{seed}": (rng.uniform(0.5, 1, scales) / 2**bits / 2).astype(np.float32),
        f"z{seed}": rng.integers(0, 256, (*scales[:-1], packed)).astype(np.uint8),
    }


def _quantised_net(hidden: int, width: int, bits: int, block: int = 0) -> Net:
    size = f", block_size={block}" if block else ""
    return net(
        FLAT,
        f"""h = MatMul(x, w0) l = MatMul(h, wr)
        s = com.microsoft.QMoE<k=2, expert_weight_bits={bits}, activation_type="swiglu",
            swiglu_fusion=1{size}>(h, l, w1, s1, b1, w2, s2, b2, , , , z1, z2)""" + BACK,
        w0=(4, hidden), wr=(hidden, 3), wy=(hidden, 5), b1=(3, 2 * width), b2=(3, hidden),
        **_quantised(1, 2 * width, hidden, bits, block),
        **_quantised(2, hidden, width, bits, block),
    )  # fmt: skip


@graph(2, "w0 wr w1 s1 b1 z1 w2 s2 b2 z2 wy")
def experts_4bits() -> Net:
    """QMoE with one scale for each row. Groups: stream and hidden channels, in pairs."""
    return _quantised_net(16, 32, 4)


@graph(2, "w0 wr w1 s1 b1 w2 s2 b2 wy")
def experts_8bits_in_blocks() -> Net:
    """QMoE in blocks of 16. Groups: stream and hidden channels, in blocks."""
    return _quantised_net(32, 64, 8, 16)
