"""Proof graphs: sequences and optionals whose elements are known (see `graph_builder`)."""

from __future__ import annotations

import numpy as np

from .graph_builder import Net, Weight, graph, net, scalar

SIGNATURE = "(float[N,4] x) => (float[N,3] y)"
TWO: dict[str, Weight] = {"w1": (4, 8), "w2": (4, 8), "v1": (8, 3), "v2": (8, 3)}


@graph(2, "w1 w2 v1 v2")
def sequence_construct_at() -> Net:
    """Two branches into a sequence and out again, counted from either end. Groups: the hidden
    units of each."""
    return net(
        SIGNATURE,
        """a = MatMul(x, w1) b = MatMul(x, w2) s = SequenceConstruct(a, b) t = Identity(s)
        c = SequenceAt(t, last) d = SequenceAt(t, first) e = Relu(c) f = Relu(d)
        g = MatMul(f, v1) h = MatMul(e, v2) y = Add(g, h)""",
        first=scalar(0), last=scalar(-1), **TWO,
    )  # fmt: skip


@graph(3, "w1 w2 w3 v1 v2 v3")
def sequence_insert_erase() -> Net:
    """Three branches inserted at the end, in front and between, and one of them taken out again.
    Groups: the hidden units of each."""
    return net(
        SIGNATURE,
        """a = MatMul(x, w1) b = MatMul(x, w2) c = MatMul(x, w3) s0 = SequenceEmpty()
        s1 = SequenceInsert(s0, a) s2 = SequenceInsert(s1, b, first) s3 = SequenceInsert(s2, c, one)
        d = SequenceAt(s3, first) s4 = SequenceErase(s3, first) e = SequenceAt(s4, first)
        f = SequenceAt(s4, one) d1 = Relu(d) e1 = Relu(e) f1 = Relu(f) d2 = MatMul(d1, v2)
        e2 = MatMul(e1, v3) f2 = MatMul(f1, v1) g = Add(d2, e2) y = Add(g, f2)""",
        first=scalar(0), one=scalar(1), w3=(4, 12), v3=(12, 3), **TWO,
    )  # fmt: skip


@graph(2, "w1 w2 v")
def sequence_concat() -> Net:
    """Joined along channels: a consumer sees both. Groups: the hidden units of each."""
    return net(
        SIGNATURE,
        """a = MatMul(x, w1) b = MatMul(x, w2) s = SequenceConstruct(a, b)
        c = ConcatFromSequence<axis = -1>(s) d = Relu(c) y = MatMul(d, v)""",
        w1=(4, 8), w2=(4, 16), v=(24, 3),
    )  # fmt: skip


@graph(1, "w1 w2 v")
def sequence_stack() -> Net:
    """Stacked on an axis of their own, which stays. Group: the hidden units, both alike."""
    return net(
        "(float[N,4] x) => (float[2,N,3] y)",
        """a = MatMul(x, w1) b = MatMul(x, w2) s = SequenceConstruct(a, b)
        c = ConcatFromSequence<axis = 0, new_axis = 1>(s) d = Relu(c) y = MatMul(d, v)""",
        w1=(4, 8), w2=(4, 8), v=(8, 3),
    )  # fmt: skip


@graph(2, "w v1 v2")
def sequence_split() -> Net:
    """One layer split into a sequence of unequal parts. Groups: the hidden units of each part."""
    return net(
        SIGNATURE,
        """a = MatMul(x, w) s = SplitToSequence<axis = 1>(a, sizes) b = SequenceAt(s, first)
        c = SequenceAt(s, one) d = Relu(b) e = Tanh(c) f = MatMul(d, v1) g = MatMul(e, v2)
        y = Add(f, g)""",
        w=(4, 24), sizes=[8, 16], first=scalar(0), one=scalar(1), v1=(8, 3), v2=(16, 3),
    )  # fmt: skip


@graph(1, "w v")
def sequence_chunks() -> Net:
    """One layer in chunks of one size, multiplied with each other: that size becomes a list.
    Group: the hidden units of both."""
    return net(
        SIGNATURE,
        """a = MatMul(x, w) s = SplitToSequence<axis = -1>(a, size) b = SequenceAt(s, first)
        c = SequenceAt(s, one) d = Sigmoid(b) e = Mul(c, d) y = MatMul(e, v)""",
        w=(4, 16), size=scalar(8), first=scalar(0), one=scalar(1), v=(8, 3),
    )  # fmt: skip


