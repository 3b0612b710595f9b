"""Which constants are weights that may be trained."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.ir.flatten import flatten
from secateur.ir.io import load_model
from secateur.ir.trainable import trainable

from .graphs import GRAPHS
from .pass_runs import build, normal


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("unet_resize", {"scales"}),
        ("residual_projected", {"n_m", "n_v"}),
        ("qdq", {"s1", "s2", "sb1", "sb2"}),
    ],
)
def test_what_states_something_is_no_weight(name: str, left: set[str]) -> None:
    model = load_model(GRAPHS[name]())
    found = trainable(flatten(model))
    assert set(found.left) == left
    assert found.weights and not left & set(found.weights)


def test_masks_and_numbers_are_no_weights() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
        a = Add(x, mask) h = Mul(a, half) p = Pow(h, exponents) c = Add(p, weight)
        y = Mul(c, beyond) }"""
    model = load_model(
        build(
            text,
            mask=np.array([0, 0, -np.inf, 0], np.float32),
            half=np.array(0.5, np.float32),
            exponents=np.array([2, 2, 1, 1], np.float32),
            weight=normal(4),
            beyond=np.array([1, 1e5, 1, 1], np.float32),
        )
    )
    found = trainable(model)
    assert set(found.weights) == {"weight"}
    assert set(found.left) == {"mask", "exponents", "beyond"}
