"""Matrix products and convolutions of integers, with or without scales.

An integer stands for (q - zero point) * scale, so what is removed counts as its zero point. The
scale and zero point of a weight may be one number for each output channel, and follow it then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Operand, Site, rule
from .contraction import product, transposed_product
from .conv import convolution, restate_group, set_group, weight_of
from .quantization import MICROSOFT, extremes, per_channel, whole_tensor

if TYPE_CHECKING:
    from ..restated import Restated


# -- matrix products -----------------------------------------------------------------------------


@rule("MatMulInteger", family="quantisation")
def matmul_integer(site: Site) -> None:
    """A, B and their zero points."""
    product(site, 0, 1)
    site.quantised(0, 1)
    _along(site, 0, [2], -2)
    _along(site, 1, [3], -1)


@rule("QLinearMatMul", family="quantisation")
def qlinear_matmul(site: Site) -> None:
    """A, B and Y, each with scale and zero point; Y is the product in its own steps."""
    product(site, 0, 3)
    site.quantised(0, 3)
    _along(site, 0, [1, 2], -2)
    _along(site, 3, [4, 5], -1)
    whole_tensor(site, *site.inputs[6:])


@rule("MatMulIntegerToFloat", family="quantisation", domain=MICROSOFT)
def matmul_integer_to_float(site: Site) -> None:
    """A, B, their scales, their zero points, and a bias."""
    product(site, 0, 1)
    site.quantised(0, 1)
    whole_tensor(site, site.input(2), site.input(4))
    _along(site, 1, [3, 5], -1)
    _bias(site, site.input(6))


@rule("DynamicQuantizeMatMul", family="quantisation", domain=MICROSOFT)
def dynamic_quantize_matmul(site: Site) -> None:
    """A in floats, scaled by its extremes; B, its scale and zero point, and a bias."""
    product(site, 0, 1)
    extremes(site)
    site.quantised(1)
    _along(site, 1, [2, 3], -1)
    _bias(site, site.input(4))


@rule("QGemm", family="quantisation", domain=MICROSOFT)
def qgemm(site: Site) -> None:
    """As Gemm on A, B (each with scale and zero point) and C; scale and zero point of Y."""
    transposed_product(site, 3, 6)
    site.quantised(0, 3, 6)
    whole_tensor(site, *(site.input(k) for k in (1, 2, 7, 8)))
    _along(site, 3, [4, 5], 0 if site.integer("transB", 0) else 1)


def _along(site: Site, number: int, parameters: list[int], axis: int) -> None:
    """Scales and zero points of input ``number``: per tensor, along ``axis`` (a vector), or, with
    the rank of the input, along every axis on which they are longer than 1."""
    matrix = site.inputs[number]
    assert matrix is not None
    for operand in per_channel(site, (site.input(k) for k in parameters)):
        if operand.rank == 1:
            site.link(operand.axis(0), matrix.axis(axis))
            continue
        for index, size in enumerate(operand.shape):
            if size == matrix.shape[index]:
                site.link(operand.axis(index), matrix.axis(index))
            else:
                site.pin(operand.axis(index), "broadcast along this axis")


def _bias(site: Site, bias: Operand | None) -> None:
    if bias is not None:
        site.link(bias.axis(0), site.y.axis(-1))


# -- convolutions --------------------------------------------------------------------------------


def _restate_qlinear(node: Restated) -> None:
    channel = -1 if node.integer("channels_last", 0) else 1
    set_group(node, node.new_size(0, channel) // node.new_size(3, 1))


@rule("ConvInteger", family="quantisation", restate=restate_group, exactness="depends")
def conv_integer(site: Site) -> None:
    """X, W and their zero points."""
    whole_tensor(site, site.input(2))
    convolution(site, 1, 0, per_channel(site, [site.input(3)]))
    site.quantised(0, 1)
    site.macs(*site.y.axes, *weight_of(site).axes[1:])


@rule("QLinearConv", family="quantisation", restate=_restate_qlinear, exactness="depends")
@rule(
    "QLinearConv",
    family="quantisation",
    restate=_restate_qlinear,
    domain=MICROSOFT,
    exactness="depends",
)
def qlinear_conv(site: Site) -> None:
    """X, W, each with scale and zero point, scale and zero point of Y, and a bias."""
    whole_tensor(site, *(site.input(k) for k in (1, 2, 6, 7)))
    followers = [*per_channel(site, [site.input(4), site.input(5)]), site.input(8)]
    channel = site.x.rank - 1 if site.integer("channels_last", 0) else 1
    convolution(site, 1, 0, followers, weight=3, channel=channel)
    site.quantised(0, 3, 8)
    site.macs(*site.y.axes, *weight_of(site, 3).axes[1:])
