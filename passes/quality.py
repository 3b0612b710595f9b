"""Quality: how close a candidate's outputs are to the original's, as one number, larger is better.

``top1`` is the share of places where both choose the same class in the first floating-point
output (the class axis is 1 in outputs of rank 4 and more, else the last). ``cosine`` is the mean
over samples of the cosine between both outputs, of several outputs the least. ``module:function``
is a function of the user's: ``function(original, candidate, feeds) -> float`` of dictionaries of
arrays by name, all samples along the first axis.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as oir

from ..ir.bindings import bind_dims
from ..ir.errors import UsageError
from ..ir.registry import one_line
from ..runtime.calibration import calibration_feeds
from ..runtime.elements import is_float, wide
from ..runtime.inputs import random_feed
from ..runtime.runnable import run_feeds, runnable
from ..runtime.session import Array, Feed
from .base import PassContext

Outputs = Mapping[str, Array]
Metric = Callable[[Outputs, Outputs, Feed], float]

RANGES = {"cosine": (-1, 1), "top1": (0, 1)}
"""The least and the largest quality by the metrics that are built in."""
JUDGED = 256
"""At most so many samples are looked at, spread evenly over the data."""
_RANDOM = 8


def check_metric(name: str, floor: float | None) -> None:
    """Raises ValueError when the name is neither built in nor ``module:function``, or when the
    ``floor`` under the quality (if any) is outside the metric's range."""
    module, colon, function = name.partition(":")
    if name not in RANGES and not (module and colon and function):
        raise ValueError(f"`metric` must be cosine, top1 or MODULE:FUNCTION, not '{name}'")
    least, most = RANGES.get(name, (-math.inf, math.inf))
    if floor is not None and not least <= floor <= most:
        raise ValueError(
            f"`min_quality` must be from {least} to {most} for the metric {name}, not {floor:g}"
        )


class Judge:
    """The quality of candidates beside one original, on calibration data, or for ``cosine`` on
    random inputs if there is none.

    Raises UsageError when the metric needs data and there is none, or cannot be imported.
    """

    def __init__(self, original: oir.Model, metric: str, context: PassContext) -> None:
        self.metric, self._threads = metric, context.threads
        self._function = find_metric(metric)
        self.notes: tuple[str, ...] = ()
        if context.calibration is None and metric != "cosine":
            raise UsageError(f"metric '{metric}' needs data to judge on: give --calibration FILE")
        binding = bind_dims(original, context.dims)
        with runnable(original) as (model,):
            if context.calibration is None:
                self._feeds = [
                    random_feed(model, binding, context.seed + k) for k in range(_RANDOM)
                ]
                self.notes = ("quality was judged on random inputs, for want of calibration data",)
            else:
                spread = _spread(context.calibration, JUDGED)
                self._feeds = calibration_feeds(spread, model, binding, JUDGED)
            self._original = _joined(
                list(run_feeds(model, self._feeds, threads=context.threads)), "output"
            )
        self._inputs = _joined(self._feeds, "input")

    def __call__(self, candidate: oir.Model) -> float:
        """Raises CertificateError when the candidate does not run, UsageError when the metric
        fails or gives no number."""
        with runnable(candidate) as (model,):
            outputs = _joined(list(run_feeds(model, self._feeds, threads=self._threads)), "output")
        if self.metric in RANGES:
            return self._function(self._original, outputs, self._inputs)
        try:
            value = float(self._function(self._original, outputs, self._inputs))
        except Exception as error:  # whatever the user's code raises
            raise UsageError(
                f"metric '{self.metric}' failed ({type(error).__name__}: {one_line(error)})"
            ) from error
        if math.isnan(value):
            raise UsageError(f"metric '{self.metric}' gave NaN")
        return value


def find_metric(name: str) -> Metric:
    """The function of a metric; a module of the user's is imported, from the current folder too.

    Raises UsageError when that fails.
    """
    if name in RANGES:
        return {"cosine": cosine, "top1": top1}[name]
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module raises
        raise UsageError(
            f"metric '{name}' cannot be imported ({type(error).__name__}: {one_line(error)})"
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise UsageError(f"metric '{name}' is not a function of two models' outputs and the feeds")
    metric: Metric = found
    return metric


def top1(original: Outputs, candidate: Outputs, _feeds: Feed) -> float:
    """The share of places where the largest class is the same."""
    for name, wanted in original.items():
        axis = 1 if wanted.ndim >= 4 else -1
        if is_float(wanted) and wanted.ndim and wanted.shape[axis] > 1:
            got = candidate[name]
            if got.shape != wanted.shape:
                return 0.0
            same = wide(wanted).argmax(axis) == wide(got).argmax(axis)
            return float(same.mean()) if same.size else 1.0
    raise UsageError("metric 'top1' finds no output with classes: use cosine or MODULE:FUNCTION")


def cosine(original: Outputs, candidate: Outputs, _feeds: Feed) -> float:
    """The least over outputs of the mean cosine over samples."""
    found = [
        _mean_cosine(wide(wanted), wide(candidate[name]))
        for name, wanted in original.items()
        if is_float(wanted) and wanted.size
    ]
    if not found:
        raise UsageError("metric 'cosine' finds no floating-point output: use MODULE:FUNCTION")
    return min(found)


def _mean_cosine(a: Array, b: Array) -> float:
    if a.shape != b.shape:
        return 0.0
    x, y = (np.asarray(v, np.float64).reshape(len(v) if v.ndim else 1, -1) for v in (a, b))
    with np.errstate(all="ignore"):
        norms = np.sqrt((x * x).sum(1)) * np.sqrt((y * y).sum(1))
        each = np.where((x == y).all(1), 1.0, (x * y).sum(1) / norms)
    return float(np.nan_to_num(each, nan=0.0).mean())


def _spread(arrays: Mapping[str, Array], most: int) -> dict[str, Array]:
    """So many samples, evenly spaced: data may be stored class by class."""
    counts = {len(array) for array in arrays.values() if array.ndim}
    count = max(counts, default=0)
    if count <= most or len(counts) > 1:
        return dict(arrays)
    picked = np.linspace(0, count - 1, most).round().astype(np.int64)
    return {name: a[picked] if a.ndim else a for name, a in arrays.items()}


def _joined(runs: Sequence[Mapping[str, Array]], what: str) -> dict[str, Array]:
    """Arrays of several runs along their first axis; scalars become an array."""
    joined = {}
    for name in runs[0]:
        try:
            joined[name] = np.concatenate([np.atleast_1d(run[name]) for run in runs])
        except (KeyError, ValueError):
            raise UsageError(
                f"{what} '{name}' has another shape for every sample; quality needs one shape"
            ) from None
    return joined
