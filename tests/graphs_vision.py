"""Proof graphs: structures of convolutional networks (see `graph_builder` for the rules)."""

from __future__ import annotations

import numpy as np

from .graph_builder import IMAGE, Net, Weight, bn, graph, head, net, norm

END = 2**63 - 1


# ---- residual sums ------------------------------------------------------------------------


@graph(3, "w0 w1 w2 w3 w4 wy")
def residual_identity() -> Net:
    """Groups: the stream, and the hidden layer of each of two blocks."""
    return net(
        IMAGE,
        """a = Conv3(x, w0) b = Conv3(a, w1) br = Relu(b) c = Conv3(br, w2) d = Add(a, c)
        e = Conv3(d, w3) er = Relu(e) g = Conv3(er, w4) f = Add(g, d)""" + head("f"),
        w0=(16, 3, 3, 3), w1=(16, 16, 3, 3), w2=(16, 16, 3, 3), w3=(8, 16, 3, 3),
        w4=(16, 8, 3, 3), wy=(10, 16),
    )  # fmt: skip


@graph(3, "w0 w1 w2 w3 n_s n_b n_m n_v wy")
def residual_projected() -> Net:
    """Groups: stem, hidden layer, and the sum of the block and its 1x1 shortcut."""
    return net(
        IMAGE,
        """a = Conv3(x, w0) b = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w1) br = Relu(b)
        c = Conv3(br, w2) s = Conv<strides=[2,2]>(a, w3)""" + bn("s", "n", "n")
        + "f = Add(c, n)" + head("f"),
        w0=(8, 3, 3, 3), w1=(16, 8, 3, 3), w2=(16, 16, 3, 3), w3=(16, 8, 1, 1), wy=(10, 16),
        **norm("n", 16),
    )  # fmt: skip


def _option_a(chain: str, pads: dict[str, Weight]) -> Net:
    return net(
        IMAGE,
        """a = Conv3(x, w0) b = Conv3(a, w1) br = Relu(b) c = Conv3(br, w2) d = Add(a, c)
        e = Conv<pads=[1,1,1,1], strides=[2,2]>(d, w3) er = Relu(e) g = Conv3(er, w4)
        s = Slice(d, starts, ends, axes, steps)""" + chain
        + 'p = Pad<mode="constant">(s, pads, zero) f = Add(g, p)' + head("f"),
        w0=(8, 3, 3, 3), w1=(8, 8, 3, 3), w2=(8, 8, 3, 3), w3=(16, 8, 3, 3), w4=(16, 16, 3, 3),
        wy=(10, 16), starts=[0, 0], ends=[END, END], axes=[2, 3], steps=[2, 2], zero=0.0, **pads,
    )  # fmt: skip


@graph(4, "w0 w1 w2 w3 w4 wy")
def option_a() -> Net:
    """Groups: the stream with the middle of the wide sum, the sum's padded ends, two hidden."""
    return _option_a("", {"pads": [0, 4, 0, 0, 0, 4, 0, 0]})


@graph(4, "w0 w1 w2 w3 w4 wy")
def option_a_computed_pads() -> Net:
    """The groups of option_a; pads are computed the way PyTorch exports them."""
    chain = """fill = ConstantOfShape<value=int64[1] {0}>(two) all = Concat<axis=0>(short, fill)
        rows = Reshape(all, pairs) back = Slice(rows, minus, first, i0, minus)
        turned = Transpose<perm=[1,0]>(back) flat = Reshape(turned, minus)
        pads = Cast<to=7>(flat) """
    pads: dict[str, Weight] = {
        "short": [0, 0, 0, 0, 4, 4], "two": [2], "pairs": [-1, 2], "minus": [-1],
        "first": [-END], "i0": [0],
    }  # fmt: skip
    return _option_a(chain, pads)


# ---- concatenation and splitting ----------------------------------------------------------


@graph(4, "w0 w1 w2 n1_s n2_s n2_v wt wy")
def dense_concat() -> Net:
    """Groups: stem, two layers of the dense block, and the transition."""
    return net(
        IMAGE,
        "a = Conv3(x, w0)" + bn("a", "n1", "n1")
        + "r1 = Relu(n1) b = Conv3(r1, w1) ab = Concat<axis=1>(a, b)" + bn("ab", "n2", "n2")
        + """r2 = Relu(n2) c = Conv3(r2, w2) abc = Concat<axis=1>(a, b, c)
        t = Conv(abc, wt) f = AveragePool<kernel_shape=[2,2], strides=[2,2]>(t)""" + head("f"),
        w0=(16, 3, 3, 3), w1=(8, 16, 3, 3), w2=(8, 24, 3, 3), wt=(16, 32, 1, 1), wy=(10, 16),
        **norm("n1", 16), **norm("n2", 24),
    )  # fmt: skip


