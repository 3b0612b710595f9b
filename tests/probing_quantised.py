"""Families of generated nodes on quantised numbers, of the standard and of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper

from tests.probing_draw import Case, Draw, broadcastable, case, maybe, model, shrunk
from tests.probing_runs import Array

MICROSOFT = "com.microsoft"


def whole(d: Draw, kind: Any, *shape: int) -> Array:
    """Any numbers of an integer type."""
    bounds = np.iinfo(kind)
    return d.rng.integers(bounds.min, bounds.max, shape, endpoint=True).astype(kind)


def scale(d: Draw, *shape: int) -> Array:
    return d.rng.uniform(0.02, 0.08, shape).astype(np.float32)


def zero(d: Draw, kind: Any, *shape: int) -> Array:
    """Zero points, near the middle of the type."""
    middle = 128 if np.dtype(kind).kind == "u" else 0
    return (middle + d.rng.integers(-9, 10, shape)).astype(kind)


def single(d: Draw) -> tuple[int, ...]:
    return (1,) if d.flag() else ()


def quantised(d: Draw, x: Array) -> list[Array | None]:
    """A tensor, its scale and its zero point."""
    where = single(d)
    return [x, scale(d, *where), zero(d, x.dtype, *where)]


def result(d: Draw, kind: Any) -> list[Array | None]:
    """Scale and zero point of a result."""
    where = single(d)
    return [np.full(where, 0.7, np.float32), zero(d, kind, *where)]


def parameters(inputs: Sequence[Array | None], *data: int) -> list[int]:
    """All inputs but ``data`` that are single numbers: they are constants."""
    return [k for k, a in enumerate(inputs) if k not in data and a is not None and a.size == 1]


# -- matrix products ------------------------------------------------------------------------------


def factors(d: Draw, kinds: tuple[Any, Any], vectors: bool = True) -> tuple[Array, Array]:
    k = d.number(1, 4)
    batch = d.shape(0, 2, 3)
    a, b = (shrunk(d, batch) for _ in "ab")
    left = [k] if vectors and d.number(0, 5) == 0 else [*a, d.number(1, 3), k]
    return whole(d, kinds[0], *left), whole(d, kinds[1], *b, k, d.number(1, 3))


def kinds(d: Draw) -> tuple[Any, Any]:
    left, right = d.pick([(np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)])
    return left, right


def columns(d: Draw, b: Array) -> tuple[int, ...]:
    """A parameter of B: one number, or one for each column (of a plain matrix)."""
    return (b.shape[-1],) if d.flag() and b.ndim == 2 else single(d)


def matmul_integer(d: Draw) -> Case:
    types = kinds(d)
    a, b = factors(d, types)
    inputs: list[Array | None] = [a, b]
    inputs.append(zero(d, types[0], *single(d)) if d.flag() else None)
    inputs.append(zero(d, types[1], *columns(d, b)) if d.flag() else None)
    return case("MatMulInteger", inputs, d.opset(10), fixed=parameters(inputs, 0, 1))


def qlinear_matmul(d: Draw) -> Case:
    types = kinds(d)
    a, b = factors(d, types, vectors=False)
    where = columns(d, b)
    inputs = [*quantised(d, a), b, scale(d, *where), zero(d, types[1], *where)]
    inputs += result(d, types[0])
    return case("QLinearMatMul", inputs, d.number(10, 20), fixed=parameters(inputs, 0, 3))


def matmul_integer_to_float(d: Draw) -> Case:
    types = kinds(d)
    a, b = factors(d, types)
    where = columns(d, b)
    bias = d.floats(b.shape[-1]) if d.flag() else None
    inputs = [a, b, scale(d), scale(d, *where), zero(d, types[0]), zero(d, types[1], *where), bias]
    fixed = parameters(inputs, 0, 1, 6)
    return case("MatMulIntegerToFloat", inputs, 17, fixed=fixed, domain=MICROSOFT)


def dynamic_quantize_matmul(d: Draw) -> Case:
    kind = d.pick([np.int8, np.uint8])
    b = whole(d, kind, d.number(1, 4), d.number(1, 3))
    a = d.floats(*d.shape(0, 2, 3), d.number(1, 3), b.shape[0])
    where = columns(d, b)
    point = zero(d, kind, *where) if d.flag() else None
    inputs = [a, b, scale(d, *where), point, d.floats(b.shape[-1]) if d.flag() else None]
    fixed = parameters(inputs, 0, 1, 4)
    return case("DynamicQuantizeMatMul", inputs, 17, fixed=fixed, domain=MICROSOFT)


def qgemm(d: Draw) -> Case:
    types = kinds(d)
    m, k, n = d.number(1, 4), d.number(1, 4), d.number(1, 4)
    a, b = whole(d, types[0], m, k), whole(d, types[1], k, n)
    trans_a, trans_b = d.flag(), d.flag()
    where = columns(d, b)
    bias = d.pick([None, (n,), (1, n), (m, 1), (m, n)])
    inputs = [*quantised(d, a.T.copy() if trans_a else a), b.T.copy() if trans_b else b]
    inputs += [scale(d, *where), zero(d, types[1], *where)]
    inputs.append(None if bias is None else d.rng.integers(-900, 900, bias).astype(np.int32))
    if d.flag():
        inputs += result(d, types[0])
    attributes = {"transA": int(trans_a), "transB": int(trans_b), "alpha": d.pick([0.5, 1.0])}
    fixed = parameters(inputs, 0, 3, 6)
    return case("QGemm", inputs, 17, fixed=fixed, domain=MICROSOFT, **attributes)


def dynamic_quantize_lstm(d: Draw) -> Case:
    """Weights by direction or by column, any optional input; activations that keep zeros."""
    direction = d.pick(["forward", "reverse", "bidirectional"])
    both, t, b = 1 + (direction == "bidirectional"), d.number(1, 4), d.number(1, 3)
    i, h, kind = d.number(1, 3), d.number(1, 5), d.pick([np.int8, np.uint8])
    where = (both, 4 * h) if d.flag() else (both,)
    point = np.full(where, 0 if kind == np.int8 else 128, kind)  # all that the kernel takes
    inputs = [
        *(d.floats(t, b, i), whole(d, kind, both, i, 4 * h), whole(d, kind, both, h, 4 * h)),
        d.floats(both, 8 * h) if d.flag() else None,
        d.rng.integers(1, t, b, endpoint=True).astype(np.int32) if d.flag() else None,
        *(d.floats(both, b, h) if d.flag() else None for _ in "hc"),
        d.floats(both, 3 * h) if d.flag() else None,
        *(scale(d, *where), point, scale(d, *where) / 4, point),
    ]
    attributes: dict[str, Any] = {"direction": direction, "hidden_size": h}
    if d.flag():
        names = ["Sigmoid", *(d.pick(["Relu", "Softsign", "Tanh"]) for _ in "gh")]
        attributes["activations"] = names * both
    attributes |= maybe(d.number(0, 3) == 0, clip=0.8)
    attributes |= maybe(d.number(0, 3) == 0, input_forget=1)
    return case("DynamicQuantizeLSTM", inputs, 17, 3, fixed=[9, 11], domain=MICROSOFT, **attributes)


# -- convolutions ---------------------------------------------------------------------------------


def _convolved(d: Draw, types: tuple[Any, Any], rank: int) -> tuple[Array, Array, dict[str, Any]]:
    groups, c_in, c_out = d.pick([1, 1, 2, 3]), d.number(1, 3), d.number(1, 3)
    kernel = [d.number(1, 2) for _ in range(rank)]
    x = whole(d, types[0], d.number(1, 2), groups * c_in, *(d.number(2, 4) for _ in kernel))
    pads = [d.number(0, 1) for _ in range(2 * rank)]
    return x, whole(d, types[1], groups * c_out, c_in, *kernel), {"group": groups, "pads": pads}


def conv_integer(d: Draw) -> Case:
    types = d.pick([(np.uint8, np.int8), (np.uint8, np.uint8)])
    x, w, attributes = _convolved(d, types, 2)
    inputs: list[Array | None] = [x, w]
    inputs.append(zero(d, types[0], *single(d)) if d.flag() else None)
    inputs.append(zero(d, types[1], *single(d)) if d.flag() else None)
    fixed = parameters(inputs, 0, 1)
    return case("ConvInteger", inputs, d.opset(10), fixed=fixed, **attributes)


def qlinear_conv(d: Draw) -> Case:
    types = kinds(d)
    x, w, attributes = _convolved(d, types, d.pick([1, 2, 2]))
    where = (w.shape[0],) if d.flag() else single(d)
    bias = d.rng.integers(-900, 900, w.shape[:1]).astype(np.int32) if d.flag() else None
    last = d.flag()
    data = np.moveaxis(x, 1, -1).copy() if last else x
    point = np.broadcast_to(zero(d, types[1]), where).copy()
    inputs = [*quantised(d, data), w, scale(d, *where), point, *result(d, types[0]), bias]
    own = {"domain": MICROSOFT, **maybe(last, channels_last=1)} if last or d.flag() else {}
    # The weights' zero points must be equal.
    fixed = sorted({*parameters(inputs, 0, 3, 8), 5})
    return case("QLinearConv", inputs, d.number(10, 20), fixed=fixed, **attributes, **own)


# -- one operand after the other ------------------------------------------------------------------


def dynamic_quantize_linear(d: Draw) -> Case:
    return case("DynamicQuantizeLinear", [d.floats(*d.shape(0, 3))], d.opset(11), outputs=3)


def wide_quantize(d: Draw) -> Case:
    """QuantizeLinear and DequantizeLinear of ONNX Runtime's own domain, of 8 and 16 bits."""
    kind, forward = d.pick([np.uint8, np.int8, np.int16, np.uint16]), d.flag()
    shape = [d.number(1, 4) for _ in range(d.number(1, 3))]
    axis = d.number(0, len(shape) - 1)
    where = d.pick([(), (1,), (shape[axis],)])
    x = d.floats(*shape) if forward else whole(d, kind, *shape)
    inputs = [x, scale(d, *where), zero(d, kind, *where)]
    op = "QuantizeLinear" if forward else "DequantizeLinear"
    fixed = parameters(inputs, 0)
    shown = d.sign(axis, len(shape))
    return case(op, inputs, 17, fixed=fixed, domain=MICROSOFT, axis=shown)


