"""Coupling rules against generated nodes and short chains of movement operators (see `probing`).

``SECATEUR_NIGHTLY=n`` multiplies the number of examples by n.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from secateur.ir.rules.elementwise import NARY, UNARY
from secateur.ir.rules.pooling import POOLING
from secateur.ir.rules.reduction import REDUCTIONS
from tests.probing import Array, freeze, probe, size_inputs

NEWEST = 28
Case = tuple[onnx.ModelProto, dict[str, Array]]
INT_MAX = 2**31 - 1


class Draw:
    """What a family of cases draws from: sizes, attributes and values of tensors."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))

    def number(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))

    def flag(self) -> bool:
        return bool(self._draw(st.booleans()))

    def pick(self, items: Sequence[Any]) -> Any:
        return self._draw(st.sampled_from(list(items)))

    def order(self, items: Sequence[int]) -> list[int]:
        return list(self._draw(st.permutations(list(items))))

    def subset(self, items: Sequence[int]) -> list[int]:
        return [i for i in items if self.flag()]

    def shape(self, low: int, high: int, most: int = 4) -> list[int]:
        return [self.number(1, most) for _ in range(self.number(low, high))]

    def sign(self, axis: int, rank: int, allowed: bool = True) -> int:
        """The axis, perhaps counted from the end."""
        return axis - rank if allowed and self.flag() else axis

    def floats(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32)

    def of(self, dtype: Any, *shape: int) -> Array:
        dtype = np.dtype(dtype)
        if dtype.kind == "f":
            return self.floats(*shape).astype(dtype)
        if dtype == np.bool_:
            return self.rng.random(shape) < 0.5
        return self.rng.integers(1 if dtype.kind == "u" else -5, 6, shape).astype(dtype)

    def opset(self, low: int = 7, high: int = NEWEST) -> int:
        return self.number(low, high)


def case(
    op: str,
    inputs: Sequence[Array | None],
    opset: int,
    outputs: int = 1,
    fixed: Sequence[int] | None = None,
    **attributes: Any,
) -> Case:
    """One node; inputs that hold sizes (or those numbered in ``fixed``) become initializers."""
    names = [f"x{k}" if a is not None else "" for k, a in enumerate(inputs)]
    while names and not names[-1]:
        names.pop()
    results = [f"y{k}" for k in range(outputs)]
    given_ = {n: np.asarray(a) for n, a in zip(names, inputs, strict=False) if a is not None}
    fixed = size_inputs(op) if fixed is None else fixed
    constant = {names[k] for k in fixed if k < len(names) and names[k]}
    node = helper.make_node(op, names, results, **attributes)
    return model([node], given_, results, opset, constant)


def model(
    nodes: Sequence[onnx.NodeProto],
    values: dict[str, Array],
    outputs: Sequence[str],
    opset: int,
    constant: set[str],
) -> Case:
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in values.items()
    ]
    graph = helper.make_graph(nodes, "g", infos, [onnx.ValueInfoProto(name=o) for o in outputs])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    made = freeze(made, {n: a for n, a in values.items() if n in constant})
    inferred = onnx.shape_inference.infer_shapes(made, data_prop=True)
    for info, found in zip(made.graph.output, inferred.graph.output, strict=True):
        if found.type.tensor_type.elem_type:
            info.CopyFrom(found)
    return made, {n: a for n, a in values.items() if n not in constant}


def maybe(flag: bool, **attributes: Any) -> dict[str, Any]:
    """The attributes, or none."""
    return attributes if flag else {}


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


# -- contractions ------------------------------------------------------------------------------


def conv(d: Draw, op: str = "Conv") -> Case:
    rank, groups = d.number(1, 3), d.pick([1, 1, 2, 3, 4])
    c_in, c_out = d.number(1, 3), d.number(1, 3)
    kernel = [d.number(1, 2) for _ in range(rank)]
    x = d.floats(d.number(1, 2), groups * c_in, *(d.number(2, 4) for _ in range(rank)))
    channels = (groups * c_out, c_in) if op == "Conv" else (groups * c_in, c_out)
    bias = d.floats(groups * c_out) if d.flag() else None
    return case(
        op,
        [x, d.floats(*channels, *kernel), bias],
        d.opset(),
        group=groups,
        strides=[d.number(1, 2) for _ in range(rank)],
        pads=[d.number(0, 1) if op == "Conv" else 0 for _ in range(2 * rank)],
        dilations=[d.number(1, 2) if s > 3 else 1 for s in x.shape[2:]],
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


def since(op: str) -> int:
    """The oldest opset with this operator; 7 at least, where broadcasting became numpy's."""
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if s.name == op and not s.domain]
    return max(7, min(s.since_version for s in schemas))


