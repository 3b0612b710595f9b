"""Targets are met from above, and which units go is what the criterion says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx
import pytest

import secateur
from secateur.ir.io import to_proto

from .graphs import GRAPHS, Array
from .pruning_checks import SOME, arrays, dims, prune
from .quantised_models import dequantised, eight_bits, packed
from .test_cost import counted_macs, counted_parameters


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("name", SOME)
def test_macs_and_params_are_never_exceeded(name: str, scope: Literal["local", "global"]) -> None:
    model = GRAPHS[name]()
    macs, params = counted_macs(model, dims(name)), counted_parameters(model)
    for share in (0.9, 0.6):
        result = prune(model, name, macs=share, scope=scope)
        assert counted_macs(to_proto(result.model), dims(name)) <= share * macs
        result = prune(model, name, params=share, scope=scope)
        assert counted_parameters(to_proto(result.model)) <= share * params


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("name", ["residual_identity", "dense_concat", "swiglu_fused", "option_a"])
def test_no_unit_could_be_given_back(name: str, kind: Literal["macs", "params"]) -> None:
    """Rewritten once more with any one of the removed units kept, the model misses the target."""
    model = GRAPHS[name]()

    def count(proto: onnx.ModelProto) -> int:
        return counted_macs(proto, dims(name)) if kind == "macs" else counted_parameters(proto)

    result = prune(model, name, **{kind: 0.55})
    pruning = result.pruning
    assert pruning is not None
    assert count(to_proto(result.model)) <= 0.55 * count(model)
    for group in pruning.analysis.groups:
        for unit in group.units[pruning.removed[group.units]][:1]:
            more = pruning.removed.copy()
            more[unit] = False
            other = secateur.rewrite(secateur.Plan(pruning.analysis, more))
            assert count(to_proto(other.model)) > 0.55 * count(model)


@pytest.mark.parametrize(("ratio", "gone"), [(0.25, 4), (0.5, 8), (0.99, 15)])
def test_ratio_takes_its_share_of_every_group(ratio: float, gone: int) -> None:
    result = prune(GRAPHS["conv3d"](), "conv3d", ratio=ratio)
    assert [(g["units"], g["removed"]) for g in result.report["groups"]] == [
        (8, min(gone // 2 + (ratio > 0.9), 7)),
        (16, gone),
    ]
    shapes = {k: v.shape for k, v in arrays(to_proto(result.model)).items()}
    kept = 8 - result.report["groups"][0]["removed"]
    assert shapes["w1"] == (kept, 2, 3, 3, 3) and shapes["w2"] == (16 - gone, kept, 2, 2, 2)
    assert shapes["n_s"] == shapes["n_v"] == (kept,) and shapes["wy"] == (10, 16 - gone)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_the_lowest_norms_go(criterion: str) -> None:
    """Norms over the filters that make a channel and those that read it, biases left out."""
    model = GRAPHS["weights_in_constants"]()
    w = arrays(model)
    power: Callable[[Array], Array] = np.abs if criterion == "l1" else np.square
    first = power(w["w1"]).sum((1, 2, 3)) + power(w["w2"]).sum((0, 2, 3))
    second = power(w["w2"]).sum((1, 2, 3)) + power(w["wy"]).sum(1)
    result = prune(model, "weights_in_constants", ratio=0.25, criterion=criterion)
    removed = {(e["tensor"], e["axis"]): e["indices"] for e in result.report["removed"]}
    assert removed["w1", 0] == removed["b1", 0] == removed["w2", 1] == sorted(np.argsort(first)[:4])
    assert (
        removed["w2", 0] == removed["b2", 0] == removed["wy", 0] == sorted(np.argsort(second)[:6])
    )
    rest = [np.delete(w["w2"], removed["w2", 0], 0), removed["w2", 1]]
    after = arrays(to_proto(result.model))
    np.testing.assert_array_equal(after["w2"], np.delete(rest[0], rest[1], 1))


@pytest.mark.parametrize("criterion", ["l1", "l2"])
@pytest.mark.parametrize("zero", [{}, {"point": 90}])
def test_quantised_weights_are_ranked_by_what_they_stand_for(
    criterion: str, zero: dict[str, int]
) -> None:
    results = [
        prune(model, "dq_weights", ratio=0.5, criterion=criterion).report["removed"]
        for model in (eight_bits(**zero), dequantised(eight_bits(**zero)))
    ]
    quantised, real = ({(e["tensor"], e["axis"]): e["indices"] for e in r} for r in results)
    for number, axis in (("1", 0), ("2", 0), ("2", 1)):
        assert quantised[f"w{number}", axis] == real[f"k{number}", axis]


def test_blocks_of_four_bits_are_ranked_by_what_they_stand_for() -> None:
    removed = []
    for model, name in ((packed(3), "q1"), (dequantised(packed(3)), "k1")):
        report = prune(model, ratio=0.34).report
        removed.append(next(e["indices"] for e in report["removed"] if e["tensor"] == name))
    real = arrays(dequantised(packed(3)))
    norms = np.square(real["k1"]).sum(0) + np.square(real["k2"]).sum(1)
    assert removed[0] == [3 * int(np.argmin(norms.reshape(3, 3).sum(1))) + k for k in range(3)]
    assert sorted(np.argsort(norms)[:3]) == removed[1]


def test_global_scope_compares_shares_of_the_groups_mean() -> None:
    model = GRAPHS["weights_in_constants"]()
    w = arrays(model)
    first = np.sqrt(np.square(w["w1"]).sum((1, 2, 3)) + np.square(w["w2"]).sum((0, 2, 3)))
    second = np.sqrt(np.square(w["w2"]).sum((1, 2, 3)) + np.square(w["wy"]).sum(1))
    order = np.argsort(np.r_[first / first.mean(), second / second.mean()])[:16]
    result = prune(model, "weights_in_constants", ratio=0.4, scope="global")
    removed = {(e["tensor"], e["axis"]): e["indices"] for e in result.report["removed"]}
    assert removed.get(("w1", 0), []) == sorted(k for k in order if k < 16)
    assert removed.get(("w2", 0), []) == sorted(k - 16 for k in order if k >= 16)
