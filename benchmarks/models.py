"""Models to measure with, of random weights: ResNet-50, a Swin-like graph, a very wide graph.

python -m benchmarks.models NAME FILE [--size N]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
OPSET = 17


class Builder:
    """Appends nodes and weights; every method returns the name of what it made."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.known: dict[bytes, str] = {}

    def op(
        self, kind: str, *inputs: str, outputs: int = 1, name: str = "", **attributes: Any
    ) -> Any:
        """A node; its output, or the tuple of its outputs."""
        stem = name or f"{kind.lower()}_{len(self.nodes)}"
        names = [stem] if outputs == 1 else [f"{stem}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=stem, **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def hold(self, name: str, values: Array) -> str:
        self.weights[name] = numpy_helper.from_array(values, name)
        return name

    def random(self, name: str, *shape: int, std: float = 1.0, mean: float = 0.0) -> str:
        values = self.rng.standard_normal(shape, dtype=np.float32) * np.float32(std)
        return self.hold(name, values + np.float32(mean))

    def constant(self, values: float | list[int]) -> str:
        """A float scalar or an int64 list, shared by all that ask for the same."""
        array = np.array(values, np.int64 if isinstance(values, list) else np.float32)
        key = array.dtype.char.encode() + array.tobytes()
        if key not in self.known:
            self.known[key] = self.hold(f"const_{len(self.known)}", array)
        return self.known[key]

    def model(
        self, name: str, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]
    ) -> onnx.ModelProto:
        """The model of all nodes so far; FP32 inputs and outputs with their shapes."""

        def declare(values: dict[str, list[Any]]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
                for n, s in values.items()
            ]

        graph = helper.make_graph(
            self.nodes, name, declare(inputs), declare(outputs), list(self.weights.values())
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
        )


# ---- ResNet-50 ----------------------------------------------------------------------------


