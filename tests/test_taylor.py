"""The criterion ``taylor`` against the divergence that ONNX Runtime shows of weakened units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

import secateur
from secateur.ir.analysis import Analysis
from secateur.ir.errors import UsageError
from secateur.passes.base import PassContext
from secateur.passes.taylor import taylor

from .graph_builder import Array
from .pass_runs import build, normal, run, stored

WEAKENED = 0.02
"""A unit is multiplied by one less this; its divergence is that times the square of it."""


@dataclass(frozen=True)
class Scoring:
    """What a criterion is given."""

    context: PassContext
    combine: str = "sum"


def score(
    model: onnx.ModelProto, x: Array, **dims: int
) -> tuple[Analysis, npt.NDArray[np.float64]]:
    analysis = secateur.analyze(model)
    scoring = Scoring(PassContext(seed=1, calibration={"x": x}))
    return analysis, taylor(analysis, scoring)


def units_along(analysis: Analysis, weight: str, axis: int) -> npt.NDArray[np.int64]:
    units = analysis.units_of(analysis.operands[weight].axis(axis))
    assert units is not None
    return units


def weakened(model: onnx.ModelProto, weight: str, axis: int, place: int) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == weight:
            array = numpy_helper.to_array(tensor).copy()
            np.moveaxis(array, axis, 0)[place] *= 1 - WEAKENED
            tensor.CopyFrom(numpy_helper.from_array(array, weight))
    return copy


def log_softmax(z: Array) -> Array:
    shifted = z.astype(np.float64) - z.max(-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def divergence(a: Array, b: Array) -> float:
    """Nats for each sample."""
    p, q = log_softmax(a), log_softmax(b)
    return float((np.exp(p) * (p - q)).sum() / len(a))


CLASSIFIER = """g (float[N,6] x) => (float[N,5] y) {
    h = Gemm<transB=1>(x, w1, b1) a = Gelu(h) z = Gemm<transB=1>(a, w2, b2) y = Softmax(z) }"""


@pytest.fixture
def classifier() -> onnx.ModelProto:
    pytest.importorskip("torch")
    return build(
        CLASSIFIER,
        20,
        w1=normal(7, 6, seed=1),
        b1=normal(7, seed=2),
        w2=normal(5, 7, seed=3),
        b2=normal(5, seed=4),
    )


def test_scores_are_the_divergence(
    classifier: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean over 64 batches and 32 vectors each lies within a few parts in a hundred."""
    monkeypatch.setattr("secateur.passes.taylor.DRAWS", 32)
    x = normal(512, 6, seed=5)
    analysis, scores = score(classifier, x)
    units = units_along(analysis, "w2", 1)
    assert sorted(units) == list(range(7))
    logits = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 5])
    classifier.graph.output.append(logits)
    before = run(classifier, {"x": x})[1]
    for place, unit in enumerate(units):
        after = run(weakened(classifier, "w2", 1, place), {"x": x})[1]
        expected = divergence(before, after) / WEAKENED**2
        assert scores[unit] == pytest.approx(expected, rel=0.15)


def test_a_unit_without_effect_scores_nothing(classifier: onnx.ModelProto) -> None:
    for tensor in classifier.graph.initializer:
        if tensor.name == "w2":
            array = numpy_helper.to_array(tensor).copy()
            array[:, 3] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, "w2"))
    analysis, scores = score(classifier, normal(64, 6))
    unit = units_along(analysis, "w2", 1)[3]
    assert scores[unit] == 0
    assert (np.delete(scores, unit) > 0).all()


def test_regression(classifier: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values count by their squared change over twice their variance."""
    monkeypatch.setattr("secateur.passes.taylor.DRAWS", 32)
    classifier.graph.node[-1].op_type = "Relu"
    x = normal(512, 6, seed=6)
    analysis, scores = score(classifier, x)
    before = run(classifier, {"x": x})[0].astype(np.float64)
    for place, unit in enumerate(units_along(analysis, "w2", 1)):
        after = run(weakened(classifier, "w2", 1, place), {"x": x})[0]
        change = np.square(after - before).mean() / (2 * before.var())
        assert scores[unit] == pytest.approx(change / WEAKENED**2, rel=0.15)


def test_quantised_weights() -> None:
    """The gate is the dequantised weight."""
    pytest.importorskip("torch")
    w2 = np.random.default_rng(0).integers(-127, 128, (5, 7)).astype(np.int8)
    text = """g (float[N,6] x) => (float[N,5] y) {
        h = Gemm<transB=1>(x, w1) a = Relu(h) w = DequantizeLinear(q, s)
        y = Gemm<transB=1>(a, w) }"""
    model = build(text, w1=normal(7, 6, seed=1), q=w2, s=np.array(0.01, np.float32))
    plain = build(
        text.replace("w = DequantizeLinear(q, s)", "w = Mul(q, s)"),
        w1=stored(model)["w1"],
        q=w2.astype(np.float32),
        s=np.array(0.01, np.float32),
    )
    x = normal(64, 6)
    analysis, scores = score(model, x)
    other, wanted = score(plain, x)
    a, b = units_along(analysis, "w1", 0), units_along(other, "w1", 0)
    np.testing.assert_allclose(scores[a], wanted[b], rtol=1e-5)
    assert (scores > 0).all()


def test_convolutions_with_a_fixed_batch() -> None:
    pytest.importorskip("torch")
    text = """g (float[2,3,6,6] x) => (float[2,4] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) c = Conv(r, w2) p = GlobalAveragePool(c)
        y = Flatten(p) }"""
    weights: dict[str, Array] = {
        "w1": normal(6, 3, 3, 3),
        "b1": normal(6),
        "w2": normal(4, 6, 3, 3, seed=1),
    }
    _, fixed = score(build(text, 20, 10, "", **weights), normal(64, 3, 6, 6))
    _, loose = score(build(text.replace("[2,", "[N,"), 20, 10, "", **weights), normal(64, 3, 6, 6))
    assert (fixed > 0).all() and fixed.shape == (6,)
    np.testing.assert_allclose(fixed, loose, rtol=0.6)  # other batches, other vectors


def test_the_same_seed_gives_the_same_scores(classifier: onnx.ModelProto) -> None:
    x = normal(64, 6)
    np.testing.assert_array_equal(score(classifier, x)[1], score(classifier, x)[1])


def test_it_needs_data() -> None:
    pytest.importorskip("torch")
    model = build(CLASSIFIER, 20, w1=normal(7, 6), b1=normal(7), w2=normal(5, 7), b2=normal(5))
    analysis = secateur.analyze(model)
    with pytest.raises(UsageError, match="looks at data: give --calibration"):
        taylor(analysis, Scoring(PassContext()))


def test_it_says_so() -> None:
    assert vars(taylor) == {"needs_calibration": True, "normalize": "none"}
