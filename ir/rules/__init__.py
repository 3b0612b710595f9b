"""Coupling rules: one file per family of operators, plug-ins through ``secateur.rules``."""

from . import (  # noqa: F401  (each import registers its rules)
    attention,
    blocked,
    contraction,
    contrib,
    contrib_attention,
    control,
    conv,
    deform_conv,
    einsum,
    elementwise,
    experts,
    indexing,
    integer,
    loss,
    ml,
    movement,
    normalization,
    pooling,
    position,
    quantization,
    random,
    recurrent,
    reduction,
    reshape,
    sampling,
    sequence,
    slicing,
    source,
    state,
    text,
    tuples,
)
from .base import RULES, Operand, Rule, Site, rule

__all__ = ["RULES", "Operand", "Rule", "Site", "rule"]
