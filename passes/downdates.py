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

import numpy as np
import numpy.typing as npt

from ..ir.linear import LinearLayer
from .layers import Matrix

Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

MOST_ROUNDS, LEAST_ROUNDS, ELEMENTS = 256, 32, 1e9
"""Rounds in which all units of a group go, so many that `ELEMENTS` of the largest inverse are
brought up to date in all, within these bounds; larger groups lose several units in a round."""


SHRINK = 0.25
"""With this share of its columns gone, a matrix is copied without them."""


class Consumer:
    """A layer that contracts the units of a group.

    ``columns`` int64[units, ...] numbers what each unit owns of the layer's (group, column) axis,
    flattened with one column more for the bias; ``inverse`` [groups, columns + 1, columns + 1] is
    that of the Gram matrix per row, ``weights`` [groups, columns + 1, outputs]; ``scale`` is what
    an error of 1 counts. Both matrices are changed.
    """

    def __init__(
        self, layer: LinearLayer, columns: Indices, inverse: Matrix, weights: Matrix, scale: float
    ) -> None:
        self.layer, self.columns, self.scale = layer, columns, scale
        self.shape = weights.shape
        self.size = inverse.size
        self._inverse, self._weights = list(inverse), list(weights)
        self._kept = [np.arange(weights.shape[1]) for _ in weights]
        self._place = np.stack(self._kept)
        """Where a column is in its group's matrices; -1 for one that is gone."""

    @property
    def weights(self) -> Matrix:
        """[groups, columns + 1, outputs]: refitted, 0 for the columns that are gone."""
        whole = np.zeros(self.shape)
        for group, kept in enumerate(self._kept):
            whole[group, kept] = self._weights[group]
        return whole

    def costs(self, units: Indices) -> Scores:
        """float64[units]: how much the error grows when one of these units goes."""
        costs = np.zeros(len(units))
        for group, rows, own in self._blocks(units):
            weights = self._weights[group][own]
            block = self._inverse[group][own[:, :, None], own[:, None, :]]
            products = weights @ weights.transpose(0, 2, 1)
            costs[rows] += (np.linalg.inv(block) * products).sum(axis=(1, 2))
        return costs * self.scale

    def remove(self, units: Indices) -> None:
        """Takes some units out, and refits the rest."""
        from scipy.linalg import cholesky, solve_triangular
        from scipy.linalg.blas import dgemm

        width = self.shape[1]
        columns = self.columns[units].ravel()
        for group in np.unique(columns // width):
            flat = columns[columns // width == group] % width
            gone = self._place[group, flat]
            inverse, weights = self._inverse[group], self._weights[group]
            root = cholesky(inverse[np.ix_(gone, gone)], lower=True)
            left = solve_triangular(root, inverse[gone], lower=True)
            weights -= left.T @ solve_triangular(root, weights[gone], lower=True)
            weights[gone] = 0.0
            # In place: the transposed view of a symmetric matrix is the order that BLAS changes.
            self._inverse[group] = dgemm(
                -1.0, left, left, trans_a=True, beta=1.0, c=inverse.T, overwrite_c=True
            ).T
            self._place[group, flat] = -1
            self._shrink(group)

    def _shrink(self, group: int) -> None:
        """Lets go of columns that are gone, when they are many."""
        kept = self._kept[group]
        left = np.flatnonzero(self._place[group, kept] >= 0)
        if len(left) <= (1 - SHRINK) * len(kept):
            self._kept[group] = kept[left]
            self._place[group, kept[left]] = np.arange(len(left))
            self._inverse[group] = self._inverse[group][np.ix_(left, left)]
            self._weights[group] = self._weights[group][left]

    def _blocks(self, units: Indices) -> Iterator[tuple[int, Indices, Indices]]:
        """For every group of the layer, the units (numbers in ``units``) that own equally many
        columns there, and where these are in its matrices [units, n]."""
        width = self.shape[1]
        columns = self.columns[units]
        for group in np.unique(columns // width):
            inside = columns // width == group
            counts = inside.sum(axis=1)
            for size in np.unique(counts[counts > 0]):
                rows = np.flatnonzero(counts == size)
                own = columns[rows][inside[rows]].reshape(-1, size) % width
                yield int(group), rows, self._place[group, own]


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
    largest = max(consumer.size for consumer in consumers)
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
