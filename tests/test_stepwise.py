"""Stepping through a model: what is held, what can be changed, against one run of the whole."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

from secateur.runtime.stepwise import Stepwise, fitting, steppable

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


def test_sequences_and_constants_are_held() -> None:
    made = build(
        "g (float[N, 4] x) => (float[N, 4] y, float[1] c) {"
        " c = Constant<value = float[1] {2.0}>() s = SplitToSequence<axis = 1>(x, n)"
        " a = Relu(x) b = ConcatFromSequence<axis = 1>(s) y = Mul(b, c) }",
        n=np.array(2),
    )
    steps = Stepwise(made, feeds())
    steps.run_to(steps.position_of("a"))
    for feed, y, c in zip(feeds(), steps.get("y"), steps.get("c"), strict=True):
        np.testing.assert_array_equal(y, 2 * feed["x"])
        np.testing.assert_array_equal(c, [2.0])


def test_types_without_kernels_are_stepped_through_in_float32() -> None:
    wide = model()
    double = onnx.ModelProto()
    double.CopyFrom(wide)
    for tensor in double.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in double.graph.node:
        if node.op_type == "Constant":
            array = numpy_helper.to_array(node.attribute[0].t).astype(ml_dtypes.bfloat16)
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(array))
    for value in (*double.graph.input, *double.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    narrow = [{"x": feed["x"].astype(ml_dtypes.bfloat16)} for feed in feeds()]
    (stepped,), given = steppable([double], narrow)
    steps = Stepwise(stepped, given)
    steps.set_weight("u", np.ones((6, 3), ml_dtypes.bfloat16))
    found = steps.get("y")
    assert found[0].dtype == np.float32 and fitting([stepped], given, 1e9) == given
    for tensor in wide.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16).astype(np.float32)
        array = np.ones_like(array) if tensor.name == "u" else array
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for feed, y in zip(given, found, strict=True):
        np.testing.assert_allclose(y, run(wide, dict(feed))[0], rtol=1e-5, atol=1e-5)
