"""What a criterion is, what it may use, and what it says about itself.

A criterion is a function of an analysis, or of an analysis and a `Scoring`. It gives every unit a
score; larger is more important. `describe` lets it say that it needs calibration data and what
``auto`` normalisation means for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt

from ..ir.analysis import Analysis
from .base import PassContext

Scores = npt.NDArray[np.float64]
Combine = Literal["sum", "mean", "max", "producers"]
"""How the scores of a unit's members (the weight axes or sinks that it owns) become one."""
Normalize = Literal["auto", "none", "mean", "max", "sum", "gauss"]
"""How scores are made comparable between groups (see `normalize_scores`)."""


@dataclass(frozen=True)
class Scoring:
    """What a criterion may use besides the analysis."""

    context: PassContext = field(default_factory=PassContext)
    combine: Combine = "sum"


DEFAULT = Scoring()
"""No calibration data, seed 0, the sum over members."""

Criterion = Callable[[Analysis], Scores] | Callable[[Analysis, Scoring], Scores]


@dataclass(frozen=True)
class CriterionInfo:
    """What a criterion says about itself. ``normalize`` is what "auto" means for it."""

    needs_calibration: bool = False
    normalize: Normalize = "mean"


_C = TypeVar("_C", bound=Callable[..., Scores])


def describe(
    *, needs_calibration: bool = False, normalize: Normalize = "mean"
) -> Callable[[_C], _C]:
    """Decorates a criterion with the attributes that `info` reads."""

    def decorate(criterion: _C) -> _C:
        vars(criterion).update(needs_calibration=needs_calibration, normalize=normalize)
        return criterion

    return decorate


def info(criterion: Criterion) -> CriterionInfo:
    """What the attributes ``needs_calibration`` and ``normalize`` of a criterion say."""
    default = CriterionInfo()
    return CriterionInfo(
        bool(getattr(criterion, "needs_calibration", default.needs_calibration)),
        getattr(criterion, "normalize", default.normalize),
    )


def call(criterion: Criterion, analysis: Analysis, scoring: Scoring) -> Scores:
    """The scores that a criterion gives, whichever of the two signatures it has."""
    if _takes_scoring(criterion):
        return cast(Callable[[Analysis, Scoring], Scores], criterion)(analysis, scoring)
    return cast(Callable[[Analysis], Scores], criterion)(analysis)


def _takes_scoring(criterion: Criterion) -> bool:
    """Whether the second parameter is a `Scoring`: it has no default, or is called ``scoring``."""
    try:
        parameters = list(inspect.signature(criterion).parameters.values())
    except ValueError:  # some functions of extension modules have no signature
        return False
    second = parameters[1] if len(parameters) > 1 else None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return (
        second is not None
        and second.kind in positional
        and (second.default is inspect.Parameter.empty or second.name == "scoring")
    )
