"""Peak activation memory: the bytes of all values alive while each node runs.

A value is alive from the node that makes it (an input of the model from the start) to the last one
that reads it, an output of the model to the end. Nothing is computed in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as oir

from ..ir.analysis import Analysis
from .products import Counts, Products, Sizes


class LiveBytes:
    """The bytes alive while each node runs, in the order of nodes, as sums of products."""

    def __init__(self, analysis: Analysis) -> None:
        from scipy.sparse import csr_array

        types = analysis.facts[0].types
        values = {o.name: o for o in analysis.operands.values() if not o.constant}
        self._bytes = Products(
            analysis,
            [tuple(o.axes) for o in values.values()],
            [bits(types[name][0]) / 8 for name in values],
        )
        sites = len(analysis.sites)
        lives = lifetimes(analysis)
        spans = np.array([lives.get(name, (sites, sites)) for name in values], np.int64)
        first, last = spans.reshape(-1, 2).T
        ends = np.concatenate([first, np.minimum(last, sites) + 1])
        signs = np.repeat([1.0, -1.0], len(values))
        rows = np.tile(np.arange(len(values)), 2)
        self._changes: Any = csr_array((signs, (rows, ends)), shape=(len(values), sites + 2))

    def each(self, removed: Counts) -> Sizes:
        """float64[n, sites]: bytes alive at every node in each of n allocations, int64[n, groups]
        counts of the units that go."""
        changes: Sizes = np.asarray(self._bytes.each(removed) @ self._changes)
        return changes.cumsum(axis=1)[:, :-2]


def lifetimes(analysis: Analysis) -> dict[str, tuple[int, int]]:
    """The numbers of the first and of the last node while which each value is alive, as nodes run
    in order; the model's outputs stay to the end, beyond the last node."""
    graph, end = analysis.model.graph, len(analysis.sites)
    first = {str(v.name): 0 for v in graph.inputs}
    last = dict.fromkeys(first, end)
    read: dict[str, int] = {}
    for step, site in enumerate(analysis.sites):
        for operand in (*site.inputs, *site.outputs):
            if operand is not None:
                first.setdefault(operand.name, step)  # a body's inputs begin where first read
                read[operand.name] = step
    last |= read | {str(v.name): end for v in graph.outputs}
    return {name: (first.get(name, end), step) for name, step in last.items()}


def bits(dtype: int) -> int:
    """Bits of one element; strings count as pointers."""
    kind = oir.DataType(dtype)
    return 64 if kind == oir.DataType.STRING else int(kind.bitwidth)
