"""One sweep over all nodes: what is known of every value (see `base`)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as oir

from ..analysis import Analysis
from ..constants import constants
from ..external import release
from ..rules.base import Operand, Site
from ..visitor import RULE_ERRORS
from .base import (
    LIMIT,
    TRANSFERS,
    Bounds,
    Floats,
    Step,
    constant,
    mark_of,
    range_of,
    settle,
    unknown,
)


@dataclass
class Knowledge:
    """What is known of the values of an analysis, by name."""

    analysis: Analysis
    tensors: dict[str, oir.TensorProtocol]
    """The constants that no caller can override."""
    _known: dict[str, Bounds] = field(default_factory=dict)

    def of(self, operand: Operand) -> Bounds:
        """What is known of a value."""
        found = self._known.get(operand.name)
        if found is None and operand.name in self.tensors:
            found = constant(self.array(operand.name))
        if found is not None and len(found.shape) == operand.rank:
            return found
        dtype = oir.DataType(self.analysis.facts[0].types[operand.name][0])
        return unknown(operand.rank, dtype, mark_of(operand.name))

    def array(self, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        """The elements of a constant."""
        tensor = self.tensors[name]
        array = np.array(tensor.numpy())
        release(tensor)
        return array

    def weight(self, operand: Operand | None) -> Floats | None:
        """All elements of a constant or of what is computed from constants, if they are known."""
        if operand is None:
            return None
        if operand.name in self.tensors:
            array = self.array(operand.name)
            numeric = array.dtype.kind in "fiub" or "float" in array.dtype.name
            return array.astype(np.float64) if numeric else None
        if not operand.constant:
            return None
        found = self.of(operand)
        whole = found.shape == operand.shape and not np.isnan(found.point).any()
        return found.point if whole else None

    def visit(self, site: Site) -> None:
        """Adds what is known of a node's outputs."""
        rule = TRANSFERS.get((site.node.domain, site.node.op_type))
        outputs = [o for o in site.outputs if o is not None]
        named = [v is not None and bool(v.name) for v in site.node.inputs]
        if (
            rule is None
            or not outputs
            or any(
                there and operand is None for there, operand in zip(named, site.inputs, strict=True)
            )
        ):
            return
        inputs = [None if o is None else self.of(o) for o in site.inputs]
        dtype = oir.DataType(self.analysis.facts[0].types[outputs[0].name][0])

        def weight(index: int) -> Floats | None:
            return self.weight(site.input(index))

        try:
            found = rule(Step(site, inputs, weight, dtype, mark_of(outputs[0].name)))
        except RULE_ERRORS:
            if os.environ.get("SECATEUR_DEBUG"):
                raise
            return  # a node that does not fit its operator: nothing is known
        results = [found] if isinstance(found, Bounds) else found or ()
        for operand, bounds in zip(site.outputs, results, strict=False):
            if operand is not None and bounds is not None:
                self._add(operand, bounds)

    def _add(self, operand: Operand, bounds: Bounds) -> None:
        bounds = bounds.collapsed(k for k, moves in enumerate(operand.dynamic) if moves)
        fits = len(bounds.shape) == operand.rank and all(
            own in (1, size) for own, size in zip(bounds.shape, operand.shape, strict=True)
        )
        if not fits or math.prod(bounds.shape) > LIMIT:
            return
        least, most = range_of(oir.DataType(self.analysis.facts[0].types[operand.name][0]))
        low, high = np.maximum(bounds.low, least), np.minimum(bounds.high, most)
        self._known[operand.name] = settle(low, high, bounds.point, bounds.number)


def propagate(analysis: Analysis) -> Knowledge:
    """What is known of all values of an analysis, starting from nothing but types at its inputs."""
    model = analysis.model
    overridable = {
        str(v.name) for v in model.graph.inputs if v.is_initializer() and model.ir_version >= 4
    }
    tensors = {str(v.name): t for v, t in constants(model.graph) if v.name not in overridable}
    knowledge = Knowledge(analysis, tensors)
    for site in analysis.sites:
        knowledge.visit(site)
    return knowledge
