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
write the unit, with |W_c| = 1. Units that reach no sink at all (a Slice leaves them out) have 0:
nothing is lost with them. Units that cannot be seen, since their sinks lie inside operators or
bodies of control flow, are scored by the squares of the weights that they own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..ir.analysis import Analysis
from ..ir.constants import constants
from ..ir.coupling import Flags
from ..ir.errors import ModelError, UsageError
from ..ir.external import release
from ..runtime.calibration import calibration_feeds
from ..runtime.runnable import runnable
from ..runtime.statistics import Place, channel_moments
from .members import Partial, along, combined, per_unit
from .scoring import DEFAULT, Scores, Scoring, describe
from .sights import Sight, consuming, producing
from .stored_weights import numbers
from .weight_criteria import l2

SAMPLES = 512
"""At most this many calibration samples are looked at."""


@describe(needs_calibration=True)
def activation(analysis: Analysis, scoring: Scoring = DEFAULT) -> Scores:
    """Energy of what the unit adds to the contractions that read it, from means and variances of
    its activations: norms of weights times activations (Sun et al. 2024, "A Simple and Effective
    Pruning Approach for Large Language Models"), for whole units.

    Raises UsageError when no unit can be seen, ModelError when activations are not finite,
    CertificateError when the model does not run.
    """
    sights = list(consuming(analysis))
    if scoring.combine == "producers":
        sights += producing(analysis)
    partials = _partials(analysis, sights, scoring)
    unseen = _ending(analysis)
    if not partials and unseen.any():
        raise UsageError(
            "activation sees none of the units on calibration data: they are used inside operators "
            "or bodies of control flow only; choose another criterion, such as l2"
        )
    scores = combined(partials, analysis.unit_count, scoring.combine)
    for partial in partials:
        unseen[partial.units] = False
    if unseen.any():
        scores[unseen] = np.square(l2(analysis)[unseen])
    return scores


def _ending(analysis: Analysis) -> Flags:
    """bool[unit_count]: the units that reach a sink."""
    reached = np.zeros(analysis.unit_count, np.bool_)
    for sink in analysis.statements.sinks:
        units = analysis.units_of(sink.axis)
        if units is not None:
            reached[units[units >= 0]] = True
    return reached


def _partials(analysis: Analysis, sights: list[Sight], scoring: Scoring) -> list[Partial]:
    """Per sight and unit, the energy of the activations times that of the weights."""
    context = scoring.context
    assert context.calibration is not None
    stored = {str(v.name): (v, tensor) for v, tensor in constants(analysis.model.graph)}
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
        value, tensor = stored[name]
        with np.errstate(over="ignore"):  # an infinite score is refused later
            squares = np.square(numbers(value))
        for place in {(n, k) for s in sights for n, k, _ in s.weights if n == name}:
            weights[place] = along(squares, place[1])
        release(tensor)
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
            with np.errstate(invalid="ignore"):
                energy = energy * _weight_energy(analysis, sight, weights)
        found.append(per_unit(sight.role, sight.units, energy))
    return found


def _weight_energy(analysis: Analysis, sight: Sight, weights: Mapping[Place, Scores]) -> Scores:
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
