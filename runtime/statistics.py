"""Means and variances of intermediate values, over samples and positions, one feed at a time.

The numbers of every feed are reduced at once and merged with those before, in float64 (Chan,
Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance"):

    n = n_a + n_b,   d = mean_b - mean_a
    mean = mean_a + d n_b / n
    variance = (n_a variance_a + n_b variance_b) / n + d^2 n_a n_b / n^2

Nothing is lost to cancellation, however large the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from ..ir.errors import ModelError
from .runnable import runner
from .session import Array, Feed

Place = tuple[str, int]
"""A value's name and one of its axes."""
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """``mean`` and ``variance`` (that of the data, not an estimate), float64[size of the axis], of
    ``count`` numbers each."""

    mean: Numbers
    variance: Numbers
    count: int

    @property
    def second(self) -> Numbers:
        """The mean square."""
        return np.square(self.mean) + self.variance

    @classmethod
    def of(cls, array: Array, axis: int) -> Moments:
        """Those of one array, which holds at least one number."""
        rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = rows.mean(axis=1)
            rows -= mean[:, None]
            return cls(mean, np.einsum("ij,ij->i", rows, rows) / rows.shape[1], rows.shape[1])

    def merged(self, other: Moments) -> Moments:
        """Those of both sets of numbers together."""
        count = self.count + other.count
        share = other.count / count
        with np.errstate(invalid="ignore", over="ignore"):
            distance = other.mean - self.mean
            variance = self.variance * (1 - share) + other.variance * share
            variance += np.square(distance) * share * (1 - share)
            return Moments(self.mean + distance * share, variance, count)


def channel_moments(
    model: onnx.ModelProto,
    feeds: Sequence[Feed],
    places: Iterable[Place],
    threads: int = 0,
    progress: Callable[[float], None] | None = None,
) -> dict[Place, Moments]:
    """The moments of every coordinate of the given axes, over all feeds and all other axes.

    ``model`` comes from `runnable`; values are named as in its main graph: inputs, or results of
    nodes. An axis has the same size on every feed. Values that are no tensors, or that are empty
    on every feed, are left out. Raises ModelError for a name that is neither, CertificateError
    when the model does not run.
    """
    wanted = list(dict.fromkeys(places))
    fed = {value.name for value in model.graph.input}
    made = {name for node in model.graph.node for name in node.output if name}
    for name, _ in wanted:
        if name not in fed | made:
            raise ModelError(f"the main graph computes no value {name!r} to take moments of")
    run = _outputs_of(model, sorted({name for name, _ in wanted} & made), threads)
    found: dict[Place, Moments] = {}
    for number, feed in enumerate(feeds, start=1):
        values = {**feed, **run(feed)}
        for name, axis in wanted:
            array = values.get(name)
            if array is not None and array.size:
                own = Moments.of(array, axis)
                before = found.get((name, axis))
                found[name, axis] = own if before is None else before.merged(own)
        if progress is not None:
            progress(number / len(feeds))
    return found


def _outputs_of(
    model: onnx.ModelProto, names: Sequence[str], threads: int
) -> Callable[[Feed], dict[str, Array]]:
    """Runs the part of the model that these values depend on; they are its outputs."""
    if not names:
        return lambda feed: {}
    outputs = list(model.graph.output)
    typed = {value.name: value for value in outputs}
    wanted = [typed.get(name, onnx.ValueInfoProto(name=name)) for name in names]
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.extend(wanted)
    return runner(part, threads=threads)
