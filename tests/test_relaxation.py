"""The bound lies below every allocation, found by brute force, and close to the best."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

import secateur
from secateur.passes.allocation import Limits, Target, solve
from secateur.passes.gauges import exact_gauges
from secateur.passes.relaxation import Bound, relaxed_bound
from secateur.passes.room import Room

from .graphs import GRAPHS
from .pruning_checks import dims
from .test_allocation import mlp


@pytest.mark.parametrize("intervals", [1, 4])
def test_below_the_best_of_all_allocations(intervals: int) -> None:
    rng = np.random.default_rng(1)
    gaps = []
    for _ in range(6):
        sizes = [int(n) for n in rng.integers(3, 9, rng.integers(2, 5))]
        found = secateur.analyze(mlp(5, *sizes, 3), dims={"N": 1})
        room = Room(found, rng.uniform(0.1, 3, found.unit_count), Limits())
        gauges = exact_gauges(found, [Target("macs", float(rng.uniform(0.4, 0.9)))])
        counts = np.array(list(product(*(range(n) for n in sizes))), np.int64)
        kept = np.array(sizes) - counts
        widths = np.c_[np.full(len(kept), 5), kept, np.full(len(kept), 3)]
        macs = np.sum([widths[:, i] * widths[:, i + 1] for i in range(len(sizes) + 1)], axis=0)
        best = room.lost(counts)[macs <= gauges[0].goal].min()
        ours = solve(room, gauges, "global")
        bound = relaxed_bound(room, gauges, ours, intervals=intervals, seconds=10)
        assert bound.bound <= best + 1e-6 * max(best, 1)
        assert bound.lost == room.lost(ours) and 0 <= bound.gap <= 1
        worse = relaxed_bound(room, gauges, np.array(sizes) - 1, intervals=intervals, seconds=10)
        assert worse.bound <= best + 1e-6 * max(best, 1), "whatever allocation is known"
        gaps.append(bound.gap)
    # With so few units a step is much; wide layers come closer, below.
    assert np.median(gaps) < 0.5


def test_close_on_wide_layers() -> None:
    found = secateur.analyze(mlp(64, 128, 256, 96, 10), dims={"N": 1})
    room = Room(found, np.random.default_rng(0).uniform(0.2, 2, found.unit_count), Limits())
    for targets in ([Target("macs", 0.5)], [Target("macs", 0.6), Target("size", 0.5)]):
        gauges = exact_gauges(found, targets)
        bound = relaxed_bound(room, gauges, solve(room, gauges, "global"))
        assert 0 < bound.bound <= bound.lost and bound.gap < 0.02


def test_aligned_allocations_are_above_it() -> None:
    widths = (64, 128, 256, 96, 10)
    found = secateur.analyze(mlp(*widths), dims={"N": 1})
    scores = np.random.default_rng(0).uniform(0.2, 2, found.unit_count)
    free, aligned = (Room(found, scores, Limits(round_to=n)) for n in (1, 16))
    gauges = exact_gauges(found, [Target("macs", 0.5)])
    bound = relaxed_bound(free, gauges, solve(free, gauges, "global"))
    counts = solve(aligned, gauges, "global")
    kept = [64, *(np.array(widths[1:-1]) - counts), 10]
    assert sum(a * b for a, b in pairwise(kept)) <= gauges[0].goal
    assert aligned.lost(counts) >= bound.bound


@pytest.mark.parametrize("name", ["residual_identity", "dense_concat", "swiglu_fused"])
def test_on_coupled_graphs(name: str) -> None:
    """Streams that several layers share, concatenation, squares: below random allocations too."""
    found = secateur.analyze(GRAPHS[name](), dims=dims(name))
    rng = np.random.default_rng(2)
    room = Room(found, rng.uniform(0.2, 2, found.unit_count), Limits())
    gauges = exact_gauges(found, [Target("macs", 0.6)])
    bound = relaxed_bound(room, gauges, solve(room, gauges, "global"), seconds=10)
    trials = np.array([[rng.integers(0, r + 1) for r in room.room] for _ in range(3000)])
    fit = gauges[0].predict(trials)[:, 0] <= gauges[0].goal
    assert fit.any() and bound.bound <= room.lost(trials)[fit].min()
    assert bound.gap < 0.25


def test_negative_scores_have_no_bound() -> None:
    found = secateur.analyze(mlp(5, 8, 3), dims={"N": 1})
    scores = np.arange(8.0) - 1
    room = Room(found, scores, Limits())
    gauges = exact_gauges(found, [Target("macs", 0.5)])
    with pytest.raises(ValueError, match="not negative"):
        relaxed_bound(room, gauges, solve(room, gauges, "global"))
    assert Bound(0.0, 0.0).gap == 0
