"""Links, pins and choices against a fixpoint over coordinates; units against networkx."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur
from secateur.ir.analysis import Analysis
from secateur.ir.coupling import Alternative, Choice, Coupling, Indices

from .graphs import GRAPHS, INFO


def at(*numbers: int) -> Indices:
    return np.array(numbers, np.int64)


def coordinates(coupling: Coupling) -> nx.Graph[tuple[int, int]]:
    """Every coordinate (axis, index) is a node, every linked pair an edge."""
    graph: nx.Graph[tuple[int, int]] = nx.Graph()
    for axis, size in enumerate(coupling.sizes):
        graph.add_nodes_from((axis, k) for k in range(size))
    for link in coupling.links:
        if link.a_index is None or link.b_index is None:
            graph.add_edges_from(((link.a, k), (link.b, k)) for k in range(coupling.sizes[link.a]))
        else:
            graph.add_edges_from(
                ((link.a, int(i)), (link.b, int(j)))
                for i, j in zip(link.a_index, link.b_index, strict=True)
            )
    return graph


def pinned_by_hand(coupling: Coupling) -> set[tuple[int, int]]:
    """All coordinates in a component that holds a pin."""
    stated = {
        (pin.axis, int(k))
        for pin in coupling.pins
        for k in (range(coupling.sizes[pin.axis]) if pin.index is None else pin.index)
    }
    found: set[tuple[int, int]] = set()
    for component in nx.connected_components(coordinates(coupling)):
        if component & stated:
            found |= component
    return found


def pinned(coupling: Coupling) -> set[tuple[int, int]]:
    found = set()
    for axis in range(len(coupling.sizes)):
        flags = coupling.pinned(axis)
        if flags is not None:
            assert flags.shape == (coupling.sizes[axis],)
            found |= {(axis, int(k)) for k in np.flatnonzero(flags)}
    return found


# ---- pins ---------------------------------------------------------------------------------------


def test_axes_are_numbered_and_their_own_class() -> None:
    coupling = Coupling()
    assert coupling.add_axes((3, 4)) == range(2)
    assert coupling.add_axes(()) == range(2, 2)
    assert coupling.add_axes((5,)) == range(2, 3)
    assert [coupling.root(a) for a in range(3)] == [0, 1, 2]
    assert coupling.pinned(0) is None and not coupling.is_pinned(0)


def test_identity_links_merge_and_must_agree_in_size() -> None:
    coupling = Coupling()
    coupling.add_axes((3, 3, 4))
    coupling.link(0, 1, None, None, 0)
    assert coupling.root(0) == coupling.root(1) != coupling.root(2)
    with pytest.raises(ValueError, match="sizes 3 and 4"):
        coupling.link(1, 2, None, None, 0)


def test_pins_pass_through_links_made_before_and_after() -> None:
    coupling = Coupling()
    coupling.add_axes((4, 2, 4, 4))
    coupling.link(0, 1, at(0, 1), at(0, 1), 0)
    coupling.pin(1, at(1), "first", 0)
    assert pinned(coupling) == {(0, 1), (1, 1)}
    coupling.link(0, 2, at(1, 2), at(3, 0), 0)
    assert pinned(coupling) == {(0, 1), (1, 1), (2, 3)}
    coupling.link(2, 3, None, None, 0)
    assert pinned(coupling) == {(0, 1), (1, 1), (2, 3), (3, 3)}
    coupling.pin(3, None, "all", 0)
    assert coupling.is_pinned(2) and not coupling.is_pinned(0)
    assert pinned(coupling) == pinned_by_hand(coupling)


def test_pins_run_round_within_one_axis() -> None:
    """A shuffle links an axis with itself: 0 -> 1 -> 3 -> 2 -> 0, and 4 with itself."""
    coupling = Coupling()
    coupling.add_axes((5,))
    coupling.link(0, 0, at(0, 1, 3, 2, 4), at(1, 3, 2, 0, 4), 0)
    coupling.pin(0, at(3), "one", 0)
    assert pinned(coupling) == {(0, k) for k in range(4)}


def _program(draw: st.DrawFn) -> tuple[list[int], list[tuple[Any, ...]]]:
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=8))
    axis = st.integers(0, len(sizes) - 1)
    steps: list[tuple[Any, ...]] = []
    for _ in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["link", "link", "whole", "pin", "pin all", "ask"]))
        a, b = draw(axis), draw(axis)
        if kind == "link":
            pairs = st.tuples(st.integers(0, sizes[a] - 1), st.integers(0, sizes[b] - 1))
            found = draw(st.lists(pairs, max_size=5))
            steps.append((kind, a, b, at(*(i for i, _ in found)), at(*(j for _, j in found))))
        elif kind == "pin":
            steps.append((kind, a, at(*draw(st.lists(st.integers(0, sizes[a] - 1), max_size=3)))))
        else:
            steps.append((kind, a, b))
    return sizes, steps


@settings(max_examples=300)
@given(program=st.composite(_program)())
def test_pins_equal_the_fixpoint(program: tuple[list[int], list[tuple[Any, ...]]]) -> None:
    """Links, merges and pins in any order, with questions in between."""
    sizes, steps = program
    coupling = Coupling()
    coupling.add_axes(tuple(sizes))
    for site, step in enumerate(steps):
        match step:
            case ("link", a, b, first, second):
                coupling.link(a, b, first, second, site)
            case ("whole", a, b) if sizes[a] == sizes[b]:
                coupling.link(a, b, None, None, site)
            case ("pin", a, index):
                coupling.pin(a, index, "some", site)
            case ("pin all", a, _):
                coupling.pin(a, None, "all", site)
            case ("ask", a, _):
                by_hand = {k for axis, k in pinned_by_hand(coupling) if axis == a}
                assert coupling.is_pinned(a) == (len(by_hand) == sizes[a])
    assert pinned(coupling) == pinned_by_hand(coupling)
    for axis, size in enumerate(sizes):
        whole = {(axis, k) for k in range(size)} <= pinned_by_hand(coupling)
        assert coupling.is_pinned(axis) == whole


# ---- choices ------------------------------------------------------------------------------------


class Log:
    """Alternatives that say when they were taken."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.taken: list[str] = []

    def take(self, name: str, then: Callable[[], None]) -> None:
        self.taken.append(name)
        then()

    def choice(self, site: int, *alternatives: Alternative) -> None:
        otherwise = partial(self.take, f"{site} none", lambda: None)
        self.coupling.choices.append(Choice(site, alternatives, otherwise))

    def way(
        self,
        name: str,
        axis: int,
        digit: Indices,
        *,
        needs: tuple[int, ...] | None = None,
        hint: tuple[int, ...] = (),
        rank: int = 0,
        then: Callable[[], None] = lambda: None,
    ) -> Alternative:
        apply = partial(self.take, name, then)
        needs = (axis,) if needs is None else needs
        return Alternative(name, needs, ((axis, digit),), apply, hint, rank)


