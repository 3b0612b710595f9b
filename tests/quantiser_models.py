"""Small models as ONNX Runtime's own quantiser writes them, in every mode."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from secateur.runtime.inputs import random_feed

from .graphs import Array


def _model(
    text: str,
    opset: int,
    sizes: dict[str, tuple[int, ...]],
    ir_version: int = 10,
    **integers: list[int],
) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    header = f'<ir_version: {ir_version}, opset_import: ["": {opset}]> '
    model: onnx.ModelProto = onnx.parser.parse_model(header + text)
    for name, shape in sizes.items():
        values = rng.standard_normal(shape) / math.sqrt(math.prod(shape) / max(shape))
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    for name, numbers in integers.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
    return model


def convolutions() -> onnx.ModelProto:
    """A stem, a depthwise layer, a residual sum, a concatenation, a gate, pooling, two products."""
    return _model(
        """convolutions (float[N, 3, 8, 8] x) => (float[N, 10] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)  ar = Relu(a)
            d = Conv<pads = [1, 1, 1, 1], group = 16>(ar, wd)  dl = LeakyRelu(d)
            s = Add(dl, ar)  c = Concat<axis = 1>(s, ar)
            e = Conv<pads = [1, 1, 1, 1]>(c, w2, b2)  es = Sigmoid(e)  em = Mul(e, es)
            p = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(em)
            m = MaxPool<kernel_shape = [2, 2]>(p)  g = GlobalAveragePool(m)  f = Flatten(g)
            h = Gemm<transB = 1>(f, w3, b3)  hr = Relu(h)
            y = MatMul(hr, w4)
        }""",
        17,
        {"w1": (16, 3, 3, 3), "b1": (16,), "wd": (16, 1, 3, 3), "w2": (24, 32, 3, 3), "b2": (24,),
         "w3": (32, 24), "b3": (32,), "w4": (32, 10)},
    )  # fmt: skip


def perceptron(opset: int = 17) -> onnx.ModelProto:
    """Three products, the last two behind layers of 96 and 64."""
    return _model(
        """perceptron (float[N, 64] x) => (float[N, 8] y) {
            a = MatMul(x, w1)  ab = Add(a, b1)  r = Relu(ab)
            h = MatMul(r, w2)  t = Tanh(h)  y = MatMul(t, w3)
        }""",
        opset,
        {"w1": (64, 96), "b1": (96,), "w2": (96, 64), "w3": (64, 8)},
    )


def embedding() -> onnx.ModelProto:
    """A look-up and a product."""
    return _model(
        """embedding (int64[N, T] ids) => (float[N, T, 8] y) {
            e = Gather(w1, ids)  y = MatMul(e, w2)
        }""",
        21,
        {"w1": (20, 96), "w2": (96, 8)},
    )


def recurrent() -> onnx.ModelProto:
    """An LSTM in both directions, one in one, and a product."""
    return _model(
        """recurrent (float[T, N, 12] x) => (float[T, N, 8] y) {
            a, ah, ac = LSTM<hidden_size = 20, direction = "bidirectional">(x, w1, r1, b1)
            m = Transpose<perm = [0, 2, 1, 3]>(a)  f = Reshape(m, joined)
            h, hh, hc = LSTM<hidden_size = 24>(f, w2, r2)
            s = Squeeze(h, second)  y = MatMul(s, w3)
        }""",
        17,
        {"w1": (2, 80, 12), "r1": (2, 80, 20), "b1": (2, 160), "w2": (1, 96, 40),
         "r2": (1, 96, 24), "w3": (24, 8)},
        joined=[0, 0, -1], second=[1],
    )  # fmt: skip


def branches() -> onnx.ModelProto:
    """An If between products; its branches capture the first. The quantiser moves it in front."""
    return _model(
        """branches (float[N, 12] x, bool c) => (float[N, 8] y) {
            h = MatMul(x, w1)  r = Relu(h)
            z = If(c) <
                then_branch = one () => (float[N, 16] a) { p = MatMul(r, w2)  a = Tanh(p) },
                else_branch = two () => (float[N, 16] b) { q = MatMul(r, w3)  b = Sigmoid(q) }
            >
            y = MatMul(z, w4)
        }""",
        17,
        {"w1": (12, 24), "w2": (24, 16), "w3": (24, 16), "w4": (16, 8)},
    )


def _dynamic(source: Callable[[], onnx.ModelProto], **options: Any) -> onnx.ModelProto:
    from onnxruntime.quantization import quantize_dynamic

    return _written(partial(quantize_dynamic, source(), **options))


def _static(
    source: Callable[[], onnx.ModelProto], form: str, activations: str, weights: str, channels: bool
) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    return _written(
        partial(
            quantize_static,
            source(),
            calibration_data_reader=_Reader(source()),
            quant_format=QuantFormat[form],
            per_channel=channels,
            activation_type=QuantType[activations],
            weight_type=QuantType[weights],
        )
    )


def _written(quantise: Callable[..., None]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantised.onnx"
        logging.disable(logging.WARNING)  # it recommends a preparation of its own
        try:
            quantise(model_output=path)
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(path)


class _Reader:
    """A few random batches."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._batches = iter([random_feed(model, {"N": 4}, seed) for seed in range(4)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def _blocked(
    source: Callable[[], onnx.ModelProto], form: str, bits: int, symmetric: bool
) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantiser = MatMulNBitsQuantizer(
        source(), bits=bits, block_size=16, is_symmetric=symmetric, quant_format=QuantFormat[form],
        op_types_to_quantize=("MatMul", "Gather"),
    )  # fmt: skip
    quantiser.process()
    model: onnx.ModelProto = quantiser.model.model
    return model


