"""Proof graphs: values that are moved by index or by place (see `graph_builder` for the rules).

Detection heads, sampled and deformed pictures, channels moved into space and back.
"""

from __future__ import annotations

import numpy as np

from .graph_builder import IMAGE, Array, Net, Weight, graph, head, net, scalar

END = 2**63 - 1
I0: dict[str, Weight] = {"i0": [0], "i2": [2], "most": [5], "overlap": 0.5}
BOXES = "(float[N,3,8,8] x) => (float[K,4] found, float[K,10] y)"


def _detect(features: str) -> str:
    """Boxes and scores of every place, the chosen ones, and their places (picture, place)."""
    return f"""
        b = Conv({features}, wb) bs = Reshape(b, flat4) boxes = Transpose<perm=[0,2,1]>(bs)
        s = Conv({features}, ws) scores = Reshape(s, flat2)
        chosen = NonMaxSuppression(boxes, scores, most, overlap)
        picture = Gather<axis=1>(chosen, i0) place = Gather<axis=1>(chosen, i2)
        at = Concat<axis=1>(picture, place) found = GatherND(boxes, at) """


@graph(3, "w0 w1 w2 wy")
def detector() -> Net:
    """Backbone, boxes and scores, NonMaxSuppression, features of the boxes that are left.

    Groups: stem, the features that all heads read, and a hidden layer of the second head. Boxes
    and classes stay, and so do places; the channels behind the gather do not.
    """
    return net(
        BOXES,
        "a = Conv3(x, w0) ar = Relu(a) f = Conv3(ar, w1)" + _detect("f")
        + """fs = Reshape(f, flat) ft = Transpose<perm=[0,2,1]>(fs) fk = GatherND(ft, at)
        h = MatMul(fk, w2) hr = Relu(h) y = MatMul(hr, wy)""",
        w0=(8, 3, 3, 3), w1=(12, 8, 3, 3), wb=(4, 12, 1, 1), ws=(2, 12, 1, 1), w2=(12, 8),
        wy=(8, 10), flat4=[0, 4, 64], flat2=[0, 2, 64], flat=[0, 0, -1], **I0,
    )  # fmt: skip


@graph(5, "w0 w1 w2 f1 f2 m1 m2 m3")
def regions_of_interest() -> Net:
    """A two-stage detector: regions from one level, pooled from the level that fits their size.

    Groups: stem, the channels of both levels (one sum of scattered regions), the hidden layer of
    the boxes' head, two layers of the masks' head.
    """
    return net(
        "(float[N,3,8,8] x) => (float[K,10] y, float[K,2,6,6] masks)",
        "a = Conv3(x, w0) ar = Relu(a) f = Conv3(ar, w1) g = Conv<strides=[2,2]>(f, w2)"
        + _detect("f")
        + """pictures = Squeeze(picture, i1)
        rois = Abs(found) areas = ReduceProd<axes=[1], keepdims=0>(rois)
        small = Less(areas, limit) large = Not(small)
        n1 = NonZero(small) k1 = Squeeze(n1, i0) n2 = NonZero(large) k2 = Squeeze(n2, i0)
        r1 = Gather(rois, k1) p1 = Gather(pictures, k1)
        r2 = Gather(rois, k2) p2 = Gather(pictures, k2)
        e1 = RoiAlign<output_height=3, output_width=3, sampling_ratio=2>(f, r1, p1)
        e2 = RoiAlign<output_height=3, output_width=3, sampling_ratio=2>(g, r2, p2)
        sizes = Shape(rois) count = Slice(sizes, i0, i1) full = Concat<axis=0>(count, rest)
        zeros = ConstantOfShape(full)
        j1 = Reshape(k1, column) s1 = Shape(e1) x1 = Expand(j1, s1)
        j2 = Reshape(k2, column) s2 = Shape(e2) x2 = Expand(j2, s2)
        t1 = ScatterElements<axis=0>(zeros, x1, e1) t = ScatterElements<axis=0>(t1, x2, e2)
        v = Flatten(t) h = Gemm(v, f1) hr = Relu(h) y = Gemm(hr, f2)
        u = Conv3(t, m1) ur = Relu(u) d = ConvTranspose<strides=[2,2]>(ur, m2) dr = Relu(d)
        masks = Conv(dr, m3)""",
        w0=(8, 3, 3, 3), w1=(12, 8, 3, 3), w2=(12, 12, 1, 1), wb=(4, 12, 1, 1), ws=(2, 12, 1, 1),
        f1=(108, 16), f2=(16, 10), m1=(8, 12, 3, 3), m2=(8, 6, 2, 2), m3=(2, 6, 1, 1),
        flat4=[0, 4, 64], flat2=[0, 2, 64], limit=0.5, rest=[12, 3, 3], column=[-1, 1, 1, 1],
        i1=[1], **I0,
    )  # fmt: skip


