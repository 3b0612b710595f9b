"""MatMul and Gemm: contracted axes link operand to operand, free axes operand to output."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Operand, Site, rule
from .elementwise import align
from .sums import gemm_sum


@rule("MatMul", family="contraction")
def matmul(site: Site) -> None:
    """numpy.matmul: [.., M, K] x [.., K, N], either side may be a vector."""
    product(site, 0, 1)


def product(
    site: Site,
    left: int,
    right: int,
    left_order: Sequence[int] | None = None,
    right_order: Sequence[int] | None = None,
) -> None:
    """The matrix product of two inputs, given by number, with their axes in this order (default:
    as they are): batch axes, rows, columns."""
    a, b, y = site.inputs[left], site.inputs[right], site.y
    assert a is not None and b is not None
    order_a, order_b = left_order or range(a.rank), right_order or range(b.rank)
    rows, columns = a.rank > 1, b.rank > 1
    k_a, k_b = order_a[-1], order_b[-2] if columns else 0
    site.contract((left, k_a), (right, k_b))
    free = y.rank - rows - columns
    if rows:
        site.produce(a.axis(order_a[-2]), y.axis(free))
    if columns:
        site.produce(b.axis(order_b[-1]), y.axis(y.rank - 1))
    for operand, order in ((a, order_a), (b, order_b)):
        batch = max(operand.rank - 2, 0)
        for index, own in enumerate(order[:batch]):
            axis, target = operand.axis(own), index + free - batch
            if operand.shape[own] == y.shape[target]:
                site.link(axis, y.axis(target))
                if operand.shape[own] > 1:
                    site.heads(axis)
            else:
                site.pin(axis, "broadcast along this axis")
    site.macs(*y.axes, a.axis(k_a))


@rule("Gemm", family="contraction", sums=gemm_sum)
def gemm(site: Site) -> None:
    """alpha * A' B' + beta * C, with A' and B' optionally transposed and C broadcast."""
    transposed_product(site, 1, 2)


def transposed_product(site: Site, right: int, added: int) -> None:
    """A Gemm of the first input and two more, given by number; the attributes say what is
    transposed."""
    a, b, y = site.x, site.inputs[right], site.y
    assert b is not None
    trans_a, trans_b = site.integer("transA", 0) != 0, site.integer("transB", 0) != 0
    k_a, k_b = (0 if trans_a else 1), (1 if trans_b else 0)
    site.contract((0, k_a), (right, k_b))
    site.produce(a.axis(1 - k_a), y.axis(0))
    site.produce(b.axis(1 - k_b), y.axis(1))
    bias: Operand | None = site.input(added)
    if bias is not None:
        align(site, bias, y)
    site.macs(*y.axes, a.axis(k_a))
