"""``fpgm``: units that the others of their group can stand for, by distances of filter vectors.

With v_i the weights of unit i on one weight axis, one row for each unit of a group,

    score_i = sum over j of |v_i - v_j|,      |v_i - v_j|^2 = |v_i|^2 + |v_j|^2 - 2 v_i . v_j

(He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
Acceleration", equation 8): the least is closest to the geometric median. The inner products come
from matrix products of blocks of rows, so that no array is larger than the weight. Distances do
not move with the vectors; these are centred and scaled first, which keeps what cancels in the
difference small: two vectors count as equal when they differ by less than about 1e-8 of their
distance from the centre.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..ir.analysis import Analysis
from ..ir.coupling import Indices
from .members import Member, Partial, combined, owned_weights
from .scoring import DEFAULT, Scores, Scoring
from .stored_weights import Numbers

BLOCK = 1 << 22
"""So many distances are held at a time."""

Vectors = npt.NDArray[np.float64]


def fpgm(analysis: Analysis, scoring: Scoring = DEFAULT) -> Scores:
    """Sum of the distances of a unit's weights from those of all other units of its group, for
    each weight axis, combined as the scoring says."""
    return combined(_members(analysis), analysis.unit_count, scoring.combine)


def _members(analysis: Analysis) -> Iterator[Partial]:
    for array, members in owned_weights(analysis):
        for member in members:
            for units in _groups(analysis, member):
                vectors = _vectors(array, member, units)
                yield Partial(member.role, units, distance_sums(vectors))


def _groups(analysis: Analysis, member: Member) -> list[Indices]:
    """The units of every group that has coordinates on this axis."""
    owners = np.unique(member.units[member.units >= 0])
    return [analysis.groups[g].units for g in np.unique(analysis.group_of_unit[owners])]


def _vectors(array: Numbers, member: Member, units: Indices) -> Vectors:
    """float64[units, n]: what each unit owns, in the order of coordinates; a unit with fewer
    coordinates than others is filled up with zeros."""
    coordinates = np.flatnonzero(np.isin(member.units, units))
    coordinates = coordinates[np.argsort(member.units[coordinates], kind="stable")]
    row = np.searchsorted(units, member.units[coordinates])
    place = np.arange(len(row)) - np.searchsorted(row, row)
    rows = np.moveaxis(array, member.index, 0).reshape(array.shape[member.index], -1)
    vectors = np.zeros((len(units), int(place.max()) + 1, rows.shape[1]))
    vectors[row, place] = rows[coordinates]
    return vectors.reshape(len(units), -1)


def distance_sums(vectors: Vectors) -> Scores:
    """float64[n]: the sum of the Euclidean distances of each of n rows from all others. Not
    finite where a row is not. The rows are overwritten."""
    largest = float(max(vectors.max(initial=0.0), -vectors.min(initial=0.0)))
    if not largest or not np.isfinite(largest):
        return np.full(len(vectors), largest)
    vectors /= largest
    vectors -= vectors.mean(axis=0)
    squares = np.einsum("ij,ij->i", vectors, vectors)
    sums = np.empty(len(vectors))
    step = max(BLOCK // max(len(vectors), 1), 1)
    for start in range(0, len(vectors), step):
        block = slice(start, start + step)
        distances = vectors[block] @ vectors.T
        distances *= -2
        distances += squares[block, None]
        distances += squares
        np.maximum(distances, 0, out=distances)
        distances[np.arange(len(distances)), np.arange(start, start + len(distances))] = 0
        sums[block] = np.sqrt(distances, out=distances).sum(axis=1)
    return sums * largest
