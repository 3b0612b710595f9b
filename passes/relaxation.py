"""A bound from below on what any allocation within the limits must lose, by HiGHS.

The problem: counts c_g of units that go, 0 <= c_g <= room_g, minimise sum R_g(c_g) subject to costs
sum_t weight_t prod_a s_a <= limit, where s_a = S_a - sum_g p_ag c_g are axis sizes. Relaxed are:

- counts become real numbers, steps are dropped. R_g is convex, since scores ascend, so that
  R_g >= R_g(b) + score_g[b] (c_g - b) holds for every whole b; some b are used.
- With x_a = s_a / S_a in [l_a, u_a], every product w = x_a x_b is replaced by what it is no smaller
  than (McCormick 1976, "Computability of global solutions to factorable nonconvex programs"):
  w >= l_a x_b + l_b x_a - l_a l_b  and  w >= u_a x_b + u_b x_a - u_a u_b.
  Costs only grow with w, so nothing else is needed. A square is convex: w >= 2 t x - t^2 for any t.
  Products of more factors are taken one factor at a time.
- The error of McCormick's planes is at most (u_a - l_a)(u_b - l_b) / 4. Two things shrink it:
  whatever beats a known allocation of loss R* has R_g(c_g) <= R* for every g, and smallest and
  largest c_g under the relaxation and sum R_g <= R* bound the ranges further, again and again
  (optimality-based tightening); and one factor of every product is cut into intervals, one of which
  a binary variable picks (piecewise McCormick, Karuppiah and Grossmann 2006), which makes a
  mixed-integer program whose dual bound is valid at any time.

Every step only drops or weakens constraints, or cuts off what is worse than the known allocation:
the least of R* and the dual bound is a bound for every allocation, aligned or not. Limits on peak
memory and latency are dropped too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.products import Counts
from .gauges import Gauge
from .room import Room

Floats = npt.NDArray[np.float64]
_TANGENTS = 48
_ROUNDS = 3
_SLACK = 1e-9
_MARGIN = 1e-5
"""HiGHS lets rows be violated by 1e-6, relative to 1."""


@dataclass(frozen=True)
class Bound:
    """What an allocation loses (``lost``), and the least that any allocation loses (``bound``)."""

    lost: float
    bound: float

    @property
    def gap(self) -> float:
        """The share of what is lost that a better allocation might have kept, at most."""
        return max(self.lost - self.bound, 0.0) / self.lost if self.lost > 0 else 0.0


def relaxed_bound(
    room: Room,
    gauges: Sequence[Gauge],
    counts: Counts,
    *,
    intervals: int = 4,
    seconds: float = 20.0,
) -> Bound:
    """Bounds the loss of all allocations within the gauges' goals from below, given one of them.

    ``seconds`` limits the last step, the mixed-integer program. Raises ValueError when a score is
    negative.
    """
    if any((s < 0).any() for s in room.scores):
        raise ValueError("the bound needs scores that are not negative")
    lost = float(room.lost(counts))
    terms = _Terms(room, gauges)
    low = np.zeros(len(room.size))
    high = np.array(
        [
            min(r, int(np.searchsorted(np.cumsum(s), lost + _SLACK, side="right")))
            for r, s in zip(room.room, room.scores, strict=True)
        ],
        np.float64,
    )
    movable = np.flatnonzero(room.room > 0)
    for _ in range(_ROUNDS):
        program = _Program(room, terms, low, high, lost, 1)
        before = (high - low).sum()
        for g in movable:
            for sign, ends in ((1.0, low), (-1.0, high)):
                found = program.extreme(int(g), sign)
                if found is not None:
                    found -= sign * _MARGIN * float(room.size[g])
                    ends[g] = max(low[g], found) if sign > 0 else min(high[g], found)
        low, high = np.minimum(low, high), np.maximum(low, high)
        if (high - low).sum() > 0.9 * before:
            break
    bound = _Program(room, terms, low, high, lost, 1).bound(seconds)
    if intervals > 1 and bound < lost:
        bound = max(bound, _Program(room, terms, low, high, lost, intervals).bound(seconds))
    return Bound(lost, min(max(bound, 0.0), lost))


class _Terms:
    """The costs of all gauges over shares of axes: axes by what they lose per unit, products by
    their axes, and every gauge's weights of products."""

    def __init__(self, room: Room, gauges: Sequence[Gauge]) -> None:
        self.axes: list[tuple[float, dict[int, float]]] = []
        self.products: list[tuple[int, ...]] = []
        self.rows: list[tuple[dict[int, float], float]] = []
        numbers: dict[Any, int] = {}
        known: dict[tuple[int, ...], int] = {}
        none = np.zeros_like(room.room)[None]
        for gauge in gauges:
            if gauge.products is None:
                continue
            merged = gauge.products.merged
            place = []
            for size, losses in merged.factors:
                key = (size, tuple(sorted(losses.items())))
                if key not in numbers:
                    numbers[key] = len(self.axes)
                    self.axes.append((size, losses))
                place.append(numbers[key])
            row: dict[int, float] = {}
            fixed = float(gauge.predict(none)[0, 0])
            for weight, factors in merged.terms:
                own = tuple(sorted(place[f] for f in factors))
                whole = weight * float(np.prod([self.axes[a][0] for a in own]))
                fixed -= whole if own else 0.0
                if own:
                    number = known.setdefault(own, len(known))
                    row[number] = row.get(number, 0.0) + whole
            self.rows.append((row, gauge.goal - fixed))
        self.products = list(known)


