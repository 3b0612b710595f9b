"""Sizes, and tensors made from sizes; all on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import Call, numbers, operator
from .tensors import torch_type


@operator("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[call.get("start", 0) : call.get("end")], dtype=torch.int64)


@operator("Size")
def size(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("ConstantOfShape")
def constant_of_shape(call: Call, sizes: Tensor) -> Tensor:
    value = call.get("value")
    value = torch.zeros(1) if value is None else value
    return value.reshape(()).expand(numbers(sizes)).clone()


@operator("Range")
def range_(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    count = max(-int(-(limit - start) // delta), 0)
    return start + delta * torch.arange(count, dtype=start.dtype, device=start.device)


@operator("EyeLike")
def eye_like(call: Call, x: Tensor) -> Tensor:
    kind = call.get("dtype")
    rows, columns = x.shape
    diagonal = torch.arange(rows)[:, None] + call.get("k", 0) == torch.arange(columns)[None, :]
    return diagonal.to(x.dtype if kind is None else torch_type(kind)).to(x.device)
