"""Proof graphs: If, Loop and Scan, sequences and optionals (see `graph_builder` for the rules)."""

from __future__ import annotations

from .graph_builder import Net, Weight, graph, net, scalar

STEP = "a = MatMul(h, wh) xw = MatMul(xi, wx) s = Add(a, xw) t = Add(s, b) h2 = Tanh(t)\n"
"""One step of a recurrent network of 16 hidden units: state h, input xi, new state h2."""
CELL: dict[str, Weight] = {"w0": (4, 16), "wh": (16, 16), "wx": (4, 16), "b": 16, "wy": (16, 3)}
OUT: dict[str, Weight] = {**CELL, "wo": (16, 6)}


# ---- loops --------------------------------------------------------------------------------


@graph(1, "w0 wh wx b wy wo")
def loop_recurrent() -> Net:
    """A recurrent network written as Loop: the state, its weights, initial state and consumers,
    and every step's state as a scan output. Group: the hidden units.
    """
    return net(
        "(float[N,4] x, float[5,N,4] xs) => (float[N,3] y, float[T,N,6] ys)",
        f"""h0 = MatMul(x, w0)
        last, all = Loop(count, yes, h0) <body = step (int64 i, bool c, float[N,16] h)
            => (bool c2, float[N,16] h2, float[N,16] o) {{
            c2 = Identity(c) xi = Gather<axis=0>(xs, i) {STEP} o = Identity(h2) }}>
        y = MatMul(last, wy) ys = MatMul(all, wo)""",
        count=scalar(5), yes=scalar(1).astype(bool), **OUT,
    )  # fmt: skip


@graph(1, "w0 wh wx b wy wo")
def loop_counted_at_run_time() -> Net:
    """The same with a condition computed from the state and no trip count: how often it runs
    is not known. Group: the hidden units.
    """
    return net(
        "(float[N,4] x, float[N,4] xi, float limit) => (float[N,3] y, float[T,N,6] ys)",
        f"""h0 = MatMul(x, w0) n0 = Constant<value_float=0.0>()
        steps, last, all = Loop(, yes, n0, h0) <body = step (int64 i, bool c, float n,
            float[N,16] h) => (bool c2, float n2, float[N,16] h2, float[N,16] o) {{
            {STEP} o = Identity(h2) one = Constant<value_float=1.0>() n2 = Add(n, one)
            four = Constant<value_float=4.0>() bound = Sub(four, limit) c2 = Less(n2, bound) }}>
        y = MatMul(last, wy) ys = MatMul(all, wo)""",
        yes=scalar(1).astype(bool), **OUT,
    )  # fmt: skip


@graph(2, "w0 w1 w2 wy")
def loop_weights_inside() -> Net:
    """A residual block with weights of its own, applied three times. Groups: the stream and the
    block's hidden layer.
    """
    return net(
        "(float[N,4] x) => (float[N,3] y)",
        """h0 = MatMul(x, w0)
        last = Loop(count, , h0) <body = step (int64 i, bool c, float[N,16] h)
            => (bool c, float[N,16] h2) {
            a = MatMul(h, w1) r = Relu(a) d = MatMul(r, w2) h2 = Add(h, d) }>
        y = MatMul(last, wy)""",
        count=scalar(3), w0=(4, 16), w1=(16, 32), w2=(32, 16), wy=(16, 3),
    )  # fmt: skip


@graph(3, "w1 w2 w3 w4 none")
def loop_growing_state() -> Net:
    """A detection head: every level is projected and appended to what was found so far. Only the
    axis that grows stays. Groups: the hidden layers before and inside, the columns of the boxes.
    """
    return net(
        "(float[3,N,8] x) => (float[M,4] y)",
        """a = MatMul(x, w1) r = Relu(a)
        found = Loop(count, , none) <body = level (int64 i, bool c, float[K,4] boxes)
            => (bool c, float[K2,4] more) {
            f = Gather<axis=0>(r, i) g = MatMul(f, w2) q = Relu(g) p = MatMul(q, w3)
            more = Concat<axis=0>(boxes, p) }>
        z = MatMul(found, w4) y = Relu(z)""",
        count=scalar(3), none=(1, 4),
        w1=(8, 16), w2=(16, 24), w3=(24, 4), w4=(4, 4),
    )  # fmt: skip


