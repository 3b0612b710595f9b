"""Proof graphs: recurrent networks (see `graph_builder` for the rules).

Sequences come and go batch first, as PyTorch and Keras have them, and are turned around for the
operator. A layer of H units is one group: their rows in every gate, their columns of R.
"""

from __future__ import annotations

from .graph_builder import Net, Weight, graph, net, scalar

SEQUENCE = "(float[N,T,6] x) => (float[N,T,5] y)"
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
TURN = "Transpose<perm=[1,0,2]>"


def cell(kind: str, name: str, features: int, units: int, directions: int = 1) -> dict[str, Weight]:
    """W, R and bias of one layer: `{name}w`, `{name}r`, `{name}b`."""
    rows = GATES[kind] * units
    return {
        f"{name}w": (directions, rows, features),
        f"{name}r": (directions, rows, units),
        f"{name}b": (directions, 2 * rows),
    }


def both(x: str, y: str) -> str:
    """[T,2,N,H] to [T,N,2H], as PyTorch joins the two directions."""
    return f"{y}t = Transpose<perm=[0,2,1,3]>({x}) {y} = Reshape({y}t, joined)\n"


ZEROS = """sh = Shape(x) n = Gather<axis=0>(sh, i0) nu = Unsqueeze(n, ax)
    shape = Concat<axis=0>(layers, nu, units) zeros = ConstantOfShape(shape)\n"""
"""Initial states of all layers at once, of a shape computed at run time."""


# ---- layers, directions, states -----------------------------------------------------------------


@graph(2, "w0 b0 aw ar ab bw br bb wy", dims="N T")
def lstm_stacked() -> Net:
    """Two layers whose initial states are slices of one tensor of zeros, of a size computed from
    Shape (PyTorch). Groups: the projection; the units, common to both layers by those zeros.
    """
    return net(
        SEQUENCE,
        ZEROS + f"""e = MatMul(x, w0) f = Add(e, b0) t = {TURN}(f)
        s0 = Slice(zeros, ax, k1, ax) s1 = Slice(zeros, k1, k2, ax)
        a = LSTM<hidden_size=12>(t, aw, ar, ab, , s0, s0) a1 = Squeeze(a, k1)
        b = LSTM<hidden_size=12>(a1, bw, br, bb, , s1, s1) b1 = Squeeze(b, k1)
        u = {TURN}(b1) y = MatMul(u, wy)""",
        w0=(6, 8), b0=8, **cell("lstm", "a", 8, 12), **cell("lstm", "b", 12, 12), wy=(12, 5),
        i0=scalar(0), ax=[0], k1=[1], k2=[2], layers=[2], units=[12],
    )  # fmt: skip


@graph(2, "aw ar ab bw br bb wy", dims="N T")
def lstm_stacked_without_states() -> Net:
    """Two layers of 12 and 10 units, no states, and nobody reads them. Groups: both layers."""
    return net(
        SEQUENCE,
        f"""t = {TURN}(x) a, ah, ac = LSTM<hidden_size=12>(t, aw, ar, ab) a1 = Squeeze(a, k1)
        b, bh, bc = LSTM<hidden_size=10>(a1, bw, br, bb) b1 = Squeeze(b, k1)
        u = {TURN}(b1) y = MatMul(u, wy)""",
        **cell("lstm", "a", 6, 12), **cell("lstm", "b", 12, 10), wy=(10, 5), k1=[1],
    )  # fmt: skip


@graph(2, "aw ar ab bw br bb wy", dims="N T")
def gru_bidirectional() -> Net:
    """Two layers in both directions, joined by Transpose and Reshape. Groups: the units of each
    layer, in both directions and so in both halves of what the next layer reads.
    """
    layer = 'GRU<hidden_size=8, direction="bidirectional", linear_before_reset=1>'
    return net(
        SEQUENCE,
        f"t = {TURN}(x) a = {layer}(t, aw, ar, ab)" + both("a", "aj")
        + f"b = {layer}(aj, bw, br, bb)" + both("b", "bj") + f"u = {TURN}(bj) y = MatMul(u, wy)",
        **cell("gru", "a", 6, 8, 2), **cell("gru", "b", 16, 8, 2), wy=(16, 5), joined=[0, 0, -1],
    )  # fmt: skip


