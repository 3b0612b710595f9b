"""Networks grown at random: images, and sequences with attention and recurrence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from tests.random_graphs import Graph
from tests.random_nesting import nested

ACTIVATIONS = "Relu Sigmoid Tanh LeakyRelu Elu HardSigmoid HardSwish Softplus Identity Abs".split()


def activation(g: Graph, x: str) -> str:
    op = g.d.pick(ACTIVATIONS if g.opset >= 14 else [a for a in ACTIVATIONS if a != "HardSwish"])
    return g.add(op, [x], g.shapes[x])


# -- images: (channels, height, width) after the batch ---------------------------------------------


def conv(g: Graph, x: str, channels: int, kernel: int = 3, group: int = 1, stride: int = 1) -> str:
    c, h, w = g.shapes[x]
    weight = g.weight(channels, c // group, kernel, kernel)
    inputs = [x, weight] + ([g.weight(channels)] if g.d.flag() else [])
    pad = kernel // 2
    shape = [channels, -(-h // stride), -(-w // stride)]
    return g.add("Conv", inputs, shape, pads=[pad] * 4, group=group, strides=[stride] * 2)


def norm(g: Graph, x: str) -> str:
    c = g.shapes[x][0]
    kind = g.d.pick(["batch", "instance", "scale", "none"])
    if kind == "batch":
        variance = g.constant(g.d.rng.uniform(0.5, 2, c).astype(np.float32))
        statistics = [g.weight(c), g.weight(c), g.weight(c), variance]
        return g.add("BatchNormalization", [x, *statistics], g.shapes[x])
    if kind == "instance":
        return g.add("InstanceNormalization", [x, g.weight(c), g.weight(c)], g.shapes[x])
    if kind == "scale":
        return g.add("Mul", [x, g.weight(c, 1, 1)], g.shapes[x])
    return x


def plain(g: Graph, x: str) -> str:
    return activation(g, norm(g, conv(g, x, g.d.number(3, 8), g.d.pick([1, 3]))))


def residual(g: Graph, x: str) -> str:
    inner = activation(g, conv(g, x, g.d.number(3, 8)))
    y = norm(g, conv(g, inner, g.shapes[x][0]))
    return g.add(g.d.pick(["Add", "Sub", "Mul", "Max"]), [x, y], g.shapes[x])


def projected(g: Graph, x: str) -> str:
    channels = g.d.number(3, 8)
    left = conv(g, x, channels, 1, stride=2)
    right = conv(g, activation(g, conv(g, x, g.d.number(3, 8))), channels, stride=2)
    return g.add("Sum", [left, right], g.shapes[left])


def dense(g: Graph, x: str) -> str:
    y = plain(g, x)
    c, h, w = g.shapes[x]
    return g.add("Concat", [x, y], [c + g.shapes[y][0], h, w], axis=1)


def depthwise(g: Graph, x: str) -> str:
    c = g.shapes[x][0]
    y = conv(g, x, c * g.d.number(1, 2), group=c)
    return conv(g, activation(g, y), g.d.number(3, 8), 1)


def grouped(g: Graph, x: str) -> str:
    groups, each = g.d.number(2, 3), g.d.number(2, 3)
    y = activation(g, conv(g, x, groups * each, 1))
    c, h, w = g.shapes[y]
    if g.d.flag():  # a channel shuffle
        y = g.add("Reshape", [y, g.sizes(0, groups, each, h, w)], [groups, each, h, w])
        y = g.add("Transpose", [y], [each, groups, h, w], perm=[0, 2, 1, 3, 4])
        y = g.add("Reshape", [y, g.sizes(0, c, h, w)], [c, h, w])
    return conv(g, y, groups * each, group=groups)


def squeeze_excite(g: Graph, x: str) -> str:
    c = g.shapes[x][0]
    y = g.add("GlobalAveragePool", [x], [c, 1, 1])
    y = activation(g, conv(g, y, g.d.number(2, 4), 1))
    return g.add("Mul", [x, g.add("Sigmoid", [conv(g, y, c, 1)], [c, 1, 1])], g.shapes[x])


def gated(g: Graph, x: str) -> str:
    c, h, w = g.shapes[x]
    half = g.d.number(2, 5)
    y = conv(g, x, 2 * half, 1)
    a, b = g.several("Split", [y, g.sizes(half, half)], 2, axis=1)
    gate = g.add("Sigmoid", [b], [half, h, w])
    return conv(g, g.add("Mul", [a, gate], [half, h, w]), c, 1)


def pooled(g: Graph, x: str) -> str:
    c, h, w = g.shapes[x]
    op = g.d.pick(["MaxPool", "AveragePool"])
    return g.add(op, [x], [c, h, w], kernel_shape=[3, 3], pads=[1] * 4)


def shuffled_pixels(g: Graph, x: str) -> str:
    if g.d.flag():
        c, h, w = g.shapes[x]
        if h % 2 or w % 2:
            return x
        return g.add("SpaceToDepth", [x], [4 * c, h // 2, w // 2], blocksize=2)
    y = conv(g, x, 4 * g.d.number(2, 3), 1)
    c, h, w = g.shapes[y]
    return g.add("DepthToSpace", [y], [c // 4, 2 * h, 2 * w], blocksize=2)


def sliced(g: Graph, x: str) -> str:
    c, h, w = g.shapes[x]
    start = g.d.number(0, c - 2)
    bounds = [g.sizes(start), g.sizes(c), g.sizes(1)]
    if g.d.flag():
        return g.add("Slice", [x, *bounds], [c - start, h, w])
    indices = g.d.rng.integers(0, c, g.d.number(2, c)).astype(np.int64)
    return g.add("Gather", [x, g.constant(indices)], [indices.size, h, w], axis=1)


def padded(g: Graph, x: str) -> str:
    c, h, w = g.shapes[x]
    after = g.d.number(1, 2)
    return g.add("Pad", [x, g.sizes(0, 0, 0, 0, 0, after, 0, 0)], [c + after, h, w])


IMAGE: list[Callable[[Graph, str], str]] = [
    *(plain, residual, projected, dense, depthwise, grouped, squeeze_excite, gated, pooled),
    *(shuffled_pixels, sliced, padded),
]


def image_network(g: Graph) -> None:
    """Convolutional blocks on (N, 3, 6, 6), then a classifier."""
    g.shapes["x"] = (3, 6, 6)
    x = conv(g, g.feed("x", ["N", 3, 6, 6]), g.d.number(4, 8))
    for _ in range(g.d.number(1, 4)):
        x = nested(g, x, g.d.pick(IMAGE), [residual, squeeze_excite, gated, pooled, activation])
        if math.prod(g.shapes[x]) > 2000:
            break
    c, h, w = g.shapes[x]
    if g.d.flag():
        x, width = g.add("Flatten", [x], [c * h * w]), c * h * w
    else:
        y = g.add("GlobalMaxPool", [x], [c, 1, 1])
        x, width = g.add("Reshape", [y, g.sizes(0, -1)], [c]), c
    y = g.add("Gemm", [x, g.weight(4, width), g.weight(4)], [4], transB=1)
    g.output(y, ["N", 4])


# -- sequences: (steps, features) after the batch --------------------------------------------------


def linear(g: Graph, x: str, width: int) -> str:
    *lead, features = g.shapes[x]
    y = g.add("MatMul", [x, g.weight(features, width)], [*lead, width])
    return g.add("Add", [y, g.weight(width)], [*lead, width]) if g.d.flag() else y


def mlp(g: Graph, x: str) -> str:
    y = linear(g, activation(g, linear(g, x, g.d.number(4, 10))), g.shapes[x][-1])
    return g.add("Add", [x, y], g.shapes[x])


def layer_norm(g: Graph, x: str) -> str:
    if g.opset < 17:
        return g.add("Mul", [x, g.weight(g.shapes[x][-1])], g.shapes[x])
    return g.add("LayerNormalization", [x, g.weight(g.shapes[x][-1])], g.shapes[x])


def glu(g: Graph, x: str) -> str:
    width = g.d.number(3, 6)
    y = linear(g, x, 2 * width)
    a, b = g.several("Split", [y, g.sizes(width, width)], 2, axis=-1)
    lead = g.shapes[x][:-1]
    y = g.add("Mul", [a, g.add("Sigmoid", [b], [*lead, width])], [*lead, width])
    return linear(g, y, g.shapes[x][-1])


def attention(g: Graph, x: str) -> str:
    steps, width = g.shapes[x]
    heads, each = g.d.number(2, 4), g.d.number(2, 4)
    fused = g.d.flag()
    if fused:
        y = linear(g, x, 3 * heads * each)
        if g.d.flag():
            shape = [steps, 3, heads, each]
            y = g.add("Reshape", [y, g.sizes(0, *shape)], shape)
            y = g.add("Transpose", [y], [3, 0, heads, steps, each], perm=[2, 0, 3, 1, 4])
            q, k, v = (
                g.add(
                    "Gather", [y, g.constant(np.array(j, np.int64))], [heads, steps, each], axis=0
                )
                for j in range(3)
            )
        else:
            parts = g.several("Split", [y, g.sizes(*[heads * each] * 3)], 3, axis=2)
            q, k, v = (split_heads(g, part, steps, heads, each) for part in parts)
    else:
        q, k, v = (split_heads(g, linear(g, x, heads * each), steps, heads, each) for _ in range(3))
    kt = g.add("Transpose", [k], [heads, each, steps], perm=[0, 1, 3, 2])
    scores = g.add("MatMul", [q, kt], [heads, steps, steps])
    scale = g.constant(np.array(each**-0.5, np.float32))
    scores = g.add("Mul", [scores, scale], [heads, steps, steps])
    if g.d.flag():
        scores = g.add("Add", [scores, g.weight(heads, steps, steps)], [heads, steps, steps])
    weights = g.add("Softmax", [scores], [heads, steps, steps], axis=-1)
    y = g.add("MatMul", [weights, v], [heads, steps, each])
    y = g.add("Transpose", [y], [steps, heads, each], perm=[0, 2, 1, 3])
    y = g.add("Reshape", [y, g.sizes(0, 0, heads * each)], [steps, heads * each])
    return g.add("Add", [x, linear(g, y, width)], g.shapes[x])


def split_heads(g: Graph, x: str, steps: int, heads: int, each: int) -> str:
    y = g.add("Reshape", [x, g.sizes(0, 0, heads, each)], [steps, heads, each])
    return g.add("Transpose", [y], [heads, steps, each], perm=[0, 2, 1, 3])


def attention_operator(g: Graph, x: str) -> str:
    """Attention as one operator: ONNX's own, or one of ONNX Runtime's."""
    kinds = [multi_head, grouped_queries, *([standard_attention] if g.opset >= 23 else [])]
    y = g.d.pick(kinds)(g, x)
    return g.add("Add", [x, linear(g, y, g.shapes[x][-1])], g.shapes[x])


def standard_attention(g: Graph, x: str) -> str:
    steps, _ = g.shapes[x]
    groups, several, size, values = *_heads(g), 2 * g.d.number(1, 3), g.d.number(2, 4)
    heads = groups * several
    q = turned(g, linear(g, x, heads * size), heads, size)
    k = turned(g, linear(g, x, groups * size), groups, size)
    v = linear(g, x, groups * values)
    stated = {"q_num_heads": heads, "kv_num_heads": groups}
    shape = [steps, heads * values]
    if apart := g.d.flag():
        q, k = split_heads(g, q, steps, heads, size), split_heads(g, k, steps, groups, size)
        v = split_heads(g, v, steps, groups, values)
        stated, shape = {}, [heads, steps, values]
    mask = [g.weight(*[[], [heads]][g.d.number(0, 1)], steps, steps)] if g.d.flag() else []
    y = g.add("Attention", [q, k, v, *mask], shape, **stated, **_scores(g, "is_causal"))
    if apart:
        y = g.add("Transpose", [y], [steps, heads, values], perm=[0, 2, 1, 3])
        y = g.add("Reshape", [y, g.sizes(0, 0, -1)], [steps, heads * values])
    return y


def multi_head(g: Graph, x: str) -> str:
    steps, _ = g.shapes[x]
    heads, size, values = g.d.number(2, 4), 2 * g.d.number(1, 3), g.d.number(2, 4)
    q, k = (turned(g, linear(g, x, heads * size), heads, size) for _ in range(2))
    v = linear(g, x, heads * values)
    bias = g.weight(heads * (2 * size + values)) if g.d.flag() else ""
    added = g.weight(1, g.d.pick([1, heads]), steps, steps) if g.d.flag() else ""
    stated = {"num_heads": heads, **_scores(g, "unidirectional")}
    inputs = [q, k, v, bias, "", added]
    return runtime(g, "MultiHeadAttention", inputs, [steps, heads * values], **stated)


def grouped_queries(g: Graph, x: str) -> str:
    steps, _ = g.shapes[x]
    groups, several = _heads(g)
    heads, size, turns = groups * several, 16, g.d.flag()
    batch = g.add("Slice", [g.add("Shape", [x], None), g.sizes(0), g.sizes(1)], None)
    last = g.constant(np.array([steps - 1], np.int32))
    ends = g.add("Expand", [last, batch], None)
    total = g.constant(np.array(steps, np.int32))
    parts = [linear(g, x, count * size) for count in (heads, groups, groups)]
    if g.d.flag():
        width = (heads + 2 * groups) * size
        parts = [g.add("Concat", parts, [steps, width], axis=2), "", ""]
    tables = [g.weight(steps + 2, size // 2) for _ in range(2 * turns)]
    stated = {"num_heads": heads, "kv_num_heads": groups, "do_rotary": int(turns)}
    inputs = [*parts, "", "", ends, total, *tables]
    shape = [steps, heads * size]
    return runtime(g, "GroupQueryAttention", inputs, shape, 3, **stated, **_scores(g))


def turned(g: Graph, x: str, heads: int, size: int) -> str:
    """The rotation of queries or keys by their positions, or nothing."""
    kind = g.d.pick(["", "runtime", *(["standard"] if g.opset >= 23 else [])])
    steps, pairs = g.shapes[x][0], g.d.pick([size // 2, 1])
    tables = [g.weight(steps + 2, pairs) for _ in range(2)]
    part = {} if 2 * pairs == size else {"rotary_embedding_dim": 2 * pairs}
    stated = {"num_heads": heads, "interleaved": g.d.number(0, 1), **part}
    if kind == "runtime":
        return runtime(g, "RotaryEmbedding", [x, g.sizes(1), *tables], g.shapes[x], **stated)
    if kind == "standard":
        at = g.feed(f"p{g.name()}", ["N", steps], TensorProto.INT64)
        return g.add("RotaryEmbedding", [x, *tables, at], g.shapes[x], **stated)
    return x


def runtime(
    g: Graph, op: str, inputs: list[str], shape: Sequence[int], count: int = 1, **attributes: Any
) -> str:
    """The first of the outputs of one of ONNX Runtime's operators."""
    names = g.several(op, inputs, count, domain="com.microsoft", **attributes)
    g.shapes[names[0]] = tuple(shape)
    return names[0]


