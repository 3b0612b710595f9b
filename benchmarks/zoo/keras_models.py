"""Keras models by tf2onnx: images are NHWC, so the files are full of transposes.

Needs tensorflow, keras and tf2onnx (tried with tensorflow-cpu 2.21, keras 3.15, tf2onnx 1.17): a
Python of its own, environment ``tensorflow``. ``tf2onnx.convert.from_keras`` takes Keras 3 models
as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .case import Case

Build = Callable[[Any], Any]

APPLICATIONS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mobilenet": ("MobileNet", 64, {"alpha": 0.25}),
    "mobilenetv2": ("MobileNetV2", 64, {"alpha": 0.35}),
    "mobilenetv3-small": ("MobileNetV3Small", 64, {"include_preprocessing": False}),
    "efficientnetb0": ("EfficientNetB0", 64, {}),
    "efficientnetv2b0": ("EfficientNetV2B0", 64, {}),
    "resnet50v2": ("ResNet50V2", 64, {}),
    "densenet121": ("DenseNet121", 64, {}),
    "nasnet-mobile": ("NASNetMobile", 64, {}),
    "xception": ("Xception", 96, {}),
    "inceptionv3": ("InceptionV3", 96, {}),
}


def _application(name: str, size: int, options: dict[str, Any], keras: Any) -> Any:
    build = getattr(keras.applications, name)
    return build(input_shape=(size, size, 3), weights=None, classes=10, **options)


def _recurrent(cell: str, bidirectional: bool, keras: Any) -> Any:
    layers = keras.layers
    first, second = (
        getattr(layers, cell)(units, return_sequences=sequences)
        for units, sequences in ((48, True), (32, False))
    )
    if bidirectional:
        first, second = layers.Bidirectional(first), layers.Bidirectional(second)
    inputs = keras.Input((20, 16))
    hidden = layers.Dense(24, activation="relu")(second(first(inputs)))
    return keras.Model(inputs, layers.Dense(5)(hidden))


def _transformer(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((16,), dtype="int32")
    x = layers.Embedding(100, 64)(inputs)
    for _ in range(2):
        attention = layers.MultiHeadAttention(num_heads=4, key_dim=16)(x, x)
        x = layers.LayerNormalization()(x + attention)
        hidden = keras.ops.gelu(layers.Dense(128)(x), approximate=True)
        x = layers.LayerNormalization()(x + layers.Dense(64)(hidden))
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


def _grouped_query(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((12, 64))
    attention = layers.GroupQueryAttention(head_dim=16, num_query_heads=4, num_key_value_heads=2)
    x = layers.LayerNormalization()(inputs + attention(inputs, inputs))
    return keras.Model(inputs, layers.Dense(5)(layers.Dense(96, activation="swish")(x)))


def _unet(keras: Any) -> Any:
    layers = keras.layers

    def block(x: Any, channels: int) -> Any:
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization()(x))

    inputs = keras.Input((32, 32, 3))
    first = block(inputs, 16)
    second = block(layers.MaxPooling2D()(first), 32)
    bottom = block(layers.MaxPooling2D()(second), 64)
    x = layers.Conv2DTranspose(32, 2, strides=2)(bottom)
    x = block(layers.Concatenate()([x, second]), 32)
    x = layers.UpSampling2D(interpolation="bilinear")(x)
    x = block(layers.Concatenate()([x, first]), 16)
    return keras.Model(inputs, layers.Conv2D(4, 1)(x))


def _audio(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((128, 8))
    x = layers.Conv1D(32, 5, strides=2, activation="relu")(inputs)
    x = layers.SeparableConv1D(48, 3, padding="same", activation="relu")(x)
    x = layers.GroupNormalization(groups=4)(x)
    x = layers.LSTM(32)(layers.MaxPooling1D()(x))
    return keras.Model(inputs, layers.Dense(5)(x))


def _tabular(keras: Any) -> Any:
    layers = keras.layers
    numbers, kind = keras.Input((12,)), keras.Input((1,), dtype="int32")
    embedded = layers.Flatten()(layers.Embedding(64, 16)(kind))
    x = layers.Concatenate()([layers.BatchNormalization()(numbers), embedded])
    for units in (64, 32):
        x = layers.Dropout(0.1)(layers.Dense(units, activation="selu")(x))
    return keras.Model([numbers, kind], layers.Dense(1)(x))


MODELS: dict[str, Build] = {
    **{name: partial(_application, *model) for name, model in APPLICATIONS.items()},
    "lstm": partial(_recurrent, "LSTM", False),
    "gru": partial(_recurrent, "GRU", False),
    "simple-rnn": partial(_recurrent, "SimpleRNN", False),
    "bidirectional-lstm": partial(_recurrent, "LSTM", True),
    "bidirectional-gru": partial(_recurrent, "GRU", True),
    "transformer": _transformer,
    "grouped-query-attention": _grouped_query,
    "unet": _unet,
    "audio": _audio,
    "tabular": _tabular,
}


def _prepare(keras: Any, model: Any, inputs: list[Any]) -> None:
    """Random values for constant weights, and the running statistics of random data."""
    import numpy as np

    rng = np.random.default_rng(0)
    for weight in model.weights:
        value = np.asarray(weight)
        if value.dtype.kind == "f" and value.size > 1 and value.min() == value.max():
            noise = rng.standard_normal(value.shape)
            size = float(value.flat[0])
            weight.assign(size * (1 + 0.2 * noise).clip(0.4) if size > 0.5 else 0.2 * noise)
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for norm in norms:
        norm.momentum = 0.0
    if norms:
        model(inputs, training=True)
    for norm in norms:
        norm.moving_variance.assign_add(np.full(norm.moving_variance.shape, 0.01, np.float32))


def _export(build: Build, path: Path) -> None:
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import numpy as np
    import onnx
    import tensorflow as tf
    import tf2onnx

    keras.utils.set_random_seed(0)
    model = build(keras)
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 20, (8, *tensor.shape[1:])).astype(tensor.dtype)
        if "int" in tensor.dtype
        else rng.standard_normal((8, *tensor.shape[1:])).astype(np.float32)
        for tensor in model.inputs
    ]
    _prepare(keras, model, arrays)
    signature = [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name=f"input_{index}")
        for index, tensor in enumerate(model.inputs)
    ]
    if len(signature) > 1:
        signature = [signature]
    proto, _ = tf2onnx.convert.from_keras(model, input_signature=signature, opset=17)
    onnx.save(proto, path)


def cases() -> list[Case]:
    """``keras/…``, all with a dynamic batch."""
    return [
        Case(f"keras/{name}", partial(_export, build), environment="tensorflow")
        for name, build in MODELS.items()
    ]
