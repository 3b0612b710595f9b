"""Proof graphs: the layers of convolutional networks (see `graph_builder` for the rules).

Kinds of convolution, normalisation and activation, flattening and repeating.
"""

from __future__ import annotations

import numpy as np

from .graph_builder import IMAGE, Net, Weight, bn, graph, head, net, norm, scalar

# ---- kinds of convolution -----------------------------------------------------------------


@graph(1, "w0 w1 b1 wy")
def grouped_conv() -> Net:
    """group=4 of 8 channels. Whole groups couple stem and output: one (by offset: two)."""
    return net(
        IMAGE,
        "a = Conv3(x, w0) r = Relu(a) f = Conv<group=4, pads=[1,1,1,1]>(r, w1, b1)" + head("f"),
        w0=(8, 3, 3, 3), w1=(16, 2, 3, 3), b1=16, wy=(10, 16),
    )  # fmt: skip


@graph(2, "w0 w1 w2 w3 wy")
def resnext() -> Net:
    """1x1, 3x3 in 4 groups, 1x1, add. Groups: the stream, the grouped layers (by offset: two)."""
    return net(
        IMAGE,
        """a = Conv3(x, w0) b = Conv(a, w1) br = Relu(b)
        c = Conv<group=4, pads=[1,1,1,1]>(br, w2) cr = Relu(c) d = Conv(cr, w3)
        f = Add(d, a)""" + head("f"),
        w0=(16, 3, 3, 3), w1=(16, 16, 1, 1), w2=(16, 4, 3, 3), w3=(16, 16, 1, 1), wy=(10, 16),
    )  # fmt: skip


@graph(2, "w0 w1 wd w2 wy")
def inverted_residual() -> Net:
    """MobileNetV2. Groups: the stream, the expanded depthwise layer."""
    return net(
        IMAGE,
        """a = Conv3(x, w0) b = Conv(a, w1) br = Clip(b, low, high)
        c = Conv<group=32, pads=[1,1,1,1]>(br, wd) cr = Clip(c, low, high) d = Conv(cr, w2)
        f = Add(a, d)""" + head("f"),
        w0=(8, 3, 3, 3), w1=(32, 8, 1, 1), wd=(32, 1, 3, 3), w2=(8, 32, 1, 1), wy=(10, 8),
        low=0.0, high=6.0,
    )  # fmt: skip


@graph(2, "w0 wd bd w2 wy")
def depthwise_multiplier() -> Net:
    """Groups: the stem, two depthwise outputs each; w2's output."""
    return net(
        IMAGE,
        """a = Conv3(x, w0) r = Relu(a) d = Conv<group=8, pads=[1,1,1,1]>(r, wd, bd)
        f = Conv(d, w2)""" + head("f"),
        w0=(8, 3, 3, 3), wd=(16, 1, 3, 3), bd=16, w2=(16, 16, 1, 1), wy=(10, 16),
    )  # fmt: skip


@graph(2, "w0 w1 b1 wy")
def conv_transpose() -> Net:
    """Groups: the stem, the output of the transposed convolution."""
    return net(
        IMAGE, "a = Conv3(x, w0) r = Relu(a) f = ConvTranspose<strides=[2,2]>(r, w1, b1)"
        + head("f"), w0=(16, 3, 3, 3), w1=(16, 8, 2, 2), b1=8, wy=(10, 8),
    )  # fmt: skip


@graph(1, "w0 w1 b1 wy")
def conv_transpose_grouped() -> Net:
    """group=4, [16, 2, 2, 2]. Whole groups couple stem and output: one (by offset: two)."""
    return net(
        IMAGE, "a = Conv3(x, w0) r = Relu(a) f = ConvTranspose<group=4, strides=[2,2]>(r, w1, b1)"
        + head("f"), w0=(16, 3, 3, 3), w1=(16, 2, 2, 2), b1=8, wy=(10, 8),
    )  # fmt: skip


@graph(1, "w0 w1 b1 wy")
def conv_transpose_depthwise() -> Net:
    """Groups: the stem, one output of the transposed convolution each."""
    return net(
        IMAGE, "a = Conv3(x, w0) r = Relu(a) f = ConvTranspose<group=16, strides=[2,2]>(r, w1, b1)"
        + head("f"), w0=(16, 3, 3, 3), w1=(16, 1, 2, 2), b1=16, wy=(10, 16),
    )  # fmt: skip