UNARY_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Cast": {"to": TensorProto.DOUBLE},
    "BitCast": {"to": TensorProto.INT32},
    "Shrink": {"lambd": 0.2, "bias": 0.1},
}


def unary(d: Draw) -> Case:
    op = d.pick([o for o in UNARY if o != "RegexFullMatch"])
    opset, shape = d.opset(since(op)), d.shape(0, 4)
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


def broadcastable(d: Draw, count: int, most: int = 4) -> list[list[int]]:
    full = d.shape(0, 4, most)
    return [full, *(shrunk(d, full) for _ in range(count - 1))]


def shrunk(d: Draw, full: Sequence[int]) -> list[int]:
    """A shape that broadcasts to ``full``."""
    return [1 if d.number(0, 3) == 0 else s for s in full][d.number(0, len(full)) :]


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
    x = d.floats(d.number(1, 3), channels, *d.shape(1, 3, 3))
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
    if op != "LpPool" and opset >= 10 and d.flag():
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


# -- reshapes ----------------------------------------------------------------------------------


def factored(d: Draw, factors: Sequence[int]) -> list[int]:
    """The factors in order, multiplied together in runs, with some 1s between."""
    shape = [1]
    for factor in factors:
        if d.flag():
            shape[-1] *= factor
        else:
            shape.append(factor)
    if d.number(0, 3) == 0:
        shape.insert(d.number(0, len(shape)), 1)
    return shape


def reshape(d: Draw) -> Case:
    factors = [d.pick([2, 3, 4]) for _ in range(d.number(1, 4))]
    source = factored(d, factors)
    target = factored(d, d.order(factors) if d.number(0, 3) == 0 else factors)
    opset, entries = d.opset(), list(target)
    for k, size in enumerate(target):
        if k < len(source) and source[k] == size and d.flag():
            entries[k] = 0
    if d.flag():
        entries[d.number(0, len(entries) - 1)] = -1
    exact = 0 not in entries and opset >= 14 and d.flag()
    x = d.floats(*source)
    return case("Reshape", [x, i64(*entries)], opset, **maybe(exact, allowzero=1))


def flatten(d: Draw) -> Case:
    shape, opset = d.shape(1, 4), d.opset(9)
    axis = d.number(0 if opset < 11 else -len(shape), len(shape))
    return case("Flatten", [d.floats(*shape)], opset, axis=axis)


def squeeze(d: Draw) -> Case:
    opset, rank = d.opset(), d.number(2, 5)
    shape = [1 if d.number(0, 2) == 0 else d.number(2, 3) for _ in range(rank)]
    axes = d.subset([k for k, s in enumerate(shape) if s == 1])
    return with_axes(d, "Squeeze", d.floats(*shape), axes, len(shape), opset, may_omit=True)


def unsqueeze(d: Draw) -> Case:
    shape, opset = d.shape(0, 3), d.opset()
    rank = len(shape) + d.number(1, 2)
    axes = d.order(range(rank))[: rank - len(shape)]
    return with_axes(d, "Unsqueeze", d.floats(*shape), axes, rank, opset)


def with_axes(
    d: Draw,
    op: str,
    x: Array,
    axes: Sequence[int],
    rank: int,
    opset: int,
    may_omit: bool = False,
    input_from: int = 13,
    **attributes: Any,
) -> Case:
    """Axes as an attribute or, from opset ``input_from`` on, as an input."""
    axes = [d.sign(a, rank, opset >= 11) for a in axes]
    if may_omit and (not axes or d.number(0, 3) == 0):
        return case(op, [x], opset, **attributes)
    if opset < input_from:
        return case(op, [x], opset, axes=axes, **attributes)
    return case(op, [x, i64(*axes)], opset, **attributes)


# -- movement ----------------------------------------------------------------------------------


def transpose(d: Draw) -> Case:
    x = d.floats(*d.shape(1, 4))
    return case("Transpose", [x], d.opset(), **maybe(d.flag(), perm=d.order(range(x.ndim))))


def concat(d: Draw) -> Case:
    shape, opset = d.shape(1, 4), d.opset()
    axis = d.number(0, len(shape) - 1)
    parts = [
        d.floats(*(d.number(1, 3) if k == axis else s for k, s in enumerate(shape)))
        for _ in range(d.number(1, 3))
    ]
    return case("Concat", parts, opset, axis=d.sign(axis, len(shape), opset >= 11))


