"""Carriers are chosen together: no other combination of alternatives leaves less work, or as much
work and more units."""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import networkx as nx
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur
from secateur.ir.coupling import Alternative, Choice, Coupling

from .certified_models import parse

SIZE = 24
Split = tuple[int, int]
"""An axis and the size of the outer factor that a choice takes it apart into."""


def ties(split: Split, inner: bool) -> list[tuple[int, int]]:
    """For every coordinate of the axis, its number and its digit."""
    outer = split[1]
    return [(k, k % (SIZE // outer) if inner else k * outer // SIZE) for k in range(SIZE)]


def shuffled(groups: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Where a channel shuffle puts every coordinate."""
    return np.arange(SIZE, dtype=np.int64).reshape(groups, -1).T.reshape(-1).argsort()


def by_hand(
    shuffles: list[int],
    splits: list[Split],
    products: list[tuple[int, ...]],
    inner: tuple[bool, ...],
) -> tuple[float, float]:
    """The score of one combination, with components counted by networkx: the work that goes when
    half of every axis goes that has two units or more, and the units."""
    graph: nx.Graph[tuple[object, ...]] = nx.Graph()
    graph.add_nodes_from((axis, k) for axis in range(len(shuffles) + 1) for k in range(SIZE))
    for axis, groups in enumerate(shuffles):
        graph.add_edges_from(
            ((axis, k), (axis + 1, int(t))) for k, t in enumerate(shuffled(groups))
        )
    for number, (split, side) in enumerate(zip(splits, inner, strict=True)):
        for k, digit in ties(split, side):
            graph.add_edge((split[0], k), ("digit", number, digit))
    found = list(nx.connected_components(graph))
    axes = range(len(shuffles) + 1)
    units = [sum(any((axis, k) in c for k in range(SIZE)) for c in found) for axis in axes]
    left = sum(math.prod(SIZE / (1 + (units[a] > 1)) for a in p) for p in products)
    return -left, sum(math.log2(units[axis]) for axis, _ in splits)


@settings(max_examples=80)
@given(
    shuffles=st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=2),
    splits=st.lists(st.tuples(st.integers(0, 1), st.sampled_from([2, 3, 4, 6, 8, 12])),
                    min_size=2, max_size=3),
    products=st.lists(st.sets(st.integers(0, 1), min_size=1).map(tuple), max_size=2),
)  # fmt: skip
def test_no_combination_is_better(
    shuffles: list[int], splits: list[Split], products: list[tuple[int, ...]]
) -> None:
    """Axes joined by channel shuffles; every choice takes an outer or an inner factor."""
    coupling = Coupling(products=products)
    coupling.add_axes((SIZE,) * (len(shuffles) + 1))
    for axis, groups in enumerate(shuffles):
        coupling.link(axis, axis + 1, np.arange(SIZE), shuffled(groups), 0)
    taken: dict[int, bool] = {}

    def take(number: int, inner: bool) -> None:
        axis, outer = splits[number]
        taken[number] = inner
        hub = coupling.add_axes((SIZE // outer if inner else outer,))[0]
        digit = np.array([d for _, d in ties(splits[number], inner)])
        coupling.link(axis, hub, np.arange(SIZE), digit, number)

    for number, split in enumerate(splits):
        options = tuple(
            Alternative(
                "inner" if inner else "outer",
                (split[0],),
                ((split[0], np.array([d for _, d in ties(split, inner)])),),
                partial(take, number, inner),
            )
            for inner in (False, True)
        )
        coupling.choices.append(Choice(number, options, lambda: None))
    coupling.resolve()
    every = product([False, True], repeat=len(splits))
    best = max(by_hand(shuffles, splits, products, sides) for sides in every)
    sides = tuple(taken[number] for number in range(len(splits)))
    assert by_hand(shuffles, splits, products, sides) == pytest.approx(best)


def test_a_chain_of_factored_layers_keeps_units() -> None:
    """Four by four channels: a grouped convolution, a channel shuffle and a pixel shuffle. Taking
    whole groups everywhere leaves one unit; places inside the groups leave four at each end."""
    rng = np.random.default_rng(0)
    shapes = {"w0": (16, 3, 1, 1), "w1": (16, 4, 1, 1), "w2": (5, 4, 1, 1)}
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    model = parse(
        """g (float[N, 3, 6, 6] x) => (float[N, 5, 12, 12] y) {
            a = Conv(x, w0) b = Conv<group = 4>(a, w1) r = Reshape(b, five)
            t = Transpose<perm = [0, 2, 1, 3, 4]>(r) u = Reshape(t, four)
            p = DepthToSpace<blocksize = 2, mode = "CRD">(u) y = Conv(p, w2) }""",
        {
            **weights,
            "five": np.array([0, 4, 4, 6, 6], np.int64),
            "four": np.array([0, 16, 6, 6], np.int64),
        },
    )
    found = secateur.analyze(model, dims={"N": 2})
    assert [len(group.units) for group in found.groups] == [4, 4]
    removed = np.zeros(found.unit_count, np.bool_)
    for group in found.groups:
        removed[group.units[1:3]] = True
    plan = secateur.Plan(found, removed)
    assert secateur.certify(plan, secateur.rewrite(plan), threads=1).ok


def grouped(
    middle: str, **more: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> onnx.ModelProto:
    """A bottleneck round a convolution of 8 groups of 4 channels, and what follows it."""
    rng = np.random.default_rng(1)
    shapes = {"w0": (32, 3, 1, 1), "w1": (32, 4, 3, 3), "w2": (5, 32, 1, 1)}
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    return parse(
        f"""g (float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y) {{
            a = Conv(x, w0) b = Conv<group = 8, pads = [1, 1, 1, 1]>(a, w1) {middle}
            y = Conv(c, w2) }}""",
        weights | more,
        opset=18,
    )


def shape_after(model: onnx.ModelProto, weight: str) -> tuple[int, ...]:
    result = secateur.prune(model, ratio=0.5, dims={"N": 2}, bench=False, threads=1)
    assert result.certificate is not None and result.certificate.ok
    shape = result.model.graph.initializers[weight].shape
    assert shape is not None
    return tuple(shape.numpy())


def test_places_inside_groups_save_more_than_groups() -> None:
    """Whole groups would leave (16, 4, 3, 3): half of the work, where places leave a quarter."""
    assert shape_after(grouped("c = Relu(b)"), "w1") == (16, 2, 3, 3)


def test_groups_that_are_normalised_as_such_go_whole() -> None:
    """Places inside the groups would be inexact."""
    ones = np.ones(8, np.float32)
    model = grouped("c = GroupNormalization<num_groups = 8>(b, scale, bias)", scale=ones, bias=ones)
    assert shape_after(model, "w1") == (16, 4, 3, 3)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_normalisation_of_groups_in_pieces(groups: int) -> None:
    """Eight places in each of four groups would be more units, but only the groups are exact. In a
    single group there are only places."""
    rng = np.random.default_rng(2)
    shapes = {"w0": (32, 3, 1, 1), "w1": (5, 32, 1, 1), "scale": (groups,), "bias": (groups,)}
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    sizes = {"parts": [0, groups, -1], "whole": [0, 32, 6, 6]}
    model = parse(
        """g (float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y) {
            a = Conv(x, w0) b = Reshape(a, parts) c = InstanceNormalization(b, scale, bias)
            d = Reshape(c, whole) y = Conv(d, w1) }""",
        weights | {name: np.array(size, np.int64) for name, size in sizes.items()},
    )
    found = secateur.analyze(model, dims={"N": 2})
    assert [(len(group.units), group.exact) for group in found.groups] == [
        (4, True) if groups == 4 else (32, False)
    ]
    removed = np.zeros(found.unit_count, np.bool_)
    removed[1:3] = True
    plan = secateur.Plan(found, removed)
    assert secateur.certify(plan, secateur.rewrite(plan), threads=1).ok