@graph(2, "w0 wh wi wy", inner="wi")
def loop_with_sizes() -> Net:
    """The body states sizes: targets of Reshape, constant and computed from Shape, and the width
    as a number, which must stay 16, as must the one that is stacked. Groups: the heads of the
    state, and the layer inside.
    """
    return net(
        "(float[N,4] x) => (float[N,3] y, float[3] z)",
        """h0 = MatMul(x, w0)
        last, widths = Loop(count, , h0) <body = step (int64 i, bool c, float[N,16] h)
            => (bool c, float[N,16] h2, float width) {
            sh = Shape(h) n = Gather<axis=0>(sh, at) width = Cast<to=1>(n) root = Sqrt(width)
            a = MatMul(h, wh) b = Div(a, root) s = Reshape(b, heads) r = Relu(s)
            t = Reshape(r, sh) e = MatMul(t, wi) f = Tanh(e) wt = Transpose<perm=[1,0]>(wi)
            h2 = MatMul(f, wt) }>
        y = MatMul(last, wy) m = ReduceMax<keepdims=0>(x) k = MatMul(widths, turn)
        z = Mul(k, m)""",
        count=scalar(3), turn=(3, 3), at=scalar(1), heads=[0, 4, 4],
        w0=(4, 16), wh=(16, 16), wi=(16, 24), wy=(16, 3),
    )  # fmt: skip


@graph(2, "w0 wh w1 w2 wy", inner="w1 w2")
def if_in_loop() -> Net:
    """Every step chooses between two layers, each with weights of its own subgraph. Groups: the
    state, and the hidden layer of one choice.
    """
    return net(
        "(float[N,4] x) => (float[N,3] y)",
        """h0 = MatMul(x, w0)
        last = Loop(count, , h0) <body = step (int64 i, bool c, float[N,16] h)
            => (bool c, float[N,16] h2) {
            two = Constant<value_int=2>() odd = Mod(i, two) first = Cast<to=9>(odd)
            u = If(first) <
                then_branch = deep () => (float[N,16] d) {
                    p = MatMul(h, w1) q = Relu(p) d = MatMul(q, w2) },
                else_branch = flat () => (float[N,16] e) { e = MatMul(h, wh) }>
            h2 = Tanh(u) }>
        y = MatMul(last, wy)""",
        count=scalar(3), w0=(4, 16), w1=(16, 24), w2=(24, 16), wh=(16, 16), wy=(16, 3),
    )  # fmt: skip


@graph(1, "w0 wh wx b wy wo")
def scan_recurrent() -> Net:
    """A recurrent network written as Scan over the second axis, outputs stacked on the third and
    read backwards. Group: the hidden units.
    """
    return net(
        "(float[N,4] x, float[N,5,4] xs) => (float[N,3] y, float[N,5,6] ys)",
        f"""h0 = MatMul(x, w0)
        last, all = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[-1],
            scan_output_directions=[1], body = step (float[N,16] h, float[N,4] xi)
            => (float[N,16] h2, float[N,16] o) {{ {STEP} o = Identity(h2) }}>(h0, xs)
        y = MatMul(last, wy) turned = Transpose<perm=[0,2,1]>(all) ys = MatMul(turned, wo)""",
        **OUT,
    )  # fmt: skip


@graph(1, "w0 wh wx b wy wo", opset=8)
def scan_with_a_batch() -> Net:
    """Opset 8: a batch axis in front of everything. Group: the hidden units."""
    return net(
        "(float[N,4] x, float[N,5,4] xs) => (float[N,3] y, float[N,5,6] ys)",
        f"""h0 = MatMul(x, w0)
        last, all = Scan<num_scan_inputs=1, body = step (float[16] h, float[4] xi)
            => (float[16] h2, float[16] o) {{ {STEP} o = Identity(h2) }}>(, h0, xs)
        y = MatMul(last, wy) ys = MatMul(all, wo)""",
        **OUT,
    )  # fmt: skip


# ---- branches -----------------------------------------------------------------------------


