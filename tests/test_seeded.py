"""Models that draw random numbers: pruned, certified, and held to it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import secateur
from secateur.runtime.compare import compare_models
from secateur.runtime.runnable import run_feeds, runner
from secateur.runtime.seeded import draws, seeded

from .certified_models import parse

DRAWN = {
    "RandomNormalLike": "e = RandomNormalLike(m)",
    "RandomUniformLike": "e = RandomUniformLike(m)",
    "RandomNormal": "e = RandomNormal <shape = [2, 6]> ()",
    "RandomUniform": "e = RandomUniform <shape = [2, 6]> ()",
    "Bernoulli": "p = Sigmoid(m)  e = Bernoulli(p)",
    "Multinomial": "i = Multinomial <sample_size = 6> (m)  e = Cast <to = 1> (i)",
    "Dropout": "e = Dropout(m, half, yes)",
    "two": "a = RandomNormalLike(m)  b = RandomNormalLike(m)  c = Mul(b, half)  e = Sub(a, c)",
    "in a branch": """e = If(yes) <then_branch = t () => (f) { f = RandomNormalLike(m) },
        else_branch = n () => (g) { g = Identity(m) }>""",
}


def latent(drawn: str) -> onnx.ModelProto:
    """Encoder, sample and decoder, as variational models have them."""
    rng = np.random.default_rng(0)
    sizes = {"w1": (4, 16), "w2": (16, 6), "w3": (16, 6), "w4": (6, 12), "w5": (12, 3)}
    weights = {name: rng.standard_normal(size) for name, size in sizes.items()}
    return parse(
        f"""g (float[2, 4] x) => (float[2, 3] y) <float half = {{0.5}}, bool yes = {{1}}> {{
            h = MatMul(x, w1)  r = Relu(h)  m = MatMul(r, w2)  l = MatMul(r, w3)  s = Tanh(l)
            {drawn}
            n = Mul(e, s)  z = Add(m, n)  d = MatMul(z, w4)  q = Relu(d)  y = MatMul(q, w5) }}""",
        {name: array.astype(np.float32) for name, array in weights.items()},
    )


@pytest.mark.parametrize("drawn", DRAWN.values(), ids=DRAWN)
def test_models_that_draw_are_certified(drawn: str) -> None:
    model = latent(drawn)
    assert len(secateur.analyze(model).groups) == 2  # before and after the axis that is drawn
    result = secateur.prune(model, ratio=0.5, bench=False)
    certificate = result.certificate
    assert certificate is not None and certificate.ok and certificate.worst < 1e-5
    assert any("drew the same numbers" in note for note in certificate.notes)
    assert not any(node.attributes.get("seed") for node in result.model.graph.all_nodes())


def test_a_wrong_weight_is_still_found() -> None:
    model = latent(DRAWN["RandomNormalLike"])
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    (w4,) = [t for t in wrong.graph.initializer if t.name == "w4"]
    array = numpy_helper.to_array(w4).copy()
    array[0, 0] *= 1.01
    w4.CopyFrom(numpy_helper.from_array(array, "w4"))
    feeds = [(f"{i}", {"x": np.full((2, 4), i, np.float32)}) for i in (1, 2)]
    assert compare_models(model, model, feeds).ok
    assert not compare_models(model, wrong, feeds).ok


def test_every_run_draws_the_same() -> None:
    model = latent(DRAWN["RandomNormalLike"])
    feed = {"x": np.ones((2, 4), np.float32)}
    each = runner(model)
    one, two = each(feed), each(feed)
    np.testing.assert_array_equal(one["y"], two["y"])
    for outputs in run_feeds(model, [feed, feed]):
        np.testing.assert_array_equal(one["y"], outputs["y"])


def test_seeds_of_the_model_stay() -> None:
    model = latent("e = RandomNormalLike <seed = 7.0> (m)")
    assert draws(model) and seeded(model) == model
    assert not draws(latent("e = Dropout(m)"))
