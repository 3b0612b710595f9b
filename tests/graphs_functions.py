"""Proof graphs: local functions, as exporters that keep modules apart write them."""

from __future__ import annotations

from .graph_builder import Net, graph, net

LINEAR = """<domain: "m", opset_import: ["": 17]> linear (x, w, b) => (y) {
    a = MatMul(x, w) y = Add(a, b) }"""
MLP = """<domain: "m", opset_import: ["": 17, "m": 1]> mlp <slope: float = 0.1> (x, w1, b1, w2, b2)
    => (y) { h = m.linear(x, w1, b1) g = LeakyRelu<alpha: float = @slope>(h)
    y = m.linear(g, w2, b2) }"""


@graph(3, "w1 b1 w2 b2 w3 b3 w4", functions=f"{LINEAR}\n\n{MLP}")
def function_per_layer() -> Net:
    """Layers are functions that are given their weights, called with different ones and sizes,
    one with an attribute. Groups: the middle of the block, its output, the layer after.
    """
    return net(
        "(float[N,8] x) => (float[N,4] y)",
        """a = m.mlp<slope = 0.3>(x, w1, b1, w2, b2) r = Relu(a) c = m.linear(r, w3, b3)
        s = Relu(c) y = m.linear(s, w4, b4)""",
        w1=(8, 16), b1=16, w2=(16, 12), b2=12, w3=(12, 20), b3=20, w4=(20, 4), b4=4,
    )  # fmt: skip


@graph(
    2, "w1 w2 w3 w4",
    functions="""<domain: "m", opset_import: ["": 17]> heads (x, w, v) => (y) {
    h = MatMul(x, w) four = Constant<value_ints = [0, 4, 4]>() s = Reshape(h, four)
    r = Relu(s) back = Constant<value_ints = [0, 16]>() t = Reshape(r, back) y = MatMul(t, v) }""",
)  # fmt: skip
def function_with_sizes() -> Net:
    """The body states sizes, which change in both calls, in one way or in two. Groups: what is
    folded into heads, in each call.
    """
    return net(
        "(float[N,8] x) => (float[N,4] y)",
        "a = m.heads(x, w1, w2) r = Relu(a) y = m.heads(r, w3, w4)",
        w1=(8, 16), w2=(16, 12), w3=(12, 16), w4=(16, 4),
    )  # fmt: skip


@graph(
    2, "w1 w2 w3 w4",
    functions="""<domain: "m", opset_import: ["": 17]> either (c, x, w, v) => (y) {
    y = If(c) <then_branch = yes () => (t) { t = MatMul(x, w) },
               else_branch = no () => (e) { e = MatMul(x, v) }> }""",
)  # fmt: skip
def function_with_branches() -> Net:
    """A function whose body branches over captured operands. Groups: what goes in and comes out."""
    return net(
        "(float[N,8] x, bool c) => (float[N,4] y)",
        "a = MatMul(x, w1) r = Relu(a) b = m.either(c, r, w2, w3) s = Relu(b) y = MatMul(s, w4)",
        w1=(8, 16), w2=(16, 12), w3=(16, 12), w4=(12, 4),
    )  # fmt: skip


@graph(2, "w1 w2 wy", functions=LINEAR)
def function_in_a_branch() -> Net:
    """Both branches call the same function. Groups: what both capture, what both give."""
    return net(
        "(float[N,8] x, bool c) => (float[N,4] y)",
        """a = MatMul(x, w1) r = Relu(a)
        u = If(c) <then_branch = yes () => (float[N,12] t) { t = m.linear(r, w2, b2) },
                   else_branch = no () => (float[N,12] e) { n = Neg(r) e = m.linear(n, w2, b2) }>
        s = Relu(u) y = MatMul(s, wy)""",
        w1=(8, 16), w2=(16, 12), b2=12, wy=(12, 4),
    )  # fmt: skip


@graph(
    2, "wx block/w1 block/b1 block/w2 wy",
    functions="""<domain: "m", opset_import: ["": 17]> block (x) => (y) {
    h = MatMul(x, w1) a = Add(h, b1) r = Relu(a) k = MatMul(r, w2) y = Add(x, k) }""",
)  # fmt: skip
def function_with_weights() -> Net:
    """The weights are in the body, which runs twice. Groups: the stream, the block's middle."""
    return net(
        "(float[N,8] x) => (float[N,4] y)",
        "a = MatMul(x, wx) b = m.block(a) c = m.block(b) y = MatMul(c, wy)",
        wx=(8, 12), w1=(12, 16), b1=16, w2=(16, 12), wy=(12, 4),
    )  # fmt: skip


ATTEND = """<domain: "m", opset_import: ["": 17, "m": 1]> attend <scale: float = 0.5> (x) => (y) {
    q = m.heads(x, wq) k = m.heads(x, wk) v = m.heads(x, wv)
    kt = Transpose<perm = [0, 2, 3, 1]>(k) qt = Transpose<perm = [0, 2, 1, 3]>(q)
    vt = Transpose<perm = [0, 2, 1, 3]>(v) s = MatMul(qt, kt)
    by = Constant<value_float: float = @scale>() t = Mul(s, by) p = Softmax<axis = -1>(t)
    o = MatMul(p, vt) ot = Transpose<perm = [0, 2, 1, 3]>(o)
    all = Constant<value_ints = [0, 0, 16]>() c = Reshape(ot, all) y = MatMul(c, wo) }"""
HEADS = """<domain: "m", opset_import: ["": 17]> heads (x, w) => (y) {
    h = MatMul(x, w) s = Shape<start = 0, end = 2>(h) e = Constant<value_ints = [4, 4]>()
    t = Concat<axis = 0>(s, e) y = Reshape(h, t) }"""


@graph(
    2, "wx attend/wq attend/wk attend/wv attend/wo wy", dims="N T", functions=f"{HEADS}\n\n{ATTEND}"
)  # fmt: skip
def function_of_functions() -> Net:
    """Attention whose weights are in the body, which calls another that computes a size at run
    time. Groups: the stream, the heads.
    """
    return net(
        "(float[N,T,8] x) => (float[N,T,4] y)",
        """a = MatMul(x, wx) b = m.attend(a) c = Add(a, b) d = m.attend<scale = 0.25>(c)
        e = Add(c, d) y = MatMul(e, wy)""",
        wx=(8, 12), wq=(12, 16), wk=(12, 16), wv=(12, 16), wo=(16, 12), wy=(12, 4),
    )  # fmt: skip


@graph(
    2, "wx either/w either/v",
    functions="""<domain: "m", opset_import: ["": 17, "m": 1]> either (c, x) => (y) {
    s = If(c) <then_branch = yes () => (t) { f = MatMul(x, w) t = m.act(f) },
               else_branch = no () => (e) { g = MatMul(x, v) e = m.act(g) }>
    y = MatMul(s, o) }

<domain: "m", opset_import: ["": 17]> act (x) => (y) { y = LeakyRelu(x) }""",
)  # fmt: skip
def function_with_branches_of_weights() -> Net:
    """Branches in a body over its weights, which call another function. Groups: what goes into
    both branches, what comes out."""
    return net(
        "(float[N,8] x, bool c) => (float[N,4] y, float[N,4] z)",
        "a = MatMul(x, wx) y = m.either(c, a) b = Neg(a) z = m.either(c, b)",
        wx=(8, 16), w=(16, 12), v=(16, 12), o=(12, 4),
    )  # fmt: skip