@graph(2, "w1 b1 w2 wy", dims="N T")
def conv1d() -> Net:
    """Groups: both outputs; the time axis is dynamic."""
    return net(
        "(float[N,4,T] x) => (float[N,10] y)",
        """a = Conv<pads=[1,1]>(x, w1, b1) r = Relu(a)
        f = Conv<pads=[2,2], dilations=[2]>(r, w2)""" + head("f"),
        w1=(16, 4, 3), b1=16, w2=(16, 16, 3), wy=(10, 16),
    )  # fmt: skip


@graph(2, "w1 n_s n_b w2 wy")
def conv3d() -> Net:
    """Groups: both outputs."""
    return net(
        "(float[N,2,4,8,8] x) => (float[N,10] y)",
        "a = Conv<pads=[1,1,1,1,1,1]>(x, w1)" + bn("a", "n", "n")
        + "m = MaxPool<kernel_shape=[2,2,2], strides=[2,2,2]>(n) f = Conv(m, w2)" + head("f"),
        w1=(8, 2, 3, 3, 3), w2=(16, 8, 2, 2, 2), wy=(10, 16), **norm("n", 8),
    )  # fmt: skip


# ---- normalisation and activation ---------------------------------------------------------


@graph(3, "w1 n1_s n1_v slope w2 n2_s w3 n3_s wy")
def batch_norm_activations() -> Net:
    """PRelu with a slope per channel, Clip, hard swish in pieces. Groups: three outputs."""
    return net(
        IMAGE,
        "a = Conv3(x, w1)" + bn("a", "n1", "n1") + "p = PRelu(n1, slope) b = Conv3(p, w2)"
        + bn("b", "n2", "n2") + "c = Clip(n2, zero, six) d = Conv3(c, w3)" + bn("d", "n3", "n3")
        + "e = Add(n3, three) g = Clip(e, zero, six) h = Mul(n3, g) f = Div(h, six)" + head("f"),
        w1=(16, 3, 3, 3), slope=(16, 1, 1), w2=(16, 16, 3, 3), w3=(8, 16, 3, 3), wy=(10, 8),
        zero=0.0, three=3.0, six=6.0, **norm("n1", 16), **norm("n2", 16), **norm("n3", 8),
    )  # fmt: skip


@graph(2, "w1 i_s i_b w2 wy")
def instance_norm() -> Net:
    """InstanceNormalization is per channel, so exact. Groups: two outputs."""
    return net(
        IMAGE,
        "a = Conv3(x, w1) i = InstanceNormalization(a, i_s, i_b) f = Conv3(i, w2)" + head("f"),
        w1=(16, 3, 3, 3), i_s=16, i_b=16, w2=(16, 16, 3, 3), wy=(10, 16),
    )  # fmt: skip


@graph(2, "w1 ones zeros g_s g_b w2 wy")
def group_norm_reshape() -> Net:
    """PyTorch's decomposition: 8 groups of 2 channels. Whole groups are channels of the
    InstanceNormalization, so they are one exact group; w2's output is the other.
    """
    return net(
        IMAGE,
        """a = Conv3(x, w1) v = Reshape(a, groups) i = InstanceNormalization(v, ones, zeros)
        sh = Shape(a) u = Reshape(i, sh) m = Mul(u, g_s) g = Add(m, g_b) r = Relu(g)
        f = Conv3(r, w2)""" + head("f"),
        w1=(16, 3, 3, 3), groups=[0, 8, -1], ones=np.ones(8, np.float32),
        zeros=np.zeros(8, np.float32), g_s=(16, 1, 1), g_b=(16, 1, 1), w2=(16, 16, 3, 3),
        wy=(10, 16),
    )  # fmt: skip


def _group_norm(size: int) -> Net:
    return net(
        IMAGE,
        "a = Conv3(x, w1) b = GroupNormalization<num_groups=4>(a, g_s, g_b) r = Relu(b)"
        "f = Conv3(r, w2)" + head("f"),
        w1=(16, 3, 3, 3), g_s=size, g_b=size, w2=(16, 16, 3, 3), wy=(10, 16),
    )  # fmt: skip


@graph(1, "w2 wy", opset=18, deprecated=True)
def group_norm_opset18() -> Net:
    """Scale per group (deprecated form). The normalised axis is inexact; w2's output is exact."""
    return _group_norm(4)


@graph(1, "w2 wy", opset=21)
def group_norm_opset21() -> Net:
    """Scale per channel. The normalised axis is inexact; w2's output is exact."""
    return _group_norm(16)


