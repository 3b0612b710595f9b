"""``activation``: how much of what its consumers read comes from a unit, on calibration data.

Where a contraction with weights W reads a unit's coordinates x_c (a sink), removing them takes
sum over c of x_c W_c from its outputs. With the mean m_c and the variance v_c of x_c over samples
and positions, the energy of that, coordinates taken for uncorrelated, is

    score = sum over c of (m_c^2 + v_c) |W_c|^2

Mean and variance both count, since pruning multiplies by zero and puts nothing into the bias
instead. Other sinks (sums, products of two activations) have |W_c| = 1. Where the coordinates of W
do not correspond to those of x one by one (grouped convolutions, blocks of four bits), a unit has
the mean energy of its x times the squares of all its W.

A unit's sinks are combined as the scoring says. With ``producers`` the places count where weights
write the unit, with |W_c| = 1. Units that cannot be seen, since all their sinks lie inside bodies
of control flow or read weights alone, are scored by the squares of the weights that they own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from ..ir.analysis import Analysis
from ..ir.constants import constant_tensor, constants, is_float
from ..ir.coupling import Indices
from ..ir.errors import ModelError, UsageError
from ..ir.external import release
from ..ir.rules.base import Operand, Site
from ..ir.rules.registry import find_rule
from ..runtime.calibration import calibration_feeds
from ..runtime.runnable import runnable
from ..runtime.statistics import Place, channel_moments
from .members import Partial, along, combined, per_unit
from .scoring import DEFAULT, Scores, Scoring, describe
from .stored_weights import numbers
from .weight_criteria import l2

SAMPLES = 1024
"""At most this many calibration samples are looked at."""

_SCALED = {"QGemm": (1, 2), "QLinearConv": (1, 2), "QLinearMatMul": (1, 2)}
"""Operators that read quantised activations: their inputs with its scale and zero point."""
_QUANTIZERS = ("DynamicQuantizeLinear", "QuantizeLinear")
_LIVES_ON = ("normalisation", "quantisation")
"""Families of operators whose sinks without weights do not end a unit."""


@dataclass(frozen=True)
class _Sight:
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


@describe(needs_calibration=True)
def activation(analysis: Analysis, scoring: Scoring = DEFAULT) -> Scores:
    """Energy of what the unit adds to the contractions that read it, from means and variances of
    its activations: norms of weights times activations (Sun et al. 2024, "A Simple and Effective
    Pruning Approach for Large Language Models"), for whole units.

    Raises UsageError when no unit can be seen, ModelError when activations are not finite,
    CertificateError when the model does not run.
    """
    sights = list(_consuming(analysis))
    if scoring.combine == "producers":
        sights += _producing(analysis)
    partials = _partials(analysis, sights, scoring)
    if not partials:
        raise UsageError(
            "activation sees none of the units on calibration data: they are used inside operators "
            "or bodies of control flow only; choose another criterion, such as l2"
        )
    scores = combined(partials, analysis.unit_count, scoring.combine)
    unseen = np.ones(analysis.unit_count, np.bool_)
    unseen[np.concatenate([p.units for p in partials])] = False
    if unseen.any():
        scores[unseen] = np.square(l2(analysis)[unseen])
    return scores


# -- where units are seen -------------------------------------------------------------------------


def _consuming(analysis: Analysis) -> Iterator[_Sight]:
    """The sinks that data reaches in the main graph."""
    visible = _visible(analysis)
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
        if real is not None and real[0] in visible:
            name, scale, zero = real
            place = name, sink.index
            yield _Sight(place, sink.axis, units, "consumer", weights, scale, zero)


def _producing(analysis: Analysis) -> Iterator[_Sight]:
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
                    yield _Sight((output.name, index), axis, units, "producer")


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


# -- what they weigh ------------------------------------------------------------------------------


def _partials(analysis: Analysis, sights: list[_Sight], scoring: Scoring) -> list[Partial]:
    """Per sight and unit, the energy of the activations times that of the weights."""
    context = scoring.context
    assert context.calibration is not None
    stored = {str(value.name): value for value, _ in constants(analysis.model.graph)}
    computed = {(n, k) for s in sights for n, k, _ in s.weights if n not in stored}
    with runnable(analysis.model) as (proto,):
        binding = analysis.facts[0].binding
        feeds = calibration_feeds(dict(context.calibration), proto, binding, SAMPLES)
        seen = channel_moments(
            proto,
            feeds,
            [s.place for s in sights],
            context.threads,
            lambda done: context.progress("score", done),
        )
        fixed = channel_moments(proto, feeds[:1], computed, context.threads) if computed else {}
    weights = {place: m.second * m.count for place, m in fixed.items()}
    for name in {n for s in sights for n, _, _ in s.weights if n in stored}:
        squares = np.square(numbers(stored[name]))
        for place in {(n, k) for s in sights for n, k, _ in s.weights if n == name}:
            weights[place] = along(squares, place[1])
        release(_tensor(stored[name]))
    found = []
    for sight in sights:
        moments = seen.get(sight.place)
        if moments is None:
            continue
        if not np.isfinite(moments.second).all():
            raise ModelError(
                f"'{sight.place[0]}' is not finite on the calibration data, so its units cannot be "
                "scored; check the data, or choose another criterion"
            )
        energy = (np.square(moments.mean - sight.zero) + moments.variance) * sight.scale**2
        if sight.weights:
            energy = energy * _weight_energy(analysis, sight, weights)
        found.append(per_unit(sight.role, sight.units, energy))
    return found


def _weight_energy(analysis: Analysis, sight: _Sight, weights: Mapping[Place, Scores]) -> Scores:
    """float64[size of the axis]: for every coordinate the squares of the weights that meet it, or
    its share of those of its unit."""
    total = np.zeros(len(sight.units))
    inside = sight.units >= 0
    owned = np.bincount(sight.units[inside], minlength=analysis.unit_count)
    for name, index, axis in sight.weights:
        squares = weights[name, index]
        root = analysis.coupling.root
        if root(axis) == root(sight.axis):
            total += squares
            continue
        units = analysis.units_of(axis)
        assert units is not None
        each = np.bincount(units[units >= 0], squares[units >= 0], analysis.unit_count)
        total[inside] += (each / np.maximum(owned, 1))[sight.units[inside]]
    return total


def _tensor(value: oir.Value) -> oir.TensorProtocol:
    tensor = constant_tensor(value)
    assert tensor is not None
    return tensor