def _heads(g: Graph) -> tuple[int, int]:
    """Heads of keys, and those of queries for each."""
    return g.d.number(1, 3), g.d.number(1, 2)


def _scores(g: Graph, causal: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"scale": 0.3} if g.d.flag() else {}
    return found | ({causal: g.d.number(0, 1)} if causal else {})


def recurrent(g: Graph, x: str) -> str:
    steps, width = g.shapes[x]
    op, gates = g.d.pick([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    hidden, both = g.d.number(2, 5), g.d.flag()
    dirs = 2 if both else 1
    turned = g.add("Transpose", [x], [steps, 0, width], perm=[1, 0, 2])
    weights = [g.weight(dirs, gates * hidden, width), g.weight(dirs, gates * hidden, hidden)]
    bias = [g.weight(dirs, 2 * gates * hidden)] if g.d.flag() else []
    direction = "bidirectional" if both else g.d.pick(["forward", "reverse"])
    y = g.add(op, [turned, *weights, *bias], None, hidden_size=hidden, direction=direction)
    y = g.add("Transpose", [y], None, perm=[2, 0, 1, 3])
    y = g.add("Reshape", [y, g.sizes(0, 0, -1)], [steps, dirs * hidden])
    return linear(g, y, g.d.number(4, 8))


def convolved(g: Graph, x: str) -> str:
    steps, width = g.shapes[x]
    y = g.add("Transpose", [x], [width, steps], perm=[0, 2, 1])
    y = g.add("Conv", [y, g.weight(width, 1, 3)], [width, steps], group=width, pads=[1, 1])
    y = g.add("Transpose", [y], [steps, width], perm=[0, 2, 1])
    return g.add("Add", [x, y], g.shapes[x])


def contracted(g: Graph, x: str) -> str:
    steps, width = g.shapes[x]
    a, b = g.d.number(2, 3), g.d.number(2, 4)
    weight = g.weight(width, a, b)
    y = g.add("Einsum", [x, weight], [a, steps, b], equation="ntd,dab->natb")
    y = activation(g, y)
    return g.add("Einsum", [y, g.weight(a, b, width)], [steps, width], equation="natb,abd->ntd")


SEQUENCE: list[Callable[[Graph, str], str]] = [
    *(mlp, mlp, layer_norm, glu, attention, attention_operator, attention_operator, recurrent),
    *(convolved, contracted),
]

KEEPING: list[Callable[[Graph, str], str]] = [
    mlp,
    layer_norm,
    glu,
    attention,
    attention_operator,
    convolved,
]


def sequence_network(g: Graph) -> None:
    """Blocks on (N, 4, 6), then a classifier on every step."""
    g.shapes["x"] = (4, 6)
    x = linear(g, g.feed("x", ["N", 4, 6]), g.d.number(4, 9))
    for _ in range(g.d.number(1, 4)):
        x = nested(g, x, g.d.pick(SEQUENCE), KEEPING)
    y = linear(g, x, 3)
    g.output(y, ["N", 4, 3])


def attention_network(g: Graph) -> None:
    """Attention as one operator on (N, 4, 6), once or twice, then a classifier on every step."""
    g.shapes["x"] = (4, 6)
    x = linear(g, g.feed("x", ["N", 4, 6]), g.d.number(4, 9))
    for _ in range(g.d.number(1, 2)):
        x = nested(g, x, attention_operator, [attention_operator])
    g.output(linear(g, x, 3), ["N", 4, 3])
