"""Fused operators of ONNX Runtime, as its optimisations write them.

Each is a chain of operators of the standard in one node, and couples as they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from .base import Operand, Site, rule
from .contraction import product, transposed_product
from .conv import convolution, restate_group, set_group, weight_of
from .elementwise import align, broadcast
from .normalization import grouped, restate_groups
from .quantization import MICROSOFT, whole_tensor
from .sums import Sum, gemm_sum, has_input

if TYPE_CHECKING:
    from ..restated import Restated

_SPATIAL = "a spatial axis of a pooling"
_STATISTIC = "an axis that the normalisation averages over"
_TABLE = "a table of positions or tokens that are looked up by their number"
_COUNTED = "the position of a token is its index"


# -- elementwise ----------------------------------------------------------------------------------

for _op in ("BiasAdd", "BiasGelu", "FastGelu", "Gelu", "QuickGelu"):
    rule(_op, domain=MICROSOFT, family="elementwise")(broadcast)


@rule("BiasSplitGelu", domain=MICROSOFT, family="elementwise")
def bias_split_gelu(site: Site) -> None:
    """The first half of X + B, times Gelu of the second."""
    x, y = site.x, site.y
    site.link_axes(x, y, skip=[x.rank - 1])
    channels = np.arange(x.shape[-1], dtype=np.int64)
    site.link(x.axis(-1), y.axis(-1), channels, channels % y.shape[-1])
    bias = site.input(1)
    if bias is not None:
        site.link(bias.axis(0), x.axis(-1))


@rule("BiasSoftmax", domain=MICROSOFT, family="softmax")
def bias_softmax(site: Site) -> None:
    """Softmax of X + B over everything from ``axis`` on."""
    broadcast(site)
    for axis in site.x.axes[site.integer("axis", 1) :]:
        site.pin(axis, "BiasSoftmax along this axis")


@rule("RelativePositionBias", domain=MICROSOFT, family="movement")
def relative_position_bias(site: Site) -> None:
    """A table [buckets, heads] looked up for every pair of positions: [1, heads, rows, columns]."""
    table, y = site.x, site.y
    site.pin_all("a number of positions", site.inputs[1:])
    site.pin(table.axis(0), _TABLE)
    for index in (0, 2, 3):
        site.pin(y.axis(index), _TABLE)
    site.link(table.axis(1), y.axis(1))


# -- matrix products ------------------------------------------------------------------------------


@rule("FusedMatMul", "TransposeMatMul", domain=MICROSOFT, family="contraction")
def fused_matmul(site: Site) -> None:
    """alpha * A B. ``transBatch`` says that the first axis stands before the batch axes and
    belongs after them, ``trans`` that the last two change places then."""
    product(site, 0, 1, _order(site, 0, "A"), _order(site, 1, "B"))


def _order(site: Site, number: int, name: str) -> list[int]:
    operand = site.inputs[number]
    assert operand is not None
    order = list(range(operand.rank))
    if operand.rank > 1:
        if site.integer(f"transBatch{name}", 0):
            order.insert(operand.rank - 2, order.pop(0))
        if site.integer(f"trans{name}", 0):
            order[-2:] = reversed(order[-2:])
    return order


def _activated_gemm_sum(node: oir.Node) -> Sum | None:
    """A B and C, where neither scale nor an activation that cannot stand alone is in the way."""
    found = gemm_sum(node)
    return None if found is None else _activated(node, found)


@rule("FusedGemm", domain=MICROSOFT, family="contraction", sums=_activated_gemm_sum)
def fused_gemm(site: Site) -> None:
    """A Gemm and an activation."""
    transposed_product(site, 1, 2)


@rule("GemmFastGelu", domain=MICROSOFT, family="contraction")
def gemm_fast_gelu(site: Site) -> None:
    """X W + B and its Gelu."""
    product(site, 0, 1)
    bias = site.input(2)
    if bias is not None:
        align(site, bias, site.y)


_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
}
"""Fused activations that are one node with these attributes."""


def _activated(node: oir.Node, found: Sum) -> Sum | None:
    """The sum in front of the node's activation; None if that is no node of its own."""
    if "activation" not in node.attributes:
        return found
    known = node.attributes["activation"].as_string() in _ACTIVATIONS
    return replace(found, output=None, rest=_activation) if known else None


