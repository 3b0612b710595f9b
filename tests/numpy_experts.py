"""Mixtures of experts in numpy, in the forms that ONNX Runtime has no CPU kernel for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)), x.dtype)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
    "identity": lambda x: x,
}


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def chosen(router: Array, scores: Array, k: int) -> Array:
    """The scores of the k experts that the router likes most, zero for the others."""
    return np.where(router >= np.sort(router, axis=1)[:, [-k]], scores, 0)


class MoE(OpRun):
    """Experts one after the other, weighted by a softmax over all of them."""

    op_domain = "com.microsoft"

    def scores(self, router: Array, k: int) -> Array:
        return chosen(router, softmax(router), k)

    def _run(
        self,
        x: Array,
        router: Array,
        *layers: Any,
        k: int = 1,
        activation_type: str = "relu",
        swiglu_fusion: int = 0,
        activation_alpha: float = 1.0,
        activation_beta: float = 0.0,
    ) -> tuple[Array, ...]:
        w1, b1, w2, b2, w3, b3 = (*layers, *[None] * 6)[:6]
        flat = x.reshape(-1, x.shape[-1])
        scores = self.scores(router, k)
        y = np.zeros_like(flat)
        for e in range(len(w1)):
            h = flat @ w1[e].T + (0 if b1 is None else b1[e])
            up: Any = None if w3 is None else flat @ w3[e].T + (0 if b3 is None else b3[e])
            if activation_type == "swiglu":
                if swiglu_fusion == 1:
                    h, up = h[:, ::2], h[:, 1::2]
                elif swiglu_fusion == 2:
                    h, up = np.split(h, 2, axis=1)
                h = h * sigmoid(activation_alpha * h) * (up + activation_beta)
            else:
                h = ACTIVATIONS[activation_type](h) * (1 if up is None else up)
            y += scores[:, [e]] * (h @ w2[e].T + (0 if b2 is None else b2[e]))
        return (y.reshape(x.shape).astype(x.dtype),)


class QMoE(MoE):
    """The same on dequantised weights, with a softmax over the chosen experts."""

    mixing: Array | None = None

    def scores(self, router: Array, k: int) -> Array:
        if self.mixing is not None:
            return chosen(router, self.mixing, k)
        found = chosen(router, np.exp(router - router.max(axis=1, keepdims=True)), k)
        return np.asarray(found / found.sum(axis=1, keepdims=True))

    def _run(
        self,
        x: Array,
        router: Array,
        *inputs: Any,
        expert_weight_bits: int = 4,
        block_size: int = 0,
        quant_type: str = "int",
        weights_prepacked: int = -1,
        **options: Any,
    ) -> tuple[Array, ...]:
        *given, self.mixing = (*inputs, *[None] * 13)[:13]
        layers: list[Any] = []
        for number in range(3):
            weights, scales, bias = given[3 * number : 3 * number + 3]
            zeros = given[9 + number]
            if weights is not None:
                weights = dequantised(weights, scales, zeros, expert_weight_bits, block_size)
            layers += [weights, bias]
        return super()._run(x, router, *layers, **options)


def unpacked(array: Array, bits: int) -> Array:
    """The numbers in the bytes of the last axis."""
    found = np.unpackbits(array, axis=-1, bitorder="little").reshape(*array.shape[:-1], -1, bits)
    return np.asarray((found * 2 ** np.arange(bits)).sum(axis=-1))


def dequantised(weights: Array, scales: Array, zeros: Array | None, bits: int, block: int) -> Array:
    q = unpacked(weights, bits)
    zero = np.full(scales.shape, 2 ** (bits - 1))
    if zeros is not None:
        zero = unpacked(zeros, bits)[..., : scales.shape[-1]]
    if scales.ndim == 2:
        scales, zero = scales[..., None], zero[..., None]
    else:
        scales, zero = (np.repeat(v, block, axis=2) for v in (scales, zero))
    return np.asarray((q - zero) * scales, scales.dtype)
