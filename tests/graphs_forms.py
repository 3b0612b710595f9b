"""Proof graphs: forms of a model (see `graph_builder` for the rules of counting).

Opsets, quantisation, constants, control flow and weight layouts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .graph_builder import IMAGE, Array, Net, Weight, bn, graph, head, net, norm


def int8(shape: Sequence[int], seed: int) -> Array:
    return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)


# ---- where the weights are ----------------------------------------------------------------


def _two_convs() -> Net:
    body = """a = Conv3(x, w1, b1) r = Relu(a) b = Conv3(r, w2, b2) p = GlobalAveragePool(b)
        f = Flatten(p) y = MatMul(f, wy)"""
    return net(IMAGE, body, w1=(16, 3, 3, 3), b1=16, w2=(24, 16, 3, 3), b2=24, wy=(24, 10))


@graph(2, "w1 b1 w2 b2 wy", form="constants")
def weights_in_constants() -> Net:
    """Two convolutions: each output axis is one group. All weights are Constant nodes."""
    return _two_convs()


@graph(2, "w1 b1 w2 b2 wy", form="inputs", opset=8)
def weights_as_inputs() -> Net:
    """The same two groups; in IR version 3 weights are graph inputs too, yet not pinned."""
    return _two_convs()


@graph(2, "w1 w2 w3 w4")
def shared_target() -> Net:
    """One Reshape target, channels first and channels last: [0,c,16] and [0,16,d]. Two groups."""
    return net(
        "(float[N,3,4,4] x) => (float[N,8,16] y, float[N,16,8] z)",
        """a = Conv3(x, w1) b = Conv3(x, w2) bt = Transpose<perm=[0,2,3,1]>(b)
        p = Reshape(a, target) q = Reshape(bt, target)
        y = MatMul(w3, p) z = MatMul(q, w4)""",
        w1=(16, 3, 3, 3), w2=(16, 3, 3, 3), w3=(8, 16), w4=(16, 8), target=[0, 16, 16],
    )  # fmt: skip


@graph(1, "w1 w2 wy")
def tied_convs() -> Net:
    """Two Convs share w2: its input and output axes are one group with the stem."""
    body = "a = Conv3(x, w1) ar = Relu(a) b = Conv3(ar, w2) br = Relu(b) f = Conv3(br, w2)"
    return net(IMAGE, body + head("f"), w1=(16, 3, 3, 3), w2=(16, 16, 3, 3), wy=(10, 16))


@graph(2, "wa wb w2 wy")
def two_inputs() -> Net:
    """Groups: the sum of both stems, w2's output."""
    return net(
        "(float[N,3,8,8] x, float[N,1,8,8] z) => (float[N,10] y)",
        "a = Conv3(x, wa) b = Conv3(z, wb) s = Add(a, b) r = Relu(s) f = Conv3(r, w2)" + head("f"),
        wa=(16, 3, 3, 3), wb=(16, 1, 3, 3), w2=(16, 16, 3, 3), wy=(10, 16),
    )  # fmt: skip


@graph(3, "w1 w2 w3 w4 w5 w6")
def many_outputs() -> Net:
    """Features at three depths are outputs, hence pinned; the hidden layer of each stage is not."""
    return net(
        "(float[N,3,8,8] x) => (float[N,8,8,8] f1, float[N,16,4,4] f2, float[N,24,2,2] f3)",
        """a = Conv3(x, w1) ar = Relu(a) f1 = Conv3(ar, w2)
        b = Conv3(f1, w3) br = Relu(b) f2 = Conv<pads=[1,1,1,1], strides=[2,2]>(br, w4)
        c = Conv3(f2, w5) cr = Relu(c) f3 = Conv<pads=[1,1,1,1], strides=[2,2]>(cr, w6)""",
        w1=(16, 3, 3, 3), w2=(8, 16, 3, 3), w3=(8, 8, 3, 3), w4=(16, 8, 3, 3),
        w5=(16, 16, 3, 3), w6=(24, 16, 3, 3),
    )  # fmt: skip


# ---- number types -------------------------------------------------------------------------