@graph(3, "w0 w1 w2 wy")
def ranked_places() -> Net:
    """The best places of a score map, gathered by TopK's indices spread over the channels.

    Groups: stem, features, hidden layer.
    """
    return net(
        "(float[N,3,8,8] x) => (float[N,5,10] y)",
        """a = Conv3(x, w0) ar = Relu(a) f = Conv3(ar, w1) fs = Reshape(f, flat)
        ft = Transpose<perm=[0,2,1]>(fs) s = MatMul(ft, wc) best, at = TopK<axis=1>(s, most)
        shape = Shape(ft) n = Slice(shape, i0, i1) c = Slice(shape, i2, i3)
        target = Concat<axis=0>(n, most, c) idx = Expand(at, target)
        g = GatherElements<axis=1>(ft, idx) h = MatMul(g, w2) hr = Relu(h) y = MatMul(hr, wy)""",
        w0=(8, 3, 3, 3), w1=(12, 8, 3, 3), wc=(12, 1), w2=(12, 8), wy=(8, 10), flat=[0, 0, -1],
        most=[5], i0=[0], i1=[1], i2=[2], i3=[3],
    )  # fmt: skip


def _deformable(groups: str, offsets: int, taps: int = 9) -> Net:
    return net(
        IMAGE,
        f"""a = Conv3(x, w0) ar = Relu(a) o = Conv3(ar, wo) m = Conv3(ar, wm) ms = Sigmoid(m)
        d = DeformConv<pads=[1,1,1,1]{groups}>(ar, wd, o, bd, ms) f = Relu(d)""" + head("f"),
        w0=(8, 3, 3, 3), wo=(2 * taps * offsets, 8, 3, 3), wm=(taps * offsets, 8, 3, 3),
        wd=(12, 8, 3, 3), bd=12, wy=(10, 12),
    )  # fmt: skip


@graph(2, "w0 wd bd wy", opset=19)
def deformable() -> Net:
    """Groups: stem (offsets and masks are computed from it too), the deformed output."""
    return _deformable("", 1)


@graph(2, "w0 wd bd wy", opset=19)
def deformable_offset_groups() -> Net:
    """Two offset groups of four channels: the same place in both goes at once, or a group with
    its offsets and masks. Groups: stem, output."""
    return _deformable(", offset_group=2", 2)


@graph(2, "w0 w1 wy")
def focus() -> Net:
    """Every second row and column, four times, behind one another: a channel has four copies."""
    body = """a = Conv3(x, w0) t = Slice(a, s0, end, rows, two) u = Slice(a, s1, end, rows, two)
        p = Slice(t, s0, end, columns, two) q = Slice(u, s0, end, columns, two)
        r = Slice(t, s1, end, columns, two) s = Slice(u, s1, end, columns, two)
        k = Concat<axis=1>(p, q, r, s) f = Conv3(k, w1)"""
    return net(
        IMAGE, body + head("f"), w0=(8, 3, 3, 3), w1=(12, 32, 3, 3), wy=(10, 12), s0=[0], s1=[1],
        end=[END], rows=[2], columns=[3], two=[2],
    )  # fmt: skip