def _activation(node: oir.Node, total: oir.Value) -> oir.Node:
    kind = node.attributes["activation"].as_string()
    names = _ACTIVATIONS[kind]
    if node.op_type == "FusedGemm":
        values = [node.attributes[f"activation_{name}"].as_float() for name in names]
    else:
        values = [*node.attributes["activation_params"].as_floats()] if names else []
    return oir.node(kind, [total], dict(zip(names, values, strict=True)))


# -- convolutions ---------------------------------------------------------------------------------


def _fused_conv_sum(node: oir.Node) -> Sum | None:
    """X * W + B and Z."""
    if not has_input(node, 3):
        return None
    return _activated(node, Sum((3,), (0, 1), (2,) if has_input(node, 2) else ()))


@rule(
    "FusedConv",
    domain=MICROSOFT,
    family="contraction",
    restate=restate_group,
    exactness="depends",
    sums=_fused_conv_sum,
)
def fused_conv(site: Site) -> None:
    """A Conv, plus Z, and an activation."""
    added = site.input(3)
    pictures = (0,) if added is None else (0, 3)
    convolution(site, weight_in=1, weight_out=0, followers=[site.input(2)], pictures=pictures)
    if added is not None:
        site.link_axes(added, site.y)
    site.macs(*site.y.axes, *weight_of(site).axes[1:])


