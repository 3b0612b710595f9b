"""Every proof graph, pruned in many ways: certified, well formed, and as promised.

Beside `secateur.runtime.certificate` stands a reference that shares nothing with it: the original
with the reported slices set to zero (`pruning_checks.zeroed`).
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import secateur
from secateur.ir.errors import CertificateError
from secateur.ir.io import to_proto
from secateur.ir.rewrite import Rewritten

from .graphs import GRAPHS, INFO
from .probing_draw import NIGHTLY
from .pruning_checks import (
    CARRIERS,
    RUNNABLE,
    analysis,
    at_random,
    check_pruned,
    constants,
    dims,
    prunable,
    prune_random,
)

RATIOS = (0.25, 0.5, 0.8)


# ---- what is found and what shrinks -------------------------------------------------------------


@pytest.mark.parametrize("name", INFO)
def test_expected_groups(name: str) -> None:
    assert len(prunable(analysis(name))) >= INFO[name].exact_groups


@pytest.mark.parametrize("name", INFO)
def test_expected_weights_shrink_and_stay(name: str) -> None:
    found = analysis(name)
    removed = at_random(found, 0.5, 0)
    rewritten = secateur.rewrite(secateur.Plan(found, removed))
    before, after = constants(GRAPHS[name]()), constants(to_proto(rewritten.model))
    for tensor in INFO[name].must_shrink:
        assert np.prod(after[tensor].dims) < np.prod(before[tensor].dims), tensor
    for tensor in INFO[name].must_stay:
        assert after[tensor] == before[tensor], tensor
    assert {s.tensor for s in rewritten.slices} >= set(INFO[name].must_shrink)


# ---- certified and run --------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNNABLE)
def test_random_units(name: str) -> None:
    for seed, ratio in enumerate(RATIOS * NIGHTLY):
        prune_random(name, ratio, seed)


@pytest.mark.parametrize("name", RUNNABLE)
def test_one_unit_left_in_every_group(name: str) -> None:
    plan, _ = prune_random(name, 1.0, 2)
    assert all((~plan.removed[g.units]).sum() == 1 for g in prunable(plan.analysis))


@pytest.mark.parametrize("name", RUNNABLE)
def test_head_dimensions(name: str) -> None:
    prune_random(name, 0.5, 3, carrier="head-dim")


def test_head_dimensions_are_the_same_place_in_all_heads() -> None:
    """Two heads of eight: units are whole heads, or one place of all heads at once."""
    model = GRAPHS["separate_qkv"]()
    constants(model)["split4"].CopyFrom(numpy_helper.from_array(np.array([0, 0, 2, 8]), "split4"))
    heads, places = (secateur.analyze(model, dims={"N": 1, "T": 3}, carrier=c) for c in CARRIERS)
    for found, wanted in (
        (heads, [range(8), range(8, 16)]),
        (places, [(k, k + 8) for k in range(8)]),
    ):
        units = found.units_of(next(w for w in found.weights if w.name == "wv").axes[0][1])
        assert units is not None
        columns = [tuple(np.flatnonzero(units == unit)) for unit in np.unique(units)]
        assert sorted(columns) == [tuple(w) for w in wanted]
        plan = secateur.Plan(found, at_random(found, 0.5, 9))
        assert secateur.certify(plan, secateur.rewrite(plan), threads=1).ok


INEXACT = ["swin_block", "transformer_decomposed_norm", "transformer_layer_norm", "mlp_mixer",
           "convnext", "encoder_fused", "llama_fused",
           "efficient_channel_attention"]  # fmt: skip


@pytest.mark.parametrize("name", RUNNABLE)
def test_inexact_groups_are_where_a_node_looks_across(name: str) -> None:
    found = analysis(name)
    assert any(not g.exact and len(g.units) > 1 for g in found.groups) == (name in INEXACT)


@pytest.mark.parametrize("name", INEXACT)
def test_inexact(name: str) -> None:
    for seed, ratio in enumerate(RATIOS * 2):
        plan, _ = prune_random(name, ratio, seed, inexact=True)
        assert any(plan.removed[g.units].any() for g in plan.analysis.groups if not g.exact)


@pytest.mark.parametrize("name", INEXACT)
def test_inexact_with_head_dimensions(name: str) -> None:
    prune_random(name, 0.6, 5, inexact=True, carrier="head-dim")


@pytest.mark.parametrize("name", INEXACT)
def test_inexact_with_one_unit_left(name: str) -> None:
    """A norm over a single channel."""
    prune_random(name, 1.0, 6, inexact=True)


@pytest.mark.parametrize("name", RUNNABLE)
def test_lowest_norm(name: str) -> None:
    """The whole way; `test_random_units` goes through the ratios."""
    result = secateur.prune(
        GRAPHS[name](), ratio=0.6, dims=dims(name), seed=10, threads=1, bench=False
    )
    assert result.certificate is not None and result.certificate.ok
    assert result.certificate.seeds == (10, 11, 12)
    assert result.certificate.replay is not None and result.certificate.replay["agrees"]
    pruning = result.pruning
    assert pruning is not None
    check_pruned(name, Rewritten(result.model, pruning.slices), exact=True, sizes=[3])


@pytest.mark.parametrize("name", RUNNABLE)
def test_round_to(name: str) -> None:
    """Every group keeps a multiple of two channels of each weight that produces it, or all."""
    result = secateur.prune(
        GRAPHS[name](), ratio=0.4, round_to=2, dims=dims(name), threads=1, bench=False
    )
    pruning = result.pruning
    assert pruning is not None
    rewritten = Rewritten(result.model, pruning.slices)
    after = constants(check_pruned(name, rewritten, exact=True))
    for entry in rewritten.slices:
        if entry.role == "producer":
            axis = next(w for w in analysis(name).weights if w.name == entry.tensor).axes[0][
                entry.axis
            ]
            units = analysis(name).units_of(axis)
            assert units is not None
            groups = np.where(units < 0, -1, analysis(name).group_of_unit[units])
            kept = np.delete(groups, list(entry.indices))
            assert kept.size == after[entry.tensor].dims[entry.axis]
            for group in np.unique(groups[list(entry.indices)]):
                assert (kept == group).sum() % 2 == 0


def test_a_model_that_cannot_run_is_refused() -> None:
    with pytest.raises(CertificateError, match="Mystery"):
        secateur.prune(GRAPHS["custom_operator"](), ratio=0.5, dims={"N": 2}, bench=False)
    found = analysis("custom_operator")
    rewritten = secateur.rewrite(secateur.Plan(found, at_random(found, 0.5, 0)))
    pruned = to_proto(rewritten.model)
    onnx.checker.check_model(pruned, full_check=True)
    shapes = {t: list(p.dims) for t, p in constants(pruned).items()}
    assert shapes["w1"] == [8, 3, 3, 3] and shapes["w2"] == [8, 8, 3, 3]
    assert shapes["w3"] == [8, 8, 3, 3] and shapes["w4"] == [4, 8, 3, 3]
