"""Stepping through a model: what is held, what can be changed, against one run of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from secateur.runtime.stepwise import Stepwise, fitting

from .pass_runs import Array, build, run

TEXT = """g (float[N, 4] x) => (float[N, 3] y) {
    c = Constant<value = float[1] {2.0}>()
    a = MatMul(x, w)  b = Relu(a)  d = Mul(b, c)  e = MatMul(d, v)  f = Add(e, b)  y = MatMul(f, u)
}"""


def model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 6), "v": (6, 6), "u": (6, 3)}
    arrays: dict[str, Any] = {
        n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()
    }
    return build(TEXT, **arrays)


def feeds() -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((n, 4)).astype(np.float32)} for n in (5, 2)]


def test_steps_give_what_a_run_gives() -> None:
    steps = Stepwise(model(), feeds())
    for stop in range(1, len(steps.nodes) + 1):
        steps.run_to(stop)
    for feed, found in zip(feeds(), steps.get("y"), strict=True):
        np.testing.assert_allclose(found, run(model(), feed)[0], rtol=1e-5, atol=1e-5)


def test_only_what_later_nodes_read_is_held() -> None:
    steps = Stepwise(model(), feeds(), keep=["a"])
    steps.run_to(steps.position_of("e"))
    assert set(steps.values[0]) == {"a", "b", "d"}
    steps.drop("a")
    steps.get("e")
    assert set(steps.values[0]) == {"b", "e"}
    steps.get("y")
    steps.drop("y")
    assert set(steps.values[0]) == {"y"}


def test_has_knows_inputs_and_values() -> None:
    steps = Stepwise(model(), feeds())
    assert all(map(steps.has, ("x", "a", "y"))) and not steps.has("nowhere")


def test_weights_can_change_on_the_way() -> None:
    other = np.ones((6, 6), np.float32)
    steps = Stepwise(model(), feeds())
    steps.get("d")
    steps.set_weight("v", other)
    steps.set_weight("c", np.array([9.0], np.float32))  # has been read: changes nothing
    changed = model()
    for tensor in changed.graph.initializer:
        if tensor.name == "v":
            tensor.CopyFrom(numpy_helper.from_array(other, "v"))
    for feed, found in zip(feeds(), steps.get("y"), strict=True):
        np.testing.assert_allclose(found, run(changed, feed)[0], rtol=1e-5, atol=1e-5)


def test_fewer_feeds_where_memory_is_short() -> None:
    """At the most three values of 5 x 6 are alive: b, d and e."""
    one = [feeds()[0]] * 10
    assert len(fitting([model()], one, 1e9)) == 10
    most = 4 * 5 * 6 * 3
    assert len(fitting([model()], one, most * 4)) == 4
    assert len(fitting([model(), model()], one, most * 4)) == 2
    assert len(fitting([model()], one, 1)) == 1


def test_constants_of_nodes_over_constants_can_change_until_somebody_reads_them() -> None:
    rng = np.random.default_rng(0)
    made = build(
        "g (float[N, 4] x) => (float[N, 3] y) {"
        " v = DequantizeLinear(q, s) a = MatMul(x, w) t = Transpose(v) y = MatMul(a, t) }",
        q=rng.integers(-9, 9, (3, 6)).astype(np.int8),
        s=np.array(0.5, np.float32),
        w=rng.standard_normal((4, 6)).astype(np.float32),
    )
    steps = Stepwise(made, feeds())
    steps.get("a")
    assert set(steps.values[0]) == {"a"}
    steps.set_weight("s", np.array(2.0, np.float32))
    for feed, found in zip(feeds(), steps.get("y"), strict=True):
        np.testing.assert_allclose(found, 4 * run(made, feed)[0], rtol=1e-5, atol=1e-5)