@graph(8, "w0 wa wb1 wb2 wc1 wc2 wd wo wy")
def inception() -> Net:
    """Groups: stem, four branch outputs, two branch reductions, the 1x1 behind the concat."""
    return net(
        IMAGE,
        """s = Conv3(x, w0) a = Conv(s, wa) b1 = Conv(s, wb1) b1r = Relu(b1) b = Conv3(b1r, wb2)
        c1 = Conv(s, wc1) c1r = Relu(c1) c = Conv<pads=[2,2,2,2]>(c1r, wc2)
        m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(s) d = Conv(m, wd)
        k = Concat<axis=1>(a, b, c, d) r = Relu(k) f = Conv(r, wo)""" + head("f"),
        w0=(16, 3, 3, 3), wa=(8, 16, 1, 1), wb1=(8, 16, 1, 1), wb2=(12, 8, 3, 3),
        wc1=(8, 16, 1, 1), wc2=(8, 8, 5, 5), wd=(8, 16, 1, 1), wo=(16, 36, 1, 1), wy=(10, 16),
    )  # fmt: skip


@graph(2, "w0 w1 wy")
def split_equal() -> Net:
    """Groups: the half that enters w1; the other half with w1's output, which it is added to."""
    return net(
        IMAGE,
        "s = Conv3(x, w0) a, b = Split<axis=1>(s) c = Conv3(a, w1) f = Add(c, b)" + head("f"),
        w0=(16, 3, 3, 3), w1=(8, 8, 3, 3), wy=(10, 8),
    )  # fmt: skip


@graph(4, "w0 wa wb wy")
def split_unequal() -> Net:
    """Groups: both parts (4 and 12), and what is computed from each."""
    return net(
        IMAGE,
        """s = Conv3(x, w0) a, b = Split<axis=1>(s, sizes) c = Conv3(a, wa) d = Conv3(b, wb)
        f = Concat<axis=1>(c, d)""" + head("f"),
        w0=(16, 3, 3, 3), wa=(8, 4, 3, 3), wb=(8, 12, 3, 3), sizes=[4, 12], wy=(10, 16),
    )  # fmt: skip


@graph(1, "w0 b0 wy")
def chunk_by_slices() -> Net:
    """Three slices of 8, a * sigmoid(b) + c: one group, of three coordinates of w0 per unit."""
    return net(
        IMAGE,
        """s = Conv3(x, w0, b0) a = Slice(s, k0, k8, k1) b = Slice(s, k8, k16, k1)
        c = Slice(s, k16, last, k1) g = Sigmoid(b) m = Mul(a, g) f = Add(m, c)""" + head("f"),
        w0=(24, 3, 3, 3), b0=24, k0=[0], k1=[1], k8=[8], k16=[16], last=[END], wy=(10, 8),
    )  # fmt: skip


# ---- shuffles -----------------------------------------------------------------------------


@graph(4, "w0 w1 wd w2 wd2 w3 wy")
def channel_shuffle() -> Net:
    """ShuffleNetV2. Groups: the kept half with w2's output (the shuffle interleaves them), the
    processed half, w1's output, w3's output.
    """
    return net(
        IMAGE,
        """s = Conv3(x, w0) a, b = Split<axis=1>(s) c = Conv(b, w1) cr = Relu(c)
        d = Conv<group=8, pads=[1,1,1,1]>(cr, wd) e = Conv(d, w2) k = Concat<axis=1>(a, e)
        v = Reshape(k, five) t = Transpose<perm=[0,2,1,3,4]>(v) h = Reshape(t, four)
        i = Conv<group=16, pads=[1,1,1,1]>(h, wd2) f = Conv(i, w3)""" + head("f"),
        w0=(16, 3, 3, 3), w1=(8, 8, 1, 1), wd=(8, 1, 3, 3), w2=(8, 8, 1, 1), wd2=(16, 1, 3, 3),
        w3=(16, 16, 1, 1), wy=(10, 16), five=[0, 2, 8, 8, 8], four=[0, 16, 8, 8],
    )  # fmt: skip


