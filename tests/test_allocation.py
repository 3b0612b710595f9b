"""Allocations against brute force: never over the target, and nothing left to give back."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise, product
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import secateur
from secateur.ir.analysis import Analysis
from secateur.ir.coupling import Flags
from secateur.ir.errors import TargetError
from secateur.passes.allocation import Limits, Target, allocate
from secateur.runtime.cost import CostModel

from .graphs import GRAPHS, INFO

Scores = npt.NDArray[np.float64]
Kind = Literal["macs", "params"]
Scope = Literal["local", "global"]
NAMES = [name for name, info in INFO.items() if info.runnable]


@cache
def analysis(name: str) -> Analysis:
    dims = {d: 2 + i for i, d in enumerate(INFO[name].dims)}
    return secateur.analyze(GRAPHS[name](), dims=dims)


def random_scores(found: Analysis, seed: int) -> Scores:
    return np.random.default_rng(seed).uniform(0.1, 10, found.unit_count)


def removed_counts(found: Analysis, removed: Flags) -> list[int]:
    return [int(removed[g.units].sum()) for g in found.groups]


def cost(found: Analysis, removed: Flags | None, kind: Kind) -> int:
    costs = CostModel(found).costs(removed)
    return costs.macs if kind == "macs" else costs.parameters


def mlp(*widths: int) -> onnx.ModelProto:
    """x [N, widths[0]] through matrices w1, w2, … with Relu between."""
    nodes, weights, x = [], [], "x"
    rng = np.random.default_rng(0)
    for i, (a, b) in enumerate(pairwise(widths), 1):
        w = rng.standard_normal((a, b)).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        last = i == len(widths) - 1
        nodes.append(helper.make_node("MatMul", [x, f"w{i}"], ["y" if last else f"h{i}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"]))
        x = f"r{i}"
    inputs = [helper.make_tensor_value_info("x", 1, ["N", widths[0]])]
    outputs = [helper.make_tensor_value_info("y", 1, ["N", widths[-1]])]
    graph = helper.make_graph(nodes, "mlp", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# ---- ratio --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.3, 0.5, 0.8, 0.99])
def test_local_ratio_takes_the_same_share_of_every_group(ratio: float) -> None:
    found = secateur.analyze(mlp(5, 10, 33, 2, 64, 3), dims={"N": 1})
    assert [len(g.units) for g in found.groups] == [10, 33, 2, 64]
    scores = random_scores(found, 0)
    removed = allocate(found, scores, Target("ratio", ratio), Limits())
    for group in found.groups:
        n = len(group.units)
        gone = group.units[removed[group.units]]
        assert len(gone) == min(math.floor(n * ratio + 0.5), n - 1)
        kept = np.setdiff1d(group.units, gone)
        assert scores[gone].max(initial=0) < scores[kept].min(), "the least important go"


def test_global_ratio_ranks_all_units_by_their_scores() -> None:
    found = secateur.analyze(mlp(5, 10, 40, 3), dims={"N": 1})
    first, second = (g.units for g in found.groups)
    scores = np.ones(found.unit_count)
    scores[first] = np.linspace(0.9, 1.1, 10)
    scores[second] = np.r_[np.full(20, 0.1), np.full(20, 1.9)]
    removed = allocate(found, scores, Target("ratio", 0.4), Limits(), "global")
    assert removed_counts(found, removed) == [0, 20]
    assert removed[second[:20]].all()
    removed = allocate(found, scores, Target("ratio", 0.5), Limits(), "global")
    assert removed_counts(found, removed) == [5, 20]
    assert removed[first[:5]].all()


def test_a_ratio_that_removes_nothing_is_an_error() -> None:
    found = secateur.analyze(mlp(5, 10, 3), dims={"N": 1})
    with pytest.raises(TargetError, match=r"a ratio of 0\.04 removes no unit"):
        allocate(found, random_scores(found, 0), Target("ratio", 0.04), Limits())
    removed = allocate(found, random_scores(found, 0), Target("ratio", 0.05), Limits())
    assert removed.sum() == 1


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_group_keeps_one_unit(scope: Scope) -> None:
    found = secateur.analyze(mlp(5, 10, 40, 3), dims={"N": 1})
    scores = random_scores(found, 1)
    scores[found.groups[0].units] *= 1e-9
    removed = allocate(found, scores, Target("ratio", 0.999), Limits(), scope)
    assert removed_counts(found, removed) == [9, 39]


@pytest.mark.parametrize("scope", ["local", "global"])
def test_max_ratio_caps_every_group(scope: Scope) -> None:
    found = secateur.analyze(mlp(5, 10, 40, 3), dims={"N": 1})
    scores = random_scores(found, 1)
    limits = Limits(max_ratio=0.35)
    removed = allocate(found, scores, Target("ratio", 0.9), limits, scope)
    assert removed_counts(found, removed) == [3, 14]
    least, whole = 5 * 7 + 7 * 26 + 26 * 3, 5 * 10 + 10 * 40 + 40 * 3
    assert round(least / whole, 5) == 0.51754
    with pytest.raises(TargetError, match=r"at best 0\.5176 can"):
        allocate(found, scores, Target("macs", 0.3), limits, scope)


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("kind", ["ratio", "macs", "params"])
def test_round_to_aligns_what_is_kept(
    kind: Literal["ratio", "macs", "params"], scope: Scope
) -> None:
    found = secateur.analyze(mlp(5, 24, 40, 30, 3), dims={"N": 1})
    for seed in range(5):
        scores = random_scores(found, seed)
        removed = allocate(found, scores, Target(kind, 0.5), Limits(round_to=8), scope)
        kept = [
            len(g.units) - n
            for g, n in zip(found.groups, removed_counts(found, removed), strict=True)
        ]
        assert removed.any()
        for group, count in zip(found.groups, kept, strict=True):
            assert count % 8 == 0 or count == len(group.units)


def test_round_to_counts_channels_of_every_contraction() -> None:
    """pixel_shuffle_crd: four channels of w2 per unit but one of w3, so that any number of units
    is a multiple of four channels in w2, and only every fourth in w3."""
    found = analysis("pixel_shuffle_crd")
    group = next(g for g in found.groups if len(g.units) == 8)
    for round_to, step in ((2, 2), (4, 4)):
        for ratio in (0.3, 0.5, 0.6):
            limits = Limits(round_to=round_to)
            target = Target("ratio", ratio)
            removed = allocate(found, random_scores(found, 2), target, limits)
            gone = int(removed[group.units].sum())
            wanted = math.floor(8 * ratio + 0.5)
            assert gone == 8 - math.ceil((8 - wanted) / step) * step


def test_inexact_groups_only_when_asked() -> None:
    found = analysis("transformer_layer_norm")
    inexact = [g for g in found.groups if not g.exact]
    assert len(inexact) == 1
    scores = random_scores(found, 3)
    removed = allocate(found, scores, Target("ratio", 0.5), Limits())
    assert not removed[inexact[0].units].any()
    removed = allocate(found, scores, Target("ratio", 0.5), Limits(inexact=True))
    assert removed[inexact[0].units].sum() == len(inexact[0].units) // 2


def test_nothing_prunable_says_what_would_help() -> None:
    target = Target("ratio", 0.5)
    stuck = secateur.analyze(mlp(5, 1, 3), dims={"N": 1})
    with pytest.raises(TargetError, match=r"nothing in this model can be pruned; run 'secateur"):
        allocate(stuck, np.ones(stuck.unit_count), target, Limits())
    free = secateur.analyze(mlp(5, 10, 3), dims={"N": 1})
    with pytest.raises(TargetError, match=r"`max_ratio`, `round_to`"):
        allocate(free, np.ones(free.unit_count), target, Limits(round_to=16))
    with pytest.raises(TargetError, match=r"`max_ratio`, `round_to`"):
        allocate(free, np.ones(free.unit_count), target, Limits(max_ratio=0.05))
    norm = secateur.analyze(GRAPHS["convnext"](), dims={"N": 2}, protect=["h"])
    with pytest.raises(TargetError, match=r"1 group.* inexact: allow .* with `inexact`"):
        allocate(norm, np.ones(norm.unit_count), target, Limits())
    assert allocate(norm, np.ones(norm.unit_count), target, Limits(inexact=True)).any()
    odd = secateur.analyze(GRAPHS["custom_operator"](), dims={"N": 2}, protect=["w1", "w4"])
    with pytest.raises(TargetError, match=r"no coupling rule for vendor\.ops\.Mystery"):
        allocate(odd, np.ones(odd.unit_count), target, Limits())


# ---- macs and params ----------------------------------------------------------------------------


def check_tight(found: Analysis, scores: Scores, kind: Kind, share: float, scope: Scope) -> None:
    """At most the target; one more unit in any group, the last that went, would be too much."""
    limit = share * cost(found, None, kind)
    removed = allocate(found, scores, Target(kind, share), Limits(), scope)
    assert cost(found, removed, kind) <= limit
    for group in found.groups:
        gone = group.units[removed[group.units]]
        assert len(gone) < len(group.units)
        kept = np.setdiff1d(group.units, gone)
        assert scores[gone].max(initial=0) <= scores[kept].min()
        if len(gone):
            more = removed.copy()
            more[gone[np.argmax(scores[gone])]] = False
            assert cost(found, more, kind) > limit, group.name


@pytest.mark.parametrize("name", NAMES)
def test_tight_on_every_graph(name: str) -> None:
    for kind, scope in product(get_args(Kind), get_args(Scope)):
        check_budgets(name, kind, scope)


def check_budgets(name: str, kind: Kind, scope: Scope) -> None:
    found = analysis(name)
    scores = random_scores(found, 4)
    everything = np.zeros(found.unit_count, np.bool_)
    for group in found.groups:
        if group.exact:
            order = np.argsort(scores[group.units], kind="stable")
            everything[group.units[order[:-1]]] = True
    whole = cost(found, None, kind)
    least = cost(found, everything, kind) / whole
    for share in (0.9, 0.6, 0.3):
        if share > least + 0.01:
            check_tight(found, scores, kind, share, scope)
    message = r"(MACs|parameters) cannot go down to .* at best (0\.\d+) can be reached"
    with pytest.raises(TargetError, match=message) as raised:
        allocate(found, scores, Target(kind, least * 0.99), Limits(), scope)
    reachable = float(str(raised.value).split("at best ")[1].split()[0])
    assert least * (1 - 1e-9) <= reachable <= least * 1.001, "what is offered can be had"
    check_tight(found, scores, kind, reachable, scope)


@settings(max_examples=60)
@given(
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    share=st.floats(0.3, 1.0),
    kind=st.sampled_from(["macs", "params"]),
    scope=st.sampled_from(["local", "global"]),
)
def test_tight_on_random_networks(
    widths: list[int], seed: int, share: float, kind: Kind, scope: Scope
) -> None:
    found = secateur.analyze(mlp(3, *widths, 2), dims={"N": 1})
    scores = random_scores(found, seed)
    try:
        check_tight(found, scores, kind, share, scope)
    except TargetError:
        least = sum(a * b for a, b in ((3, 1), (1, 2))) + len(widths) - 1
        assert max(widths) == 1 or least > share * cost(found, None, kind)


def test_equal_scores_give_the_same_answer_every_time() -> None:
    found = analysis("inception")
    scores = np.ones(found.unit_count)
    scopes: tuple[Scope, Scope] = ("local", "global")
    for scope in scopes:
        first = allocate(found, scores, Target("macs", 0.6), Limits(), scope)
        again = allocate(found, scores, Target("macs", 0.6), Limits(), scope)
        assert np.array_equal(first, again)


def test_zero_scores_are_allowed() -> None:
    """A group of nothing but zeros has no mean to be measured by."""
    found = analysis("residual_identity")
    scores = random_scores(found, 5)
    scores[found.groups[0].units] = 0
    check_tight(found, scores, "macs", 0.6, "global")
    removed = allocate(found, scores, Target("ratio", 0.3), Limits(), "global")
    assert removed_counts(found, removed) == [12, 0, 0], "all twelve are worth nothing"