@graph(3, "w1 w2 w3 w4 w5 wy")
def if_convolutions() -> Net:
    """Two branches of convolutions between convolutions. Groups: what both capture, the middle of
    the deep branch, what both give.
    """
    return net(
        "(float[N,3,8,8] x, bool deep) => (float[N,10] y)",
        """a = Conv3(x, w1) r = Relu(a)
        u = If(deep) <
            then_branch = yes () => (float[N,12,8,8] t) {
                p = Conv3(r, w2) q = Relu(p) t = Conv3(q, w3) },
            else_branch = no () => (float[N,12,8,8] e) { e = Conv3(r, w4) }>
        s = Relu(u) v = Conv3(s, w5) g = GlobalAveragePool(v) f = Flatten(g) y = MatMul(f, wy)""",
        w1=(8, 3, 3, 3), w2=(16, 8, 3, 3), w3=(12, 16, 3, 3), w4=(12, 8, 3, 3),
        w5=(8, 12, 1, 1), wy=(8, 10),
    )  # fmt: skip


@graph(2, "w1 w2 wy")
def if_known_rank() -> Net:
    """As PyTorch writes `squeeze(1)` of an axis whose size it does not know: an If over that
    size, whose branches differ in rank. The axis has 16 places, so nothing is squeezed, whatever
    is left of them. Groups: both layers.
    """
    return net(
        "(float[N,8] x) => (float[N,4] y)",
        """a = MatMul(x, w1) xs = Shape(x) batch = Slice(xs, nought, unit)
        to = Concat<axis=0>(batch, rest) v = Reshape(a, to) r = Relu(v)
        sh = Shape(r) n = Gather<axis=0>(sh, at) single = Equal(n, at)
        u = If(single) <
            then_branch = yes () => (float[M] t) { t = Squeeze(r, unit) },
            else_branch = no () => (float[M,K] e) { e = Identity(r) }>
        b = MatMul(u, w2) s = Relu(b) y = MatMul(s, wy)""",
        at=scalar(1), nought=[0], unit=[1], rest=[-1], w1=(8, 16), w2=(16, 12), wy=(12, 4),
    )  # fmt: skip


@graph(2, "w1 w2 wy", stay="w3")
def if_dead_branch() -> Net:
    """The branch that never runs would not even load with fewer channels. Groups: both layers."""
    return net(
        "(float[N,8] x) => (float[N,4] y)",
        """a = MatMul(x, w1) r = Relu(a)
        u = If(never) <
            then_branch = yes () => (float[N,12] t) { t = Gemm(r, w3) },
            else_branch = no () => (float[N,12] e) { e = MatMul(r, w2) }>
        s = Relu(u) y = MatMul(s, wy)""",
        never=scalar(0).astype(bool), w1=(8, 16), w2=(16, 12), w3=(16, 12), wy=(12, 4),
    )  # fmt: skip


@graph(2, "w1 w2 w3 w4", stay="wy")
def if_different_sizes() -> Net:
    """The branches give 6 and 9 columns, of which the maximum is read. They stay. Groups: both
    layers before.
    """
    return net(
        "(float[N,8] x, bool c) => (float[N,4] y)",
        """a = MatMul(x, w1) r = Relu(a)
        b = MatMul(r, w2) q = Relu(b)
        u = If(c) <
            then_branch = yes () => (float[N,K] t) { t = MatMul(q, w3) },
            else_branch = no () => (float[N,K] e) { e = MatMul(q, w4) }>
        m = ReduceMax<axes=[1]>(u) y = MatMul(m, wy)""",
        w1=(8, 16), w2=(16, 12), w3=(12, 6), w4=(12, 9), wy=(1, 4),
    )  # fmt: skip


@graph(3, "w1 w2 w3 w4 w5", inner="k")
def if_names_reused() -> Net:
    """Sibling branches use the same names for other values, constants among them. Groups: what
    both capture, and the hidden layer of each.
    """
    return net(
        "(float[N,8] x, bool c) => (float[N,4] y)",
        """a = MatMul(x, w1) r = Relu(a)
        u = If(c) <
            then_branch = yes () => (float[N,4] t) {
                h = MatMul(r, w2) k2 = Mul(h, k) t = MatMul(k2, w3) },
            else_branch = no () => (float[N,4] t) {
                h = MatMul(r, w4) k2 = Mul(h, k) t = MatMul(k2, w5) }>
        y = Relu(u)""",
        w1=(8, 16), w2=(16, 12), w3=(12, 4), w4=(16, 12), w5=(12, 4), k=12,
    )  # fmt: skip