@graph(2, "w0 w1 wd w2 wy")
def grouped_shuffle() -> Net:
    """ShuffleNetV1: 4-grouped 1x1, shuffle, depthwise, 4-grouped 1x1. At least two groups: with
    one carrier w1's output joins the stem, with the other it joins w2's output.
    """
    return net(
        IMAGE,
        """s = Conv3(x, w0) c = Conv<group=4>(s, w1) v = Reshape(c, five)
        t = Transpose<perm=[0,2,1,3,4]>(v) h = Reshape(t, four)
        d = Conv<group=16, pads=[1,1,1,1]>(h, wd) f = Conv<group=4>(d, w2)""" + head("f"),
        w0=(16, 3, 3, 3), w1=(16, 4, 1, 1), wd=(16, 1, 3, 3), w2=(16, 4, 1, 1), wy=(10, 16),
        five=[0, 4, 4, 8, 8], four=[0, 16, 8, 8],
    )  # fmt: skip


def _pixels(steps: str, out: int, sizes: dict[str, Weight]) -> Net:
    size = 16 if out < 32 else 4
    return net(
        f"(float[N,3,8,8] x) => (float[N,3,{size},{size}] y)",
        f"a = Conv3(x, w1) r = Relu(a) b = Conv3(r, w2) {steps} y = Conv3(s, w3)",
        w1=(16, 3, 3, 3), w2=(32 if size == 16 else 8, 16, 3, 3), w3=(3, out, 3, 3), **sizes,
    )  # fmt: skip


@graph(2, "w1 w2 w3")
def pixel_shuffle_crd() -> Net:
    """Groups: w1's output; four neighbouring coordinates of w2's output per output channel."""
    return _pixels('s = DepthToSpace<blocksize=2, mode="CRD">(b)', 8, {})


@graph(2, "w1 w2 w3")
def pixel_shuffle_dcr() -> Net:
    """Groups: w1's output; four coordinates of w2's output, eight apart, per output channel."""
    return _pixels('s = DepthToSpace<blocksize=2, mode="DCR">(b)', 8, {})


@graph(2, "w1 w2 w3")
def pixel_shuffle_reshape() -> Net:
    """pixel_shuffle_crd by Reshape, Transpose, Reshape."""
    steps = "v = Reshape(b, six) t = Transpose<perm=[0,1,4,2,5,3]>(v) s = Reshape(t, four)"
    return _pixels(steps, 8, {"six": [0, 8, 2, 2, 8, 8], "four": [0, 8, 16, 16]})


@graph(2, "w1 w2 w3")
def space_to_depth() -> Net:
    """Groups: w1's output; w2's output, four input coordinates of w3 each."""
    return _pixels("s = SpaceToDepth<blocksize=2>(b)", 32, {})


@graph(2, "w1 w2 w3")
def pixel_unshuffle_reshape() -> Net:
    """The inverse of pixel_shuffle_reshape; groups as in space_to_depth."""
    steps = "v = Reshape(b, six) t = Transpose<perm=[0,1,3,5,2,4]>(v) s = Reshape(t, four)"
    return _pixels(steps, 32, {"six": [0, 8, 4, 2, 4, 2], "four": [0, 32, 4, 4]})