@graph(1, "w v")
def sequence_of_rows() -> Net:
    """Taken apart along an axis that then is no more; the positions stay, the channels go. Group:
    the hidden units."""
    return net(
        "(float[3,N,4] x) => (float[N,3] y)",
        """a = MatMul(x, w) s = SplitToSequence<axis = 0, keepdims = 0>(a)
        b = SequenceAt(s, first) c = SequenceAt(s, two) d = Relu(b) e = Add(c, d)
        y = MatMul(e, v)""",
        w=(4, 8), first=scalar(0), two=scalar(2), v=(8, 3),
    )  # fmt: skip


def tensor_split(sizes: str) -> str:
    """PyTorch's tensor_split of ``a``, of symbolic ``sizes``, into s: all but the last part by a
    Loop."""
    return f"""parts = Loop(trips, yes, none) <body = cut (int64 i, bool c, seq(float[{sizes}]) s0)
        => (bool c2, seq(float[{sizes}]) s1) {{
        begin = Gather<axis = 0>(bounds, i) step = Constant<value = int64 {{1}}>()
        i1 = Add(i, step) end = Gather<axis = 0>(bounds, i1) part = Slice(a, begin, end, axis)
        s1 = SequenceInsert(s0, part) c2 = Identity(yes) }}>
        size = Shape(a) whole = Gather<axis = 0>(size, axis) rest = Slice(a, after, whole, axis)
        s = SequenceInsert(parts, rest)\n"""


@graph(2, "w v1 v2")
def loop_of_one_slice() -> Net:
    """Two parts along channels: the Loop runs once. Groups: the hidden units of each part."""
    return net(
        SIGNATURE,
        "a = MatMul(x, w) none = SequenceEmpty()" + tensor_split("K,L")
        + """b = SequenceAt(s, first) d = SequenceAt(s, last) e = Relu(b) f = Tanh(d)
        g = MatMul(e, v1) h = MatMul(f, v2) y = Add(g, h)""",
        w=(4, 24), trips=scalar(1), yes=scalar(1).astype(bool), axis=[1],
        bounds=np.array([[0], [8]]), after=[8], first=scalar(0), last=scalar(1),
        v1=(8, 3), v2=(16, 3),
    )  # fmt: skip


@graph(1, "w v1")
def loop_of_slices() -> Net:
    """Three parts of unlike sizes along another axis. Group: the channels, alike in all."""
    return net(
        "(float[6,N,4] x) => (float[6,N,3] y)",
        "a = MatMul(x, w) none = SequenceEmpty()" + tensor_split("K,L,M")
        + """b = SequenceAt(s, first) d = SequenceAt(s, one) f = SequenceAt(s, last)
        e = Relu(f) j = Concat<axis = 0>(e, b, d) y = MatMul(j, v1)""",
        w=(4, 8), trips=scalar(2), yes=scalar(1).astype(bool), axis=[0],
        bounds=np.array([[0], [1], [3]]), after=[3], first=scalar(0), one=scalar(1),
        last=scalar(2), v1=(8, 3),
    )  # fmt: skip


@graph(2, "w1 w2 v")
def loop_of_steps() -> Net:
    """Every iteration appends what it computes with weights inside, and all are stacked. Groups:
    the hidden layer inside, and what comes out of it."""
    return net(
        "(float[5,N,4] x) => (float[5,N,3] y)",
        """none = SequenceEmpty()
        s = Loop(trips, yes, none) <body = step (int64 i, bool c, seq(float[N,8]) s0)
            => (bool c2, seq(float[N,8]) s1) {
            r = Gather<axis = 0>(x, i) a = MatMul(r, w1) b = Relu(a) d = MatMul(b, w2)
            s1 = SequenceInsert(s0, d) c2 = Identity(c) }>
        t = ConcatFromSequence<axis = 0, new_axis = 1>(s) u = Relu(t) y = MatMul(u, v)""",
        trips=scalar(5), yes=scalar(1).astype(bool), w1=(4, 12), w2=(12, 8), v=(8, 3),
    )  # fmt: skip


