"""Small models for `secateur sensitivity`, with the pruning of each group written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

import secateur
from secateur import Sensitivity

from .pass_runs import build, normal

Array = npt.NDArray[Any]
Weights = dict[str, Array]
DATA = {"x": normal(20, 3, 6, 6, seed=9)}
RATIOS = (0.25, 0.5, 0.8)


def network(weights: Weights) -> onnx.ModelProto:
    """Two convolutions and a classifier; one group of 8 units (of ``a``), one of 6 (of ``b``)."""
    return build(
        """g (float[N,3,6,6] x) => (float[N,4] y) {
          h = Conv(x, a)
          r = Relu(h)
          k = Conv(r, b)
          s = Relu(k)
          p = GlobalAveragePool(s)
          f = Flatten(p)
          y = MatMul(f, c)
        }""",
        **weights,  # type: ignore[arg-type]
    )


def network_weights() -> Weights:
    return {
        "a": normal(8, 3, 3, 3, seed=1),
        "b": normal(6, 8, 3, 3, seed=2),
        "c": normal(6, 4, seed=3),
    }


def without(weights: Weights, group: str, count: int) -> Weights:
    """The weights of `network` without the ``count`` channels of ``a`` or ``b`` that have the
    smallest Euclidean norm over all weights of the channel."""
    producer, consumer = weights[group], weights["b" if group == "a" else "c"]
    axis = 1 if group == "a" else 0
    squares = np.square(producer.astype(np.float64)).sum(axis=(1, 2, 3))
    others = tuple(k for k in range(consumer.ndim) if k != axis)
    squares += np.square(consumer.astype(np.float64)).sum(axis=others)
    gone = np.argsort(squares)[:count]
    left = {group: np.delete(producer, gone, 0)}
    left["b" if group == "a" else "c"] = np.delete(consumer, gone, axis)
    return {**weights, **left}


def normalised(weights: Weights) -> onnx.ModelProto:
    """A layer normalisation looks across the only group, of 10 units."""
    return build(
        """g (float[N,5] x) => (float[N,3] y) {
          h = MatMul(x, up)
          n = LayerNormalization(h, scale)
          y = MatMul(n, down)
        }""",
        **weights,  # type: ignore[arg-type]
    )


def normalised_weights() -> Weights:
    return {
        "up": normal(5, 10, seed=1),
        "scale": normal(10, seed=2),
        "down": normal(10, 3, seed=3),
    }


def outputs(model: onnx.ModelProto, feed: Weights) -> Array:
    """The first output in float64."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0]).astype(np.float64)


def measured(**options: object) -> Sensitivity:
    """Of `network`, on `DATA`."""
    settings: dict[str, object] = {"calibration": DATA, "ratios": RATIOS, "threads": 1} | options
    return secateur.sensitivity(network(network_weights()), **settings)  # type: ignore[arg-type]
