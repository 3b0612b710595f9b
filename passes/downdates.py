"""What the consumers of a group lose when its units go one after another.

A consumer reads rows x (see `secateur.ir.linear`) and gives x W. If the columns S of a unit go and
the rest of W is refitted by least squares, the squared error grows by

    tr(W_S' [(G^-1)_SS]^-1 W_S),    G = X'X,

and the refitted weights, and the inverse of what remains of G, follow by downdates,

    W <- W - (G^-1)_:S [(G^-1)_SS]^-1 W_S,    G^-1 <- G^-1 - (G^-1)_:S [(G^-1)_SS]^-1 (G^-1)_S:

(Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon", on
whole units). The column of the bias never goes, so that means are free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..ir.linear import LinearLayer
from .layers import Matrix

Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

MOST_ROUNDS, LEAST_ROUNDS, ELEMENTS = 256, 32, 1e9
"""Rounds in which all units of a group go, so many that `ELEMENTS` of the largest inverse are
brought up to date in all, within these bounds; larger groups lose several units in a round."""


@dataclass
class Consumer:
    """A layer that contracts the units of a group.

    ``columns`` int64[units, ...] numbers what each unit owns of the layer's (group, column) axis,
    flattened with one column more for the bias; ``inverse`` [groups, columns + 1, columns + 1] is
    that of the Gram matrix per row, ``weights`` [groups, columns + 1, outputs]; ``scale`` is what
    an error of 1 counts.
    """

    layer: LinearLayer
    columns: Indices
    inverse: Matrix
    weights: Matrix
    scale: float

    def costs(self, units: Indices) -> Scores:
        """float64[units]: how much the error grows when one of these units goes."""
        costs = np.zeros(len(units))
        for group, rows, own in self._blocks(units):
            inverse, weights = self.inverse[group], self.weights[group][own]
            block = inverse[own[:, :, None], own[:, None, :]]
            costs[rows] += np.einsum("ukm,ukm->u", weights, np.linalg.solve(block, weights))
        return costs * self.scale

    def remove(self, units: Indices) -> None:
        """Takes some units out, and refits the rest."""
        width = self.inverse.shape[1]
        columns = self.columns[units].ravel()
        for group in np.unique(columns // width):
            gone = columns[columns // width == group] % width
            inverse, weights = self.inverse[group], self.weights[group]
            left = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[gone]).T
            weights -= left @ weights[gone]
            inverse -= left @ inverse[gone]
            weights[gone] = 0.0

    def _blocks(self, units: Indices) -> Iterator[tuple[int, Indices, Indices]]:
        """For every group of the layer, the units (numbers in ``units``) that own equally many
        columns there, and these columns [units, n]."""
        width = self.inverse.shape[1]
        columns = self.columns[units]
        for group in np.unique(columns // width):
            inside = columns // width == group
            counts = inside.sum(axis=1)
            for size in np.unique(counts[counts > 0]):
                rows = np.flatnonzero(counts == size)
                yield int(group), rows, columns[rows][inside[rows]].reshape(-1, size) % width


def unit_columns(layer: LinearLayer, units: Indices, members: Indices) -> Indices | None:
    """`Consumer.columns` of a layer whose input channels belong to ``units`` (-1: to none of the
    ``members``); None where these own unequally many channels."""
    channel = np.flatnonzero(units >= 0)
    order = channel[np.argsort(units[channel], kind="stable")]
    if (
        len(order) % len(members)
        or (np.bincount(np.searchsorted(members, units[order])) != len(order) // len(members)).any()
    ):
        return None
    each, width = layer.channels // layer.groups, layer.columns + 1
    first = order // each * width + order % each * layer.taps
    return (first[:, None] + np.arange(layer.taps)).reshape(len(members), -1)


def growth(consumers: Sequence[Consumer], count: int) -> Iterator[tuple[int, float]]:
    """The units of a group, by their places in it, in the order in which they go, the one that
    costs least first, with the growth of the error at their turn (never less than before)."""
    left, highest = np.arange(count), 0.0
    largest = max(consumer.inverse.size for consumer in consumers)
    rounds = int(min(max(ELEMENTS / largest, LEAST_ROUNDS), MOST_ROUNDS))
    together = max(1, count // rounds)
    while len(left):
        costs = np.sum([consumer.costs(left) for consumer in consumers], axis=0)
        chosen = np.argsort(costs, kind="stable")[:together]
        for consumer in consumers:
            consumer.remove(left[chosen])
        for unit, cost in zip(left[chosen], costs[chosen], strict=True):
            highest = max(highest, float(cost))
            yield int(unit), highest
        left = np.delete(left, chosen)
