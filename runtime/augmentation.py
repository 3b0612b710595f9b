"""Random flips and shifts of images, so that few of them go a longer way."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .session import Array

SHARE = 8
"""Images are shifted by up to an eighth of their height and width."""


def is_image(array: Array) -> bool:
    """Whether an array looks like a batch of images: floats, (samples, channels, height, width)."""
    return array.ndim == 4 and array.dtype.kind == "f" and min(array.shape[2:]) > 1


def augmented(feed: Mapping[str, Array], shift: bool, rng: np.random.Generator) -> dict[str, Array]:
    """Every image mirrored left to right with probability 1/2, with ``shift`` also moved in both
    directions; what is moved in repeats the edge. All inputs of a sample move alike."""
    images = {name: a for name, a in feed.items() if is_image(a)}
    if not images:
        return dict(feed)
    count = len(next(iter(images.values())))
    mirror = rng.random(count) < 0.5
    moves = rng.uniform(-1, 1, (2, count)) if shift else np.zeros((2, count))
    result = dict(feed)
    for name, array in images.items():
        n, _, h, w = array.shape
        down, right = (np.rint(m[:n] * (s // SHARE)) for m, s in zip(moves, (h, w), strict=True))
        rows = (np.arange(h) + down[:, None].astype(np.int64)).clip(0, h - 1)
        columns = np.where(mirror[:n, None], np.arange(w)[::-1], np.arange(w))
        columns = (columns + right[:, None].astype(np.int64)).clip(0, w - 1)
        batch = np.arange(n)[:, None, None]
        moved = array[batch, :, rows[:, :, None], columns[:, None, :]]
        result[name] = moved.transpose(0, 3, 1, 2)
    return result