def _coded(kind: int) -> onnx.ModelProto:
    """Numbers of 4 bits that stand for entries of a table: FP4 or NF4."""
    from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer

    quantiser = MatMulBnb4Quantizer(embedding(), kind, 16)
    quantiser.process()
    model: onnx.ModelProto = quantiser.model.model
    return model


def _modes() -> dict[str, Callable[[], onnx.ModelProto]]:
    modes: dict[str, Callable[[], onnx.ModelProto]] = {}
    for source in (convolutions, perceptron):
        name = source.__name__
        for channels in (False, True):
            layout = "channel" if channels else "tensor"
            modes[f"{name} dynamic {layout}"] = partial(_dynamic, source, per_channel=channels)
            for activations, weights in (("QUInt8", "QInt8"), ("QInt8", "QInt8")):
                for form in ("QOperator", "QDQ"):
                    modes[f"{name} {form} {activations} {weights} {layout}"] = partial(
                        _static, source, form, activations, weights, channels
                    )
            for activations, weights in (("QUInt16", "QInt8"), ("QUInt8", "QInt4")):
                modes[f"{name} QDQ {activations} {weights} {layout}"] = partial(
                    _static, source, "QDQ", activations, weights, channels
                )
        modes[f"{name} QOperator QUInt8 QUInt8 tensor"] = partial(
            _static, source, "QOperator", "QUInt8", "QUInt8", False
        )
    for bits in (2, 4, 8):
        for symmetric in (True, False):
            zero = "symmetric" if symmetric else "zero points"
            modes[f"perceptron blocked {bits} {zero}"] = partial(
                _blocked, partial(perceptron, 21), "QOperator", bits, symmetric
            )
    for symmetric in (True, False):
        zero = "symmetric" if symmetric else "zero points"
        modes[f"perceptron blocked QDQ 4 {zero}"] = partial(
            _blocked, partial(perceptron, 21), "QDQ", 4, symmetric
        )
        modes[f"embedding blocked 4 {zero}"] = partial(
            _blocked, embedding, "QOperator", 4, symmetric
        )
    modes["branches dynamic tensor"] = partial(_dynamic, branches)
    modes["branches QDQ QInt8 QInt8 tensor"] = partial(
        _static, branches, "QDQ", "QInt8", "QInt8", False
    )
    modes["embedding dynamic tensor"] = partial(_dynamic, embedding)
    for layout in ("tensor", "channel"):
        modes[f"recurrent dynamic {layout}"] = partial(
            _dynamic, recurrent, per_channel=layout == "channel"
        )
    for kind, name in enumerate(("FP4", "NF4")):
        modes[f"embedding blocked {name}"] = partial(_coded, kind)
    return modes


MODES = _modes()
"""Models by what they are quantised to: "graph, form, types, layout"."""


@cache
def serialised(mode: str) -> bytes:
    """The model of one mode, written once."""
    data: bytes = MODES[mode]().SerializeToString()
    return data


def quantised(mode: str) -> onnx.ModelProto:
    """The model of one mode."""
    model: onnx.ModelProto = onnx.ModelProto.FromString(serialised(mode))
    return model
