"""Calibration data as items, and images that are mirrored and moved."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.ir.errors import DataError
from secateur.ir.io import load_model
from secateur.runtime.augmentation import augmented
from secateur.runtime.items import Samples

from .graph_builder import Array
from .pass_runs import build, normal


def samples(signature: str, **arrays: Array) -> Samples:
    names = [part.split()[-1] for part in signature.split(", ") if part.split()[-1]]
    body = f"{names[0]}_ = Identity({names[0]})"
    model = load_model(build(f"g ({signature}) => (float[A,B] {names[0]}_) {{ {body} }}"))
    return Samples(arrays, model, {})


def test_samples_of_a_free_batch() -> None:
    found = samples("float[N,2] x", x=np.arange(10, dtype=np.float32).reshape(5, 2))
    assert (found.count, found.size, found.loose) == (5, 1, True)
    (feed,) = found.feeds(np.array([4, 1]))
    assert feed["x"].tolist() == [[8, 9], [2, 3]]
    assert found.rows(np.array([4, 1])).tolist() == [4, 1]


def test_samples_of_a_fixed_batch() -> None:
    found = samples("float[2,2] x", x=np.arange(10, dtype=np.float32).reshape(5, 2))
    assert (found.count, found.size, found.loose) == (2, 2, False)
    feeds = found.feeds(np.array([1, 0]))
    assert [f["x"].tolist() for f in feeds] == [[[4, 5], [6, 7]], [[0, 1], [2, 3]]]
    assert found.rows(np.array([1, 0])).tolist() == [2, 3, 0, 1]


def test_samples_that_are_whole_feeds() -> None:
    found = samples("float[N,2] x", x=np.arange(12, dtype=np.float32).reshape(3, 2, 2))
    assert (found.count, found.loose) == (3, False)
    assert found.feeds(np.array([2]))[0]["x"].tolist() == [[8, 9], [10, 11]]


def test_samples_of_an_input_without_data() -> None:
    with pytest.raises(DataError, match="no array for input 'x'"):
        samples("float[N,2] x")


# -- augmentation ---------------------------------------------------------------------------------


def test_images_are_mirrored_and_moved() -> None:
    """Every result is the image itself or its mirror image, moved by up to an eighth."""
    x = np.random.default_rng(0).random((64, 2, 16, 24), np.float32)
    y = augmented({"x": x}, True, np.random.default_rng(1))["x"]
    found = set()
    for image, moved in zip(x, y, strict=True):
        places = [
            (mirror, down, right)
            for mirror in (False, True)
            for down in range(-2, 3)
            for right in range(-3, 4)
            if np.array_equal(_moved(image[..., ::-1] if mirror else image, down, right), moved)
        ]
        assert len(places) == 1
        found.add(places[0])
    assert {mirror for mirror, _, _ in found} == {False, True}
    assert len(found) > 20


def _moved(image: Array, down: int, right: int) -> Array:
    padded = np.pad(image, ((0, 0), (2, 2), (3, 3)), mode="edge")
    # Moving the window down or right is what a shift of the indices does.
    side = padded[:, 2 + down : 18 + down, 3 + right : 27 + right]
    result: Array = side
    return result


def test_only_images_are_augmented() -> None:
    feed: dict[str, Array] = {"x": normal(3, 4), "ids": np.zeros((2, 2, 2, 2), np.int64)}
    assert augmented(feed, True, np.random.default_rng(0)) == feed