def resnet50(*, batch_norm: bool = True, dynamic_batch: bool = False) -> onnx.ModelProto:
    """torchvision's ResNet-50: 25.56 M parameters, `input` Nx3x224x224 to `output` Nx1000.

    Without `batch_norm` the normalisations are folded, and every convolution has a bias.
    """
    b = Builder(50)

    def conv(x: str, name: str, norm: str, sizes: tuple[int, int, int], stride: int = 1) -> str:
        c_in, c_out, kernel = sizes
        gain = 0.25 if name.endswith("conv3") else 1.0
        std = (2 / (c_in * kernel * kernel)) ** 0.5
        inputs = [x, f"{name}.weight"]
        if batch_norm:
            b.random(inputs[1], c_out, c_in, kernel, kernel, std=std)
        else:
            b.random(inputs[1], c_out, c_in, kernel, kernel, std=std * gain)
            inputs.append(b.random(f"{name}.bias", c_out, std=0.05))
        pad = [kernel // 2] * 4
        y: str = b.op("Conv", *inputs, kernel_shape=[kernel] * 2, pads=pad, strides=[stride] * 2)
        if not batch_norm:
            return y
        scale = b.random(f"{norm}.weight", c_out, std=0.1 * gain, mean=gain)
        bias = b.random(f"{norm}.bias", c_out, std=0.05)
        mean = b.random(f"{norm}.running_mean", c_out, std=0.05)
        variance = b.hold(f"{norm}.running_var", b.rng.uniform(0.8, 1.2, c_out).astype(np.float32))
        z: str = b.op("BatchNormalization", y, scale, bias, mean, variance, epsilon=1e-5)
        return z

    x = b.op("Relu", conv("input", "conv1", "bn1", (3, 64, 7), 2))
    x = b.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    c_in = 64
    for layer, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for i in range(depth):
            at, stride, c_out = f"layer{layer}.{i}", 2 if i == 0 and layer > 1 else 1, 4 * width
            y = b.op("Relu", conv(x, f"{at}.conv1", f"{at}.bn1", (c_in, width, 1)))
            y = b.op("Relu", conv(y, f"{at}.conv2", f"{at}.bn2", (width, width, 3), stride))
            y = conv(y, f"{at}.conv3", f"{at}.bn3", (width, c_out, 1))
            if i == 0:
                names = f"{at}.downsample.0", f"{at}.downsample.1"
                x = conv(x, *names, (c_in, c_out, 1), stride)
            x = b.op("Relu", b.op("Add", y, x))
            c_in = c_out
    x = b.op("Flatten", b.op("GlobalAveragePool", x), axis=1)
    weight, bias = b.random("fc.weight", 1000, 2048, std=0.02), b.random("fc.bias", 1000, std=0.02)
    b.op("Gemm", x, weight, bias, transB=1, name="output")
    batch = "N" if dynamic_batch else 1
    return b.model("resnet50", {"input": [batch, 3, 224, 224]}, {"output": [batch, 1000]})


# ---- Swin ---------------------------------------------------------------------------------

WINDOW, HEAD = 4, 8
AREA = WINDOW * WINDOW


def swin_like(nodes: int = 6000) -> onnx.ModelProto:
    """A Swin transformer of about `nodes` nodes: narrow (8 to 64 channels) but deep.

    `input` Nx3x128x128 to `output` Nx10; windows of 4x4, every other block shifted and masked,
    LayerNorm and GELU in pieces, targets that keep the batch computed from Shape. The third stage
    takes as many pairs of blocks (145 nodes) as the count asks for. Raises ValueError below 800.
    """
    if nodes < 800:
        raise ValueError(f"swin_like: {nodes} nodes asked for, 800 is the least")
    least = len(_swin(1).graph.node)
    pair = len(_swin(2).graph.node) - least
    return _swin(max(1, 1 + round((nodes - least) / pair)))


def _swin(pairs: int) -> onnx.ModelProto:
    b = Builder(6000)
    x = b.op("Conv", "input", b.random("patch.weight", 8, 3, 4, 4, std=0.15), strides=[4, 4])
    x = b.op("Transpose", x, perm=[0, 2, 3, 1])
    size, width = 32, 8
    for stage, depth in enumerate((2, 2, 2 * pairs, 2)):
        if stage:
            x = _merge(b, x, f"merge{stage}", size, width)
            size, width = size // 2, width * 2
        for i in range(depth):
            shift = WINDOW // 2 if i % 2 and size > WINDOW else 0
            x = _swin_block(b, x, f"stage{stage}.{i}", size, width, shift)
    x = b.op("ReduceMean", _layer_norm(b, x, "norm", width), axes=[1, 2], keepdims=0)
    x = b.op("MatMul", x, b.random("head.weight", width, 10, std=width**-0.5))
    b.op("Add", x, b.random("head.bias", 10, std=0.1), name="output")
    return b.model("swin_like", {"input": ["N", 3, 128, 128]}, {"output": ["N", 10]})


def _linear(b: Builder, x: str, name: str, c_in: int, c_out: int, gain: float = 1.0) -> str:
    y = b.op("MatMul", x, b.random(f"{name}.weight", c_in, c_out, std=gain * c_in**-0.5))
    z: str = b.op("Add", y, b.random(f"{name}.bias", c_out, std=0.02))
    return z


def _layer_norm(b: Builder, x: str, name: str, width: int) -> str:
    centred = b.op("Sub", x, b.op("ReduceMean", x, axes=[-1]))
    variance = b.op("ReduceMean", b.op("Pow", centred, b.constant(2.0)), axes=[-1])
    deviation = b.op("Sqrt", b.op("Add", variance, b.constant(1e-5)))
    weight = b.random(f"{name}.weight", width, mean=1.0, std=0.1)
    scaled = b.op("Mul", b.op("Div", centred, deviation), weight)
    y: str = b.op("Add", scaled, b.random(f"{name}.bias", width, std=0.1))
    return y


def _view(b: Builder, x: str, batch: str, shape: list[int]) -> str:
    """Reshape to (batch of `batch`, *shape), the target computed at run time."""
    first = b.op("Gather", b.op("Shape", batch), b.constant([0]), axis=0)
    y: str = b.op("Reshape", x, b.op("Concat", first, b.constant(shape), axis=0))
    return y


def _roll(b: Builder, x: str, shift: int) -> str:
    """Rotate both spatial axes by `shift` with Slices and Concat."""
    for axis in (1, 2):
        ends = b.constant([2**63 - 1])
        axes = b.constant([axis])
        tail = b.op("Slice", x, b.constant([shift]), ends, axes)
        front = b.op("Slice", x, b.constant([0]), b.constant([shift]), axes)
        x = b.op("Concat", tail, front, axis=axis)
    return x


def _mask(size: int, shift: int) -> Array:
    """0 within a region of the shifted image, -100 across: [windows, 1, AREA, AREA]."""
    zone = np.zeros(size, np.int64)
    zone[size - WINDOW : size - shift], zone[size - shift :] = 1, 2
    region = 3 * zone[:, None] + zone
    n = size // WINDOW
    tiles = region.reshape(n, WINDOW, n, WINDOW).swapaxes(1, 2).reshape(n * n, AREA)
    across = tiles[:, None, :, None] != tiles[:, None, None, :]
    return np.where(across, np.float32(-100), np.float32(0))


def _attention(b: Builder, x: str, name: str, width: int, mask: Array | None) -> str:
    """Windowed attention on [windows * N, AREA, width] with a relative position bias."""
    heads = width // HEAD
    qkv = _linear(b, x, f"{name}.qkv", width, 3 * width)
    split = b.op("Reshape", qkv, b.constant([-1, AREA, 3, heads, HEAD]))
    split = b.op("Transpose", split, perm=[2, 0, 3, 1, 4])
    for i in range(3):
        b.weights.setdefault(f"pick_{i}", numpy_helper.from_array(np.array(i), f"pick_{i}"))
    q, k, v = (b.op("Gather", split, f"pick_{i}", axis=0) for i in range(3))
    q = b.op("Mul", q, b.constant(HEAD**-0.5))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
    if "relative_position_index" not in b.weights:
        row, column = np.divmod(np.arange(AREA), WINDOW)
        index = (row[:, None] - row + WINDOW - 1) * (2 * WINDOW - 1)
        index = index + column[:, None] - column + WINDOW - 1
        b.hold("relative_position_index", index.ravel().astype(np.int64))
    table = b.random(f"{name}.bias_table", (2 * WINDOW - 1) ** 2, heads, std=0.2)
    bias = b.op("Gather", table, "relative_position_index", axis=0)
    bias = b.op("Reshape", bias, b.constant([AREA, AREA, heads]))
    bias = b.op("Unsqueeze", b.op("Transpose", bias, perm=[2, 0, 1]), b.constant([0]))
    scores = b.op("Add", scores, bias)
    if mask is not None:
        held = f"mask_{len(mask)}"
        if held not in b.weights:
            b.hold(held, mask)
        scores = b.op("Reshape", scores, b.constant([-1, len(mask), heads, AREA, AREA]))
        scores = b.op("Add", scores, held)
        scores = b.op("Reshape", scores, b.constant([-1, heads, AREA, AREA]))
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    mixed = b.op("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = b.op("Reshape", mixed, b.constant([-1, AREA, width]))
    return _linear(b, mixed, f"{name}.proj", width, width, 0.3)


def _swin_block(b: Builder, x: str, name: str, size: int, width: int, shift: int) -> str:
    n = size // WINDOW
    y = _layer_norm(b, x, f"{name}.norm1", width)
    if shift:
        y = _roll(b, y, shift)
    y = _view(b, y, x, [n, WINDOW, n, WINDOW, width])
    y = b.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5])
    y = b.op("Reshape", y, b.constant([-1, AREA, width]))
    y = _attention(b, y, f"{name}.attn", width, _mask(size, shift) if shift else None)
    y = _view(b, y, x, [n, n, WINDOW, WINDOW, width])
    y = b.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5])
    y = _view(b, y, x, [size, size, width])
    if shift:
        y = _roll(b, y, size - shift)
    x = b.op("Add", x, y)
    h = _linear(b, _layer_norm(b, x, f"{name}.norm2", width), f"{name}.fc1", width, 4 * width)
    gate = b.op("Add", b.op("Erf", b.op("Div", h, b.constant(2.0**0.5))), b.constant(1.0))
    h = b.op("Mul", b.op("Mul", h, gate), b.constant(0.5))
    y = b.op("Add", x, _linear(b, h, f"{name}.fc2", 4 * width, width, 0.3))
    return str(y)


