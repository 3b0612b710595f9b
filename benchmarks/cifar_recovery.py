"""Secateur's own rows on the ResNets: pruning with recovery in closed form, then distillation.

Calibration is the 4,000 lossless training pictures, without labels. Selection, recovery and the
certificate are all in the seconds of a row.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cifar import Array, _module

TRAINING = 4000


def training_pictures(data: Path, count: int = TRAINING) -> tuple[Array, Array]:
    """Normalised training pictures, float32[n, 3, 32, 32], the same number of each class in a
    random order, and their labels, int64[n], which only peers may use."""
    loader = _module(data / "cifar10" / "cifar10.py")
    images, labels = loader.load("train", "png", limit=count)
    order = np.random.default_rng(0).permutation(len(labels))
    return loader.normalize(images)[order], labels[order]


def closed(
    path: Path, ratio: float, images: Array, *, steps: int, flips: bool, threads: int
) -> Any:
    """`secateur.prune` to ``ratio`` times fewer MACs on these pictures, all of which recovery looks
    at; with ``flips`` also on their mirror images."""
    from secateur.driver.api import run
    from secateur.driver.recipe import prune_recipe
    from secateur.passes.recover import Recover

    if flips:
        both = np.concatenate([images, images[..., ::-1]])
        images = both[np.random.default_rng(0).permutation(len(both))]
    passes = prune_recipe(calibrated=True, macs=1 / ratio, steps=steps)
    passes = [replace(p, samples=len(images)) if isinstance(p, Recover) else p for p in passes]
    return run(path, passes, calibration={"input": images}, threads=threads, bench=False)


def distilled(pruned: Path, original: Path, images: Array, minutes: float, threads: int) -> Any:
    """The pruned model after so many minutes of the pass ``distill``, with flips and shifts, and
    with normalisations in place of the folded ones for the time of the training."""
    from secateur.driver.api import run
    from secateur.passes.distill import Distill

    learning = Distill(
        minutes=minutes, augment="flip-shift", batch_norm="insert", original=str(original)
    )
    return run(pruned, [learning], calibration={"input": images}, threads=threads, bench=False)


def macs_ratio(before: Any, after: Any) -> float:
    """How many times fewer multiply-accumulates, by Secateur's cost model; files or models."""
    from secateur.driver.api import analyze
    from secateur.runtime.cost import CostModel

    old, new = (CostModel(analyze(model)).costs().macs for model in (before, after))
    return old / new
