"""``remove-redundant`` on random networks: the outputs stay, and what is planted is found.

``SECATEUR_NIGHTLY=n`` multiplies the number of cases by n.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from .graphs import GRAPHS, INFO
from .pass_runs import Array
from .probing_draw import Draw
from .pruning_checks import RUNNABLE, dims
from .random_graphs import OPSETS, Graph
from .random_networks import IMAGE, SEQUENCE, conv, image_network, linear, sequence_network
from .redundant_runs import causes, reduced, spoil
from .test_random_graphs import budget

CAUSES = ("zero", "constant", "duplicate", "unread")


def plant(d: Draw, weight: Array, bias: Array, last: Array) -> str:
    """Makes one of several hidden units redundant: row ``k`` of ``weight`` and of ``bias``, and
    column ``k`` of ``last``. Returns the cause."""
    k, other = d.rng.permutation(len(weight))[:2]
    cause: str = d.pick(CAUSES)
    if cause == "unread":
        last[:, k] = 0
    elif cause == "duplicate":
        weight[k], bias[k] = weight[other], bias[other]
    else:
        weight[k], bias[k] = 0, d.rng.uniform(0.5, 1) * (1 if cause == "constant" else -1)
    return cause


def planted_image(g: Graph, x: str) -> tuple[str, str]:
    """Two convolutions with a Relu between them, and the cause that was planted."""
    c, h, w = g.shapes[x]
    hidden = g.d.number(3, 6)
    parts = [g.d.floats(hidden, c, 3, 3), g.d.floats(hidden), g.d.floats(4, hidden, 1, 1)]
    cause = plant(g.d, *parts)
    first, bias, last = (g.constant(part / np.float32(4)) for part in parts)
    y = g.add("Conv", [x, first, bias], [hidden, h, w], pads=[1] * 4)
    y = g.add("Relu", [y], [hidden, h, w])
    return g.add("Conv", [y, last], [4, h, w]), cause


def planted_sequence(g: Graph, x: str) -> tuple[str, str]:
    """Two products with a Relu between them, and the cause that was planted."""
    steps, width = g.shapes[x]
    hidden = g.d.number(3, 6)
    parts = [g.d.floats(hidden, width), g.d.floats(hidden), g.d.floats(4, hidden)]
    cause = plant(g.d, *parts)
    first, bias, last = (g.constant(np.ascontiguousarray(part.T)) for part in parts)
    y = g.add("MatMul", [x, first], [steps, hidden])
    y = g.add("Relu", [g.add("Add", [y, bias], [steps, hidden])], [steps, hidden])
    return g.add("MatMul", [y, last], [steps, 4]), cause


def image(g: Graph) -> str:
    """Blocks, the planted ones and a classifier."""
    g.shapes["x"] = (3, 6, 6)
    x = conv(g, g.feed("x", ["N", 3, 6, 6]), g.d.number(4, 8))
    for _ in range(g.d.number(0, 2)):
        x = g.d.pick(IMAGE)(g, x)
    x, cause = planted_image(g, x)
    y = g.add("GlobalMaxPool", [g.add("Softplus", [x], g.shapes[x])], [4, 1, 1])
    g.output(g.add("Reshape", [y, g.sizes(0, -1)], [4]), ["N", 4])
    return cause


def sequence(g: Graph) -> str:
    """Blocks, the planted ones and a classifier."""
    g.shapes["x"] = (4, 6)
    x = linear(g, g.feed("x", ["N", 4, 6]), g.d.number(4, 9))
    for _ in range(g.d.number(0, 2)):
        x = g.d.pick(SEQUENCE)(g, x)
    x, cause = planted_sequence(g, x)
    g.output(g.add("Tanh", [x], g.shapes[x]), ["N", 4, 4])
    return cause


@pytest.mark.parametrize("network", [image, sequence])
def test_what_is_planted_is_found(network: Callable[[Graph], str]) -> None:
    @budget(12)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        d = Draw(data.draw)
        graph = Graph(d, d.number(*OPSETS))
        cause = network(graph)
        _, result = reduced(graph.model(), dims={"N": 2}, tolerance=2e-5, verify=False)
        assert causes(result).get(cause, 0) >= 1

    check()


@pytest.mark.parametrize("network", [image_network, sequence_network])
def test_spoiled_networks(network: Callable[[Graph], None]) -> None:
    removed = 0

    @budget(30)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal removed
        d = Draw(data.draw)
        graph = Graph(d, d.number(*OPSETS), nests=d.flag())
        network(graph)
        model = graph.model()
        spoil(model, d.rng)
        try:
            _, result = reduced(model, dims={"N": 2}, tolerance=2e-5, verify=False)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{onnx.printer.to_text(model)}") from error
        removed += sum(causes(result).values())

    check()
    assert removed >= 5


@pytest.mark.parametrize("name", [n for n in RUNNABLE if not INFO[n].deprecated][::2])
def test_proof_graphs(name: str) -> None:
    model = GRAPHS[name]()
    spoil(model, np.random.default_rng(0))
    tolerance = 4e-3 if model.graph.input[0].type.tensor_type.elem_type == 10 else 2e-5
    reduced(model, dims=dims(name), tolerance=tolerance, verify=False)
