"""Where the activations of units can be seen: values of the main graph, and what they weigh there.

A unit is *consumed* where data reaches a sink, and *produced* where a weight writes it. What lies
inside bodies of control flow, or inside an operator, cannot be seen from outside. Quantised
activations are seen where their real numbers are: in front of the quantiser, or through the scale
and zero point that the operator applies to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from ..ir.analysis import Analysis
from ..ir.constants import constant_tensor, is_float
from ..ir.coupling import Indices
from ..ir.rules.base import Operand, Site
from ..ir.rules.registry import find_rule
from ..runtime.statistics import Place

_SCALED = {"QGemm": (1, 2), "QLinearConv": (1, 2), "QLinearMatMul": (1, 2)}
"""Operators that read quantised activations: their inputs with its scale and zero point."""
_QUANTIZERS = ("DynamicQuantizeLinear", "QuantizeLinear")
_LIVES_ON = ("normalisation", "quantisation")
"""Families of operators whose sinks without weights do not end a unit."""


@dataclass(frozen=True)
class Sight:
    """Where activations of units are seen: on ``place``, as (q - zero) * scale if quantised.
    ``units`` has the unit of every coordinate; ``weights`` are the axes of constants, by name and
    index, that are contracted with it, each with its own number of the axis."""

    place: Place
    axis: int
    units: Indices
    role: str
    weights: tuple[tuple[str, int, int], ...] = ()
    scale: float = 1.0
    zero: float = 0.0


def consuming(analysis: Analysis) -> Iterator[Sight]:
    """The sinks that data reaches in the main graph."""
    visible = _visible(analysis)
    known = visible | analysis.skeleton.constants.keys()
    for sink in dict.fromkeys(analysis.statements.sinks):
        site = analysis.sites[sink.site]
        operand, units = site.inputs[sink.input], analysis.units_of(sink.axis)
        if operand is None or operand.constant or units is None:
            continue
        weights = tuple(
            (other.name, index, axis)
            for other in site.inputs
            if other is not None and other.constant
            for index, axis in enumerate(other.axes)
            if axis in analysis.statements.consumers and _meet(analysis, axis, units)
        )
        rule = find_rule(site.node.domain, site.node.op_type)
        if not weights and rule is not None and rule.family in _LIVES_ON:
            continue
        real = _real(analysis, site, sink.input, operand)
        if real is not None and real[0] in visible and all(w[0] in known for w in weights):
            name, scale, zero = real
            place = name, sink.index
            yield Sight(place, sink.axis, units, "consumer", weights, scale, zero)


def producing(analysis: Analysis) -> Iterator[Sight]:
    """The real outputs that weights write units to, in the main graph."""
    visible = _visible(analysis)
    for site in analysis.sites:
        made = [
            own
            for operand in site.inputs
            if operand is not None and operand.constant
            for axis in operand.axes
            if axis in analysis.statements.producers
            and (own := analysis.units_of(axis)) is not None
        ]
        for output in site.outputs if made else ():
            if output is None or output.name not in visible or not _is_real(analysis, output):
                continue
            for index, axis in enumerate(output.axes):
                units = analysis.units_of(axis)
                if units is not None and any(_meet(analysis, axis, own) for own in made):
                    yield Sight((output.name, index), axis, units, "producer")


def _visible(analysis: Analysis) -> set[str]:
    """The values that the main graph is fed or computes."""
    graph = analysis.model.graph
    made = {str(value.name) for node in graph for value in node.outputs}
    return made | {str(v.name) for v in graph.inputs if not v.is_initializer()}


def _meet(analysis: Analysis, axis: int, units: Indices) -> bool:
    """Whether an axis has coordinates of these units."""
    own = analysis.units_of(axis)
    return own is not None and bool(np.isin(own[own >= 0], units).any())


def _is_real(analysis: Analysis, operand: Operand) -> bool:
    return is_float(oir.DataType(analysis.facts[0].types[operand.name][0]))


def _real(
    analysis: Analysis, site: Site, number: int, operand: Operand
) -> tuple[str, float, float] | None:
    """The name of a value with the real numbers that an input stands for, and the scale and zero
    point that they have there; None where these are not known before the run."""
    if _is_real(analysis, operand):
        return operand.name, 1.0, 0.0
    value = site.node.inputs[number]
    node = None if value is None else value.producer()
    if node is not None and node.op_type in _QUANTIZERS and node.inputs[0] is not None:
        return str(node.inputs[0].name), 1.0, 0.0
    parameters = [_scalar(site, k) for k in _SCALED.get(site.node.op_type, ())]
    if not parameters or number != 0 or None in parameters:
        return None
    scale, zero = parameters
    return operand.name, float(scale or 0), float(zero or 0)


def _scalar(site: Site, number: int) -> float | None:
    """A constant input that is one number; 0 if it is left out."""
    operand = site.input(number)
    if operand is None:
        return 0.0
    value = site.node.inputs[number]
    tensor = None if value is None else constant_tensor(value)
    if tensor is None or tensor.size != 1:
        return None
    return float(np.asarray(tensor.numpy()).astype(np.float64).reshape(()))