@graph(2, "w1 w2 w3")
def patch_merging() -> Net:
    """Four strided slices, concatenated; groups as in space_to_depth."""
    cuts = " ".join(f"s{i} = Slice(b, at{i}, ends, axes, steps)" for i in range(4))
    at: dict[str, Weight] = {f"at{i}": [i // 2, i % 2] for i in range(4)}
    return _pixels(
        cuts + " s = Concat<axis=1>(s0, s1, s2, s3)", 32,
        {**at, "ends": [END, END], "axes": [2, 3], "steps": [2, 2]},
    )  # fmt: skip


# ---- squeeze and excite -------------------------------------------------------------------


def _squeeze_excite(gate: str, matrix: bool, **sizes: Weight) -> Net:
    """Groups: the gated channels (producer, both ends of the gate), and the squeezed layer."""
    shapes: list[tuple[int, ...]] = [(8, 16), (16, 8)] if matrix else [(8, 16, 1, 1), (16, 8, 1, 1)]
    return net(
        IMAGE, f"a = Conv3(x, w0) r = Relu(a) {gate} f = Mul(r, g)" + head("f"),
        w0=(16, 3, 3, 3), w1=shapes[0], b1=8, w2=shapes[1], b2=16, wy=(10, 16), **sizes,
    )  # fmt: skip


_CONVS = " c = Conv(p, w1, b1) d = Relu(c) e = Conv(d, w2, b2) g = Sigmoid(e)"
_GEMMS = " c = Gemm<transB=1>(q, w1, b1) d = Relu(c) e = Gemm<transB=1>(d, w2, b2) h = Sigmoid(e)"


@graph(2, "w0 w1 b1 w2 b2 wy")
def squeeze_excite_pool_conv() -> Net:
    """Groups: the gated channels; the squeezed layer."""
    return _squeeze_excite("p = GlobalAveragePool(r)" + _CONVS, False)


@graph(2, "w0 w1 b1 w2 b2 wy")
def squeeze_excite_mean_conv() -> Net:
    """Groups as before; the mean is over space, so exact."""
    return _squeeze_excite("p = ReduceMean<axes=[2,3], keepdims=1>(r)" + _CONVS, False)


@graph(2, "w0 w1 b1 w2 b2 wy")
def squeeze_excite_pool_gemm() -> Net:
    """Groups as before; Flatten, two Gemms, Reshape to [0,16,1,1]."""
    gate = "p = GlobalAveragePool(r) q = Flatten(p)" + _GEMMS + " g = Reshape(h, shape)"
    return _squeeze_excite(gate, True, shape=[0, 16, 1, 1])


@graph(2, "w0 w1 b1 w2 b2 wy")
def squeeze_excite_mean_gemm() -> Net:
    """Groups as before; ReduceMean without kept axes, Unsqueeze."""
    gate = "q = ReduceMean<axes=[-1,-2], keepdims=0>(r)" + _GEMMS + " g = Unsqueeze(h, axes)"
    return _squeeze_excite(gate, True, axes=[2, 3])


@graph(1, "w0 w1", stay="wk")
def efficient_channel_attention() -> Net:
    """The gate is a convolution over the channels. Groups: the stem; inexact: the gated channels,
    which become neighbours of others.
    """
    return net(
        IMAGE,
        """a = Conv3(x, w0) r = Relu(a) c = Conv3(r, w1) m = ReduceMean<axes=[2,3], keepdims=0>(c)
        v = Reshape(m, row) k = Conv<pads=[2,2]>(v, wk) s = Sigmoid(k) g = Reshape(s, column)
        f = Mul(c, g)""" + head("f"),
        w0=(8, 3, 3, 3), w1=(16, 8, 3, 3), wk=(1, 1, 5), wy=(10, 16),
        row=[0, 1, 16], column=[0, 16, 1, 1],
    )  # fmt: skip


# ---- encoders and decoders ----------------------------------------------------------------


@graph(3, "w1 w2 w3 w4")
def unet_resize() -> Net:
    """Groups: the skip, the bottom, the decoder."""
    return net(
        "(float[N,3,8,8] x) => (float[N,2,8,8] y)",
        """a = Conv3(x, w1) ar = Relu(a) d = MaxPool<kernel_shape=[2,2], strides=[2,2]>(ar)
        b = Conv3(d, w2) br = Relu(b)
        u = Resize<mode="nearest", nearest_mode="floor",
                   coordinate_transformation_mode="asymmetric">(br, , scales)
        k = Concat<axis=1>(ar, u) c = Conv3(k, w3) cr = Relu(c) y = Conv(cr, w4)""",
        w1=(8, 3, 3, 3), w2=(16, 8, 3, 3), w3=(16, 24, 3, 3), w4=(2, 16, 1, 1),
        scales=np.array([1, 1, 2, 2], np.float32),
    )  # fmt: skip


@graph(4, "w1 w2 wu bu w3 w4")
def unet_transpose() -> Net:
    """Groups: the skip, the bottom, the upsampled, the decoder."""
    return net(
        "(float[N,3,8,8] x) => (float[N,2,8,8] y)",
        """a = Conv3(x, w1) ar = Relu(a) d = MaxPool<kernel_shape=[2,2], strides=[2,2]>(ar)
        b = Conv3(d, w2) br = Relu(b) u = ConvTranspose<strides=[2,2]>(br, wu, bu)
        k = Concat<axis=1>(u, ar) c = Conv3(k, w3) cr = Relu(c) y = Conv(cr, w4)""",
        w1=(8, 3, 3, 3), w2=(16, 8, 3, 3), wu=(16, 12, 2, 2), bu=12, w3=(16, 20, 3, 3),
        w4=(2, 16, 1, 1),
    )  # fmt: skip
