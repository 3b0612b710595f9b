"""Attention as exporters write it: exactly the groups counted by hand, with either carrier."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import secateur

from .graphs import GRAPHS, INFO
from .graphs_attention_forms import FORMS
from .pruning_checks import CARRIERS, Carrier, at_random, check_pruned, prune_random


def groups(found: secateur.Analysis) -> Counter[tuple[str, frozenset[str]]]:
    """Units and weights of every group of more than one unit."""
    names = found.weight_names
    return Counter(
        (
            f"{'' if group.exact else '~'}{len(group.units)}",
            frozenset(found.owners[axis][0] for axis in group.axes) & names,
        )
        for group in found.groups
        if len(group.units) > 1
    )


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("name", FORMS)
def test_groups_are_those_counted_by_hand(name: str, batch: int, carrier: Carrier) -> None:
    """A batch of one looks like no batch at all, and yet the heads are found."""
    sizes = {"N": batch, "T": 5, "S": 7, "P": 3}
    dims = {dim: sizes[dim] for dim in INFO[name].dims}
    found = secateur.analyze(GRAPHS[name](), dims=dims, carrier=carrier)
    wanted = [group.split() for group in FORMS[name][carrier].split(";")]
    assert groups(found) == Counter((units, frozenset(weights)) for units, *weights in wanted)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", FORMS)
def test_inexact_units_too(name: str, carrier: Carrier) -> None:
    prune_random(name, 0.5, 4, inexact=True, carrier=carrier)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", FORMS)
def test_pruned_from_a_batch_of_one(name: str, carrier: Carrier) -> None:
    """What was learned at one and two is right at three, five and seven."""
    dims = {dim: 1 if dim == "N" else 4 for dim in INFO[name].dims}
    found = secateur.analyze(GRAPHS[name](), dims=dims, carrier=carrier)
    plan = secateur.Plan(found, at_random(found, 0.5, 1))
    rewritten = secateur.rewrite(plan)
    assert secateur.certify(plan, rewritten, threads=1).ok
    check_pruned(name, rewritten, exact=True, sizes=(3, 5, 7))


def test_a_dynamic_axis_keeps_the_share_of_its_static_factor() -> None:
    """Of N * 4 heads N * 3 stay: the target says so at run time."""
    found = secateur.analyze(GRAPHS["batched_heads"](), dims={"T": 5, "N": 1})
    removed = np.zeros(found.unit_count, np.bool_)
    removed[found.groups[0].units[:1]] = True
    coupling = found.coupling
    moving = [axis for axis in coupling.moving if found.units_of(axis) is not None]
    assert moving
    for axis in moving:
        keep = found.keep(axis, removed)
        assert (len(keep), keep.sum()) == (4, 3)
        assert coupling.kept_later(axis, keep).tolist() == [*keep, *keep]
