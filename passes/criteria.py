"""The criteria by name, and the scores that they give.

Larger scores are more important. `score_units` normalises per group, so that allocation compares
the scores of all units as they are. Others' criteria arrive through the entry points
``secateur.criteria``.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..ir.analysis import Analysis
from ..ir.constants import constants
from ..ir.errors import ModelError, UsageError
from ..ir.registry import Registry, one_line
from ..ir.wording import counted
from .normalize_scores import normalized
from .scoring import DEFAULT, Criterion, Normalize, Scores, Scoring, call, info

_BUILTINS = {
    "activation": "activation_criterion:activation",
    "bn-scale": "scale_criterion:bn_scale",
    "fpgm": "geometric_median:fpgm",
    "l1": "weight_criteria:l1",
    "l2": "weight_criteria:l2",
    "lamp": "weight_criteria:lamp",
    "random": "weight_criteria:random",
    "reconstruction": "reconstruction:reconstruction",
    "taylor": "taylor:taylor",
}


@lru_cache(maxsize=1)
def criteria() -> Registry[Criterion]:
    """All criteria by name."""
    return Registry("criterion", "secateur.criteria", "secateur.passes", _BUILTINS, _check)


def _check(name: str, loaded: object) -> Criterion:
    if not callable(loaded):
        raise UsageError(f"criterion '{name}' is not a function of an analysis")
    return loaded


def score_units(
    analysis: Analysis,
    criterion: str,
    scoring: Scoring = DEFAULT,
    normalize: Normalize = "auto",
) -> Scores:
    """float64[unit_count]: the scores of the named criterion, normalised per group ("auto": as the
    criterion itself says).

    Raises UsageError when the name is unknown, when calibration data is missing, or when a third
    party's criterion fails or returns something else; ModelError when weights are not finite.
    """
    registry = criteria()
    score, provider = registry.get(criterion), registry.provider(criterion)
    about = info(score)
    if about.needs_calibration and scoring.context.calibration is None:
        raise UsageError(
            f"criterion '{criterion}' scores units by calibration data: give --calibration FILE"
        )
    if not analysis.unit_count:
        return np.zeros(0)
    try:
        scores = np.asarray(call(score, analysis, scoring), np.float64)
    except Exception as error:
        if provider == "secateur":
            raise
        raise UsageError(
            f"criterion '{criterion}' of '{provider}' failed ({type(error).__name__}: "
            f"{one_line(error)}); repair or uninstall '{provider}'"
        ) from error
    if provider == "secateur" and not np.isfinite(scores).all():
        raise ModelError(_infinite_weight(analysis))
    if scores.shape != (analysis.unit_count,) or not np.isfinite(scores).all():
        raise UsageError(
            f"criterion '{criterion}' of '{provider}' must give one finite score for each of "
            f"{counted(analysis.unit_count, 'unit')}; are all weights finite?"
        )
    how = about.normalize if normalize == "auto" else normalize
    return normalized(scores, [group.units for group in analysis.groups], how)


def _infinite_weight(analysis: Analysis) -> str:
    """Which weight is not finite; the squares of finite ones may overflow, too."""
    for value, tensor in constants(analysis.model.graph):
        if value.name in analysis.weight_names:
            array = np.asarray(tensor.numpy()).astype(np.float64)
            if not np.isfinite(array).all():
                return f"weight '{value.name}' holds NaN or infinity; mend it"
    return "weights are so large that their scores overflow; rescale them, or choose l1"