def two_ways(coupling: Coupling, site: int, axis: int, log: Log, **hints: tuple[int, ...]) -> None:
    """An axis of 6 as 2 x 3: units along the outer factor (2) or the inner one (3)."""
    log.choice(
        site,
        log.way(f"{site} outer", axis, at(0, 0, 0, 1, 1, 1), hint=hints.get("outer", ())),
        log.way(f"{site} inner", axis, at(0, 1, 2, 0, 1, 2), hint=hints.get("inner", ())),
    )


def test_the_larger_number_of_units_is_preferred() -> None:
    coupling = Coupling()
    coupling.add_axes((6,))
    log = Log(coupling)
    two_ways(coupling, 0, 0, log)
    coupling.resolve()
    assert log.taken == ["0 inner"] and coupling.carriers == {0: "0 inner"}


@pytest.mark.parametrize(("prefer", "wanted"), [("heads", "0 outer"), ("head-dim", "0 inner")])
def test_heads_come_first_unless_head_dimensions_are_asked_for(prefer: str, wanted: str) -> None:
    coupling = Coupling()
    coupling.add_axes((6, 2, 2))
    coupling.link(1, 2, None, None, 0)
    coupling.heads.add(2)
    log = Log(coupling)
    two_ways(coupling, 0, 0, log, outer=(1,))
    coupling.resolve(prefer)
    assert log.taken == [wanted]


def test_links_that_tie_units_together_count() -> None:
    """Inner digits 0, 1 and 2 are tied already, so that the two outer ones are more."""
    coupling = Coupling()
    coupling.add_axes((6, 1))
    coupling.link(0, 1, at(0, 1, 2), at(0, 0, 0), 0)
    log = Log(coupling)
    two_ways(coupling, 0, 0, log)
    coupling.resolve()
    assert log.taken == ["0 outer"]


def test_rank_comes_before_the_number_of_units() -> None:
    coupling = Coupling()
    coupling.add_axes((6,))
    log = Log(coupling)
    log.choice(
        0,
        log.way("many", 0, at(0, 1, 2, 3, 4, 5)),
        log.way("few", 0, at(0, 0, 0, 1, 1, 1), rank=1),
    )
    coupling.resolve()
    assert log.taken == ["few"]