@graph(3, "w0 w1 w2 wy")
def unpooling() -> Net:
    """Max pooling whose indices lead back: the channels between stay in step with the stem's.

    Groups: stem with what is pooled and unpooled (w1 keeps the channels), and the last layer.
    """
    body = """a = Conv3(x, w0) ar = Relu(a)
        p, at = MaxPool<kernel_shape=[2,2], strides=[2,2]>(ar)
        b = Conv3(p, w1) br = Relu(b) c = Conv3(br, w2)
        u = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(c, at) f = Conv3(u, w3)"""
    return net(
        IMAGE, body + head("f"), w0=(8, 3, 3, 3), w1=(12, 8, 3, 3), w2=(8, 12, 3, 3),
        w3=(8, 8, 3, 3), wy=(10, 8),
    )  # fmt: skip


@graph(3, "w0 w1 w2 wy", opset=20)
def spatial_transformer() -> Net:
    """A picture is sampled where a small network says. Groups: the stem, the hidden layer that
    places the grid, the last layer."""
    body = """a = Conv3(x, w0) p = GlobalAveragePool(a) v = Flatten(p) h = Gemm(v, w1) hr = Relu(h)
        t = Gemm(hr, wt) theta = Reshape(t, matrices) shape = Shape(a)
        grid = AffineGrid(theta, shape) g = GridSample(a, grid) f = Conv3(g, w2)"""
    return net(
        IMAGE, body + head("f"), w0=(8, 3, 3, 3), w1=(8, 12), wt=(12, 6), w2=(8, 8, 3, 3),
        wy=(10, 8), matrices=[-1, 2, 3],
    )  # fmt: skip


def _grid(*axes: int) -> Array:
    return np.stack(np.meshgrid(*(np.arange(n) for n in axes), indexing="ij"), axis=-1)


@graph(3, "w0 w1 w2 wy")
def assigned_channels() -> Net:
    """Every second channel of a map is overwritten through a grid of indices, as exporters write
    an assignment to a slice. Groups: what stays of the stem, what is overwritten with what is
    written over it, and the hidden layer of the latter."""
    grid = _grid(1, 4) * [1, 2] + [0, 1]
    body = """a = Conv3(x, w0) at = Transpose<perm=[1,0,2,3]>(a) b = Conv3(x, w1) br = Relu(b)
        c = Conv3(br, w2) ct = Transpose<perm=[1,0,2,3]>(c)
        t = ScatterND(at, places, ct) s = Transpose<perm=[1,0,2,3]>(t) f = Relu(s)"""
    return net(
        IMAGE, body + head("f"), w0=(8, 3, 3, 3), w1=(6, 3, 3, 3), w2=(4, 6, 3, 3), wy=(10, 8),
        places=grid[0, :, 1:].astype(np.int64),
    )  # fmt: skip


@graph(2, "w0 w1 wy")
def chosen_channels() -> Net:
    """A table of channels [2, 4] cuts a map in two: a shuffle and a split at once. Groups: the
    channels in steps of the table, the layer behind the sum of both halves."""
    body = """a = Conv3(x, w0) t = Gather<axis=1>(a, table) s = ReduceSum<keepdims=0>(t, i1)
        f = Conv3(s, w1)"""
    table = np.array([[0, 2, 4, 6], [7, 5, 3, 1]])
    return net(
        IMAGE, body + head("f"), w0=(8, 3, 3, 3), w1=(12, 4, 3, 3), wy=(10, 12), table=table,
        i1=[1],
    )  # fmt: skip


