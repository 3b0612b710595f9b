"""Attention and rotary embeddings: ONNX's own and the plain forms of ONNX Runtime's domain."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .registry import Call, Unsupported, operator, together

MICROSOFT = "com.microsoft"


def _heads(x: Tensor, count: int) -> Tensor:
    """(batch, sequence, heads * size) as (batch, heads, sequence, size)."""
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, cap: float
) -> Tensor:
    """softmax(q k' scale + bias) v, with as many queries for a key as there are more heads. A query
    that may look at nothing gives zero."""
    if q.shape[1] != k.shape[1]:
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    scores = torch.matmul(q * math.sqrt(scale), k.transpose(-1, -2) * math.sqrt(scale))
    if cap:
        scores = cap * torch.tanh(scores / cap)
    if bias is None:
        return torch.matmul(scores.softmax(-1), v)
    blind = torch.isneginf(bias.amax(-1, keepdim=True))
    scores = torch.where(blind, torch.zeros_like(scores), scores + bias)
    share = torch.where(blind, torch.zeros_like(scores), scores.softmax(-1))
    return torch.matmul(share, v)


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers to add: where it is False, minus infinity."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(
        ~mask, -math.inf
    )


@operator("Attention")
def attention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Any:
    if call.outputs > 3:
        raise Unsupported("the output qk_matmul_output")
    flat = q.ndim == 3
    if flat:
        q = _heads(q, call.get("q_num_heads"))
        k, v = (_heads(x, call.get("kv_num_heads")) for x in (k, v))
    offset: Any = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    rows, columns = q.shape[2], k.shape[2]
    if lengths is not None:
        lengths = lengths.to(q.device).reshape(-1, 1, 1, 1)
        offset = offset if past_key is not None else lengths - rows
    bias = None if mask is None else _added(mask.to(q.device), q)
    if bias is not None and bias.shape[-1] < columns:
        missing = columns - bias.shape[-1]
        bias = torch.nn.functional.pad(bias, [0, missing], value=-math.inf)
    allowed = _allowed(call, rows, columns, offset, lengths, q.device)
    if allowed is not None:
        window = _added(allowed, q)
        bias = window if bias is None else bias + window
    scale = call.get("scale") or 1 / math.sqrt(q.shape[-1])
    y = attend(q, k, v, bias, scale, call.get("softcap", 0.0))
    return (_joined(y) if flat else y, k, v)[: call.outputs]


def _allowed(
    call: Call, rows: int, columns: int, offset: Any, lengths: Tensor | None, device: Any
) -> Tensor | None:
    """Which query may look at which key: not at later ones when causal, not beyond the window, not
    at what only fills up. None: at all."""
    queries = torch.arange(rows, device=device)[:, None] + offset
    keys = torch.arange(columns, device=device)[None, :]
    left, right = call.get("left_window_size", -1), call.get("right_window_size", -1)
    parts = []
    if call.get("is_causal", 0):
        parts.append(keys <= queries)
    if left >= 0:
        parts.append(queries - keys <= left)
    if right >= 0:
        parts.append(keys - queries <= right)
    if lengths is not None:
        parts.append(keys < lengths)
    found: Tensor | None = None
    for part in parts:
        found = part if found is None else found & part
    return found


@operator("RotaryEmbedding")
def rotary_embedding(
    call: Call, x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None
) -> Tensor:
    """Pairs of features turn by an angle that grows with the place in the sequence (Su et al. 2021,
    "RoFormer")."""
    flat = x.ndim == 3
    y = _heads(x, call.get("num_heads", 0)) if flat else x
    turned = _turned(call, y, cos, sin, places)
    return _joined(turned) if flat else turned


@operator("RotaryEmbedding", domain=MICROSOFT)
def fused_rotary_embedding(
    call: Call, x: Tensor, places: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    flat = x.ndim == 3
    size = 2 * cos.shape[-1]
    count = call.get("num_heads", 0) or (x.shape[-1] // size if flat else 0)
    y = _heads(x, count) if flat else x
    if places.numel() == 1:  # where the sequence begins
        start = int(places)
        places = torch.arange(start, start + y.shape[2]).expand(y.shape[0], -1)
    if call.get("scale", 1.0) != 1.0 or call.get("is_packed_batching", 0):
        raise Unsupported("scale or packed batches")
    turned = _turned(call, y, cos, sin, places)
    return _joined(turned) if flat else turned


def _turned(call: Call, x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None) -> Tensor:
    """``x`` is (batch, heads, sequence, size)."""
    if places is not None:
        places = places.to(cos.device)
        cos, sin = cos[places], sin[places]
    cos, sin, x = together(cos.unsqueeze(1), sin.unsqueeze(1), x)
    size = call.get("rotary_embedding_dim", 0) or x.shape[-1]
    head, rest = x[..., :size], x[..., size:]
    if call.get("interleaved", 0):
        first, second = head[..., 0::2], head[..., 1::2]
    else:
        first, second = head.chunk(2, -1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if call.get("interleaved", 0):
        turned = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        turned = torch.cat([real, imaginary], -1)
    return torch.cat([turned, rest], -1)


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    call: Call,
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    bias: Tensor | None = None,
    padding: Tensor | None = None,
    added: Tensor | None = None,
    *others: Tensor | None,
) -> Tensor:
    if (
        k is None
        or v is None
        or k.ndim != 3
        or padding is not None
        or any(other is not None for other in others)
    ):
        raise Unsupported("packed inputs, key padding or a cache")
    if call.outputs > 1:
        raise Unsupported("more than one output")
    if bias is not None:
        parts = bias.split([q.shape[-1], k.shape[-1], v.shape[-1]])
        q, k, v = (x + part for x, part in zip((q, k, v), parts, strict=True))
    count = call.get("num_heads")
    q, k, v = (_heads(x, count) for x in (q, k, v))
    if call.get("unidirectional", 0):
        rows, columns = q.shape[2], k.shape[2]
        later = torch.ones((rows, columns), dtype=torch.bool, device=q.device)
        window = _added(later.tril(columns - rows), q)
        added = window if added is None else added + window
    scale = call.get("scale", 0.0) or 1 / math.sqrt(q.shape[-1])
    return _joined(attend(q, k, v, added, scale, 0.0))