def test_what_needs_a_pinned_axis_is_out() -> None:
    coupling = Coupling()
    coupling.add_axes((6, 3, 3))
    coupling.link(1, 2, None, None, 0)
    coupling.pin(2, None, "spatial", 0)
    log = Log(coupling)
    log.choice(
        0,
        log.way("outer", 0, at(0, 0, 0, 1, 1, 1), needs=(0,)),
        log.way("inner", 0, at(0, 1, 2, 0, 1, 2), needs=(0, 1)),
    )
    log.choice(1, log.way("never", 1, at(0, 1, 2)))
    coupling.resolve()
    assert log.taken == ["outer", "1 none"]
    assert coupling.carriers == {0: "outer"}


def test_a_partly_pinned_axis_may_still_carry() -> None:
    coupling = Coupling()
    coupling.add_axes((6,))
    coupling.pin(0, at(0), "one", 0)
    log = Log(coupling)
    two_ways(coupling, 0, 0, log)
    coupling.resolve()
    assert log.taken == ["0 inner"]


def test_forced_choices_are_taken_first_and_pin_what_follows() -> None:
    """Choice 2 is forced and pins axis 1; that forces choice 1, which pins axis 0 and leaves
    nothing to choice 0, although it comes first."""
    coupling = Coupling()
    coupling.add_axes((6, 6, 6))
    log = Log(coupling)

    def pins(axis: int) -> Callable[[], None]:
        return lambda: coupling.pin(axis, None, "chosen away", 9)

    two_ways(coupling, 0, 0, log)
    log.choice(
        1,
        log.way("1 needs axis 1", 1, at(0, 0, 0, 1, 1, 1)),
        log.way("1 needs none", 0, at(0, 1, 2, 0, 1, 2), needs=(), then=pins(0)),
    )
    log.choice(2, log.way("2 only", 2, at(0, 1, 2, 3, 4, 5), then=pins(1)))
    coupling.resolve()
    assert log.taken == ["2 only", "1 needs none", "0 none"]


def test_every_choice_is_decided_once() -> None:
    coupling = Coupling()
    axes = coupling.add_axes((6,) * 20)
    log = Log(coupling)
    for site, axis in enumerate(axes):
        two_ways(coupling, site, axis, log)
    coupling.resolve()
    assert sorted(coupling.carriers) == list(range(20))
    assert len(log.taken) == 20


# ---- units and groups ---------------------------------------------------------------------------


@pytest.mark.parametrize("prefer", ["heads", "head-dim"])
@pytest.mark.parametrize("name", INFO)
def test_units_are_the_components_without_a_pin_that_own_a_weight(name: str, prefer: Any) -> None:
    dims = {d: 2 + i for i, d in enumerate(INFO[name].dims)}
    found = secateur.analyze(GRAPHS[name](), dims=dims, carrier=prefer)
    graph, kept = coordinates(found.coupling), pinned_by_hand(found.coupling)
    owned = {axis for w in found.weights if len(w.axes) == 1 for axis in w.axes[0]}
    expected = [
        component
        for component in nx.connected_components(graph)
        if not component & kept and any(axis in owned for axis, _ in component)
    ]
    assert found.unit_count == len(expected)
    unit_of = _units(found)
    numbers = [{unit_of.pop(c) for c in component} for component in expected]
    assert all(len(n) == 1 for n in numbers), "one unit per component"
    assert {min(n) for n in numbers} == set(range(len(expected)))
    assert set(unit_of.values()) <= {-1}

    touched = {
        min(n): frozenset(axis for axis, _ in c if found.owners[axis][0])
        for n, c in zip(numbers, expected, strict=True)
    }
    seen: set[int] = set()
    for group in found.groups:
        members = group.units.tolist()
        assert members == sorted(members) and not seen & set(members)
        seen.update(members)
        assert {touched[u] for u in members} == {frozenset(group.axes)}
    assert seen == set(range(found.unit_count))
    assert len({touched[u] for u in seen}) == len(found.groups), "equal sets make one group"


def _units(found: Analysis) -> dict[tuple[int, int], int]:
    units: dict[tuple[int, int], int] = {}
    for axis, size in enumerate(found.coupling.sizes):
        own = found.units_of(axis)
        for k in range(size):
            units[axis, k] = -1 if own is None else int(own[k])
    return units


def test_keep_and_new_size() -> None:
    found = secateur.analyze(GRAPHS["split_unequal"](), dims={"N": 2})
    axis = next(w for w in found.weights if w.name == "w0").axes[0][0]
    units = found.units_of(axis)
    assert units is not None and len(units) == 16
    removed = np.zeros(found.unit_count, np.bool_)
    removed[units[[1, 5, 6]]] = True
    assert np.flatnonzero(~found.keep(axis, removed)).tolist() == [1, 5, 6]
    assert found.new_size(axis, removed) == 13
    first = next(w for w in found.weights if w.name == "wa").axes[0]
    assert [found.new_size(a, removed) for a in first] == [8, 3, 3, 3]
    assert found.units_of(first[2]) is None and found.keep(first[2], removed).all()
