"""Generated LSTM, GRU and RNN nodes: every attribute, every optional input, any outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from tests.probing_draw import Case, Draw, maybe, model
from tests.probing_runs import Array

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
ACTIVATIONS = {
    "Relu": (None, None), "Tanh": (None, None), "Sigmoid": (None, None), "Affine": (0.5, 0.1),
    "LeakyRelu": (0.1, None), "ThresholdedRelu": (0.2, None), "ScaledTanh": (0.7, 1.2),
    "HardSigmoid": (0.3, 0.4), "Elu": (0.9, None), "Softsign": (None, None),
    "Softplus": (None, None),
}  # fmt: skip
"""Names with the alpha and beta that they take."""


def lstm(d: Draw) -> Case:
    return recurrent(d, "LSTM")


def gru(d: Draw) -> Case:
    return recurrent(d, "GRU")


def rnn(d: Draw) -> Case:
    return recurrent(d, "RNN")


def recurrent(d: Draw, op: str) -> Case:
    opset = d.opset()
    turned = opset >= 14 and d.number(0, 3) == 0  # batch first: no kernel in ONNX Runtime
    direction = d.pick(["forward", "reverse", "bidirectional"])
    directions = 1 + (direction == "bidirectional")
    t, b, i, h = d.number(1, 4), d.number(1, 3), d.number(1, 3), d.number(1, 5)
    state = (b, directions, h) if turned else (directions, b, h)
    inputs: dict[str, Array | None] = {
        "x": d.floats(b, t, i) if turned else d.floats(t, b, i),
        "w": d.floats(directions, GATES[op] * h, i),
        "r": d.floats(directions, GATES[op] * h, h) / 4,  # more, and unbounded functions blow up
        "b": d.floats(directions, 2 * GATES[op] * h) if d.flag() else None,
        "lengths": None,
        "h": d.floats(*state) if d.flag() else None,
    }
    attributes: dict[str, Any] = maybe(d.flag(), direction=direction)
    if direction != "forward":
        attributes["direction"] = direction
    if turned:
        attributes["layout"] = 1
    else:
        if d.flag():
            inputs["lengths"] = d.rng.integers(1, t, b, endpoint=True).astype(np.int32)
        attributes |= maybe(d.number(0, 3) == 0, clip=0.8)
        if d.flag():
            attributes |= activations(d, directions * FUNCTIONS[op])
    outputs = ["y", "yh"]
    if op == "LSTM":
        inputs["c"] = d.floats(*state) if d.flag() else None
        inputs["p"] = d.floats(directions, 3 * h) if d.flag() else None
        attributes |= maybe(not turned and d.number(0, 3) == 0, input_forget=1)
        outputs.append("yc")
    if op == "GRU":
        attributes["linear_before_reset"] = d.number(0, 1)
    given = {name: array for name, array in inputs.items() if array is not None}
    names = [name if name in given else "" for name in inputs]
    written = d.subset(range(len(outputs))) or [d.number(0, len(outputs) - 1)]
    results = [name if k in written else "" for k, name in enumerate(outputs)]
    node = helper.make_node(op, names, results, hidden_size=h, **attributes)
    # Functions with flat stretches seldom show what reaches them unless everything is varied.
    varied = {"x", "w", "r"} if "activations" not in attributes and d.flag() else set(given)
    return model([node], given, [name for name in results if name], opset, set(given) - varied)


def activations(d: Draw, count: int) -> dict[str, Any]:
    """Names for every function of every direction, and the numbers of those that take some."""
    names = [d.pick(list(ACTIVATIONS)) for _ in range(count)]
    while names.count("ThresholdedRelu") > 1:  # several in a row hardly let anything through
        names[names.index("ThresholdedRelu")] = "Tanh"
    alpha, beta = (
        [v for v in (ACTIVATIONS[n][k] for n in names) if v is not None] for k in range(2)
    )
    return {
        "activations": names,
        **maybe(bool(alpha), activation_alpha=alpha),
        **maybe(bool(beta), activation_beta=beta),
    }
