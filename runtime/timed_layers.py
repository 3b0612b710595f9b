"""Layers as models of their own, at any channel count, so that they can be timed one by one.

A layer is a convolution or matrix product. Its axes that units live on are known
by what they are made of: axes of the same make-up keep the same share of their channels under any
allocation, and count as one *dimension* of the layer. A convolution has two, its input and output
channels; a depthwise one has one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as oir
from onnx import TensorProto, helper, numpy_helper

from ..ir.analysis import Analysis
from ..ir.naming import node_label
from ..ir.rules.base import Operand, Site

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
KERNELS = (*OPERATORS, "FusedConv", "NhwcFusedConv", "FusedGemm", "FusedMatMul")
"""What ONNX Runtime calls the kernels of these layers."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_MakeUp = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TimedLayer:
    """A node that can be timed by itself. ``axes`` are the axes of its dimensions, ``full`` their
    sizes, ``quanta`` what these change by at least, ``groups`` by dimension the groups that live
    there. ``signature`` is JSON text that layers of equal times have in common."""

    name: str
    axes: tuple[int, ...]
    full: tuple[int, ...]
    quanta: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    signature: str

    def model(self, sizes: Sequence[int]) -> onnx.ModelProto:
        """The layer with its dimensions at ``sizes``, random weights inside."""
        spec = json.loads(self.signature)
        node = onnx.NodeProto.FromString(bytes.fromhex(spec["node"]))
        rng = np.random.default_rng(0)
        inputs, weights, shapes = [], [], []
        for name, constant, kind, dims in spec["inputs"]:
            shape = [_scaled(dim, sizes, self.full) for dim in dims]
            shapes.append(shape)
            if constant:
                values = (rng.standard_normal(shape) * 0.05).astype(
                    helper.tensor_dtype_to_np_dtype(kind)
                )
                weights.append(numpy_helper.from_array(values, name))
            else:
                inputs.append(helper.make_tensor_value_info(name, kind, shape))
        if node.op_type in ("Conv", "ConvTranspose"):
            _set_group(node, shapes)
        kind = spec["inputs"][0][2]
        outputs = [helper.make_tensor_value_info(node.output[0], kind, None)]
        graph = helper.make_graph([node], "layer", inputs, outputs, weights)
        opset = helper.make_opsetid("", spec["opset"])
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def timed_layers(analysis: Analysis) -> list[TimedLayer]:
    """The convolutions and matrix products of a model, in the order of its nodes."""
    found = []
    for number in sorted({c.site for c in analysis.statements.contractions}):
        site = analysis.sites[number]
        if site.node.op_type in OPERATORS and site.node.domain in ("", "ai.onnx"):
            layer = _layer(analysis, site)
            if layer is not None:
                found.append(layer)
    return found


def _layer(analysis: Analysis, site: Site) -> TimedLayer | None:
    types = analysis.facts[0].types
    axes: dict[_MakeUp, int] = {}
    inputs: list[list[Any]] = []
    for k, operand in enumerate(site.inputs):
        if operand is None:
            continue
        constants = analysis.skeleton.constants
        known = constants.get(operand.name) or types.get(operand.name)  # constants may be computed
        kind = None if known is None else known[0]
        if kind not in _FLOATS:
            return None
        dims = [_dimension(analysis, operand, index, axes) for index in range(operand.rank)]
        inputs.append([f"in{k}", operand.constant, int(kind), dims])
    node = oir.serde.serialize_node(site.node)
    node.ClearField("metadata_props")
    node.name, node.doc_string = "layer", ""
    for k, name in enumerate(node.input):
        node.input[k] = f"in{k}" if name else ""
    del node.output[1:]
    node.output[0] = "out"
    signature = {
        "node": node.SerializeToString(deterministic=True).hex(),
        "op": node.op_type,
        "opset": site.opset,
        "inputs": inputs,
    }
    full = tuple(analysis.coupling.sizes[axis] for axis in axes.values())
    quanta = [_quantum(analysis, made_of, size) for made_of, size in zip(axes, full, strict=True)]
    for dims in (operand[3] for operand in inputs):
        for number, size in (dim for dim in dims if isinstance(dim, list)):
            whole = full[number] // math.gcd(full[number], size)
            quanta[number] = math.lcm(quanta[number], whole)
    return TimedLayer(
        node_label(site.node),
        tuple(axes.values()),
        full,
        tuple(quanta),
        tuple(tuple(g for g, _ in made_of) for made_of in axes),
        json.dumps(signature | {"quanta": quanta}, sort_keys=True),
    )


def _quantum(analysis: Analysis, made_of: _MakeUp, size: int) -> int:
    """The least number of channels that every group's units are whole multiples of."""
    each = [round(share * size / len(analysis.groups[g].units)) for g, share in made_of]
    return math.lcm(*(max(n, 1) for n in each))


def _dimension(
    analysis: Analysis, operand: Operand, index: int, axes: dict[_MakeUp, int]
) -> int | list[int]:
    """The size of a fixed axis; of one that units live on, the number of its dimension and its
    full size. New dimensions are entered into ``axes``."""
    axis = operand.axis(index)
    units = analysis.units_of(axis)
    if units is None:
        return int(operand.shape[index])
    groups, counts = np.unique(analysis.group_of_unit[units[units >= 0]], return_counts=True)
    made_of = tuple(
        (int(g), round(int(n) / len(units), 12)) for g, n in zip(groups, counts, strict=True)
    )
    axes.setdefault(made_of, axis)
    return [list(axes).index(made_of), int(operand.shape[index])]


def _scaled(dim: int | list[int], sizes: Sequence[int], full: Sequence[int]) -> int:
    if isinstance(dim, int):
        return dim
    number, size = dim
    return max(1, round(size * sizes[number] / full[number]))


def _set_group(node: onnx.NodeProto, shapes: Sequence[Sequence[int]]) -> None:
    """States the number of groups that the channels of data and weight make."""
    data, weight = shapes[0][1], shapes[1][1 if node.op_type == "Conv" else 0]
    attribute = next((a for a in node.attribute if a.name == "group"), None)
    if attribute is not None and node.op_type == "Conv":
        attribute.i = max(1, data // weight)