@graph(2, "table w v")
def loop_of_bags() -> Net:
    """Sums of looked-up rows between bounds that are data, as PyTorch exports EmbeddingBag: a
    counter ends the Loop, and an If stands in for empty bags. Groups: the columns of the table, the
    hidden layer."""
    return net(
        "(int64[12,N] x, int64[3] ends) => (float[3,N,5] y)",
        """rows = Gather<axis = 0>(table, x) bounds = Concat<axis = 0>(ends, length)
        none = SequenceEmpty()
        s, k = Loop(, yes, none, zero) <body = bag (int64 i, bool c, seq(float[1,N,R]) s0, int64 k0)
            => (bool c2, seq(float[1,N,R]) s1, int64 k1) {
            at = Reshape(k0, minus) next = Add(at, one) after = Add(next, one)
            begin = Slice(bounds, at, next) end = Slice(bounds, next, after)
            empty = Equal(begin, end)
            b = If(empty) <
                then_branch = none () => (float[1,N,R] z) { z = Gather<axis = 0>(rows, axes) },
                else_branch = some () => (float[1,N,R] t) {
                part = Slice(rows, begin, end) t = ReduceSum(part, axes) }>
            s1 = SequenceInsert(s0, b) k1 = Add(k0, unit) c2 = Less(k1, bags) }>
        e = ConcatFromSequence<axis = 0>(s) h = MatMul(e, w) r = Relu(h) y = MatMul(r, v)""",
        table=(8, 16), w=(16, 24), v=(24, 5), length=[12], minus=[-1], one=[1],
        axes=[0], zero=scalar(0), unit=scalar(1), bags=scalar(3), yes=scalar(1).astype(bool),
    )  # fmt: skip


@graph(2, "table w v")
def loop_of_sliced_indices() -> Net:
    """The same with a number of iterations, the indices sliced and every bag a row that the Loop
    stacks. Groups: the columns of the table, the hidden layer."""
    return net(
        "(int64[12,N] x, int64[3] starts, int64[3] ends) => (float[3,N,5] y)",
        """e = Loop(bags, yes) <body = bag (int64 i, bool c) => (bool c2, float[N,R] b) {
            first = Gather<axis = 0>(starts, i) last = Gather<axis = 0>(ends, i)
            begin = Unsqueeze(first, axes) end = Unsqueeze(last, axes)
            part = Slice(x, begin, end, axes) rows = Gather<axis = 0>(table, part)
            b = ReduceSum<keepdims = 0>(rows, axes) c2 = Identity(c) }>
        h = MatMul(e, w) r = Relu(h) y = MatMul(r, v)""",
        table=(8, 16), w=(16, 24), v=(24, 5), axes=[0], bags=scalar(3),
        yes=scalar(1).astype(bool),
    )  # fmt: skip


@graph(1, "w v")
def loop_over_a_sequence() -> Net:
    """A Loop adds up the elements of a sequence, which one it takes being known only there.
    Group: the hidden units."""
    return net(
        "(float[3,N,4] x) => (float[N,3] y)",
        """a = MatMul(x, w) s = SplitToSequence<axis = 0, keepdims = 0>(a)
        b = SequenceAt(s, first) d = Sub(b, b)
        e = Loop(trips, yes, d) <body = step (int64 i, bool c, float[N,8] h)
            => (bool c2, float[N,8] k) {
            r = SequenceAt(s, i) q = Relu(r) k = Add(h, q) c2 = Identity(c) }>
        y = MatMul(e, v)""",
        trips=scalar(3), yes=scalar(1).astype(bool), w=(4, 8), first=scalar(0), v=(8, 3),
    )  # fmt: skip


