"""Units and groups: the connected components of all links.

Coordinates of all axis classes are numbered in one row; links become edges between them, and one
call finds the components. Those that hold no pin and own a weight are the units; units whose sets
of axis classes are equal form a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .coupling import Indices

if TYPE_CHECKING:
    from .analysis import Analysis


@dataclass(frozen=True)
class Group:
    """Units that touch exactly the same axes.

    ``units`` are unit numbers in ascending order, ``axes`` the numbers of all axes they touch,
    ``exact`` is False when an operator looks across one of them.
    """

    number: int
    name: str
    units: Indices
    axes: tuple[int, ...]
    exact: bool


def form_units(analysis: Analysis, weights_only: bool) -> None:
    """Components of all links that hold no pin (and own a weight) become units, then groups."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    coupling = analysis.coupling
    roots = [
        axis
        for axis in range(len(coupling.sizes))
        if coupling.root(axis) == axis and not coupling.is_pinned(axis)
    ]
    if not roots:
        return
    sizes = np.array([coupling.sizes[r] for r in roots], np.int64)
    bases = np.concatenate([[0], np.cumsum(sizes)])
    total = int(bases[-1])
    number = {root: k for k, root in enumerate(roots)}

    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for link in coupling.links:
        if link.a_index is None or link.b_index is None:
            continue
        a, b = number.get(coupling.root(link.a)), number.get(coupling.root(link.b))
        if a is not None and b is not None:
            left.append(bases[a] + link.a_index)
            right.append(bases[b] + link.b_index)
    rows, columns = np.concatenate(left), np.concatenate(right)
    graph = coo_array((np.ones(rows.size, np.int8), (rows, columns)), shape=(total, total))
    count, labels = connected_components(graph, directed=False)

    owned = np.zeros(count, np.bool_)
    for weight in analysis.weights:
        if len(weight.axes) > 1:
            continue  # cut for each use: it goes with a unit, but makes none worth removing
        for axis in weight.axes[0]:
            k = number.get(coupling.root(axis))
            if k is not None:
                owned[labels[bases[k] : bases[k + 1]]] = True
    prunable = owned if weights_only else np.ones(count, np.bool_)
    for k, root in enumerate(roots):
        flags = coupling.pinned(root)
        if flags is not None:
            prunable[labels[bases[k] : bases[k + 1]][flags]] = False

    unit_of_label = np.cumsum(prunable) - 1
    unit_of_label[~prunable] = -1
    units = unit_of_label[labels]
    analysis.unit_count = int(prunable.sum())
    for k, root in enumerate(roots):
        own = units[bases[k] : bases[k + 1]]
        if (own >= 0).any():
            analysis._unit_of_root[root] = own
    _form_groups(analysis, roots, units, sizes)


def _form_groups(
    analysis: Analysis, roots: list[int], units: Indices, sizes: npt.NDArray[np.int64]
) -> None:
    """Groups come from hashing every unit's set of axis classes."""
    if not analysis.unit_count:
        return
    classes = np.repeat(np.arange(len(roots), dtype=np.int64), sizes)
    inside = units >= 0
    pairs = np.unique(units[inside] * len(roots) + classes[inside])
    pair_unit, pair_class = pairs // len(roots), pairs % len(roots)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, size=len(roots), dtype=np.uint64)
    starts = np.searchsorted(pair_unit, np.arange(analysis.unit_count))
    signature = np.add.reduceat(hashes[pair_class], starts)
    _, first, group = np.unique(signature, return_index=True, return_inverse=True)

    axes_of_root: dict[int, list[int]] = {}
    for axis, (name, _) in enumerate(analysis.owners):
        if name:
            axes_of_root.setdefault(analysis.coupling.root(axis), []).append(axis)
    inexact = {analysis.coupling.root(i.axis) for i in analysis.statements.inexact}
    order = np.argsort(group, kind="stable")
    bounds = np.searchsorted(group[order], np.arange(len(first) + 1))
    found = []
    for k, example in enumerate(first):
        end = starts[example + 1] if example + 1 < analysis.unit_count else len(pairs)
        touched = [roots[c] for c in pair_class[starts[example] : end]]
        axes = sorted(axis for root in touched for axis in axes_of_root.get(root, ()))
        members = order[bounds[k] : bounds[k + 1]]
        found.append((axes, members, not any(root in inexact for root in touched)))
    found.sort(key=lambda item: (item[0], int(item[1][0])))
    weights = {axis for w in analysis.weights for axes in w.axes for axis in axes}
    producers = {a for a in analysis.statements.producers if a in weights}
    for axes, members, exact in found:
        name = _group_name(analysis, axes, producers, weights)
        analysis.groups.append(Group(len(analysis.groups), name, members, tuple(axes), exact))


def _group_name(
    analysis: Analysis, axes: Sequence[int], producers: set[int], weights: set[int]
) -> str:
    """After the first weight that produces the group's channels, else any weight, else any axis."""
    axis = next(
        (a for pool in (producers, weights) for a in axes if a in pool), axes[0] if axes else None
    )
    if axis is None:
        return "?"
    name, index = analysis.owners[axis]
    return f"{name}[{index}]"
