"""How far the outputs of two models are apart, as one number."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from .segments import node_reads
from .session import Array
from .signature import value_types
from .widened import FLOATS

Outputs = Mapping[str, Sequence[Array]]
"""For every output, what it is for each feed."""


def deviation(wanted: Outputs, found: Outputs) -> float:
    """The root mean square of the difference, over the deviation of what is wanted from its mean,
    root of the mean square over all outputs of floats. 0 for models without such outputs.

    Numbers that are wanted infinite (masks) do not count, and an array of another shape is as good
    as the mean. Infinity, where others are not finite.
    """
    shares = []
    for name, arrays in wanted.items():
        if not arrays or arrays[0].dtype.kind != "f":
            continue
        a = _row(arrays)
        finite = np.isfinite(a)
        if not finite.any():
            continue
        mean = a[finite].mean()
        b = _row(
            [
                other if other.shape == array.shape else np.full(array.shape, mean)
                for array, other in zip(arrays, found[name], strict=True)
            ]
        )
        if not np.isfinite(b[finite]).all():
            return math.inf
        error = np.square(a[finite] - b[finite]).mean()
        shares.append(float(error) / max(float(a[finite].var()), 1e-30))
    return math.sqrt(sum(shares) / len(shares)) if shares else 0.0


def compared(model: onnx.ModelProto) -> list[str]:
    """What two models are compared by: the outputs of floats, or, where all are integers (numbers
    of classes), which stay as they are until much has changed, the floats that they are made of.
    """
    types = value_types(model)
    made = {name: node for node in model.graph.node for name in node.output if name}
    front = {value.name for value in model.graph.output} & made.keys()
    seen, found = set[str](), list[str]()
    while front and not found:
        found = [n for n in front if types.get(n, (0, ()))[0] in {TensorProto.FLOAT, *FLOATS}]
        seen |= front
        front = set[str]().union(*(node_reads(made[name]) for name in front)) & made.keys() - seen
    return sorted(found)


def showing(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The model with these values among its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    there = {value.name for value in model.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in there)
    return copy


def _row(arrays: Sequence[Array]) -> Array:
    return np.concatenate([array.ravel() for array in arrays]).astype(np.float64)