def qlinear_elementwise(d: Draw) -> Case:
    op = d.pick(["QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearWhere"])
    kind = d.pick([np.uint8, np.int8])
    shapes = broadcastable(d, 3)
    if op == "QLinearWhere":
        inputs: list[Array | None] = [d.of(np.bool_, *shapes[0])]
        data: tuple[int, ...] = (0, 1, 4)
        shapes = shapes[1:]
    else:
        inputs, data = [], (0, 3)
    if op in ("QLinearSigmoid", "QLinearLeakyRelu"):
        shapes, data = shapes[:1], (0,)
    for shape in shapes[:2]:
        inputs += [whole(d, kind, *shape), scale(d), zero(d, kind)]
    steps = 0.004 if op == "QLinearSigmoid" else 0.1
    inputs += [np.array(steps, np.float32), zero(d, kind)]
    attributes = maybe(op == "QLinearLeakyRelu", alpha=0.5)
    fixed = parameters(inputs, *data)
    return case(op, inputs, 17, fixed=fixed, domain=MICROSOFT, **attributes)


def qlinear_concat(d: Draw) -> Case:
    kind = d.pick([np.uint8, np.int8])
    shape = [d.number(1, 4) for _ in range(d.number(1, 4))]
    axis = d.number(0, len(shape) - 1)
    inputs: list[Array | None] = [np.array(0.05, np.float32), zero(d, kind)]
    count = d.number(1, 3)
    for _ in range(count):
        shape[axis] = d.number(1, 3)
        inputs += quantised(d, whole(d, kind, *shape))
    fixed = parameters(inputs, *range(2, len(inputs), 3))
    shown = d.sign(axis, len(shape))
    return case("QLinearConcat", inputs, 17, fixed=fixed, domain=MICROSOFT, axis=shown)