class _Program:
    """The relaxed program for counts between ``low`` and ``high``, as rows of a linear one."""

    def __init__(
        self, room: Room, terms: _Terms, low: Floats, high: Floats, lost: float, intervals: int
    ) -> None:
        self._rows: list[tuple[dict[int, float], float, float]] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._whole: list[int] = []
        groups = len(room.size)
        self._counts = [self._variable(a, b) for a, b in zip(low, high, strict=True)]
        self._losses = [self._variable(0.0, np.inf) for _ in range(groups)]
        self._intervals = intervals
        for g in range(groups):
            self._tangents(room.scores[g], g, low[g], high[g])
        self._row(dict.fromkeys(self._losses, 1.0), -np.inf, lost * (1 + _SLACK) + _SLACK)
        self._axes = []
        for size, losses in terms.axes:
            shares = {g: loss / size for g, loss in losses.items()}
            ends = [1 - sum(share * c[g] for g, share in shares.items()) for c in (high, low)]
            axis = self._variable(max(ends[0], 0.0), ends[1])
            self._row({axis: 1.0} | {self._counts[g]: s for g, s in shares.items()}, 1.0, 1.0)
            self._axes.append(axis)
        self._cut: dict[int, tuple[list[int], list[int], Floats]] = {}
        cover = _cover(terms.products)
        self._known: dict[tuple[int, ...], int] = {}
        values = [self._product(factors, cover) for factors in terms.products]
        for row, limit in terms.rows:
            scale = max(abs(limit), max(row.values(), default=1.0))
            self._row({values[k]: w / scale for k, w in row.items()}, -np.inf, limit / scale)

    def bound(self, seconds: float) -> float:
        """The dual bound on the sum of losses; infinite when nothing satisfies the program."""
        result = self._solve(dict.fromkeys(self._losses, 1.0), seconds)
        if result.status == 2:  # nothing beats the known allocation
            return np.inf
        if not self._whole:
            return float(result.fun) if result.status == 0 else 0.0
        found = result.mip_dual_bound
        return float(found) if found is not None and np.isfinite(found) else 0.0

    def extreme(self, group: int, sign: float) -> float | None:
        """The least (``sign`` 1) or largest count of a group; None when that is not found."""
        result = self._solve({self._counts[group]: sign}, 10.0)
        return float(sign * result.fun) if result.status == 0 else None

    def _solve(self, objective: dict[int, float], seconds: float) -> Any:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        count = len(self._lower)
        cost, whole = np.zeros(count), np.zeros(count, np.int64)
        cost[list(objective)] = list(objective.values())
        whole[self._whole] = 1
        lengths = [len(row) for row, _, _ in self._rows]
        matrix = csr_array(
            (
                np.array([v for row, _, _ in self._rows for v in row.values()]),
                np.array([k for row, _, _ in self._rows for k in row]),
                np.concatenate([[0], np.cumsum(lengths)]),
            ),
            shape=(len(self._rows), count),
        )
        rows = LinearConstraint(matrix, [r[1] for r in self._rows], [r[2] for r in self._rows])
        return milp(
            cost,
            integrality=whole,
            bounds=Bounds(np.array(self._lower), np.array(self._upper)),
            constraints=rows,
            options={"time_limit": seconds, "mip_rel_gap": 1e-3},
        )

    def _variable(self, lower: float, upper: float, *, whole: bool = False) -> int:
        self._lower.append(float(lower))
        self._upper.append(float(upper))
        if whole:
            self._whole.append(len(self._lower) - 1)
        return len(self._lower) - 1

    def _row(self, row: dict[int, float], lower: float, upper: float) -> None:
        self._rows.append((row, lower, upper))

    def _tangents(self, scores: Floats, group: int, low: float, high: float) -> None:
        """The loss of a group lies above lines that touch its curve."""
        steps = np.unique(np.linspace(np.floor(low), np.ceil(high), _TANGENTS).astype(np.int64))
        ladder = np.concatenate([[0.0], np.cumsum(scores)])
        for b in steps[steps < len(scores)]:
            self._row(
                {self._losses[group]: 1.0, self._counts[group]: -float(scores[b])},
                float(ladder[b] - scores[b] * b),
                np.inf,
            )

    def _product(self, factors: tuple[int, ...], cover: set[int]) -> int:
        """The variable that the product of these axes is no smaller than."""
        if len(factors) == 1:
            return self._axes[factors[0]]
        if factors not in self._known:
            if len(set(factors)) == 1 and len(factors) == 2:
                self._known[factors] = self._square(self._axes[factors[0]])
            else:
                last = max(factors, key=lambda a: (a in cover, -factors.index(a)))
                rest = list(factors)
                rest.remove(last)
                self._known[factors] = self._pair(last, self._product(tuple(rest), cover))
        return self._known[factors]

    def _square(self, x: int) -> int:
        low, high = self._lower[x], self._upper[x]
        w = self._variable(low * low, high * high)
        for t in np.linspace(low, high, 16):
            self._row({w: 1.0, x: -2 * float(t)}, -float(t * t), np.inf)
        return w

    def _pair(self, axis: int, y: int) -> int:
        """w >= x y, with x the share of ``axis`` cut into intervals."""
        pieces, parts, points = self._pieces(axis)
        low, high = self._lower[y], self._upper[y]
        w = self._variable(0.0, np.inf)
        own = [self._variable(0.0, max(high, 0.0)) for _ in pieces]
        self._row({y: -1.0} | dict.fromkeys(own, 1.0), 0.0, 0.0)
        for z, v in zip(pieces, own, strict=True):
            self._row({v: 1.0, z: -high}, -np.inf, 0.0)
            self._row({v: 1.0, z: -low}, 0.0, np.inf)
        for end, edges in ((low, points[:-1]), (high, points[1:])):
            row = {w: 1.0}
            for z, x, v, edge in zip(pieces, parts, own, edges, strict=True):
                row |= {v: -float(edge), x: -end, z: float(edge) * end}
            self._row(row, 0.0, np.inf)
        return w

    def _pieces(self, axis: int) -> tuple[list[int], list[int], Floats]:
        """Binaries that pick an interval of an axis's share, that share by interval, the ends."""
        if axis not in self._cut:
            x = self._axes[axis]
            low, high = self._lower[x], self._upper[x]
            points = np.linspace(low, high, self._intervals + 1)
            whole = self._intervals > 1 and high - low > 1e-6
            count = self._intervals if whole else 1
            points = points if whole else np.array([low, high])
            pieces = [self._variable(0.0, 1.0, whole=whole) for _ in range(count)]
            parts = [self._variable(0.0, max(high, 0.0)) for _ in range(count)]
            self._row(dict.fromkeys(pieces, 1.0), 1.0, 1.0)
            self._row({x: -1.0} | dict.fromkeys(parts, 1.0), 0.0, 0.0)
            for k, (z, part) in enumerate(zip(pieces, parts, strict=True)):
                self._row({part: 1.0, z: -float(points[k])}, 0.0, np.inf)
                self._row({part: 1.0, z: -float(points[k + 1])}, -np.inf, 0.0)
            self._cut[axis] = pieces, parts, points
        return self._cut[axis]


def _cover(products: Sequence[tuple[int, ...]]) -> set[int]:
    """Axes of which every product of two or more different ones has one, few of them."""
    open_ = [set(p) for p in products if len(set(p)) > 1]
    cover: set[int] = set()
    while open_:
        axes = [a for p in open_ for a in p]
        most = max(sorted(set(axes)), key=axes.count)
        cover.add(most)
        open_ = [p for p in open_ if most not in p]
    return cover