@graph(2, "aw ar ab w0 wy", dims="N T")
def gru_reset_before() -> Net:
    """The reset gate in front of the product with R, run in reverse, with another activation.
    Groups: the projection, the units.
    """
    return net(
        SEQUENCE,
        f"""e = MatMul(x, w0) t = {TURN}(e)
        a = GRU<hidden_size=12, direction="reverse", linear_before_reset=0, clip=2.0,
            activations=["HardSigmoid", "Softsign"], activation_alpha=[0.3],
            activation_beta=[0.4]>(t, aw, ar, ab)
        s = Squeeze(a, k1) u = {TURN}(s) y = MatMul(u, wy)""",
        w0=(6, 8), **cell("gru", "a", 8, 12), wy=(12, 5), k1=[1],
    )  # fmt: skip


@graph(1, "w0 aw ar ab wy", dims="N T")
def rnn_residual() -> Net:
    """A residual connection around the operator. Group: the stream, which is what the operator
    reads (columns of W), its units (rows of W and R, columns of R) and the sum.
    """
    return net(
        SEQUENCE,
        f"""e = MatMul(x, w0) t = {TURN}(e) a = RNN<hidden_size=12>(t, aw, ar, ab)
        s = Squeeze(a, k1) f = Add(t, s) u = {TURN}(f) y = MatMul(u, wy)""",
        w0=(6, 12), **cell("rnn", "a", 12, 12), wy=(12, 5), k1=[1],
    )  # fmt: skip


@graph(1, "aw ar ab ap wy", dims="N T")
def lstm_peepholes() -> Net:
    """Peepholes, coupled forget gates, lengths of the sequences, constant initial states, and
    only the last state is read. Group: the units.
    """
    return net(
        "(float[N,T,6] x, int64[N] z) => (float[N,10] y)",
        f"""t = {TURN}(x) sh = Shape(x) l = Gather<axis=0>(sh, i1) n = Slice(sh, k0, k1)
        zc = Min(z, l) zd = Max(zc, i1) zi = Cast<to=6>(zd) one = Concat<axis=0>(k1, n, k1)
        h = Expand(h0, one) c = Expand(c0, one)
        , yh, yc = LSTM<hidden_size=12, input_forget=1>(t, aw, ar, ab, zi, h, c, ap)
        v = Concat<axis=2>(yh, yc) s = Squeeze(v, k0) y = MatMul(s, wy)""",
        **cell("lstm", "a", 6, 12), ap=(1, 36), h0=(1, 1, 12), c0=(1, 1, 12), wy=(24, 10),
        i1=scalar(1), k0=[0], k1=[1],
    )  # fmt: skip


@graph(1, "aw ar bw br wy", dims="N T U")
def sequence_to_sequence() -> Net:
    """The encoder's last states are the decoder's first. Group: the units of both."""
    return net(
        "(float[N,T,6] x, float[N,U,4] z) => (float[N,U,5] y)",
        f"""t = {TURN}(x) a, ah, ac = LSTM<hidden_size=12>(t, aw, ar, ab) v = {TURN}(z)
        b = LSTM<hidden_size=12>(v, bw, br, bb, , ah, ac) s = Squeeze(b, k1) u = {TURN}(s)
        y = MatMul(u, wy)""",
        **cell("lstm", "a", 6, 12), **cell("lstm", "b", 4, 12), wy=(12, 5), k1=[1],
    )  # fmt: skip