@graph(1, "w1 b1 w2")
def convnext() -> Net:
    """Depthwise 7x7, channels-last LayerNormalization, MLP, layer scale, add. The stream is
    inexact; the hidden layer of the MLP is one exact group.
    """
    return net(
        IMAGE,
        """a = Conv<strides=[2,2]>(x, w0) d = Conv<group=16, pads=[3,3,3,3]>(a, wd)
        t = Transpose<perm=[0,2,3,1]>(d) l = LayerNormalization<axis=-1>(t, l_s, l_b)
        h1 = MatMul(l, w1) h = Add(h1, b1) q = Div(h, root) e = Erf(q) o = Add(e, one)
        p = Mul(h, o) g = Mul(p, half) k1 = MatMul(g, w2) k = Add(k1, b2) m = Mul(k, gamma)
        back = Transpose<perm=[0,3,1,2]>(m) f = Add(a, back)""" + head("f"),
        w0=(16, 3, 2, 2), wd=(16, 1, 7, 7), l_s=16, l_b=16, w1=(16, 32), b1=32, w2=(32, 16),
        b2=16, gamma=16, root=2.0**0.5, one=1.0, half=0.5, wy=(10, 16),
    )  # fmt: skip


# ---- flattening, repeating ----------------------------------------------------------------


def _flatten(steps: str, **sizes: Weight) -> Net:
    return net(
        IMAGE,
        f"""a = Conv3(x, w1) r = Relu(a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
        {steps} h = Gemm<transB=1>(v, w2, b2) hr = Relu(h) y = MatMul(hr, w3)""",
        w1=(16, 3, 3, 3), w2=(24, 256), b2=24, w3=(24, 10), **sizes,
    )  # fmt: skip


_BATCH = "sh = Shape(p) n0 = Gather<axis=0>(sh, i0) n = Unsqueeze(n0, ax)"


@graph(2, "w1 w2 b2 w3")
def flatten_gemm() -> Net:
    """Groups: w1's output, 16 columns of w2 each; w2's output."""
    return _flatten("v = Flatten(p)")


@graph(2, "w1 w2 b2 w3")
def reshape_gemm() -> Net:
    """The groups of flatten_gemm; the target is [-1, 256]."""
    return _flatten("v = Reshape(p, target)", target=[-1, 256])


@graph(2, "w1 w2 b2 w3")
def reshape_computed() -> Net:
    """The groups of flatten_gemm; the target is (batch from Shape, 256)."""
    steps = _BATCH + " target = Concat<axis=0>(n, rest) v = Reshape(p, target)"
    return _flatten(steps, i0=scalar(0), ax=[0], rest=[256])


@graph(2, "w1 w2 b2 w3")
def reshape_computed_minus_one() -> Net:
    """The groups of flatten_gemm; the target is (batch from Shape, -1)."""
    steps = _BATCH + " target = Concat<axis=0>(n, rest) v = Reshape(p, target)"
    return _flatten(steps, i0=scalar(0), ax=[0], rest=[-1])


@graph(1, "w1 wy")
def tile_channels() -> Net:
    """Tile doubles the channels: one group, two inputs of wy each."""
    return net(
        IMAGE, "a = Conv3(x, w1) r = Relu(a) f = Tile(r, repeats)" + head("f"),
        w1=(16, 3, 3, 3), repeats=[1, 2, 1, 1], wy=(10, 32),
    )  # fmt: skip


@graph(1, "w1 wy", stay="w0")
def expand_channels() -> Net:
    """One map, expanded to 16 channels by a constant target, gates w1's output: one group. The
    map itself is a broadcast axis of one, the last of its kind.
    """
    return net(
        IMAGE,
        """s = Conv3(x, w0) e = Expand(s, target) g = Sigmoid(e) a = Conv3(x, w1)
        f = Mul(a, g)""" + head("f"),
        w0=(1, 3, 3, 3), w1=(16, 3, 3, 3), target=[1, 16, 1, 1], wy=(10, 16),
    )  # fmt: skip


# ---- without a rule -------------------------------------------------------------------------


@graph(1, "w v", stay="w2")
def distances() -> Net:
    """CDist has no rule: what it reads stays. Group: the other layer."""
    return net(
        "(float[N,4] x) => (float[N,3] y)",
        """a = MatMul(x, w) r = Relu(a) b = MatMul(r, v) c = MatMul(x, w2)
        d = com.microsoft.CDist<metric = "euclidean">(c, points) y = Add(b, d)""",
        w=(4, 8), v=(8, 3), w2=(4, 5), points=(3, 5),
    )  # fmt: skip
