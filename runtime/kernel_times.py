"""How long the kernels of small models take, read from ONNX Runtime's profiles.

A layer that is timed alone gets and gives its data in the plain layout; in its network it stands
between others of its kind. ONNX Runtime's profile tells the kernels apart, so conversions of the
layout at the ends do not count. Models take turns, and of every kernel the least time counts:
other load can only add to it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx

from .inputs import random_feed
from .session import make_session, run

CONVERSIONS = ("ReorderInput", "ReorderOutput")
_ROUNDS, _LEAST_ROUNDS, _SECONDS = 12, 6, 1.0
_TOGETHER = 2**28
"""So many bytes of models are held in sessions at once."""


def kernel_times(
    models: Sequence[onnx.ModelProto],
    threads: int,
    dims: Mapping[str, int] | None = None,
    without: Collection[str] = CONVERSIONS,
) -> list[float]:
    """Milliseconds of every model's kernels, the least of some runs on a random input, those of the
    operators ``without`` left out; ``dims`` binds symbolic dimensions.

    Raises CertificateError when a model does not run.
    """
    times: list[float] = []
    batch: list[onnx.ModelProto] = []
    held = 0
    for model in models:
        size = model.ByteSize()
        if batch and held + size > _TOGETHER:
            times += _batch(batch, threads, dims or {}, without)
            batch, held = [], 0
        batch.append(model)
        held += size
    return times + (_batch(batch, threads, dims or {}, without) if batch else [])


def _batch(
    models: Sequence[onnx.ModelProto],
    threads: int,
    dims: Mapping[str, int],
    skipped: Collection[str],
) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        sessions = [
            make_session(model, threads=threads, profile=Path(folder, f"layer{k}"))
            for k, model in enumerate(models)
        ]
        feeds = [random_feed(model, dims, 0) for model in models]
        begin = time.perf_counter()
        for done in range(_ROUNDS):
            order = range(len(models))
            for k in order if done % 2 == 0 else reversed(order):
                run(sessions[k], feeds[k])
            if done + 1 >= _LEAST_ROUNDS and time.perf_counter() - begin > _SECONDS:
                break
        return [_least(Path(session.end_profiling()), skipped) for session in sessions]


def _least(profile: Path, skipped: Collection[str]) -> float:
    """The sum of the least times of all kernels of a profile, in milliseconds."""
    least: dict[str, float] = {}
    for event in json.loads(profile.read_text("utf-8")):
        name = event.get("name", "")
        kernel = event.get("cat") == "Node" and name.endswith("_kernel_time")
        if kernel and event.get("args", {}).get("op_name") not in skipped:
            least[name] = min(least.get(name, float("inf")), float(event["dur"]))
    return sum(least.values()) / 1e3
