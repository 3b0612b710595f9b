"""Operators of ONNX Runtime in numpy, for those it has no CPU kernel of, and for normalisations on
fewer channels than the model declares."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]
Result = tuple[Array, ...]


class Contrib(OpRun):
    op_domain = "com.microsoft"


def erf_gelu(x: Array) -> Array:
    from math import erf

    return np.asarray(x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2))), x.dtype)


def tanh_gelu(x: Array) -> Array:
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)), x.dtype)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def normalised(x: Array, epsilon: float, centre: bool = True) -> Array:
    x = x - x.mean(axis=-1, keepdims=True) if centre else x
    return np.asarray(x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + epsilon), x.dtype)


class BiasAdd(Contrib):
    def _run(self, x: Array, bias: Array, skip: Array) -> Result:
        return (x + bias + skip,)


class BiasSplitGelu(Contrib):
    def _run(self, x: Array, bias: Array) -> Result:
        left, right = np.split(x + bias, 2, axis=-1)
        return (left * erf_gelu(right),)


class GemmFastGelu(Contrib):
    def _run(self, x: Array, w: Array, bias: Array | None = None) -> Result:
        return (tanh_gelu(x @ w + (0 if bias is None else bias)),)


class BiasSoftmax(Contrib):
    def _run(self, x: Array, bias: Array, axis: int, is_inner_broadcast: int) -> Result:
        total = x + bias
        flat = total.reshape(*total.shape[:axis], -1)
        return (softmax(flat).reshape(x.shape),)


class RelativePositionBias(Contrib):
    def _run(
        self,
        table: Array,
        rows: Array,
        columns: Array,
        is_bidirectional: int = 0,
        max_distance: int = 128,
    ) -> Result:
        distance = np.abs(np.arange(int(columns[0])) - np.arange(int(rows[0]))[:, None])
        return (table[np.minimum(distance, len(table) - 1)].transpose(2, 0, 1)[None],)


class SkipLayerNormalization(Contrib):
    centre = True

    def _run(
        self, x: Array, skip: Array, gamma: Array, *vectors: Any, epsilon: float = 1e-12
    ) -> Result:
        beta, bias = (*vectors, None, None)[:2] if self.centre else (None, (*vectors, None)[0])
        total = x + skip + (0 if bias is None else bias)
        y = normalised(total, epsilon, self.centre) * gamma + (0 if beta is None else beta)
        return y, np.zeros(1), np.zeros(1), total


class SkipSimplifiedLayerNormalization(SkipLayerNormalization):
    centre = False


class SimplifiedLayerNormalization(OpRun):
    op_domain = ""

    def _run(self, x: Array, scale: Array, axis: int = -1, epsilon: float = 1e-5) -> Result:
        return (normalised(x, epsilon, centre=False) * scale,)


class EmbedLayerNormalization(Contrib):
    def _run(
        self,
        ids: Array,
        segments: Array | None,
        words: Array,
        positions: Array,
        segment_table: Array | None,
        gamma: Array,
        beta: Array,
        mask: Array | None = None,
        at: Array | None = None,
        epsilon: float = 1e-12,
        mask_index_type: int = 0,
    ) -> Result:
        total = words[ids] + positions[np.arange(ids.shape[1]) if at is None else at]
        if segments is not None and segment_table is not None:
            total = total + segment_table[segments]
        lengths = np.zeros(len(ids), np.int32) if mask is None else mask.sum(axis=1, dtype=np.int32)
        return normalised(total, epsilon) * gamma + beta, lengths, total


def dequantised(q: Any, step: Any, point: Any) -> Any:
    return None if q is None else (q.astype(np.float32) - point) * step


class QEmbedLayerNormalization(EmbedLayerNormalization):
    """With mask lengths and no sum: words, positions, segments and both vectors are quantised."""

    def _run(self, *inputs: Any, epsilon: float = 1e-12) -> Result:
        ids, segments, *tables = inputs[:7]
        parameters = inputs[8:13], inputs[13:18]
        words, places, kind, gamma, beta = map(dequantised, tables, *parameters)
        found = super()._run(
            ids, segments, words, places, kind, gamma, beta, inputs[7], epsilon=epsilon
        )
        return found[:2]


def group_norm(
    x: Array, gamma: Array, beta: Array, activation: int, groups: int, epsilon: float
) -> Array:
    first = np.moveaxis(x, -1, 1)
    flat = normalised(first.reshape(len(x), groups, -1), epsilon)
    y = np.moveaxis(flat.reshape(first.shape), 1, -1) * gamma + beta
    return np.asarray(y / (1 + np.exp(-y)) if activation else y)


class GroupNorm(Contrib):
    def _run(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        activation: int = 0,
        groups: int = 1,
        epsilon: float = 1e-5,
    ) -> Result:
        return (group_norm(x, gamma, beta, activation, groups, epsilon),)


class SkipGroupNorm(Contrib):
    def _run(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        skip: Array,
        bias: Array | None = None,
        activation: int = 0,
        groups: int = 1,
        epsilon: float = 1e-5,
    ) -> Result:
        skip = skip[:, None, None] if skip.ndim == 2 else skip
        total = x + skip + (0 if bias is None else bias)
        return group_norm(total, gamma, beta, activation, groups, epsilon), total


class NhwcConv(Contrib):
    """Odd kernels, padded to keep the sizes."""

    def _run(
        self, x: Array, w: Array, bias: Array | None = None, group: int = 1, pads: Any = None
    ) -> Result:
        kernel = w.shape[1:3]
        edges = [(0, 0), *((size // 2, size // 2) for size in kernel), (0, 0)]
        seen = np.lib.stride_tricks.sliding_window_view(np.pad(x, edges), kernel, axis=(1, 2))
        parts = zip(np.split(seen, group, axis=3), np.split(w, group), strict=True)
        y = np.concatenate([np.einsum("nhwcij,mijc->nhwm", *part) for part in parts], axis=-1)
        return (y if bias is None else y + bias,)


class MultiHeadAttention(Contrib):
    """Keys and values, or all three, packed in one tensor; no masks."""

    def _run(
        self,
        q: Array,
        k: Array | None = None,
        v: Array | None = None,
        bias: Array | None = None,
        num_heads: int = 1,
        scale: float = 0.0,
    ) -> Result:
        if k is None:
            q, k, v = (q[:, :, :, part] for part in range(3))
        else:
            q = q.reshape(*q.shape[:2], num_heads, -1)
            k, v = k[:, :, :, 0], k[:, :, :, 1]
        if bias is not None:
            parts = bias.reshape(3, num_heads, -1)
            q, k, v = q + parts[0], k + parts[1], v + parts[2]
        scores = np.einsum("bshd,blhd->bhsl", q, k) * (scale or q.shape[3] ** -0.5)
        return (np.einsum("bhsl,blhe->bshe", softmax(scores), v).reshape(*q.shape[:2], -1),)


def operators() -> list[type[Any]]:
    """All of them."""
    return [
        *(BiasAdd, BiasSplitGelu, BiasSoftmax, EmbedLayerNormalization, GemmFastGelu, GroupNorm),
        *(MultiHeadAttention, NhwcConv, RelativePositionBias, SimplifiedLayerNormalization),
        *(
            QEmbedLayerNormalization,
            SkipGroupNorm,
            SkipLayerNormalization,
            SkipSimplifiedLayerNormalization,
        ),
    ]