@graph(2, "w1 b1 n_s n_v w2 wy")
def fp16() -> Net:
    """A whole model in FP16: two groups."""
    body = "a = Conv3(x, w1, b1)" + bn("a", "n", "n") + "r = Relu(n) f = Conv3(r, w2)" + head("f")
    return net(
        "(float16[N,3,8,8] x) => (float16[N,10] y)", body,
        w1=(16, 3, 3, 3), b1=16, w2=(16, 16, 3, 3), wy=(10, 16), **norm("n", 16),
    )  # fmt: skip


_SCALES = np.linspace(1e-3, 2e-3, 16, dtype=np.float32)


@graph(2, "w1 s1 z1 b1 w2 s2 wy")
def dq_weights() -> Net:
    """int8 weights, dequantised per output channel, float biases: two groups.

    Scales and zero points shrink with the output axis.
    """
    return net(
        IMAGE,
        """k1 = DequantizeLinear<axis=0>(w1, s1, z1) a = Conv3(x, k1, b1) r = Relu(a)
        k2 = DequantizeLinear<axis=0>(w2, s2) f = Conv3(r, k2)"""
        + head("f"),
        w1=int8((16, 3, 3, 3), 1), s1=_SCALES, z1=np.zeros(16, np.int8), b1=16,
        w2=int8((16, 16, 3, 3), 2), s2=_SCALES, wy=(10, 16),
    )  # fmt: skip


@graph(2, "w1 s1 z1 b1 sb1 w2 s2 z2 b2 sb2 wy")
def qdq() -> Net:
    """Quantised activations and weights, int32 biases dequantised: two groups."""
    return net(
        IMAGE,
        """xq = QuantizeLinear(x, sx, zx) xd = DequantizeLinear(xq, sx, zx)
        k1 = DequantizeLinear<axis=0>(w1, s1, z1) c1 = DequantizeLinear<axis=0>(b1, sb1)
        a = Conv3(xd, k1, c1) ar = Relu(a)
        aq = QuantizeLinear(ar, sa, za) ad = DequantizeLinear(aq, sa, za)
        k2 = DequantizeLinear<axis=0>(w2, s2, z2) c2 = DequantizeLinear<axis=0>(b2, sb2)
        b = Conv3(ad, k2, c2) br = Relu(b)
        bq = QuantizeLinear(br, sa, za) f = DequantizeLinear(bq, sa, za)"""
        + head("f"),
        w1=int8((16, 3, 3, 3), 3), s1=_SCALES, z1=np.zeros(16, np.int8), w2=int8((16, 16, 3, 3), 4),
        s2=_SCALES, z2=np.zeros(16, np.int8), b1=np.arange(-8, 8, dtype=np.int32),
        b2=np.arange(8, -8, -1, dtype=np.int32), sb1=_SCALES * np.float32(0.03),
        sb2=_SCALES * np.float32(0.02), sx=0.03, zx=np.array(128, np.uint8), sa=0.02,
        za=np.array(0, np.uint8), wy=(10, 16),
    )  # fmt: skip


# ---- opsets -------------------------------------------------------------------------------


@graph(2, "w1 n_s n_b n_m n_v w2 w3", form="inputs", opset=7)
def opset7() -> Net:
    """Sizes in attributes, Upsample with scales, IR version 3. Groups: w1's and w2's outputs."""
    return net(
        IMAGE,
        """a = Conv3(x, w1) n = BatchNormalization<epsilon=0.001>(a, n_s, n_b, n_m, n_v)
        c = Clip<min=0.0, max=6.0>(n)
        p = Pad<mode="constant", pads=[0,0,1,1,0,0,1,1], value=0.0>(c) b = Conv(p, w2)
        u = Upsample<mode="nearest", scales=[1.0,1.0,2.0,2.0]>(b)
        s = Slice<axes=[2,3], starts=[0,0], ends=[8,8]>(u)
        m = ReduceMean<axes=[2,3], keepdims=1>(s) q = Squeeze<axes=[2,3]>(m)
        d = Dropout<ratio=0.5>(q) y = MatMul(d, w3)""",
        w1=(16, 3, 3, 3), w2=(24, 16, 3, 3), w3=(24, 10), **norm("n", 16),
    )  # fmt: skip