@graph(2, "w0 w1")
def classical_head() -> Net:
    """Features of a network in a scaler and a linear model of ai.onnx.ml. Groups: the stem, the
    features."""
    body = """a = Conv3(x, w0) ar = Relu(a) b = Conv3(ar, w1) br = Relu(b)
        p = GlobalAveragePool(br) v = Flatten(p)
        s = ai.onnx.ml.Scaler<offset=[0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            scale=[1.0, 2.0, 0.5, 1.5, 2.5, 0.7]>(v)
        y = ai.onnx.ml.LinearRegressor<targets=2, coefficients=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6,
            -0.6, 0.5, -0.4, 0.3, -0.2, 0.1], intercepts=[0.5, -0.5]>(s)"""
    return net(
        "(float[N,3,8,8] x) => (float[N,2] y)", body, w0=(8, 3, 3, 3), w1=(6, 8, 3, 3),
    )  # fmt: skip


@graph(1, "w v")
def as_strided_by_ranges() -> Net:
    """PyTorch's as_strided of pooled channels: flattened and looked up at n * 16 + c, where n goes
    over a Range as long as the batch. Group: the channels."""
    return net(
        "(float[N,3,6,6] x) => (float[N,5] y)",
        """a = Conv3(x, w) r = Relu(a) p = ReduceMax<axes = [2, 3], keepdims = 1>(r)
        flat = Reshape(p, all) z = Shape(x) n = Gather<axis = 0>(z, zero)
        rows = Range(zero, n, one) begin = Mul(rows, stride) b = Unsqueeze(begin, three)
        i = Add(b, columns) s = Gather<axis = 0>(flat, i) t = Transpose<perm = [0, 2, 3, 1]>(s)
        u = Reshape(t, two) y = MatMul(u, v)""",
        w=(16, 3, 3, 3), all=[-1], zero=scalar(0), one=scalar(1), stride=scalar(16),
        three=[1, 2, 3], columns=np.arange(16).reshape(1, 16, 1, 1), two=[-1, 16], v=(16, 5),
    )  # fmt: skip


@graph(1, "w v")
def as_strided_turned() -> Net:
    """Looked up in another order of axes, columns by a Range as well, from a stretch in the
    middle: heads 1 and 2 of 4, 8 wide. Group: the places in the heads."""
    return net(
        "(float[N,4] x) => (float[2,N,3] y)",
        """a = MatMul(x, w) flat = Reshape(a, all) z = Shape(x) n = Gather<axis = 0>(z, zero)
        rows = Range(zero, n, one) r = Mul(rows, stride) b = Reshape(r, column)
        c = Range(zero, eight, one) i = Add(b, c) k = Add(i, heads)
        s = Gather<axis = 0>(flat, k) t = Relu(s) y = MatMul(t, v)""",
        w=(4, 32), all=[-1], zero=scalar(0), one=scalar(1), stride=scalar(32), column=[-1, 1],
        eight=scalar(8), heads=np.array([8, 16]).reshape(2, 1, 1), v=(8, 3),
    )  # fmt: skip


@graph(1, "w v", stay="w2")
def windows_by_ranges() -> Net:
    """Windows that overlap are looked up: these channels stay. Group: those of another layer."""
    return net(
        "(float[N,4] x) => (float[N,2,3] y)",
        """a = MatMul(x, w2) flat = Reshape(a, all) z = Shape(x) n = Gather<axis = 0>(z, zero)
        rows = Range(zero, n, one) r = Mul(rows, stride) b = Reshape(r, column)
        i = Add(b, windows) s = Gather<axis = 0>(flat, i) m = ReduceMax<axes = [2], keepdims = 1>(s)
        c = MatMul(x, w) d = Relu(c) e = MatMul(d, v) f = Unsqueeze(e, one1) y = Add(f, m)""",
        w2=(4, 16), all=[-1], zero=scalar(0), one=scalar(1), stride=scalar(16), column=[-1, 1, 1],
        windows=np.array([[0], [4]]) + np.arange(8), w=(4, 8), v=(8, 3), one1=[1],
    )  # fmt: skip