# ---- sequences and optionals ----------------------------------------------------------------


@graph(3, "w1 w2 w3 w4 w5", opset=13)
def sequence_between_layers() -> Net:
    """A sequence is built, grown, cut, read and joined between two blocks. Groups: the middle of
    both blocks, and the stream between them.
    """
    return net(
        "(float[N,8] x) => (float[N,6] y)",
        """a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2)
        c = Neg(b) s1 = SequenceConstruct(b, c) s2 = SequenceInsert(s1, b)
        s3 = SequenceErase(s2, at) n = SequenceLength(s3) d = SequenceAt(s3, at)
        e = ConcatFromSequence<axis=1>(s3)
        f = MatMul(e, w5) k = Cast<to=1>(n) j = Mul(d, k) g = Add(j, f)
        h = MatMul(g, w3) q = Relu(h) y = MatMul(q, w4)""",
        at=scalar(0), w1=(8, 16), w2=(16, 12), w5=(24, 12), w3=(12, 20), w4=(20, 6),
    )  # fmt: skip


@graph(2, "w1 w2 w3", opset=13)
def split_to_sequence() -> Net:
    """Half of the columns come back from a sequence. Groups: the layer before, and these."""
    return net(
        "(float[N,8] x) => (float[N,6] y)",
        """a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2)
        s = SplitToSequence<axis=1>(b, six) d = SequenceAt(s, at) y = MatMul(d, w3)""",
        at=scalar(1), six=scalar(6), w1=(8, 16), w2=(16, 12), w3=(6, 6),
    )  # fmt: skip


@graph(2, "w0 wh w1 w2 wy")
def loop_of_sequences() -> Net:
    """Every step appends to a list, as PyTorch scripts do. Groups: the state, and what a step
    gives."""
    return net(
        "(float[N,4] x) => (float[N,3] y)",
        """h0 = MatMul(x, w0) none = SequenceEmpty()
        last, list = Loop(count, , h0, none) <body = step (int64 i, bool c, float[N,16] h,
            seq(float[N,4]) l) => (bool c, float[N,16] h2, seq(float[N,4]) l2) {
            a = MatMul(h, wh) h2 = Tanh(a) o = MatMul(h2, w1) l2 = SequenceInsert(l, o) }>
        z = ConcatFromSequence<axis=1>(list) y0 = MatMul(z, wy) q = MatMul(last, w2)
        y = Add(y0, q)""",
        count=scalar(3), w0=(4, 16), wh=(16, 16), w1=(16, 4), w2=(16, 3), wy=(12, 3),
    )  # fmt: skip


@graph(2, "w1 w2 w3 w4", opset=17)
def sequence_map() -> Net:
    """SequenceMap has a body in which no rule holds: what it captures stays. Groups: the middle
    of both blocks.
    """
    return net(
        "(float[N,8] x) => (float[N,6] y)",
        """a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) s = SequenceConstruct(b, b)
        m = SequenceMap(s) <body = each (float[N,12] v) => (float[N,12] w) { w = Mul(v, scale) }>
        d = SequenceAt(m, at) h = MatMul(d, w3) q = Relu(h) y = MatMul(q, w4)""",
        at=scalar(1), scale=12, w1=(8, 16), w2=(16, 12), w3=(12, 20), w4=(20, 6),
    )  # fmt: skip


@graph(2, "w1 w2 w3 w4", opset=18)
def optional_value() -> Net:
    """A value wrapped in an optional and taken out again stays. Groups: the layers around."""
    return net(
        "(float[N,8] x) => (float[N,6] y)",
        """a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) o = Optional(b)
        full = OptionalHasElement(o) d = OptionalGetElement(o) k = Cast<to=1>(full)
        e = Mul(d, k) h = MatMul(e, w3) q = Relu(h) y = MatMul(q, w4)""",
        w1=(8, 16), w2=(16, 12), w3=(12, 20), w4=(20, 6),
    )  # fmt: skip
