"""BatchNormalization in a pruned model: its statistics, re-estimated.

The original normalises inputs of mean m and deviation s with the statistics (mu, v) that it stores;
in the pruned model, the inputs have mean m' and deviation s'. With

    sqrt(v' + eps) = sqrt(v + eps) s' / s,    mu' = m' - (m - mu) s' / s,

the pruned model's inputs, normalised, have the mean and the deviation that the original's have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from ..ir.constants import constant_tensor
from .kept import History, kept_coordinates

if TYPE_CHECKING:
    from ..runtime.session import Array
    from ..runtime.stepwise import Stepwise

LEAST = 1e-3
"""Statistics move where inputs have moved by this share of their deviation."""


def normalisations(graph: oir.Graph) -> list[oir.Node]:
    """The BatchNormalizations of a graph with statistics of their own."""
    return [
        node
        for node in graph
        if node.op_type == "BatchNormalization"
        and len(node.outputs) == 1
        and node.inputs[0] is not None
        and all(
            v is not None and constant_tensor(v) and len(v.uses()) == 1 for v in node.inputs[3:5]
        )
    ]


def renormalised(
    node: oir.Node, original: Stepwise, pruned: Stepwise, history: History
) -> dict[str, Array]:
    """The statistics of the node, by name, re-estimated; nothing where its inputs are as they were,
    or where the original has no such inputs. ``pruned`` stands before the node."""
    x, *_, mean, variance = node.inputs[:5]
    assert x is not None and mean is not None and variance is not None
    name = str(x.name)
    if not original.has(name) or not pruned.has(name):
        return {}
    wholes = original.get(name)
    kept = kept_coordinates(history, name, 1, wholes[0].shape[1])
    before = _moments([w.take(kept, 1) for w in wholes])
    after = _moments(pruned.get(name))
    if len(before[0]) != len(after[0]):
        return {}
    ratio = after[1] / np.maximum(before[1], 1e-12)
    moved = np.abs(after[0] - before[0]) > LEAST * before[1]
    moved |= np.abs(ratio - 1) > LEAST
    moved &= (before[1] > 1e-6) & (after[1] > 1e-6)
    if not moved.any():
        return {}
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    mu, v = (_array(value).astype(np.float64) for value in (mean, variance))
    spread = np.maximum((v + epsilon) * ratio**2 - epsilon, 0.0)
    centre = after[0] - (before[0] - mu) * ratio
    return {
        str(value.name): np.where(moved, new, old).astype(_array(value).dtype)
        for value, new, old in ((mean, centre, mu), (variance, spread, v))
    }


def _moments(arrays: list[Array]) -> tuple[Array, Array]:
    """Mean and deviation per channel, float64[channels] each, over all feeds."""
    total, squares, count = 0.0, 0.0, 0
    for array in arrays:
        flat = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).astype(np.float64)
        total = total + flat.sum(axis=1)
        squares = squares + np.square(flat).sum(axis=1)
        count += flat.shape[1]
    mean = np.asarray(total) / max(count, 1)
    return mean, np.sqrt(np.maximum(np.asarray(squares) / max(count, 1) - mean**2, 0.0))


def _array(value: oir.Value) -> Array:
    tensor = constant_tensor(value)
    assert tensor is not None
    return np.asarray(tensor.numpy())