def _merge(b: Builder, x: str, name: str, size: int, width: int) -> str:
    """Four strided slices side by side, normalised, 4 * width to 2 * width."""
    ends, axes, steps = (b.constant(v) for v in ([size, size], [1, 2], [2, 2]))
    corners = ([0, 0], [1, 0], [0, 1], [1, 1])
    parts = [b.op("Slice", x, b.constant(c), ends, axes, steps) for c in corners]
    y = _layer_norm(b, b.op("Concat", *parts, axis=-1), f"{name}.norm", 4 * width)
    weight = b.random(f"{name}.weight", 4 * width, 2 * width, std=(4 * width) ** -0.5)
    return str(b.op("MatMul", y, weight))


# ---- many coordinates ---------------------------------------------------------------------

NARROW, LENGTH, WIDEST = 8, 4, 32_768


def wide_graph(coordinates: int = 10_000_000) -> onnx.ModelProto:
    """Tensors, weights included, whose axes sum to about `coordinates` coordinates.

    A chain of cells on `input` 1x8x4 with channel counts up to 32,768. A cell widens by a 1x1
    convolution and narrows by another; between them channels are shuffled, reversed, rotated, cut
    and glued, so that eight coordinates of each axis are one unit. Raises ValueError below 20,000.
    """
    if coordinates < 20_000:
        raise ValueError(f"wide_graph: {coordinates} coordinates asked for, 20000 is the least")
    one, two = ((_coordinates(_wide(n, 128)) - _coordinates(_wide(n, 64))) / 64 for n in (1, 2))
    cell = two - one
    cells = max(1, round(coordinates / (cell * WIDEST)))
    axes = one + (cells - 1) * cell
    return _wide(cells, 8 * round(coordinates / (8 * axes)))


