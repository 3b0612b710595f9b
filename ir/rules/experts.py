"""Mixture of experts as one operator of ONNX Runtime: MoE, and QMoE on quantised weights.

Every token goes through the k experts e that its router chooses:

    y = sum_e p[e] (W2[e] a(W1[e] x + b1[e]) + b2[e]).

The activation ``a`` may be gated, by other rows of W1 or by W3 x + b3. The channels between the
products are one axis for all experts and end in W2, exactly: a row of W1 makes each (two where
the gate is among them), a column of W2 contracts it. The channels of x and y are one axis as well,
since the operator takes its output to have the shape of its input. Experts stay.

Weights are [experts, rows, columns]. Those of QMoE are packed along the columns, several in a
byte. There is a scale and a zero point for each row, or for each block of a row; zero points are
packed along their last axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from ..constants import constant_tensor
from ..coupling import Indices
from .base import Operand, Site, rule
from .quantization import MICROSOFT

_EXPERTS = "experts that the router chooses among"
_TOKENS = "tokens of all samples in one row"
_CHOSEN = "counts the experts of a token"
_OLD = "expert weights that are declared with rows and columns exchanged"
_FORMAT = "expert weights in a format that only some machines compute"
_MACHINE = "expert weights that may be packed for one machine (weights_prepacked is not 0)"


@dataclass(frozen=True)
class _Layer:
    """The numbers of its inputs; ``bits`` is None for weights that are not packed."""

    weights: int
    bias: int
    scales: int = -1
    zeros: int = -1
    bits: int | None = None

    def unpacked(self, site: Site) -> int:
        """How many numbers a row of the weights holds."""
        columns = _input(site, self.weights).shape[2]
        return columns if self.bits is None else columns * 8 // self.bits


def _input(site: Site, number: int) -> Operand:
    operand = site.inputs[number]
    assert operand is not None
    return operand


def _couple(site: Site, layers: Sequence[_Layer], routers: Sequence[int]) -> None:
    """What both operators share; the layers are W1, W2 and W3."""
    x, y = site.x, site.y
    hidden = x.shape[-1]
    first, second = (_input(site, layer.weights) for layer in layers[:2])
    width = second.shape[1] * layers[1].unpacked(site) // hidden
    gated = site.string("activation_type", "relu") in ("swiglu", "geglu")
    fusion = site.integer("swiglu_fusion", 0) if gated else 0
    # This is how the operator tells; a square layer without a gate is what it says it is.
    if second.shape[1] == width != hidden or (fusion and first.shape[1] == width == hidden):
        site.pin_all(_OLD)
        return
    site.link_axes(x, y)
    _couple_routers(site, [o for k in routers if (o := site.input(k)) is not None])
    chosen, channels = site.hub(site.integer("k", 1)), site.hub(width)
    site.pin(chosen, _CHOSEN)
    stream, each = x.axis(-1), np.arange(width, dtype=np.int64)
    made = {0: each, 1: np.repeat(each, 2), 2: np.tile(each, 2)}[fusion]
    back = np.arange(hidden, dtype=np.int64)
    for layer, rows, columns in zip(
        layers,
        ((channels, made), (stream, back), (channels, each)),
        (stream, channels, stream),
        strict=True,
    ):
        weights = site.input(layer.weights)
        if weights is not None:
            _couple_layer(site, layer, weights, rows, columns)
            site.macs(*x.axes[:-1], chosen, weights.axis(1), columns)
    site.sink(0, x.rank - 1)


def _couple_routers(site: Site, routers: Sequence[Operand]) -> None:
    x = site.x
    for operand in routers:
        site.pin(operand.axis(1), _EXPERTS)
        if x.rank == 2:
            site.link(operand.axis(0), x.axis(0))
            continue
        for axis in (operand.axis(0), *x.axes[:-1]):
            site.pin(axis, _TOKENS)


def _couple_layer(
    site: Site, layer: _Layer, weights: Operand, rows: tuple[int, Indices], columns: int
) -> None:
    """``rows``: an axis, and for each row of the layer the coordinate of it that it makes;
    ``columns``: the axis that it contracts."""
    numbers = (layer.bias, layer.scales, layer.zeros)
    bias, scales, zeros = (site.input(k) if k >= 0 else None for k in numbers)
    made, place = rows
    read = np.arange(layer.unpacked(site), dtype=np.int64)
    block = site.integer("block_size", 0) or read.size
    for operand in (weights, bias, scales, zeros):
        if operand is None:
            continue
        site.pin(operand.axis(0), _EXPERTS)
        if operand is zeros and operand.rank == 2:
            _link_bytes(site, operand.axis(1), layer.bits, made, place)
            continue
        site.link(operand.axis(1), made, np.arange(place.size, dtype=np.int64), place)
        if operand is weights:
            _link_bytes(site, operand.axis(2), layer.bits, columns, read)
        elif operand.rank == 3:
            bits = layer.bits if operand is zeros else None
            _link_bytes(site, operand.axis(2), bits, columns, read, read // block)
    site.role("producer", weights.axis(1))
    site.role("consumer", weights.axis(2))


def _link_bytes(
    site: Site, packed: int, bits: int | None, axis: int, place: Indices, at: Indices | None = None
) -> None:
    """Number ``at[i]`` (default: i) of an axis that is packed, ``bits`` each, belongs to
    coordinate ``place[i]`` of the other axis."""
    at = np.arange(place.size, dtype=np.int64) if at is None else at
    site.link(packed, axis, at if bits is None else at * bits // 8, place)


@rule("MoE", domain=MICROSOFT, family="experts")
def experts(site: Site) -> None:
    """Tokens, router, then weights and bias of each layer."""
    layers = (_Layer(2, 3), _Layer(4, 5), _Layer(6, 7))
    _couple(site, layers, [1])
    site.sink(4, 2)


@rule("QMoE", domain=MICROSOFT, family="experts")
def quantised_experts(site: Site) -> None:
    """Tokens, router; weights, scales and bias of each layer; the zero points; another router."""
    common = site.integer("expert_weight_bits", 4)
    bits = [site.integer(f"fc{k}_expert_weight_bits", common) for k in (1, 2, 3)]
    whole = all(8 % width == 0 for width in bits)
    if site.string("quant_type", "int") != "int" or site.input(3) is None or not whole:
        site.pin_all(_FORMAT)
        return
    # Left to itself (-1), only the kernels for half precision may expect a packing of their own.
    packing, scales = site.integer("weights_prepacked", -1), site.node.inputs[3]
    assert scales is not None
    kind = (constant_tensor(scales) or scales).dtype
    if packing == 1 or (packing < 0 and kind != oir.DataType.FLOAT):
        site.pin_all(_MACHINE)
        return
    layers = [_Layer(2 + 3 * k, 4 + 3 * k, 3 + 3 * k, 11 + k, bits[k]) for k in range(3)]
    _couple(site, layers, [1, 14])
    site.pin_all("one number for an expert", site.inputs[15:])
    site.quantised(*(layer.weights for layer in layers))
    # A channel whose rows are zero is zero: so is the activation of zero.
    site.sink(3, 1)
    if site.input(4) is not None:
        site.sink(4, 1)