@graph(2, "w0 bw br bb wy", stay="ar ab", dims="N T")
def states_of_the_interface() -> Net:
    """The first layer's state enters and leaves the model: its units stay. Groups: the
    projection before it, the units of the second layer.
    """
    return net(
        "(float[N,T,6] x, float[1,N,12] h) => (float[N,T,5] y, float[1,N,12] hn)",
        f"""e = MatMul(x, w0) t = {TURN}(e) a, hn = GRU<hidden_size=12>(t, aw, ar, ab, , h)
        a1 = Squeeze(a, k1) b = GRU<hidden_size=10>(a1, bw, br, bb) b1 = Squeeze(b, k1)
        u = {TURN}(b1) y = MatMul(u, wy)""",
        w0=(6, 8), **cell("gru", "a", 8, 12), **cell("gru", "b", 12, 10), wy=(10, 5), k1=[1],
    )  # fmt: skip


@graph(1, "aw ar ab wy", dims="N T", runnable=False)
def batch_first() -> Net:
    """`layout` 1, for which ONNX Runtime has no kernel. Group: the units."""
    return net(
        SEQUENCE,
        """a = LSTM<hidden_size=12, layout=1, direction="bidirectional">(x, aw, ar, ab)
        j = Reshape(a, joined) y = MatMul(j, wy)""",
        **cell("lstm", "a", 6, 12, 2), wy=(24, 5), joined=[0, 0, -1],
    )  # fmt: skip


# ---- as exporters write them --------------------------------------------------------------------


@graph(1, "wi wh bi bh wy", dims="N T")
def weights_of_pytorch() -> Net:
    """Without constant folding: gates are cut out of the weights by Slice, put in the order of
    ONNX by Concat and given an axis by Unsqueeze. Group: the units.
    """
    return net(
        SEQUENCE,
        "".join(
            f"""{w}0 = Slice({w}, k0, k12, k0) {w}1 = Slice({w}, k36, k48, k0)
            {w}2 = Slice({w}, k12, k36, k0) {w}c = Concat<axis=0>({w}0, {w}1, {w}2)\n"""
            for w in ("wi", "wh", "bi", "bh")
        )
        + ZEROS + f"""w = Unsqueeze(wic, k0) r = Unsqueeze(whc, k0)
        bc = Concat<axis=0>(bic, bhc) b = Unsqueeze(bc, k0) t = {TURN}(x)
        a = LSTM<hidden_size=12>(t, w, r, b, , zeros, zeros) s = Squeeze(a, k1)
        u = {TURN}(s) y = MatMul(u, wy)""",
        wi=(48, 6), wh=(48, 12), bi=48, bh=48, wy=(12, 5), i0=scalar(0), ax=[0], layers=[1],
        units=[12], k0=[0], k1=[1], k12=[12], k36=[36], k48=[48],
    )  # fmt: skip


@graph(2, "aw ar ab bw br bb wy", dims="N T")
def states_of_keras() -> Net:
    """Zeros expanded to a batch from Shape and a width, turned weights, the last state read.
    Groups: both layers, since each has zeros of its own.
    """
    return net(
        "(float[N,T,6] x) => (float[N,10] y)",
        f"""sh = Shape(x) sc = Cast<to=6>(sh) n = Slice(sc, k0, k1) nl = Cast<to=7>(n)
        za = Concat<axis=0>(nl, c12) zb = Concat<axis=0>(nl, c8) ha = Expand(zero, za)
        ua = Unsqueeze(ha, k0) hb = Expand(zero, zb) ub = Unsqueeze(hb, k0)
        t = {TURN}(x) at = Transpose<perm=[0,2,1]>(aw)
        a = GRU<hidden_size=12, linear_before_reset=1>(t, at, ar, ab, , ua)
        a1 = Squeeze(a, k1) f = {TURN}(a1) g = {TURN}(f)
        , bh = GRU<hidden_size=8>(g, bw, br, bb, , ub) s = Squeeze(bh, k0) y = MatMul(s, wy)""",
        **(cell("gru", "a", 6, 12) | {"aw": (1, 6, 36)}), **cell("gru", "b", 12, 8), wy=(8, 10),
        zero=0.0, k0=[0], k1=[1], c12=[12], c8=[8],
    )  # fmt: skip