def split(d: Draw) -> Case:
    shape, opset, count = d.shape(1, 4), d.opset(), d.number(1, 3)
    axis = d.number(0, len(shape) - 1)
    shown = d.sign(axis, len(shape), opset >= 11)
    if d.flag():
        sizes = [d.number(1, 3) for _ in range(count)]
        shape[axis] = sum(sizes)
        x = d.floats(*shape)
        if opset < 13:
            return case("Split", [x], opset, outputs=count, axis=shown, split=sizes)
        return case("Split", [x, i64(*sizes)], opset, outputs=count, axis=shown)
    each = d.number(2, 3)
    shape[axis] = each * count
    if opset < 18:
        return case("Split", [d.floats(*shape)], opset, outputs=count, axis=shown)
    shape[axis] -= d.number(0, 1)
    x = d.floats(*shape)
    return case("Split", [x], opset, outputs=count, axis=shown, num_outputs=count)


def slice_(d: Draw) -> Case:
    shape, opset = [d.number(1, 6) for _ in range(d.number(1, 3))], d.opset()
    rank = len(shape)
    axes = d.order(range(rank))[: d.number(1, rank)]
    if d.number(0, 4) == 0:
        axes = list(range(len(axes)))
    starts, ends, steps = [], [], []
    for axis in axes:
        size = shape[axis]
        step = d.pick([1, 1, 2, 3, -1, -2]) if opset >= 10 else 1
        first, last = sorted((d.number(0, size - 1), d.number(0, size - 1)))
        if step > 0:
            negative = last + 1 - size if last + 1 < size else 99
            ends.append(d.pick([last + 1, size, INT_MAX, negative]))
            starts.append(d.pick([first, first - size, 0]))
        else:
            starts.append(d.pick([last, last - size, -1, INT_MAX]))
            ends.append(d.pick([first - 1 if first else -99, -INT_MAX, -size - 1]))
        steps.append(step)
    named = [d.sign(a, rank) for a in axes]
    x = d.floats(*shape)
    if opset < 10:
        return case("Slice", [x], opset, starts=starts, ends=ends, axes=axes)
    kind = d.pick([np.int32, np.int64])
    inputs = [x, *(np.array(v, kind) for v in (starts, ends, named))]
    if any(s != 1 for s in steps) or d.flag():
        inputs.append(np.array(steps, kind))
    return case("Slice", inputs, opset)


def gather(d: Draw) -> Case:
    shape, opset = d.shape(1, 3, 5), d.opset()
    axis = d.number(0, len(shape) - 1)
    size = shape[axis]
    low = -size if opset >= 11 else 0
    indices = d.rng.integers(low, size, d.pick([(), (1,), (3,), (6,), (2, 2)]))
    shown = d.sign(axis, len(shape), opset >= 11)
    known = (1,) if size < 2 or d.flag() else ()
    return case("Gather", [d.floats(*shape), indices], opset, fixed=known, axis=shown)


def pad(d: Draw) -> Case:
    shape, opset = [d.number(2, 4) for _ in range(d.number(1, 4))], d.opset()
    rank, mode = len(shape), d.pick(["constant", "constant", "edge", "reflect"])
    low = -1 if mode == "constant" else 0
    count = d.number(1, rank) if opset >= 18 and d.flag() else rank
    axes = d.order(range(rank))[:count] if count < rank else list(range(rank))
    pads = [d.number(low, 1) if d.flag() else 0 for _ in range(2 * count)]
    for k, axis in enumerate(axes):
        if shape[axis] + pads[k] + pads[k + count] < 1:
            pads[k] = 0
    x = d.floats(*shape)
    if opset < 11:
        return case("Pad", [x], opset, mode=mode, pads=pads)
    value = np.array(0.5, np.float32) if d.flag() else None
    named = i64(*(d.sign(a, rank) for a in axes)) if count < rank or opset >= 18 else None
    return case("Pad", [x, i64(*pads), value, named], opset, mode=mode)


def tile(d: Draw) -> Case:
    x = d.floats(*d.shape(1, 4, 3))
    return case("Tile", [x, i64(*(d.number(1, 3) for _ in range(x.ndim)))], d.opset())


def expand(d: Draw) -> Case:
    full, short = broadcastable(d, 2)
    target = [1 if d.number(0, 4) == 0 else s for s in full]
    if d.flag():
        return case("Expand", [d.floats(*full), i64(*short)], d.opset(8))
    return case("Expand", [d.floats(*short), i64(*target)], d.opset(8))


