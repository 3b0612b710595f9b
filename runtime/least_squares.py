"""Ridge least squares from Gram matrices.

For rows x (with a one appended for the bias) and targets t, the weights W that minimise

    sum_r |t_r - x_r W|^2 + lambda sum_k d (W - W0)_k^2

over all rows r and columns k, but for the bias, solve (G + lambda D)(W - W0) = C - G W0 with
G = X'X, C = X'T and d the mean of G's diagonal. The ridge pulls towards W0, the weights at hand.
G, C and |T|^2 are sums over rows, so that rows are seen once and need not be kept, and they give
the error of any W: |T|^2 - 2 tr(W'C) + tr(W'GW).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""What is tried as lambda."""


@dataclass
class Gram:
    """Sums over rows, for each of the groups: ``g`` [groups, columns + 1, columns + 1], ``c``
    [groups, columns + 1, outputs], ``t`` [groups, outputs] (squares) and the number of rows. The
    last column of the inputs is the one of the bias."""

    g: Matrix
    c: Matrix
    t: Matrix
    rows: int = 0

    @classmethod
    def empty(cls, groups: int, columns: int, outputs: int) -> Gram:
        """No rows yet."""
        return cls(
            np.zeros((groups, columns + 1, columns + 1)),
            np.zeros((groups, columns + 1, outputs)),
            np.zeros((groups, outputs)),
        )

    def add(self, x: Matrix, t: Matrix, known: bool = False) -> None:
        """More rows: ``x`` [groups, rows, columns + 1], with the ones of the bias, and ``t``
        [groups, rows, outputs]. Where ``g`` is ``known`` already, only the targets count."""
        across = x.transpose(0, 2, 1)
        if not known:
            self.g += across @ x
        self.c += across @ t
        self.t += np.einsum("grm,grm->gm", t, t)
        self.rows += x.shape[1]

    def include(self, other: Gram, known: bool = False) -> None:
        """Adds another's rows to these; without ``g`` where that is ``known`` already."""
        if not known:
            self.g += other.g
        self.c += other.c
        self.t += other.t
        self.rows += other.rows

    def __add__(self, other: Gram) -> Gram:
        return Gram(self.g + other.g, self.c + other.c, self.t + other.t, self.rows + other.rows)

    @property
    def is_finite(self) -> bool:
        """Whether all rows were finite."""
        return all(np.isfinite(sums).all() for sums in (self.g, self.c, self.t))

    @property
    def variance(self) -> float:
        """The sum over outputs of the targets' variance."""
        mean = self.c[:, -1] / max(self.rows, 1)
        return float((self.t / max(self.rows, 1) - mean**2).sum())

    def error(self, weights: Matrix) -> float:
        """The mean over rows of the squared error of [groups, columns + 1, outputs] weights."""
        fitted = (weights * (self.g @ weights - 2 * self.c)).sum() + self.t.sum()
        return float(fitted) / max(self.rows, 1)

    def share(self, weights: Matrix) -> float:
        """The error of weights in shares of the targets' variance."""
        return max(self.error(weights), 0.0) / max(self.variance, 1e-30)

    def compensated(self, start: Matrix) -> Matrix:
        """``start`` with the bias that gives the targets' mean; there must be rows."""
        weights = start.copy()
        products = (self.g[:, -1:, :-1] @ start[:, :-1])[:, 0]
        weights[:, -1] = (self.c[:, -1] - products) / self.rows
        return weights

    def solve(self, start: Matrix, ridge: float, bias: bool = True) -> Matrix:
        """The weights for one lambda, pulled towards ``start``; without ``bias`` its row stays.

        Raises numpy.linalg.LinAlgError when the system is singular.
        """
        size = self.g.shape[1] - 1
        diagonal = np.einsum("gkk->gk", self.g)
        penalty = np.zeros_like(diagonal)
        penalty[:, :size] = ridge * diagonal[:, :size].mean(axis=1, keepdims=True)
        system = self.g.copy()
        np.einsum("gkk->gk", system)[...] += penalty + 1e-12 * diagonal.max(axis=1, keepdims=True)
        wanted = self.c - self.g @ start
        if not bias:
            system, wanted = system[:, :size, :size], wanted[:, :size]
        change = _solve(system, wanted)
        result = start.copy()
        result[:, : change.shape[1]] += change
        return result


def _solve(system: Matrix, wanted: Matrix) -> Matrix:
    from scipy.linalg import cho_factor, cho_solve

    return np.stack(
        [cho_solve(cho_factor(a, lower=True), b) for a, b in zip(system, wanted, strict=True)]
    )


def fit(
    train: Gram,
    held_out: Gram,
    start: Matrix,
    bias: bool = True,
    ridges: Sequence[float] = RIDGES,
) -> tuple[Matrix, float, float]:
    """The weights fitted to all rows with the lambda that does best on the held-out ones.

    Returns them, that lambda (infinity: ``start`` itself does best, and is kept) and the held-out
    rows' error when only the others are fitted, in shares of their targets' variance.
    """
    best, chosen = held_out.share(start), np.inf
    for ridge in ridges:
        try:
            share = held_out.share(train.solve(start, ridge, bias))
        except np.linalg.LinAlgError:
            continue
        if share < best:
            best, chosen = share, ridge
    if chosen == np.inf:
        return start, chosen, best
    return (train + held_out).solve(start, chosen, bias), chosen, best
