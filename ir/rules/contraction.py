"""MatMul and Gemm: contracted axes link operand to operand, free axes operand to output."""

from __future__ import annotations

from .base import Operand, Site, rule
from .elementwise import align


@rule("MatMul", family="contraction")
def matmul(site: Site) -> None:
    """numpy.matmul: [.., M, K] x [.., K, N], either side may be a vector."""
    a, b, y = site.inputs[0], site.inputs[1], site.y
    assert a is not None and b is not None
    rows, columns = a.rank > 1, b.rank > 1
    k_a, k_b = a.rank - 1, b.rank - 2 if columns else 0
    site.contract((0, k_a), (1, k_b))
    free = y.rank - rows - columns
    if rows:
        site.produce(a.axis(-2), y.axis(free))
    if columns:
        site.produce(b.axis(-1), y.axis(y.rank - 1))
    for operand in (a, b):
        batch = operand.rank - 2
        for index in range(max(batch, 0)):
            axis, target = operand.axis(index), index + free - batch
            if operand.shape[index] == y.shape[target]:
                site.link(axis, y.axis(target))
                if operand.shape[index] > 1:
                    site.heads(axis)
            else:
                site.pin(axis, "broadcast along this axis")
    site.macs(*y.axes, a.axis(k_a))


@rule("Gemm", family="contraction")
def gemm(site: Site) -> None:
    """alpha * A' B' + beta * C, with A' and B' optionally transposed and C broadcast."""
    a, b, y = site.inputs[0], site.inputs[1], site.y
    assert a is not None and b is not None
    trans_a, trans_b = site.integer("transA", 0) != 0, site.integer("transB", 0) != 0
    k_a, k_b = (0 if trans_a else 1), (1 if trans_b else 0)
    site.contract((0, k_a), (1, k_b))
    site.produce(a.axis(1 - k_a), y.axis(0))
    site.produce(b.axis(1 - k_b), y.axis(1))
    bias: Operand | None = site.input(2)
    if bias is not None:
        align(site, bias, y)
    site.macs(*y.axes, a.axis(k_a))
