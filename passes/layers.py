"""What passes that compute with linear layers share: their numbers, and feeds in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir

from ..ir.constants import constant_tensor, tensor_shape
from ..ir.linear import LinearLayer
from .base import PassContext
from .requantise import stored
from .stored_weights import numbers

if TYPE_CHECKING:
    from ..runtime.session import Array, Feed

Matrix = npt.NDArray[np.float64]

BATCH = 64
"""Samples of one feed, unless the model or the user says how many."""


def batches(model: onnx.ModelProto, context: PassContext, samples: int) -> list[Feed]:
    """Feeds of calibration data with up to `BATCH` samples each, where the model takes so many at
    a time; of ``samples`` in all."""
    from ..runtime.calibration import calibration_feeds

    assert context.calibration is not None
    dims = {**dict.fromkeys(_batch_dims(model), min(BATCH, samples)), **context.dims}
    return [*calibration_feeds(dict(context.calibration), model, dims, samples)]


def _batch_dims(model: onnx.ModelProto) -> Iterator[str]:
    """The symbolic sizes that inputs have in front."""
    from ..runtime.signature import fed_inputs, input_shape

    for value in fed_inputs(model):
        first = next(iter(input_shape(value)[1]), 0)
        if isinstance(first, str):
            yield first


def noise(model: onnx.ModelProto, context: PassContext, samples: int) -> list[Feed]:
    """Feeds of random numbers in the place of calibration data: normal ones, with the mean and the
    variance of the BatchNormalization that reads the input, where one does."""
    from ..runtime.inputs import random_feed

    dims = {**dict.fromkeys(_batch_dims(model), BATCH), **context.dims}
    feeds: list[Feed] = []
    statistics, count = _input_statistics(model), 0
    while count < samples:
        feed = dict(random_feed(model, dims, context.seed + 1000 + len(feeds)))
        count += max((len(array) for array in feed.values() if array.ndim), default=1) or 1
        for name, (mean, deviation) in statistics.items():
            shape = (1, -1, *(1,) * (feed[name].ndim - 2))
            values = feed[name] * deviation.reshape(shape) + mean.reshape(shape)
            feed[name] = values.astype(feed[name].dtype)
        feeds.append(feed)
    return feeds


def _input_statistics(model: onnx.ModelProto) -> dict[str, tuple[Array, Array]]:
    stored = {t.name: t for t in model.graph.initializer}
    inputs = {value.name for value in model.graph.input} - stored.keys()
    found = {}
    for node in model.graph.node:
        names = node.input[3:5]
        reads = node.op_type == "BatchNormalization" and node.input[0] in inputs
        if reads and all(name in stored for name in names):
            mean, variance = (onnx.numpy_helper.to_array(stored[name]) for name in names)
            found[node.input[0]] = mean, np.sqrt(variance)
    return found


def start_weights(layer: LinearLayer) -> Matrix:
    """[groups, columns + 1, outputs / groups]: the weights at hand, the bias in the last row."""
    weight = layer.matrix(_doubles(layer.weight))
    bias = layer.bias
    row = np.zeros(layer.outputs) if bias is None else layer.bias_row(_doubles(bias))
    return np.concatenate([weight, row.reshape(layer.groups, 1, -1)], axis=1)


def stored_weights(layer: LinearLayer, weights: Matrix) -> dict[str, Array]:
    """The layer's constants, by name, with other numbers, [groups, columns + 1, outputs / groups]:
    in the types and shapes that they are stored with, and of quantised ones the scales that had to
    grow."""
    real = _shaped(layer.weight, layer.stored(weights[:, :-1]))
    arrays, factor = stored(layer.weight, real)
    if layer.bias is not None and layer.has_own_bias:
        row = layer.stored_bias(weights[:, -1].ravel(), _doubles(layer.bias))
        arrays |= stored(layer.bias, _shaped(layer.bias, row), factor)[0]
    return arrays


def _shaped(value: oir.Value, array: Matrix) -> Matrix:
    tensor = constant_tensor(value)
    assert tensor is not None
    return array.reshape(tensor_shape(tensor))


def _doubles(value: oir.Value) -> Matrix:
    return numbers(value).astype(np.float64)