_VARIANT = """h = Conv3(x, w1) {split} {pad} s = Add(p, b) r = Relu(s) c = Conv3(r, w2)
    {slice} {sum} {squeeze} {dropout} y = MatMul(d, w3)"""


def _variant(opset: int) -> Net:
    """Split 6/10, pad 6 to 10, add; slice 8 of 12; sum, squeeze, drop out.

    Groups: h[0:6] with h[6:12]; h[12:16], which meets padding; c[0:8]; c[8:12], which is cut off.
    """
    ints: dict[str, Weight] = {}
    if opset >= 10:
        ints |= {"zero": [0], "eight": [8], "one": [1]}
        cut = "l = Slice(c, zero, eight, one)"
    else:
        cut = "l = Slice<axes=[1], starts=[0], ends=[8]>(c)"
    if opset >= 11:
        ints |= {"pads": [0, 0, 0, 0, 0, 4, 0, 0]}
        pad = "p = Pad(a, pads)"
    else:
        pad = "p = Pad<pads=[0,0,0,0,0,4,0,0]>(a)"
    if opset >= 13:
        ints |= {"sizes": [6, 10], "space": [2, 3]}
        split, total = "a, b = Split<axis=1>(h, sizes)", "t = ReduceSum(l, space)"
        squeeze, drop = "q = Squeeze(t, space)", "d = Dropout(q, ratio)"
        ints |= {"ratio": 0.5}
    else:
        split, total = "a, b = Split<axis=1, split=[6,10]>(h)", "t = ReduceSum<axes=[2,3]>(l)"
        squeeze, drop = "q = Squeeze<axes=[2,3]>(t)", "d = Dropout<ratio=0.5>(q)"
    body = _VARIANT.format(
        split=split, pad=pad, slice=cut, sum=total, squeeze=squeeze, dropout=drop
    )
    return net(IMAGE, body, w1=(16, 3, 3, 3), w2=(12, 10, 3, 3), w3=(8, 10), **ints)


for _opset in (9, 11, 13, 18):

    def _one(opset: int = _opset) -> Net:
        return _variant(opset)

    _one.__name__, _one.__doc__ = f"variants_opset{_opset}", _variant.__doc__
    graph(4, "w1 w2 w3", opset=_opset)(_one)


# ---- what cannot be looked into -----------------------------------------------------------


@graph(2, "w1 w2 w3 w4", runnable=False)
def custom_operator() -> Net:
    """w2's output and w3's input meet an unknown operator and are pinned; w1's and w3's outputs
    are not. The model states the shape of the operator's output.
    """
    return net(
        "(float[N,3,8,8] x) => (float[N,4,8,8] y) <float[N,8,8,8] u>",
        """a = Conv3(x, w1) r = Relu(a) b = Conv3(r, w2) u = vendor.ops.Mystery<strength=2>(b)
        c = Conv3(u, w3) s = Relu(c) y = Conv3(s, w4)""",
        w1=(16, 3, 3, 3), w2=(8, 16, 3, 3), w3=(16, 8, 3, 3), w4=(4, 16, 3, 3),
    )  # fmt: skip


_BRANCHES = """y = If(c) <
    then_branch = yes () => (float[N,10] t) { t = Gemm<transB=1>(v, w_then) },
    else_branch = no () => (float[N,10] e) { m = MatMul(v, w_else) e = Relu(m) }>"""


@graph(1, "w1 w2", stay="w_then w_else", opset=16)
def if_captured_weights() -> Net:
    """Both branches capture weights and a feature that is an output: these stay. Group: w1's."""
    return net(
        "(float[N,3,8,8] x, bool c) => (float[N,10] y, float[N,16] v)",
        "a = Conv3(x, w1) r = Relu(a) b = Conv3(r, w2) p = GlobalAveragePool(b) v = Flatten(p)"
        + _BRANCHES,
        w1=(16, 3, 3, 3), w2=(16, 16, 3, 3), w_then=(10, 16), w_else=(16, 10),
    )  # fmt: skip