@graph(2, "w1 w2 v1 v2")
def branches_give_sequences() -> Net:
    """An If that gives two tensors in one sequence or another. Groups: both hidden layers."""
    return net(
        "(float[N,4] x, bool c) => (float[N,3] y)",
        """a = MatMul(x, w1) b = MatMul(x, w2)
        s = If(c) <then_branch = yes () => (seq(float[N,8]) s1) { s1 = SequenceConstruct(a, b) },
            else_branch = no () => (seq(float[N,8]) s2) {
                na = Relu(a) nb = Tanh(b) s2 = SequenceConstruct(na, nb) }>
        d = SequenceAt(s, first) e = SequenceAt(s, one) f = Relu(d) g = Tanh(e)
        h = MatMul(f, v1) k = MatMul(g, v2) y = Add(h, k)""",
        first=scalar(0), one=scalar(1), **TWO,
    )  # fmt: skip


@graph(1, "w v", opset=18)
def optional_of_a_tensor() -> Net:
    """A tensor as an optional, used if it is there. Group: the hidden units."""
    return net(
        SIGNATURE,
        """a = MatMul(x, w) o = Optional(a) h = OptionalHasElement(o)
        b = If(h) <then_branch = yes () => (float[N,8] g) { g = OptionalGetElement(o) },
            else_branch = no () => (float[N,8] z) { z = Sub(a, a) }>
        d = Relu(b) y = MatMul(d, v)""",
        w=(4, 8), v=(8, 3),
    )  # fmt: skip


@graph(2, "w1 w2 v1 v2", opset=18)
def optional_of_a_sequence() -> Net:
    """A sequence as an optional. Groups: both hidden layers."""
    return net(
        SIGNATURE,
        """a = MatMul(x, w1) b = MatMul(x, w2) q = SequenceConstruct(a, b) o = Optional(q)
        s = OptionalGetElement(o) n = SequenceLength(s) minus = Sub(n, two)
        d = SequenceAt(s, minus) e = SequenceAt(s, one) f = Relu(d) g = Tanh(e)
        h = MatMul(f, v1) k = MatMul(g, v2) y = Add(h, k)""",
        two=scalar(2), one=scalar(1), **TWO,
    )  # fmt: skip


@graph(2, "w w2 v")
def sizes_in_a_sequence() -> Net:
    """Sizes of a pruned layer travel through a sequence: one as a number, which stays, one as
    part of a target, which shrinks; a bias does as well. Groups: both hidden layers."""
    return net(
        SIGNATURE,
        """a = MatMul(x, w) z = Shape(a) s = SequenceConstruct(z, z) t = SequenceAt(s, one)
        q = SequenceConstruct(bias, bias2) p = SequenceAt(q, first) a1 = Add(a, p)
        c = Gather<axis = 0>(t, one) d = Cast<to = 1>(c) e = Div(a1, d) f = Relu(e)
        r = Reshape(f, t) g = MatMul(r, w2) p2 = SequenceAt(q, one) g2 = Add(g, p2) h = Relu(g2)
        y = MatMul(h, v)""",
        w=(4, 8), w2=(8, 12), v=(12, 3), bias=8, bias2=12, first=scalar(0), one=scalar(1),
    )  # fmt: skip


@graph(1, "w3 v3", stay="w1 w2")
def sequence_at_run_time() -> Net:
    """An element that only the run chooses, among two of unlike sizes, which stay. Group: the
    hidden units of another branch."""
    return net(
        "(float[N,4] x, bool c) => (float[N,3] y)",
        """a = MatMul(x, w1) b = MatMul(x, w2) s = SequenceConstruct(a, b)
        i = Cast<to = 7>(c) d = SequenceAt(s, i) f = ReduceMax<axes = [1]>(d)
        e = MatMul(x, w3) g = Relu(e) h = MatMul(g, v3) y = Add(h, f)""",
        w1=(4, 8), w2=(4, 6), w3=(4, 8), v3=(8, 3),
    )  # fmt: skip


@graph(1, "w1 w2 v", dims="N")
def sequence_at_any_place() -> Net:
    """An element that only the run chooses, among two of one size, of which the same goes. Group:
    the hidden units of both."""
    return net(
        "(float[N,4] x, bool c) => (float[N,3] y)",
        """a = MatMul(x, w1) b = MatMul(x, w2) s = SequenceConstruct(a, b)
        i = Cast<to = 7>(c) d = SequenceAt(s, i) f = Relu(d) y = MatMul(f, v)""",
        w1=(4, 8), w2=(4, 8), v=(8, 3),
    )  # fmt: skip
