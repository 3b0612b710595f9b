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
    """The body states sizes, so calls whose sizes change are inlined. Groups: what is folded into
    heads, in each call.
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