@graph(2, "w1 w2 w_then w_else", opset=16)
def if_captured_feature() -> Net:
    """The captured feature is inner. Groups: w1's, and the feature that both branches consume."""
    return net(
        "(float[N,3,8,8] x, bool c) => (float[N,10] y)",
        "a = Conv3(x, w1) r = Relu(a) b = Conv3(r, w2) p = GlobalAveragePool(b) v = Flatten(p)"
        + _BRANCHES,
        w1=(16, 3, 3, 3), w2=(16, 16, 3, 3), w_then=(10, 16), w_else=(16, 10),
    )  # fmt: skip


# ---- matrix layouts -----------------------------------------------------------------------


@graph(4, "w1 b1 w2 b2 w3 b3 w4 w5", stay="b4")
def gemm_forms() -> Net:
    """transA, transB, alpha, beta; biases [16], [1,24], [16], [1], none: four hidden axes."""
    return net(
        "(float[8,N] x) => (float[N,4] y)",
        """a = Gemm<transA=1>(x, w1, b1) ar = Relu(a)
        b = Gemm<transB=1, alpha=0.5, beta=2.0>(ar, w2, b2) br = Relu(b)
        c = Gemm<alpha=1.5>(br, w3, b3) cr = Relu(c) d = Gemm<transB=1>(cr, w4, b4) dr = Relu(d)
        y = Gemm(dr, w5)""",
        w1=(8, 16), b1=16, w2=(24, 16), b2=(1, 24), w3=(24, 16), b3=16, w4=(12, 16), b4=1,
        w5=(12, 4),
    )  # fmt: skip


@graph(1, "w1 w2")
def gemm_transposed_weight() -> Net:
    """The weight is the transposed operand A, the data operand B: w1's free axis is one group."""
    return net(
        "(float[8,N] x) => (float[4,N] y)",
        "a = Gemm<transA=1>(w1, x, b1) r = Relu(a) y = Gemm(w2, r)",
        w1=(8, 16), b1=(16, 1), w2=(4, 16),
    )  # fmt: skip


@graph(1, "w1 b1 w2", dims="N T")
def matmul_batch_3d() -> Net:
    """Weights [4,8,16] and [4,16,8]: the hidden axis is a group, the batch of 4 an output."""
    return net(
        "(float[N,4,T,8] x) => (float[N,4,T,8] y)",
        "a = MatMul(x, w1) b = Add(a, b1) r = Relu(b) y = MatMul(r, w2)",
        w1=(4, 8, 16), b1=(4, 1, 16), w2=(4, 16, 8),
    )  # fmt: skip


@graph(2, "w1 w2", dims="N T")
def matmul_experts_4d() -> Net:
    """Weights [1,8,8,16] and [1,8,16,8], experts summed: groups are experts and the hidden axis."""
    return net(
        "(float[N,1,T,8] x) => (float[N,T,8] y)",
        "a = MatMul(x, w1) r = Relu(a) e = MatMul(r, w2) y = ReduceSum<keepdims=0>(e, one)",
        w1=(1, 8, 8, 16), w2=(1, 8, 16, 8), one=[1],
    )  # fmt: skip


@graph(2, "e a w c")
def zeros_of_a_pruned_shape() -> Net:
    """Zeros as large as queries that lose channels, while the zeros join a stream that does not:
    the size they are given says how large data is. The queries' channels, the hidden ones."""
    return net(
        "(float[N,6,8] x) => (float[N,6,8] y)",
        """sx = Shape(x) b = Gather(sx, zero) times = Concat<axis=0>(b, ones) q = Tile(e, times)
        s = Shape(q) z = ConstantOfShape(s) qa = MatMul(q, a) zw = MatMul(z, w) h = Add(qa, zw)
        r = Relu(h) o = MatMul(r, c) oz = Add(o, z) y = Add(oz, x)""",
        e=(1, 6, 8), a=(8, 12), w=(8, 12), c=(12, 8), zero=[0], ones=[1, 1],
    )  # fmt: skip
