"""Matrix products and Einsum."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import Call, operator


@operator("MatMul")
def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    a = a.t() if call.get("transA", 0) else a
    b = b.t() if call.get("transB", 0) else b
    if c is not None and a.is_floating_point() and c.ndim <= 2:
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    y = torch.matmul(a, b)
    y = y if alpha == 1 else alpha * y
    return y if c is None else y + (c if beta == 1 else beta * c)


@operator("Einsum")
def einsum(call: Call, *operands: Tensor) -> Tensor:
    return torch.einsum(call.get("equation").replace(" ", ""), *operands)


@operator("FusedMatMul", domain="com.microsoft")
def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    def ready(x: Tensor, transposed: str, batch: str) -> Tensor:
        if call.get(batch, 0):  # the batch lies between rows and columns
            x = x.movedim(0, -2)
        return x.transpose(-1, -2) if call.get(transposed, 0) and x.ndim > 1 else x

    y = torch.matmul(ready(a, "transA", "transBatchA"), ready(b, "transB", "transBatchB"))
    alpha = call.get("alpha", 1.0)
    return y if alpha == 1 else alpha * y
