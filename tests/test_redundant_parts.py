"""Outputs of Split and parts of Concat that nobody reads, or that are constant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .pass_runs import build, normal, ops
from .redundant_runs import array, causes, reduced, shapes

SPLIT = """g (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {
    c = Conv(x, w1, b1)
    %s
}"""
SPLIT_WEIGHTS: dict[str, Any] = {  # sizes of three parts
    "w1": normal(9, 3, 1, 1),
    "b1": normal(9, seed=1),
    "sizes": np.array([2, 3, 4]),
}


@pytest.mark.parametrize(("used", "left"), [("p", 2), ("q", 3), ("r", 4)])
@pytest.mark.parametrize("opset", [11, 18])
def test_outputs_of_split_that_nobody_reads(used: str, left: int, opset: int) -> None:
    weights = dict(SPLIT_WEIGHTS)
    split = "Split<axis = 1>(c, sizes)"
    if opset < 13:
        split = "Split<axis = 1, split = [2, 3, 4]>(c)"
        del weights["sizes"]
    body = SPLIT % f"p, q, r = {split} y = Conv({used}, w2)"
    new, result = reduced(build(body, opset, **weights, w2=normal(2, left, 1, 1)), tolerance=0)
    assert causes(result) == {"unread": 9 - left}
    assert ops(new.graph.node) == ["Conv", "Conv"]
    assert shapes(new) == {"w1": (left, 3, 1, 1), "b1": (left,), "w2": (2, left, 1, 1)}


def test_one_output_of_three_that_nobody_reads() -> None:
    body = (
        SPLIT
        % """p, q, r = Split<axis = 1>(c, sizes)
        a = Conv(p, w2) b = Conv(r, w3) y = Add(a, b)"""
    )
    model = build(body, **SPLIT_WEIGHTS, w2=normal(2, 2, 1, 1), w3=normal(2, 4, 1, 1))
    new, result = reduced(model, tolerance=0)
    assert causes(result) == {"unread": 3}
    assert len(new.graph.node[1].output) == 2
    assert array(new, new.graph.node[1].input[1]).tolist() == [2, 4]


def test_outputs_of_split_that_are_outputs() -> None:
    body = """g (float[1, 3, 4, 4] x) => (float[1, 4, 4, 4] r) {
        c = Conv(x, w1, b1)
        p, q, r = Split<axis = 1>(c, sizes)
    }"""
    new, result = reduced(build(body, **SPLIT_WEIGHTS), tolerance=0)
    assert causes(result) == {"unread": 5}
    assert shapes(new)["w1"] == (4, 3, 1, 1)


PARTS = """g (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {
    a = Conv(x, w1)
    b = Conv<pads = [1, 1, 1, 1]>(x, w2)
    r = Relu(b)
    c = Concat<axis = 1>(a, r)
    %s
}"""
PART_WEIGHTS: dict[str, Any] = {  # of two parts
    "w1": normal(4, 3, 1, 1),
    "w2": normal(5, 3, 3, 3),
    "axis": np.array([1]),
}


def test_parts_of_concat_that_are_sliced_away() -> None:
    body = PARTS % "s = Slice(c, start, end, axis) y = Conv(s, w3)"
    bounds: dict[str, Any] = {"start": np.array([0]), "end": np.array([4])}
    new, result = reduced(build(body, **PART_WEIGHTS, **bounds, w3=normal(2, 4, 1, 1)), tolerance=0)
    assert causes(result) == {"unread": 5}
    assert ops(new.graph.node) == ["Conv", "Slice", "Conv"]


def test_halves_of_parts_of_concat() -> None:
    body = PARTS % "s = Slice(c, start, end, axis) y = Conv(s, w3)"
    bounds: dict[str, Any] = {"start": np.array([3]), "end": np.array([6])}
    new, result = reduced(build(body, **PART_WEIGHTS, **bounds, w3=normal(2, 3, 1, 1)))
    assert causes(result) == {"unread": 6}
    assert shapes(new)["w1"] == (1, 3, 1, 1) and shapes(new)["w2"] == (2, 3, 3, 3)


def test_parts_of_concat_that_are_constant() -> None:
    body = PARTS % "y = Conv(c, w3, b3)"
    dead = dict(PART_WEIGHTS, w2=0 * PART_WEIGHTS["w2"])
    new, result = reduced(build(body, **dead, w3=normal(2, 9, 1, 1), b3=normal(2)), tolerance=0)
    assert causes(result) == {"zero": 5}
    assert ops(new.graph.node) == ["Conv", "Conv"]


def test_parts_of_concat_that_are_gathered() -> None:
    body = PARTS % "s = Gather<axis = 1>(c, index) y = Conv(s, w3)"
    index = np.array([1, 4, 5])
    new, result = reduced(build(body, **PART_WEIGHTS, index=index, w3=normal(2, 3, 1, 1)))
    assert causes(result) == {"unread": 6}
    assert shapes(new)["w1"] == (1, 3, 1, 1) and shapes(new)["w2"] == (2, 3, 3, 3)