def qlinear_softmax(d: Draw) -> Case:
    kind, version = d.pick([np.uint8, np.int8]), d.pick([11, 17])
    x = whole(d, kind, *d.shape(1, 4))
    inputs = [*quantised(d, x), np.array(1 / 256, np.float32), np.array(0, kind)]
    axis = d.sign(d.number(0, x.ndim - 1), x.ndim)
    made, feeds = case(
        "QLinearSoftmax", inputs, 17, fixed=parameters(inputs, 0), domain=MICROSOFT, axis=axis
    )
    made.graph.node[0].attribute.append(helper.make_attribute("opset", version))
    return made, feeds


def qlinear_pool(d: Draw) -> Case:
    kind, last, rank = d.pick([np.uint8, np.int8]), d.flag(), d.number(1, 2)
    sizes = [d.number(2, 4) for _ in range(rank)]
    n, c = d.number(1, 3), d.number(1, 4)
    x = whole(d, kind, *([n, *sizes, c] if last else [n, c, *sizes]))
    inputs: list[Array | None] = [x, scale(d), zero(d, kind)]
    inputs += [np.array(0.03, np.float32), zero(d, kind)]
    attributes: dict[str, Any] = {"channels_last": int(last)}
    op = d.pick(["QLinearAveragePool", "QLinearGlobalAveragePool"])
    if op == "QLinearAveragePool":
        attributes["kernel_shape"] = [d.number(1, 2) for _ in range(rank)]
    fixed = parameters(inputs, 0)
    return case(op, inputs, 17, fixed=fixed, domain=MICROSOFT, **attributes)


# -- blocks ---------------------------------------------------------------------------------------


