"""``bn-scale``: the learned scales of normalisations, which multiply what a unit passes on.

    score_u = sum over the scale vectors of the unit of |scale|

A normalised channel has about unit variance, so its scale is its size and compares across layers
as it is: the paper cuts at one threshold for the whole network. That holds for the scale that is
an input of the normalisation itself; one applied later by a Mul is a weight like any other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..ir.analysis import Analysis
from ..ir.constants import constants
from ..ir.errors import UsageError
from .members import Partial, along, combined, per_unit
from .scoring import DEFAULT, Scores, Scoring, describe
from .stored_weights import numbers
from .weight_criteria import l2

_DOMAINS = ("", "ai.onnx", "com.microsoft")
_SCALE_INPUT = {
    "BatchNormalization": 1,
    "EmbedLayerNormalization": 5,
    "GroupNorm": 1,
    "GroupNormalization": 1,
    "InstanceNormalization": 1,
    "LayerNormalization": 1,
    "RMSNormalization": 1,
    "SimplifiedLayerNormalization": 1,
    "SkipGroupNorm": 1,
    "SkipLayerNormalization": 2,
    "SkipSimplifiedLayerNormalization": 2,
}
"""By operator, the number of the input that holds the scale."""


@describe(normalize="none")
def bn_scale(analysis: Analysis, scoring: Scoring = DEFAULT) -> Scores:
    """Absolute value of the scales of normalisations that the unit owns (Liu et al. 2017,
    "Learning Efficient Convolutional Networks through Network Slimming").

    Groups that own none cannot be compared with the others: their units come after all of these,
    in the order of their Euclidean norm. Raises UsageError when no unit owns a scale.
    """
    partials = list(_scales(analysis))
    if not partials:
        raise UsageError(
            "bn-scale needs scales of normalisations, and no unit of this model owns one (they may "
            "be folded into convolutions); choose another criterion, such as l2"
        )
    scores = combined(partials, analysis.unit_count, scoring.combine)
    bare = np.ones(analysis.unit_count, np.bool_)
    bare[np.concatenate([p.units for p in partials])] = False
    if bare.any():
        norms = l2(analysis)[bare]
        largest = float(scores.max()) or 1.0
        scores[bare] = largest * (1 + norms / (float(norms.max()) or 1.0))
    return scores


def _scales(analysis: Analysis) -> Iterator[Partial]:
    """For every scale vector that units own, its absolute values per unit; shared ones once."""
    values = {str(v.name): v for v, _ in constants(analysis.model.graph)}
    seen = set()
    for site in analysis.sites:
        number = _SCALE_INPUT.get(site.node.op_type)
        scale = None if number is None else site.input(number)
        if scale is None or scale.name not in values or site.node.domain not in _DOMAINS:
            continue
        for index, axis in enumerate(scale.axes):
            units = analysis.units_of(axis)
            key = scale.name, index, analysis.coupling.root(axis)
            if units is not None and key not in seen:
                seen.add(key)
                array = np.abs(numbers(values[scale.name]))
                yield per_unit("coupled", units, along(array, index))