def _coordinates(model: onnx.ModelProto) -> int:
    shapes = [tuple(t.dims) for t in model.graph.initializer]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        shapes.append(tuple(d.dim_value for d in value.type.tensor_type.shape.dim))
    return sum(map(sum, shapes))


def _wide(cells: int, channels: int) -> onnx.ModelProto:
    b, x = Builder(7), "input"
    for i in range(cells):
        x = _cell(b, x, f"cell{i}", channels)
    b.op("Identity", x, name="output")
    shape: list[Any] = [1, NARROW, LENGTH]
    return b.model("wide_graph", {"input": shape}, {"output": shape})


def _cell(b: Builder, x: str, name: str, c: int) -> str:
    quarter, half = c // 4, c // 2

    def shuffle(h: str, first: int, second: int) -> str:
        h = b.op("Reshape", h, b.constant([1, first, second, LENGTH]))
        h = b.op("Transpose", h, perm=[0, 2, 1, 3])
        return str(b.op("Reshape", h, b.constant([1, c, LENGTH])))

    w, bias = b.random(f"{name}.widen", c, NARROW, 1, std=NARROW**-0.5), b.random(f"{name}.bias", c)
    h = b.op("Conv", x, w, bias)
    h = b.op("Conv", h, b.random(f"{name}.depthwise", c, 1, 3, std=0.6), group=c, pads=[1, 1])
    h = b.op("Relu", b.op("Mul", h, b.random(f"{name}.scale", 1, c, 1, mean=1.0, std=0.1)))
    rest, last = b.op("Split", h, b.constant([3 * quarter, quarter]), axis=1, outputs=2)
    rotated = b.op("Sigmoid", b.op("Concat", last, rest, axis=1))
    if "reverse" not in b.weights:
        b.hold("reverse", np.arange(c - 1, -1, -1, dtype=np.int64))
    turned = b.op("Gather", b.op("Transpose", h, perm=[0, 2, 1]), "reverse", axis=2)
    turned = b.op("Transpose", turned, perm=[0, 2, 1])
    h = b.op("Add", b.op("Mul", h, rotated), turned)
    axes = b.constant([1])
    low = b.op("Slice", h, b.constant([0]), b.constant([half]), axes)
    high = b.op("Slice", h, b.constant([half]), b.constant([c]), axes)
    h = b.op("Concat", high, b.op("Tanh", low), axis=1)
    mixed = shuffle(shuffle(h, 4, quarter), quarter, 4)
    h = b.op("Add", h, b.op("Mul", mixed, b.random(f"{name}.gate", c, 1, std=0.5)))
    y = b.op("Conv", h, b.random(f"{name}.narrow", NARROW, c, 1, std=c**-0.5))
    return str(y)


# ---- command line -------------------------------------------------------------------------

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50": resnet50,
    "swin_like": swin_like,
    "wide_graph": wide_graph,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model with random weights to a file.")
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--size", type=int, help="nodes of swin_like, coordinates of wide_graph")
    arguments = parser.parse_args()
    if arguments.size is None:
        model = MODELS[arguments.name]()
    elif arguments.name == "resnet50":
        parser.error("--size: resnet50 has one size; leave the option out")
    else:
        sized = swin_like if arguments.name == "swin_like" else wide_graph
        try:
            model = sized(arguments.size)
        except ValueError as error:
            parser.error(str(error))
    onnx.save(model, arguments.file)
    megabytes = arguments.file.stat().st_size / 1e6
    print(f"{arguments.file}: {len(model.graph.node)} nodes, {megabytes:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