def matmul_nbits(d: Draw) -> Case:
    """Small binary fractions, which floats add without rounding."""
    bits, n = d.pick([2, 4, 8]), d.number(1, 5)
    k = 16 * d.number(1, 5) - d.pick([0, 0, 3])
    blocks = -(-k // 16)
    flat, packed = d.flag(), -(-blocks * bits // 8)
    weight = whole(d, np.uint8, n, blocks, 16 * bits // 8)
    scales = np.exp2(d.rng.integers(-5, 0, (n * blocks,) if flat else (n, blocks)))
    x = np.round(2 * d.floats(*d.shape(0, 2, 3), d.number(1, 3), k))
    point = d.pick([None, "packed", "floats"] if bits == 4 else [None, "packed"])
    points: Array | None = None
    if point == "packed":
        points = whole(d, np.uint8, *((n * packed,) if flat else (n, packed)))
    elif point == "floats":
        points = d.rng.integers(0, 2**bits, scales.shape).astype(np.float32)
    bias = np.round(d.floats(n)) if d.flag() else None
    inputs = [x, weight, scales.astype(np.float32), points, None, bias]
    attributes = {"K": k, "N": n, "bits": bits, "block_size": 16}
    return case("MatMulNBits", inputs, 17, fixed=[1, 2, 3], domain=MICROSOFT, **attributes)


def matmul_bnb4(d: Draw) -> Case:
    """Columns that end with a block, and columns that do not."""
    k, n, block = d.pick([8, 16, 24, 32, 48]), d.number(2, 6), 16
    x = np.round(2 * d.floats(*d.shape(0, 2, 3), d.number(1, 3), k))
    scales = np.exp2(d.rng.integers(-5, 0, -(-n * k // block))).astype(np.float32)
    inputs = [x, whole(d, np.uint8, -(-n * k // 2)), scales]
    attributes = {"K": k, "N": n, "block_size": block, "quant_type": d.number(0, 1)}
    return case("MatMulBnb4", inputs, 17, fixed=[1, 2], domain=MICROSOFT, **attributes)


def embed_layer_normalization(d: Draw) -> Case:
    """QEmbedLayerNormalization, with segments and a mask or without."""
    kind, width, (batch, length) = d.pick([np.uint8, np.int8]), d.number(3, 6), (2, 3)
    segments, mask = d.flag(), d.flag()
    tables = [whole(d, kind, rows, width) for rows in (7, 4, 2)]
    vectors = [whole(d, kind, width) for _ in "gb"]
    inputs: list[Array | None] = [
        d.rng.integers(0, 7, (batch, length)).astype(np.int32),
        d.rng.integers(0, 2, (batch, length)).astype(np.int32) if segments else None,
        *tables[:2], tables[2] if segments else None, *vectors,
        d.rng.integers(0, 2, (batch, length)).astype(np.int32) if mask else None,
    ]  # fmt: skip
    present = [k != 2 or segments for k in range(5)]
    inputs += [scale(d) if there else None for there in present]
    inputs += [zero(d, kind) if there else None for there in present]
    op = "QEmbedLayerNormalization"
    return case(op, inputs, 17, 2, fixed=range(8, 18), domain=MICROSOFT)


def gather_block_quantized(d: Draw) -> Case:
    """A table in nibbles (cast from bytes) or in bytes that hold several numbers."""
    rows, width = d.number(2, 5), 16 * d.number(1, 4)
    indices = d.rng.integers(0, rows, d.shape(1, 2, 3))
    bits = d.pick([4, 8])
    packed = whole(d, np.uint8, rows, width * bits // 8)
    blocks = width // 16
    inputs: list[Array | None] = [packed, indices, scale(d, rows, blocks)]
    if d.flag():
        inputs.append(whole(d, np.uint8, rows, -(-blocks * bits // 8)))
    attributes = {"gather_axis": 0, "quantize_axis": d.sign(1, 2), "block_size": 16, "bits": bits}
    fixed = [0, 2, 3]
    return case("GatherBlockQuantized", inputs, 17, fixed=fixed, domain=MICROSOFT, **attributes)


def nibble_table(d: Draw) -> Case:
    """GatherBlockQuantized on a table of 4 bits of any rank, blocked along any other axis."""
    shape = [d.number(1, 3), d.number(1, 3), d.number(1, 3)][: d.number(2, 3)]
    axis, blocked = d.order(range(len(shape)))[:2]
    shape[blocked] = 16 * d.number(1, 3) - d.pick([0, 0, 5])
    blocks = [-(-s // 16) if k == blocked else s for k, s in enumerate(shape)]
    values: dict[str, Array] = {
        "x": d.rng.integers(-8, 8, shape).astype(np.int8),
        "i": d.rng.integers(0, shape[axis], d.shape(1, 2, 3)),
        "s": scale(d, *blocks),
    }
    attributes: dict[str, Any] = {
        "gather_axis": axis, "quantize_axis": blocked, "block_size": 16
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["x"], ["x4"], to=22),
        helper.make_node(
            "GatherBlockQuantized", ["x4", "i", "s"], ["y"], domain=MICROSOFT, **attributes
        ),
    ]
    return model(nodes, values, ["y"], 21, set())
