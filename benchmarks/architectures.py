"""Small builders of well-known architectures with random weights, to measure pruning with.

Widths and depths are those of the papers unless said otherwise, batch normalisation is folded, and
the picture's size is an option, so that a run can be short.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from benchmarks.models import Builder


class Net(Builder):
    """A builder of feed-forward networks on one picture or sequence."""

    def conv(
        self,
        x: str,
        c_in: int,
        c_out: int,
        k: int = 1,
        s: int = 1,
        group: int = 1,
        act: str = "Relu",
    ) -> str:
        """A convolution with bias and, unless ``act`` is empty, an activation."""
        name = f"conv{len(self.weights)}"
        fan = c_in // group * k * k
        weight = self.random(f"{name}.weight", c_out, c_in // group, k, k, std=(2 / fan) ** 0.5)
        bias = self.random(f"{name}.bias", c_out, std=0.05)
        y = self.op(
            "Conv", x, weight, bias, strides=[s, s], pads=[k // 2] * 4, group=group,
            kernel_shape=[k, k],
        )  # fmt: skip
        return str(self.op(act, y)) if act else str(y)

    def linear(self, x: str, c_in: int, c_out: int) -> str:
        name = f"linear{len(self.weights)}"
        y = self.op("MatMul", x, self.random(f"{name}.weight", c_in, c_out, std=c_in**-0.5))
        return str(self.op("Add", y, self.random(f"{name}.bias", c_out, std=0.05)))

    def norm(self, x: str, width: int) -> str:
        name = f"norm{len(self.weights)}"
        scale, bias = (
            self.random(f"{name}.scale", width, mean=1.0, std=0.1),
            self.random(f"{name}.bias", width, std=0.1),
        )
        return str(self.op("LayerNormalization", x, scale, bias, axis=-1))

    def gelu(self, x: str) -> str:
        erf = self.op("Erf", self.op("Mul", x, self.constant(0.5**0.5)))
        return str(
            self.op(
                "Mul",
                self.op("Mul", x, self.op("Add", erf, self.constant(1.0))),
                self.constant(0.5),
            )
        )

    def pool(self, x: str) -> str:
        return str(self.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))

    def classify(self, x: str, width: int, name: str, size: int) -> onnx.ModelProto:
        x = self.op("Flatten", self.op("GlobalAveragePool", x), axis=1)
        weight = self.random("head.weight", 1000, width, std=0.02)
        self.op("Gemm", x, weight, self.random("head.bias", 1000), transB=1, name="output")
        return self.model(name, {"input": [1, 3, size, size]}, {"output": [1, 1000]})


def resnet18(size: int = 224) -> onnx.ModelProto:
    """He et al. 2016."""
    b = Net(18)
    x = b.op("MaxPool", b.conv("input", 3, 64, 7, 2), kernel_shape=[2, 2], strides=[2, 2])
    c = 64
    for i, width in enumerate((64, 64, 128, 128, 256, 256, 512, 512)):
        s = 2 if i in (2, 4, 6) else 1
        y = b.conv(b.conv(x, c, width, 3, s), width, width, 3, act="")
        short = x if c == width else b.conv(x, c, width, 1, s, act="")
        x, c = b.op("Relu", b.op("Add", y, short)), width
    return b.classify(x, 512, "resnet18", size)


def resnet20(size: int = 32) -> onnx.ModelProto:
    """He et al. 2016, the narrow network for CIFAR-10: 16, 32 and 64 channels."""
    b = Net(20)
    x, c = b.conv("input", 3, 16, 3), 16
    for i, width in enumerate((16,) * 3 + (32,) * 3 + (64,) * 3):
        s = 2 if i in (3, 6) else 1
        y = b.conv(b.conv(x, c, width, 3, s), width, width, 3, act="")
        short = x if c == width else b.conv(x, c, width, 1, s, act="")
        x, c = b.op("Relu", b.op("Add", y, short)), width
    return b.classify(x, 64, "resnet20", size)


def resnext(size: int = 224) -> onnx.ModelProto:
    """Xie et al. 2017, 32 groups, two blocks per stage."""
    b = Net(32)
    x, c = b.pool(b.conv("input", 3, 64, 7, 2)), 64
    for stage, width in enumerate((128, 256, 512, 1024)):
        for i in range(2):
            s = 2 if stage and not i else 1
            y = b.conv(b.conv(x, c, width), width, width, 3, s, group=32)
            y = b.conv(y, width, 2 * width, act="")
            short = x if c == 2 * width else b.conv(x, c, 2 * width, 1, s, act="")
            x, c = b.op("Relu", b.op("Add", y, short)), 2 * width
    return b.classify(x, c, "resnext", size)


def vgg11(size: int = 224) -> onnx.ModelProto:
    """Simonyan and Zisserman 2015, with one linear layer after global pooling."""
    b, x, c = Net(11), "input", 3
    for i, width in enumerate((64, 128, 256, 256, 512, 512, 512, 512)):
        x, c = b.conv(x, c, width, 3), width
        x = b.pool(x) if i in (0, 1, 3, 5, 7) else x
    return b.classify(x, 512, "vgg11", size)


def mobilenet_v2(size: int = 224) -> onnx.ModelProto:
    """Sandler et al. 2018, with Relu for Relu6."""
    b = Net(2)
    x, c = b.conv("input", 3, 32, 3, 2), 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
              (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip
    for expand, width, depth, stride in stages:
        for i in range(depth):
            inner, s = c * expand, stride if i == 0 else 1
            y = b.conv(x, c, inner) if expand > 1 else x
            y = b.conv(b.conv(y, inner, inner, 3, s, group=inner), inner, width, act="")
            x, c = (b.op("Add", x, y) if s == 1 and c == width else y), width
    return b.classify(b.conv(x, c, 1280), 1280, "mobilenet_v2", size)


def se_net(size: int = 224) -> onnx.ModelProto:
    """Inverted bottlenecks with squeeze-and-excite (Tan and Le 2019), eight blocks."""
    b = Net(4)
    x, c = b.conv("input", 3, 32, 3, 2), 32
    for width, s in ((24, 2), (24, 1), (40, 2), (40, 1), (80, 2), (80, 1), (112, 1), (192, 2)):
        inner = 6 * c
        y = b.conv(b.conv(x, c, inner), inner, inner, 5, s, group=inner)
        gate = b.conv(b.op("GlobalAveragePool", y), inner, c // 4)
        y = b.op("Mul", y, b.conv(gate, c // 4, inner, act="Sigmoid"))
        y = b.conv(y, inner, width, act="")
        x, c = (b.op("Add", x, y) if s == 1 and c == width else y), width
    return b.classify(b.conv(x, c, 768), 768, "se_net", size)


def densenet(size: int = 224) -> onnx.ModelProto:
    """Huang et al. 2017, growth 32, blocks of 4, 6, 8 and 6 layers."""
    b = Net(121)
    x, c = b.pool(b.conv("input", 3, 64, 7, 2)), 64
    for stage, depth in enumerate((4, 6, 8, 6)):
        for _ in range(depth):
            y = b.conv(b.conv(x, c, 128), 128, 32, 3)
            x, c = b.op("Concat", x, y, axis=1), c + 32
        if stage < 3:
            x, c = b.pool(b.conv(x, c, c // 2)), c // 2
    return b.classify(x, c, "densenet", size)


def unet(size: int = 224) -> onnx.ModelProto:
    """Ronneberger et al. 2015, half as wide: 32 to 256 channels, with padding."""
    b, x, c = Net(5), "input", 3
    kept = []
    for width in (32, 64, 128):
        x = b.conv(b.conv(x, c, width, 3), width, width, 3)
        kept.append((x, width))
        x, c = b.pool(x), width
    x, c = b.conv(b.conv(x, c, 256, 3), 256, 256, 3), 256
    for across, width in reversed(kept):
        weight = b.random(f"up{width}.weight", c, width, 2, 2, std=(1 / c) ** 0.5)
        y = b.op("ConvTranspose", x, weight, kernel_shape=[2, 2], strides=[2, 2])
        x = b.conv(b.conv(b.op("Concat", across, y, axis=1), 2 * width, width, 3), width, width, 3)
        c = width
    weight = b.random("head.weight", 8, c, 1, 1, std=0.1)
    b.op("Conv", x, weight, name="output")
    return b.model("unet", {"input": [1, 3, size, size]}, {"output": [1, 8, size, size]})


def convnext(size: int = 224) -> onnx.ModelProto:
    """Liu et al. 2022, tiny widths, six blocks: only the hidden layers are exact groups."""
    b = Net(6)
    x, c = b.conv("input", 3, 96, 4, 4, act=""), 96
    for width, depth in ((96, 1), (192, 2), (384, 2), (768, 1)):
        if width > c:
            x, c = b.conv(b.pool(x), c, width, act=""), width
        for _ in range(depth):
            y = b.conv(x, c, c, 7, group=c, act="")
            y = b.norm(b.op("Transpose", y, perm=[0, 2, 3, 1]), c)
            y = b.linear(b.gelu(b.linear(y, c, 4 * c)), 4 * c, c)
            x = b.op("Add", x, b.op("Transpose", y, perm=[0, 3, 1, 2]))
    return b.classify(x, c, "convnext", size)


def transformer(size: int = 128) -> onnx.ModelProto:
    """Vaswani et al. 2017: six encoder layers of width 256 on ``size`` tokens, 8 heads."""
    b, width, heads = Net(7), 256, 8
    x = b.linear("input", width, width)
    for _ in range(6):
        y = b.norm(x, width)
        q, k, v = (
            b.op("Reshape", b.linear(y, width, width), b.constant([0, 0, heads, width // heads]))
            for _ in range(3)
        )
        q, v = (b.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 3, 1]))
        scores = b.op("Mul", scores, b.constant((width // heads) ** -0.5))
        y = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
        y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.constant([0, 0, width]))
        x = b.op("Add", x, b.linear(y, width, width))
        y = b.linear(b.norm(x, width), width, 4 * width)
        x = b.op("Add", x, b.linear(b.gelu(y), 4 * width, width))
    b.op("MatMul", b.norm(x, width), b.random("head.weight", width, 64, std=0.06), name="output")
    return b.model("transformer", {"input": [1, size, width]}, {"output": [1, size, 64]})


ARCHITECTURES: dict[str, Callable[[int], onnx.ModelProto]] = {
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnext": resnext,
    "vgg11": vgg11,
    "mobilenet_v2": mobilenet_v2,
    "se_net": se_net,
    "densenet": densenet,
    "unet": unet,
    "convnext": convnext,
    "transformer": transformer,
}
"""Builders by name; their option is the size of the picture, or the number of tokens."""
