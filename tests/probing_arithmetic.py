"""Families of generated nodes that compute: contractions, elementwise operators, normalisations,
pooling, reductions, ranking.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from secateur.ir.rules.elementwise import NARY, UNARY
from secateur.ir.rules.pooling import POOLING
from secateur.ir.rules.reduction import REDUCTIONS
from tests.probing_draw import Case, Draw, broadcastable, case, i64, maybe, shrunk, since, with_axes
from tests.probing_runs import Array

# -- contractions ------------------------------------------------------------------------------


def conv(d: Draw, op: str = "Conv") -> Case:
    """Pads are drawn, or such that axes keep their sizes where the stride is 1."""
    rank, groups = d.number(1, 3), d.pick([1, 1, 2, 3, 4])
    c_in, c_out = d.number(1, 3), d.number(1, 3)
    kernel = [d.number(1, 3) for _ in range(rank)]
    x = d.floats(d.number(1, 2), groups * c_in, *(d.number(3, 4) for _ in range(rank)))
    channels = (groups * c_out, c_in) if op == "Conv" else (groups * c_in, c_out)
    bias = d.floats(groups * c_out) if d.flag() else None
    dilations = [d.number(1, 2) if s > 3 else 1 for s in x.shape[2:]]
    pads = [d.number(0, 1) if op == "Conv" else 0 for _ in range(2 * rank)]
    if d.flag():
        reach = [step * (k - 1) for step, k in zip(dilations, kernel, strict=True)]
        before = [d.number(0, far) for far in reach]
        pads = [*before, *(far - b for far, b in zip(reach, before, strict=True))]
    return case(
        op,
        [x, d.floats(*channels, *kernel), bias],
        d.opset(),
        group=groups,
        strides=[d.number(1, 2) for _ in range(rank)],
        pads=pads,
        dilations=dilations,
    )


def conv_transpose(d: Draw) -> Case:
    return conv(d, "ConvTranspose")


def gemm(d: Draw) -> Case:
    m, k, n = d.number(1, 4), d.number(1, 4), d.number(1, 4)
    a, b = d.floats(m, k), d.floats(k, n)
    trans_a, trans_b, opset = d.flag(), d.flag(), d.opset()
    shapes = [(), (n,), (1,), (1, n), (m, 1), (m, n)]
    bias = d.pick(shapes if opset < 11 else [None, *shapes])
    return case(
        "Gemm",
        [
            a.T.copy() if trans_a else a,
            b.T.copy() if trans_b else b,
            None if bias is None else d.floats(*bias),
        ],
        opset,
        transA=int(trans_a),
        transB=int(trans_b),
        alpha=d.pick([0.5, 1.0]),
        beta=d.pick([2.0, 1.0]),
    )


def matmul(d: Draw) -> Case:
    k = d.number(1, 4)
    batch = d.shape(0, 3, 3)
    a, b = (shrunk(d, batch) for _ in "ab")
    left = [k] if d.number(0, 4) == 0 else [*a, d.number(1, 3), k]
    right = [k] if d.number(0, 4) == 0 else [*b, k, d.number(1, 3)]
    return case("MatMul", [d.floats(*left), d.floats(*right)], d.opset(9))


# -- elementwise -------------------------------------------------------------------------------


UNARY_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Cast": {"to": TensorProto.DOUBLE},
    "BitCast": {"to": TensorProto.INT32},
    "Shrink": {"lambd": 0.2, "bias": 0.1},
}


def unary(d: Draw) -> Case:
    op = d.pick([o for o in UNARY if o != "RegexFullMatch"])
    opset, shape = d.opset(since(op)), [*d.shape(0, 3), d.number(2, 4)]
    if d.number(0, 19) == 0:
        shape = []
    dtype = {"Not": np.bool_, "BitwiseNot": np.int32}.get(op, np.float32)
    attributes = dict(UNARY_ATTRIBUTES.get(op, {}))
    x: list[Array | None] = [d.of(dtype, *shape)]
    if op == "Clip" and opset < 11:
        attributes.update(min=-0.5, max=1.5)
    elif op == "Clip":
        x += [np.array(-0.5, np.float32), np.array(1.5, np.float32)][: d.number(0, 2)]
    if op == "Cast":
        attributes["to"] = d.pick([TensorProto.FLOAT16, TensorProto.INT32, TensorProto.BOOL])
    return case(op, x, opset, **attributes)


def nary(d: Draw) -> Case:
    op = d.pick([o for o in NARY if o not in ("PRelu", "StringConcat")])
    opset = d.opset(max(since(op), 8 if op in ("Max", "Min", "Mean", "Sum") else 7))
    attributes: dict[str, Any] = {}
    count = {"Where": 3}.get(op, 2)
    kinds: Any = np.float32
    if op in ("And", "Or", "Xor"):
        kinds = np.bool_
    elif op.startswith("Bitwise"):
        kinds = np.int32
    elif op == "BitShift":
        kinds, attributes["direction"] = np.uint8, d.pick(["LEFT", "RIGHT"])
    elif op == "Equal" and opset < 11:
        kinds = np.int32
    elif op == "Mod":
        opset, attributes["fmod"] = max(opset, 10), 1
    elif op in ("Max", "Min", "Mean", "Sum"):
        count = d.number(1, 3)
    shapes = broadcastable(d, count)
    if op == "SwiGLU":
        shapes[1] = shapes[0]
    if d.flag():
        shapes.reverse()
    arrays: list[Array | None] = [d.of(kinds, *s) for s in shapes]
    if op == "Where":
        arrays[0] = d.of(np.bool_, *shapes[0])
    if op == "Pow":
        arrays[0] = np.abs(d.floats(*shapes[0]))
    return case(op, arrays, opset, **attributes)


def prelu(d: Draw) -> Case:
    x, slope = broadcastable(d, 2)
    return case("PRelu", [d.floats(*x), d.floats(*slope)], d.opset())


def cast_like(d: Draw) -> Case:
    other = d.of(d.pick([np.int32, np.float64]), *d.shape(0, 2))
    return case("CastLike", [d.floats(*d.shape(0, 4)), other], d.opset(15))


def dropout(d: Draw) -> Case:
    opset, x = d.opset(), d.floats(*d.shape(1, 3))
    if opset < 12:
        return case("Dropout", [x], opset, ratio=0.4)
    ratio = np.array(0.4, np.float32) if d.flag() else None
    training = np.array(False) if d.flag() else None
    return case("Dropout", [x, ratio, training], opset, outputs=d.number(1, 2))


# -- normalisations and pooling ----------------------------------------------------------------


def batch_normalization(d: Draw) -> Case:
    channels, opset = d.number(1, 4), d.opset()
    x = d.floats(d.number(1, 3), channels, *d.shape(0, 3, 3))
    parameters = [d.floats(channels) for _ in range(3)]
    training = opset >= 14 and d.flag()
    return case(
        "BatchNormalization",
        [x, *parameters, np.abs(d.floats(channels)) + 0.5],
        opset,
        outputs=d.pick([1, 3]) if training else 1,
        **maybe(training, training_mode=1),
    )


def instance_normalization(d: Draw) -> Case:
    channels = d.number(1, 4)
    spatial = [d.number(6, 8) for _ in range(d.number(1, 3))]
    x = d.floats(d.number(1, 3), channels, *spatial)
    return case("InstanceNormalization", [x, d.floats(channels), d.floats(channels)], d.opset())


def layer_normalization(d: Draw) -> Case:
    op = d.pick(["LayerNormalization", "RMSNormalization"])
    shape = [d.number(2, 4) for _ in range(d.number(1, 4))]
    axis = d.number(0, len(shape) - 1)
    scale = d.floats(*shape[axis:])
    if op == "RMSNormalization":
        return case(op, [d.floats(*shape), scale], d.opset(23), axis=d.sign(axis, len(shape)))
    bias = d.floats(*shape[axis:]) if d.flag() else None
    inputs = [d.floats(*shape), scale, bias]
    return case(op, inputs, d.opset(17), outputs=d.number(1, 3), axis=d.sign(axis, len(shape)))


def group_normalization(d: Draw) -> Case:
    groups, each, opset = d.number(1, 4), d.number(1, 4), d.opset(18)
    x = d.floats(d.number(1, 2), groups * each, *(d.number(2, 3) for _ in range(d.number(1, 2))))
    parameters = [d.floats(groups if opset < 21 else groups * each) for _ in range(2)]
    return case("GroupNormalization", [x, *parameters], opset, num_groups=groups)


def other_normalization(d: Draw) -> Case:
    op = d.pick(["LRN", "LpNormalization", "MeanVarianceNormalization"])
    x = d.floats(*(d.number(3, 4) for _ in range(4)))
    if op == "LRN":
        return case(op, [x], d.opset(), size=d.pick([3, 4, 5]), alpha=0.5)
    if op == "LpNormalization":
        return case(op, [x], d.opset(), axis=d.number(-4, 3), p=d.number(1, 2))
    # Apart from each other: nearly equal values have a variance that cancels.
    x = (d.rng.permutation(x.size).reshape(x.shape) / 8).astype(np.float32)
    axes = d.pick([[0, 2, 3], [1], [2, 3], [-1]])
    return case(op, [x], d.opset(9), **maybe(d.flag(), axes=axes))


def pool(d: Draw) -> Case:
    op = d.pick(POOLING)
    rank, opset = d.number(1, 3), d.opset(8)
    x = d.floats(d.number(1, 3), d.number(1, 4), *(d.number(2, 4) for _ in range(rank)))
    if op.startswith("Global"):
        opset = min(opset, 21)  # where GlobalLpPool's only kernel ends
        return case(op, [x], opset, **maybe(op == "GlobalLpPool", p=d.number(1, 2)))
    attributes: dict[str, Any] = {
        "kernel_shape": [d.number(1, 2) for _ in range(rank)],
        "strides": [d.number(1, 2) for _ in range(rank)],
    }
    if op == "AveragePool" and d.flag():
        attributes["count_include_pad"] = 1
    sizes = zip(x.shape[2:], attributes["kernel_shape"], attributes["strides"], strict=True)
    # Where the last window would begin behind the map, ONNX's shape inference counts it.
    inside = all(-(-(size - kernel) // step) * step < size for size, kernel, step in sizes)
    if op != "LpPool" and opset >= 10 and inside and d.flag():
        attributes["ceil_mode"] = 1
    outputs = d.number(1, 2) if op == "MaxPool" else 1
    return case(op, [x], opset, outputs=outputs, **attributes)


def resize(d: Draw) -> Case:
    opset, shape = d.opset(10), [d.number(1, 2), d.number(1, 4), d.number(2, 4), d.number(2, 5)]
    scales = [1.0, 1.0, d.pick([1.0, 2.0, 1.1, 0.5]), d.pick([1.0, 2.0, 1.5])]
    x, attributes = d.floats(*shape), {"mode": d.pick(["nearest", "linear"])}
    if opset == 10:
        return case("Resize", [x, np.array(scales, np.float32)], opset, **attributes)
    attributes["coordinate_transformation_mode"] = d.pick(
        ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    )
    roi = np.zeros(0, np.float32) if opset < 13 else None
    axes = d.pick([[2, 3], [3, 2], [0, 1, 2, 3]]) if opset >= 18 else [0, 1, 2, 3]
    extra = maybe(len(axes) == 2, axes=axes)
    if d.flag():
        sizes = i64(*(shape[a] * (2 if a > 1 and d.flag() else 1) for a in axes))
        if opset >= 18 and d.flag():
            attributes["keep_aspect_ratio_policy"] = d.pick(["not_larger", "not_smaller"])
        none = np.zeros(0, np.float32) if opset < 13 else None
        return case("Resize", [x, roi, none, sizes], opset, **attributes, **extra)
    chosen = np.array([scales[a] for a in axes], np.float32)
    return case("Resize", [x, roi, chosen], opset, **attributes, **extra)


def upsample(d: Draw) -> Case:
    opset, scales = d.number(7, 9), [1.0, 1.0, d.pick([1.0, 2.0]), d.pick([1.0, 1.2, 2.0])]
    x, mode = d.floats(*(d.number(1, 3) for _ in range(4))), d.pick(["nearest", "linear"])
    if opset < 9:
        return case("Upsample", [x], opset, mode=mode, scales=scales)
    return case("Upsample", [x, np.array(scales, np.float32)], opset, mode=mode)


# -- reductions, ranking -----------------------------------------------------------------------


def reduce_(d: Draw) -> Case:
    op, opset = d.pick(REDUCTIONS), d.opset()
    x = d.floats(*(d.number(1, 4) for _ in range(d.number(1, 4))))
    axes = d.order(range(x.ndim))[: d.number(0, x.ndim)]
    attributes: dict[str, Any] = {"keepdims": d.number(0, 1)}
    if op in ("ReduceLogSum",):
        x = np.abs(x) + 0.1
    from_opset = 13 if op == "ReduceSum" else 18
    if opset >= from_opset and not axes and d.flag():
        attributes["noop_with_empty_axes"] = 1
    return with_axes(d, op, x, axes, x.ndim, opset, True, from_opset, **attributes)


def softmax(d: Draw) -> Case:
    op, opset = d.pick(["Softmax", "LogSoftmax", "Hardmax"]), d.opset()
    x = d.floats(*d.shape(1, 4))
    axes = maybe(d.flag(), axis=d.sign(d.number(0, x.ndim - 1), x.ndim, opset >= 11))
    if not axes and opset < 13 and x.ndim == 1:
        axes = {"axis": 0}
    return case(op, [x], opset, **axes)


def arg_extreme(d: Draw) -> Case:
    x, opset = d.floats(*d.shape(1, 4)), d.opset()
    axis = d.sign(d.number(0, x.ndim - 1), x.ndim, opset >= 11)
    return case(d.pick(["ArgMax", "ArgMin"]), [x], opset, axis=axis, keepdims=d.number(0, 1))


def top_k(d: Draw) -> Case:
    x, opset = d.floats(*d.shape(1, 4)), d.opset()
    axis = d.number(0, x.ndim - 1)
    count, shown = d.number(1, x.shape[axis]), d.sign(axis, x.ndim, opset >= 11)
    if opset < 10:
        return case("TopK", [x], opset, outputs=2, axis=shown, k=count)
    return case("TopK", [x, i64(count)], opset, outputs=2, axis=shown)


def cumulative(d: Draw) -> Case:
    op, x = d.pick(["CumSum", "CumProd"]), d.floats(*d.shape(1, 4))
    axis = np.array(d.sign(d.number(0, x.ndim - 1), x.ndim), np.int64)
    fixed = (1,) if d.number(0, 3) else ()
    return case(op, [x, axis], d.opset(since(op)), fixed=fixed, reverse=d.number(0, 1))
