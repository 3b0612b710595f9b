"""Moments of intermediate values against numpy over all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from secateur.ir.errors import CertificateError, ModelError
from secateur.runtime.statistics import Moments, channel_moments

from .pass_runs import build, normal, run

Array = npt.NDArray[Any]
TEXT = """g (float[N,3,T] x) => (float[N,5,T] y) {
    a = Conv(x, w)  b = Relu(a)  q, s, z = DynamicQuantizeLinear(b)  y = Sqrt(b)
}"""


def model() -> onnx.ModelProto:
    return build(TEXT, w=normal(5, 3, 1))


def values(proto: onnx.ModelProto, x: Array, name: str) -> Array:
    """A value of the graph in float64, by ONNX Runtime without optimisation."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return run(copy, {"x": x})[-1].astype(np.float64)


def feeds(*shapes: tuple[int, int]) -> list[dict[str, Array]]:
    return [{"x": normal(n, 3, t, seed=k)} for k, (n, t) in enumerate(shapes)]


@pytest.mark.parametrize(("name", "axis"), [("a", 1), ("b", 1), ("x", 1), ("y", 1), ("q", 1)])
def test_moments_over_samples_and_positions(name: str, axis: int) -> None:
    """Batches and lengths differ from feed to feed; the numbers of all count alike."""
    given, done = feeds((2, 4), (1, 7), (5, 2)), list[float]()
    found = channel_moments(model(), given, [(name, axis), (name, axis)], 1, done.append)
    every = [f["x"] if name == "x" else values(model(), f["x"], name) for f in given]
    rows = np.concatenate([np.moveaxis(v, axis, 0).reshape(v.shape[axis], -1) for v in every], 1)
    rows = rows.astype(np.float64)
    (moments,) = found.values()
    assert moments.count == 8 + 7 + 10
    np.testing.assert_allclose(moments.mean, rows.mean(axis=1), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(moments.variance, rows.var(axis=1), rtol=1e-5)
    np.testing.assert_allclose(moments.second, np.square(rows).mean(axis=1), rtol=1e-5)
    assert done == [1 / 3, 2 / 3, 1]


def test_several_axes_of_one_value() -> None:
    found = channel_moments(model(), feeds((2, 4), (2, 4)), [("b", 0), ("b", 1), ("b", 2)])
    assert {place: len(m.mean) for place, m in found.items()} == {
        ("b", 0): 2, ("b", 1): 5, ("b", 2): 4
    }  # fmt: skip
    assert len({round(float(m.mean.mean()), 6) for m in found.values()}) == 1


def test_a_large_mean_does_not_drown_the_variance() -> None:
    """float32 numbers near 2^20 with steps of 1/16, in 50 parts of unequal size."""
    rng = np.random.default_rng(0)
    x = (2**20 + rng.integers(-8, 8, (2, 5000)) / 16).astype(np.float32)
    parts = np.split(x, np.sort(rng.choice(4999, 49, replace=False)) + 1, axis=1)
    total = Moments.of(parts[0], 0)
    for part in parts[1:]:
        total = total.merged(Moments.of(part, 0))
    exact = x.astype(np.float64) - 2**20
    assert total.count == 5000
    np.testing.assert_allclose(total.mean - 2**20, exact.mean(axis=1), rtol=1e-7)
    np.testing.assert_allclose(total.variance, exact.var(axis=1), rtol=1e-9)


def test_a_feed_is_reduced_before_the_next_is_asked_for() -> None:
    done: list[float] = []

    class Lazy(list[dict[str, Array]]):
        def __iter__(self) -> Iterator[dict[str, Array]]:
            for number in range(len(self)):
                assert len(done) == number
                yield self[number]

    found = channel_moments(model(), Lazy(feeds(*[(1, 3)] * 40)), [("a", 1)], 1, done.append)
    assert len(done) == 40 and found["a", 1].count == 120


def test_values_without_elements_are_left_out() -> None:
    empty = [{"x": np.zeros((0, 3, 4), np.float32)}]
    assert channel_moments(model(), empty, [("a", 1)]) == {}
    both = channel_moments(model(), [*empty, *feeds((2, 4))], [("a", 1)])
    assert both["a", 1].count == 8


def test_the_model_keeps_its_outputs() -> None:
    proto = model()
    before = proto.SerializeToString(deterministic=True)
    channel_moments(proto, feeds((2, 4)), [("a", 1)])
    assert proto.SerializeToString(deterministic=True) == before


def test_infinity_and_nan_come_through() -> None:
    x = normal(2, 3, 4)
    x[0, 0, 0] = np.inf
    found = channel_moments(model(), [{"x": x}], [("x", 1)])["x", 1]
    assert not np.isfinite(found.second[0]) and np.isfinite(found.second[1:]).all()


@pytest.mark.parametrize("name", ["w", "nowhere"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"computes no value '{name}'"):
        channel_moments(model(), feeds((2, 4)), [(name, 1)])


def test_a_model_that_does_not_run() -> None:
    with pytest.raises(CertificateError, match="cannot run"):
        channel_moments(model(), [{"x": normal(2, 4, 4)}], [("a", 1)])
