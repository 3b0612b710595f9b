"""Families of generated nodes that move values or state sizes: reshapes, movement, sources,
quantisation.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.probing_draw import (
    INT_MAX,
    Case,
    Draw,
    broadcastable,
    case,
    factored,
    i64,
    maybe,
    model,
    with_axes,
)
from tests.probing_runs import Array

# -- reshapes ----------------------------------------------------------------------------------


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
