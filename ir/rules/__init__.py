"""Coupling rules: one file per family of operators, plug-ins through ``secateur.rules``."""

from . import (  # noqa: F401  (each import registers its rules)
    contraction,
    conv,
    elementwise,
    movement,
    normalization,
    pooling,
    quantization,
    reduction,
    reshape,
    source,
)
from .base import RULES, Operand, Rule, Site, rule

__all__ = ["RULES", "Operand", "Rule", "Site", "rule"]
