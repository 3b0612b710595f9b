"""What is proved of values before the run holds in ONNX Runtime, and is worth something."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from secateur.ir.errors import CertificateError
from secateur.runtime.session import make_session, run

from .bounds_checks import bounds_of, check_bounds, fenced
from .graph_builder import feeds
from .graphs import GRAPHS
from .pass_runs import Array, build, normal
from .probing_draw import NIGHTLY, Seeded
from .pruning_checks import PLAIN, dims
from .random_graphs import OPSETS, Graph
from .random_networks import image_network, sequence_network
from .redundant_runs import spoil
from .test_probing_generated import FAMILIES


def random_model(network: Callable[[Graph], None], number: int) -> onnx.ModelProto:
    d = Seeded(network.__name__, number)
    graph = Graph(d, d.number(*OPSETS), nests=d.flag())
    network(graph)
    model = graph.model()
    spoil(model, d.rng)
    return model


@pytest.mark.parametrize("network", [image_network, sequence_network])
def test_random_networks(network: Callable[[Graph], None]) -> None:
    found = np.zeros(3, np.int64)
    for number in range(40 * NIGHTLY):
        model = random_model(network, number)
        feed = feeds(model, number)
        given = [feed, feed | {"x": np.float32(100) * feed["x"]}]
        found += check_bounds(model, given, N=2)
    assert (found > 50).all()  # bounds, points, equal slices


@pytest.mark.parametrize("name", PLAIN[::3])
def test_proof_graphs(name: str) -> None:
    model = GRAPHS[name]()
    spoil(model, np.random.default_rng(1))
    check_bounds(model, [feeds(model, **dims(name))], **dims(name))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_single_operators() -> None:
    """Inputs between limits, some of them equal, go into one operator of every family."""
    found = np.zeros(3, np.int64)
    for family, (make, _) in FAMILIES.items():
        if family == "indexing.drawn":
            continue  # at random
        for number in range(3 * NIGHTLY):
            d = Seeded(family, number)
            model, feed = make(d)
            model = as_weights(model, feed) if d.flag() else model
            given = {v.name: feed[v.name] for v in model.graph.input if v.name in feed}
            if runs(model, given):
                found += check_bounds(fenced(model, given, d), [given])
    assert (found > 100).all()


def runs(model: onnx.ModelProto, feed: dict[str, Array]) -> bool:
    """Whether ONNX Runtime has a kernel for it."""
    try:
        run(make_session(model, threads=1, optimize=False), feed)
    except CertificateError:
        return False
    return True


def as_weights(model: onnx.ModelProto, feed: dict[str, Array]) -> onnx.ModelProto:
    """All inputs but the first as constants."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in list(model.graph.input)[1:]:
        if value.name in feed:
            array = np.asarray(feed[value.name])
            result.graph.initializer.append(numpy_helper.from_array(array, value.name))
            result.graph.input.remove(value)
    return result


# -- what is known --------------------------------------------------------------------------------


def after(body: str, opset: int = 20, shape: str = "3, 4", **weights: Any) -> Any:
    """What is known of ``y``."""
    text = f"g (float[{shape}] x) => (float[A, B] y) {{ {body} }}"
    return bounds_of(build(text, opset, **weights), "y")


def assert_near(bounds: Any, low: Any, high: Any) -> None:
    """The bounds are these, or less tight by no more than rounding."""
    low, high = (np.broadcast_to(np.asarray(v, np.float64), bounds.shape) for v in (low, high))
    finite = np.isfinite(low)
    assert (np.isfinite(bounds.low) == finite).all()
    assert (bounds.low[finite] <= low[finite]).all()
    np.testing.assert_allclose(bounds.low[finite], low[finite], rtol=1e-4, atol=2e-5)
    finite = np.isfinite(high)
    assert (np.isfinite(bounds.high) == finite).all()
    assert (bounds.high[finite] >= high[finite]).all()
    np.testing.assert_allclose(bounds.high[finite], high[finite], rtol=1e-4, atol=2e-5)


def test_nothing_is_known_of_inputs() -> None:
    assert_near(after("y = Identity(x)"), -np.inf, np.inf)