def _restate_last_group(node: Restated) -> None:
    set_group(node, node.new_size(0, -1) // node.new_size(1, -1))


@rule(
    "NhwcConv",
    domain=MICROSOFT,
    family="contraction",
    restate=_restate_last_group,
    exactness="depends",
)
def nhwc_conv(site: Site) -> None:
    """X [N, …, C] * W [M, …, C/group] + B [M] -> Y [N, …, M]."""
    last = site.x.rank - 1
    followers = [site.input(2)]
    convolution(site, weight_in=last, weight_out=0, followers=followers, channel=last)
    site.macs(*site.y.axes, *weight_of(site).axes[1:])


@rule("NhwcMaxPool", domain=MICROSOFT, family="pooling")
def nhwc_max_pool(site: Site) -> None:
    """Every channel, the last axis, is pooled by itself."""
    x, y = site.x, site.y
    for index in (0, -1):
        site.link(x.axis(index), y.axis(index))
    for axis in (*x.axes[1:-1], *y.axes[1:-1]):
        site.pin(axis, _SPATIAL)


# -- normalisations -------------------------------------------------------------------------------


def _normalised(
    site: Site, y: Operand, across: Sequence[int], inputs: Sequence[tuple[int, int]]
) -> None:
    """The node looks across the last axis of ``y``, which is that of these inputs and of the
    outputs ``across`` as well; outputs in between are statistics."""
    for number, index in inputs:
        operand = site.inputs[number]
        assert operand is not None
        site.link(operand.axis(index), y.axis(-1))
    outputs = [k for k in across if site.output(k) is not None]
    site.inexact(inputs, [(k, y.rank - 1) for k in outputs])
    for number, output in enumerate(site.outputs):
        for index, axis in enumerate(output.axes if output is not None else ()):
            if number in across or (output is not None and output.shape[index] == y.shape[index]):
                site.link(axis, y.axis(index))
            else:
                site.pin(axis, _STATISTIC)


def _vectors(site: Site, numbers: Sequence[int]) -> list[tuple[int, int]]:
    return [(k, 0) for k in numbers if site.input(k) is not None]


def _skip_sum(node: oir.Node) -> Sum | None:
    """X + skip + bias, unless something reads the statistics of their normalisation."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:3]):
        return None
    bias = 2 + _vector_count(node)
    return Sum((0, 1), (), (bias,) if has_input(node, bias) else (), 3, _normalisation)


def _vector_count(node: oir.Node) -> int:
    """How many vectors the normalisation itself has: scale and, in the full one, shift."""
    return 1 if node.op_type == "SkipSimplifiedLayerNormalization" else 2


def _normalisation(node: oir.Node, total: oir.Value) -> oir.Node:
    epsilon = node.attributes.get("epsilon")
    # Not an empty name for a shift that is left out: ONNX Runtime crashes on it.
    vectors = [v for v in node.inputs[2 : 2 + _vector_count(node)] if v is not None]
    return oir.node(
        node.op_type.removeprefix("Skip"),
        [total, *vectors],
        {"axis": -1, "epsilon": 1e-12 if epsilon is None else epsilon.as_float()},
    )


@rule(
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    domain=MICROSOFT,
    family="normalisation",
    exactness="inexact",
    sums=_skip_sum,
)
def skip_layer_normalization(site: Site) -> None:
    """Normalises X + skip + bias over the last axis; the last output is that sum."""
    x, skip = site.x, site.inputs[1]
    assert skip is not None
    align(site, x, site.y)
    align(site, skip, site.y)
    ends = [(0, x.rank - 1), (1, skip.rank - 1), *_vectors(site, (2, 3, 4))]
    _normalised(site, site.y, (0, 3), ends)


@rule(
    "EmbedLayerNormalization",
    "QEmbedLayerNormalization",
    domain=MICROSOFT,
    family="normalisation",
    exactness="inexact",
)
def embed_layer_normalization(site: Site) -> None:
    """Normalises the sum of the embeddings of words, positions and segments; the tables may be
    quantised, each with one scale and one zero point."""
    ids, y = site.x, site.y
    quantised = site.node.op_type == "QEmbedLayerNormalization"
    if quantised:
        site.quantised(2, 3, 4, 5, 6)
        whole_tensor(site, *site.inputs[8:])
    given = None if quantised else site.input(8)
    tokens = (ids, site.input(1), site.input(7), given)
    for operand in tokens:
        if operand is not None:
            align(site, operand, ids)
    for index in (0, 1):
        site.link(ids.axis(index), y.axis(index))
    lengths = site.output(1)
    if given is None or lengths is not None:
        site.pin(ids.axis(1), _COUNTED)
    tables = [(k, 1) for k in (2, 3, 4) if site.input(k) is not None]
    for number, _ in tables:
        operand = site.inputs[number]
        assert operand is not None
        site.pin(operand.axis(0), _TABLE)
    _normalised(site, y, (0, 2), [*tables, *_vectors(site, (5, 6))])


@rule(
    "GroupNorm",
    "SkipGroupNorm",
    domain=MICROSOFT,
    family="normalisation",
    restate=restate_groups,
    exactness="depends",
)
def group_norm(site: Site) -> None:
    """GroupNormalization, channels first or last, of X or of X + skip + bias (the second output),
    and an activation."""
    x, skip, total = site.x, site.input(3), site.output(1)
    channel = x.rank - 1 if site.integer("channels_last", 1) else 1
    alike = [(k, 0) for k in (1, 2, 4) if site.input(k) is not None]
    if skip is not None:
        own = channel if skip.rank == x.rank else 1
        alike.append((3, own))
        for index in range(skip.rank):
            if index != own:
                same = skip.shape[index] == x.shape[index]
                if same:
                    site.link(skip.axis(index), x.axis(index))
                else:
                    site.pin(skip.axis(index), "broadcast along this axis")
    if total is not None:
        site.link_axes(total, site.y)
    grouped(site, site.integer("groups", 1), channel, alike, 1 if total is None else 2)