def depth_space(d: Draw) -> Case:
    block, channels, opset = d.number(1, 2), d.number(1, 3), d.opset(11)
    n, h, w = d.number(1, 2), d.number(1, 2), d.number(1, 2)
    if d.flag():
        x = d.floats(n, channels * block**2, h, w)
        return case("DepthToSpace", [x], opset, blocksize=block, mode=d.pick(["DCR", "CRD"]))
    x = d.floats(n, channels, h * block, w * block)
    moded = "mode" in onnx.defs.get_schema("SpaceToDepth", opset, "").attributes
    mode = maybe(moded, mode=d.pick(["DCR", "CRD"]))
    return case("SpaceToDepth", [x], opset, blocksize=block, **mode)


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


# -- sources -----------------------------------------------------------------------------------


def constant_of_shape(d: Draw) -> Case:
    return case("ConstantOfShape", [i64(*d.shape(1, 4))], d.opset(9))


def sizes(d: Draw) -> Case:
    opset, op = d.opset(), d.pick(["Shape", "Size"])
    starts = op == "Shape" and opset >= 15 and d.flag()
    return case(op, [d.floats(*d.shape(1, 4))], opset, **maybe(starts, start=1))


# -- quantisation ------------------------------------------------------------------------------


def quantize(d: Draw) -> Case:
    forward, opset = d.flag(), d.opset(13)
    shape = [d.number(1, 4) for _ in range(d.number(1, 3))]
    rank, axis = len(shape), d.number(0, len(shape) - 1)
    layout = d.pick(["tensor", "axis", "blocked"] if opset >= 21 else ["tensor", "axis"])
    attributes = maybe(layout != "tensor" or d.flag(), axis=d.sign(axis, rank))
    where: tuple[int, ...] = () if d.flag() else (1,)
    if layout == "axis":
        where = (shape[axis],)
    elif layout == "blocked":
        block = d.number(2, 3)
        shape[axis] = block * d.number(1, 3)
        attributes["block_size"] = block
        where = tuple(s // block if k == axis else s for k, s in enumerate(shape))
    scale = np.asarray(np.abs(d.floats(*where)) + np.float32(0.1))
    kind = d.pick([np.int8, np.uint8, "int4"] if opset >= 21 else [np.int8, np.uint8])
    stored = np.int8 if kind == "int4" else kind
    zero = np.asarray(d.rng.integers(0, 5, where)).astype(stored)
    values: dict[str, Array] = {"s": scale, "z": zero}
    narrow = kind == "int4"
    values["x"] = d.floats(*shape) if forward else d.rng.integers(0, 7, shape).astype(stored)
    nodes: list[onnx.NodeProto] = []
    names = {"x": "x", "z": "z"}
    for name in ("z",) if forward else ("x", "z"):
        if narrow:
            names[name] = f"{name}4"
            nodes.append(helper.make_node("Cast", [name], [f"{name}4"], to=TensorProto.INT4))
    op = "QuantizeLinear" if forward else "DequantizeLinear"
    result = "y4" if narrow and forward else "y"
    nodes.append(helper.make_node(op, [names["x"], "s", names["z"]], [result], **attributes))
    if result != "y":
        nodes.append(helper.make_node("Cast", [result], ["y"], to=TensorProto.INT8))
    return model(nodes, values, ["y"], opset, set())


FAMILIES: dict[str, tuple[Callable[[Draw], Case], int]] = {
    f.__name__: (f, count)
    for count, functions in {
        30: [
            cast_like,
            constant_of_shape,
            dropout,
            instance_normalization,
            sizes,
            tile,
            upsample,
        ],
        60: [
            arg_extreme,
            batch_normalization,
            concat,
            cumulative,
            depth_space,
            expand,
            flatten,
            gemm,
            layer_normalization,
            pad,
            pool,
            prelu,
            softmax,
            split,
            squeeze,
            top_k,
            transpose,
            unsqueeze,
        ],
        100: [
            conv,
            conv_transpose,
            gather,
            group_normalization,
            matmul,
            other_normalization,
            quantize,
            reduce_,
            reshape,
            resize,
            slice_,
        ],
        220: [nary, unary],
    }.items()
    for f in functions
}
NIGHTLY = int(os.environ.get("SECATEUR_NIGHTLY", "1"))


def budget(count: int) -> settings:
    return settings(
        max_examples=count * NIGHTLY,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_generated(family: str) -> None:
    make, count = FAMILIES[family]
    compared = 0

    @budget(count)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal compared
        made, feeds = make(Draw(data.draw))
        try:
            report = probe(made, feeds, removals=3)
        except Exception as error:
            text = onnx.printer.to_text(made)
            raise AssertionError(f"{error}\n{text}") from error
        compared += bool(report.links or report.removals)

    check()
    assert compared >= count // 3


# -- chains ------------------------------------------------------------------------------------


MOVES = (
    *("Concat", "Flatten", "Gather", "Pad", "Reshape"),
    *("Slice", "Split", "Tile", "Transpose", "Unsqueeze"),
)


class Chain:
    """A growing chain of movement operators; numpy keeps track of the shape."""

    def __init__(self, d: Draw) -> None:
        self.d = d
        self.x = d.floats(*(d.pick([1, 2, 3, 4, 6]) for _ in range(d.number(1, 3))))
        self.shape = list(self.x.shape)
        self.nodes: list[onnx.NodeProto] = []
        self.values: dict[str, Array] = {"x": self.x}
        self.last = "x"

    def add(self, op: str, shape: Sequence[int], *constants: Array, **attributes: Any) -> None:
        number = len(self.nodes)
        names = [f"c{number}_{k}" for k in range(len(constants))]
        self.values.update(zip(names, constants, strict=True))
        self.nodes.append(helper.make_node(op, [self.last, *names], [f"y{number}"], **attributes))
        self.last, self.shape = f"y{number}", list(shape)

    def grow(self) -> None:
        d, shape = self.d, self.shape
        rank = len(shape)
        axis = d.number(0, rank - 1)

        def resized(size: int) -> list[int]:
            return [size if k == axis else s for k, s in enumerate(shape)]

        op = d.pick(MOVES)
        if op == "Transpose":
            perm = d.order(range(rank))
            self.add(op, [shape[p] for p in perm], perm=perm)
        elif op == "Reshape":
            primes = [p for s in shape for p in {4: [2, 2], 6: [2, 3], 8: [2, 4]}.get(s, [s])]
            target = factored(d, primes)
            self.add(op, target, i64(*target))
        elif op == "Slice":
            start, step = d.number(0, shape[axis] - 1), d.pick([1, 1, 2])
            bounds = i64(start), i64(INT_MAX), i64(axis), i64(step)
            self.add(op, resized(len(range(start, shape[axis], step))), *bounds)
        elif op == "Concat":
            self.nodes.append(
                helper.make_node(op, [self.last, self.last], [f"y{len(self.nodes)}"], axis=axis)
            )
            self.last, self.shape = f"y{len(self.nodes) - 1}", resized(2 * shape[axis])
        elif op == "Pad":
            before, after = d.number(0, 2), d.number(0, 2)
            pads = [0] * (2 * rank)
            pads[axis], pads[axis + rank] = before, after
            self.add(op, resized(shape[axis] + before + after), i64(*pads))
        elif op == "Gather":
            indices = d.rng.integers(0, shape[axis], d.number(1, 4))
            self.add(op, resized(indices.size), indices, axis=axis)
        elif op == "Unsqueeze":
            at = d.number(0, rank)
            self.add(op, [*shape[:at], 1, *shape[at:]], i64(at))
        elif op == "Flatten":
            self.add(op, [math.prod(shape[:axis]), math.prod(shape[axis:])], axis=axis)
        elif op == "Tile":
            repeats = [d.number(1, 2) if k == axis else 1 for k in range(rank)]
            self.add(op, [s * r for s, r in zip(shape, repeats, strict=True)], i64(*repeats))
        elif shape[axis] > 1:
            first = d.number(1, shape[axis] - 1)
            self.add(op, resized(first), i64(first, shape[axis] - first), axis=axis)
            self.nodes[-1].output.append(f"z{len(self.nodes)}")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_chains_of_movement() -> None:
    """Every value reaches what its units say, and removal holds; sizes are restated in a row."""
    compared = 0

    @budget(400)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal compared
        d = Draw(data.draw)
        chain = Chain(d)
        for _ in range(d.number(2, 4)):
            if math.prod(chain.shape) < 500 and len(chain.shape) < 6:
                chain.grow()
        if not chain.nodes:
            return
        constant = set(chain.values) - {"x"}
        made, feeds = model(chain.nodes, chain.values, [chain.last], d.opset(13), constant)
        try:
            report = probe(made, feeds, tight=False)
        except Exception as error:
            raise AssertionError(f"{error}\n{onnx.printer.to_text(made)}") from error
        compared += bool(report.removals)

    check()
    assert compared >= 100