@pytest.mark.parametrize(
    ("body", "low", "high"),
    [
        ("y = Relu(x)", 0, np.inf),
        ("y = Sigmoid(x)", 0, 1),
        ("s = Sigmoid(x) y = Neg(s)", -1, 0),
        ("s = Tanh(x) y = Abs(s)", 0, 1),
        ("s = Sigmoid(x) t = Tanh(x) y = Add(s, t)", -1, 2),
        ("s = Sigmoid(x) t = Tanh(x) y = Sub(s, t)", -1, 2),
        ("s = Tanh(x) t = Tanh(x) y = Mul(s, t)", -1, 1),
        ("s = Softmax(x) y = Exp(s)", 1, math.e),
        ("y = HardSwish(x)", -0.375, np.inf),
        ("y = Gelu(x)", -0.169971, np.inf),
        ("s = Sigmoid(x) y = Mul(x, s)", -np.inf, np.inf),
        ("t = Tanh(x) y = Div(t, t)", -np.inf, np.inf),
        ("t = Tanh(x) e = Exp(t) y = Div(t, e)", -math.e, math.e),
        ("t = Tanh(x) y = Elu(t)", np.expm1(-1), 1),
        ("t = Tanh(x) y = LeakyRelu(t)", -0.01, 1),
        ("t = Tanh(x) s = Sigmoid(x) y = Max(t, s)", 0, 1),
        ("t = Tanh(x) s = Sigmoid(x) y = Min(t, s)", -1, 1),
    ],
)
def test_ranges_of_functions(body: str, low: float, high: float) -> None:
    assert_near(after(body), low, high)


def test_sums_of_weights() -> None:
    weight, bias = normal(4, 5), normal(5, seed=1)
    bounds = after("s = Sigmoid(x) y = Gemm(s, w, b)", w=weight, b=bias)
    low, high = (f(weight, 0).sum(0) + bias for f in (np.minimum, np.maximum))
    assert_near(bounds, low[None], high[None])


def test_a_weight_of_zero_hides_what_is_not_bounded() -> None:
    weight = normal(4, 5)
    weight[:, 2] = 0
    bounds = after("y = MatMul(x, w)", w=weight)
    assert np.isfinite(bounds.low[0]).tolist() == [False, False, True, False, False]
    assert bounds.zero[0].tolist() == [False, False, True, False, False]


def test_saturated_sigmoids_are_points() -> None:
    bias = np.array([-60, -1, 1, 60], np.float32)
    bounds = after("t = Tanh(x) s = Add(t, b) y = Sigmoid(s)", b=bias)
    assert np.isnan(bounds.point[0]).tolist() == [True, True, True, False]
    assert bounds.point[0, 3] == 1


def test_equal_columns_have_equal_numbers() -> None:
    weight = normal(4, 5)
    weight[:, 3] = weight[:, 0]
    numbers = after("t = Tanh(x) h = MatMul(t, w) y = Relu(h)", w=weight).number[0]
    assert numbers[0] == numbers[3] and len(set(numbers.tolist())) == 4


def test_places_of_an_input_are_not_equal() -> None:
    bounds = after("t = Tanh(x) y = Concat<axis = 1>(t, t)").along(1, 8)
    assert len(set(bounds.number.tolist())) == 4
    assert (bounds.number[:4] == bounds.number[4:]).all()


def test_large_reshapes_keep_channels() -> None:
    body = """c = Conv(x, w) r = Relu(c) f = Flatten(r) y = Relu(f)"""
    weight = normal(3, 2, 1, 1)
    weight[1] = 0
    bounds = after(body, shape="1, 2, 3, 3", w=weight)
    assert bounds.zero[0].tolist() == [False] * 9 + [True] * 9 + [False] * 9


def test_values_beyond_a_type_do_not_count() -> None:
    """What overflows in half precision is no proof of anything."""
    text = "g (float16[3, 4] x) => (float16[3, 4] y) { c = Clip(x, l, h) y = Add(c, c) }"
    limits: dict[str, Any] = {"l": np.array(-np.inf, np.float16), "h": np.array(2, np.float16)}
    bounds = bounds_of(build(text, **limits), "y")
    assert bounds.low.item() == -np.inf and 4 <= bounds.high.item() <= 4.02
