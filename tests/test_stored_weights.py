"""What criteria take quantised weights for, against ONNX Runtime's own reading of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import helper, numpy_helper

from secateur.passes.stored_weights import READERS, numbers

from .graphs import Array
from .pruning_checks import run

RNG = np.random.default_rng(0)
MICROSOFT = "com.microsoft"


def uint8(*shape: int) -> Array:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def int8(*shape: int) -> Array:
    return RNG.integers(-128, 128, shape).astype(np.int8)


def scale(*shape: int) -> Array:
    return RNG.uniform(0.01, 0.1, shape).astype(np.float32)


ONE, U0 = np.float32(1), np.uint8(0)
EYE = np.eye(5, dtype=np.uint8)
TAPS = np.eye(12, dtype=np.uint8).reshape(12, 3, 2, 2)
"""One input for each tap of a kernel."""
IDENTITY = (8 + np.eye(32, dtype=np.uint8)).reshape(1, 32, 16, 2) @ np.array([1, 16], np.uint8)
"""In 4 bits, where 8 stands for zero."""

Case = tuple[str, dict[str, Any], list[Any], int]
CASES: dict[str, Case] = {
    "per tensor": ("DequantizeLinear", {}, [uint8(5, 4), scale(), uint8()], 0),
    "per axis": ("DequantizeLinear", {"axis": 0}, [int8(5, 4), scale(5), int8(5)], 0),
    "in blocks": (
        "DequantizeLinear",
        {"axis": 1, "block_size": 3},
        [int8(5, 7), scale(5, 3), int8(5, 3)],
        0,
    ),
    "integers": ("MatMulInteger", {}, [EYE, int8(5, 4), U0, int8(4)], 1),
    "integer taps": ("ConvInteger", {}, [TAPS, uint8(4, 3, 2, 2), U0, uint8()], 1),
    **{
        f"codes {kind}": (
            "MatMulBnb4",
            {"K": 24, "N": 4, "block_size": 16, "quant_type": kind},
            [np.eye(24, dtype=np.float32), uint8(48), scale(6)],
            1,
        )
        for kind in (0, 1)
    },
    "in floats": (
        "MatMulIntegerToFloat",
        {},
        [EYE, int8(5, 4), ONE, scale(4), U0, int8(4)],
        1,
    ),
    "columns in blocks": (
        "MatMulNBits",
        {"K": 48, "N": 3, "bits": 4, "block_size": 16},
        [np.eye(48, dtype=np.float32), uint8(3, 3, 8), scale(3, 3), uint8(3, 2)],
        1,
    ),
    "all blocks in one row": (
        "MatMulNBits",
        {"K": 32, "N": 3, "bits": 8, "block_size": 16},
        [np.eye(32, dtype=np.float32), uint8(3, 2, 16), scale(6)],
        1,
    ),
    "two bits": (
        "MatMulNBits",
        {"K": 32, "N": 3, "bits": 2, "block_size": 16},
        [np.eye(32, dtype=np.float32), uint8(3, 2, 4), scale(3, 2), uint8(3, 1)],
        1,
    ),
    "a table of nibbles": (
        "GatherBlockQuantized",
        {"bits": 4, "block_size": 16},
        [uint8(4, 24), np.arange(4), scale(4, 3), uint8(4, 2)],
        0,
    ),
    "a table of bytes": (
        "GatherBlockQuantized",
        {"bits": 8, "block_size": 16},
        [uint8(4, 32), np.arange(4), scale(4, 2)],
        0,
    ),
    "experts": (
        "QMoE",
        {"k": 1, "expert_weight_bits": 4, "activation_type": "identity", "block_size": 16},
        [np.eye(32, dtype=np.float32), np.zeros((32, 1), np.float32), uint8(1, 32, 16),
         scale(1, 32, 2), None, IDENTITY, np.ones((1, 32, 2), np.float32), None, None, None, None,
         uint8(1, 32, 1)],
        2,
    ),
    "experts, a scale for each row": (
        "QMoE",
        {"k": 1, "expert_weight_bits": 4, "activation_type": "identity"},
        [np.eye(32, dtype=np.float32), np.zeros((32, 1), np.float32), uint8(1, 32, 16),
         scale(1, 32), None, IDENTITY, np.ones((1, 32), np.float32)],
        2,
    ),
}  # fmt: skip


OWN = ("MatMulIntegerToFloat", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QMoE")
"""Operators of ONNX Runtime's domain."""


def model(op: str, attributes: dict[str, Any], inputs: list[Any]) -> onnx.ModelProto:
    names = [f"i{k}" if a is not None else "" for k, a in enumerate(inputs)]
    own = op in OWN
    node = helper.make_node(op, names, ["y"], domain=MICROSOFT if own else "", **attributes)
    tensors = [
        numpy_helper.from_array(np.asarray(a), n) for a, n in zip(inputs, names, strict=True) if n
    ]
    graph = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="y")], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_what_the_operator_computes_with(name: str) -> None:
    """Multiplied by the identity, looked up in order, or simply dequantised."""
    op, attributes, inputs, place = CASES[name]
    proto = model(op, attributes, inputs)
    read = np.asarray(run(proto, {})["y"], np.float64)
    value = oir.serde.deserialize_model(proto).graph.initializers[f"i{place}"]
    found = numbers(value)
    assert found.shape[: np.ndim(inputs[place]) - 1] == inputs[place].shape[:-1]
    if op == "MatMulBnb4":
        found = found.reshape(4, 24)
    if op == "ConvInteger":
        read = read.reshape(12, 4).T
        found = found.reshape(4, 12)
    elif op in ("MatMulNBits", "MatMulBnb4", "QMoE"):
        read = read.T
    np.testing.assert_allclose(found.reshape(read.shape), read, rtol=1e-5, atol=1e-6)


QUANTISED: dict[str, list[Any]] = {
    "QLinearMatMul": [EYE, ONE, U0, int8(5, 4), scale(4), int8(4), ONE, U0],
    "QLinearConv": [TAPS, ONE, U0, int8(4, 3, 2, 2), scale(4), np.zeros(4, np.int8), ONE, U0],
    "QGemm": [EYE, ONE, U0, int8(4, 5), scale(4), int8(4)],
    "DynamicQuantizeMatMul": [EYE.astype(np.float32), int8(5, 4), scale(4), int8(4)],
}


@pytest.mark.parametrize("op", QUANTISED)
def test_scales_and_zero_points_run_along_the_columns(op: str) -> None:
    """For operators that round their result: by the definition."""
    inputs = QUANTISED[op]
    place, axis = (1, 1) if op == "DynamicQuantizeMatMul" else (3, 1 if "Linear" in op else 0)
    axis = 0 if op == "QLinearConv" else axis
    names = [f"i{k}" for k in range(len(inputs))]
    attributes: dict[str, Any] = {"transB": 1} if op == "QGemm" else {}
    node = helper.make_node(op, names, ["y"], **attributes)
    tensors = [
        numpy_helper.from_array(np.asarray(a), n) for a, n in zip(inputs, names, strict=True)
    ]
    graph = helper.make_graph([node], "g", [], [], tensors)
    opsets = [helper.make_opsetid("", 21)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    value = oir.serde.deserialize_model(proto).graph.initializers[f"i{place}"]
    weight, steps, points = (inputs[place + k].astype(np.float64) for k in range(3))
    shape = [-1 if k == axis else 1 for k in range(weight.ndim)]
    expected = (weight - points.reshape(shape)) * steps.reshape(shape)
    np.testing.assert_allclose(numbers(value), expected, rtol=1e-6)


TABLE = "QEmbedLayerNormalization"
LSTM = "DynamicQuantizeLSTM"


@pytest.mark.parametrize("columns", [False, True])
def test_weights_of_a_recurrent_operator(columns: bool) -> None:
    """By the definition: [directions, inputs, columns], with a scale for each direction or each
    column of it."""
    where = (2, 12) if columns else (2,)
    given: dict[str, Any] = {"x": EYE.astype(np.float32).reshape(5, 1, 5)}
    given |= {"w": int8(2, 5, 12), "r": int8(2, 3, 12)}
    given |= {"ws": scale(*where), "wz": int8(*where), "rs": scale(*where), "rz": int8(*where)}
    names = ["x", "w", "r", *[""] * 5, "ws", "wz", "rs", "rz"]
    node = helper.make_node(LSTM, names, ["y"], domain=MICROSOFT, hidden_size=3)
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in given.items()]
    proto = helper.make_model(helper.make_graph([node], "g", [], [], tensors))
    stored = oir.serde.deserialize_model(proto).graph.initializers
    for name in "wr":
        point, step = (np.asarray(given[name + k], np.float64).reshape(2, 1, -1) for k in "zs")
        expected = (given[name] - point) * step
        np.testing.assert_allclose(numbers(stored[name]), expected, rtol=1e-6)


def test_quantised_tables() -> None:
    """Looked up one by one and normalised."""
    words, places, gamma, beta = uint8(5, 6), uint8(3, 6), uint8(6), uint8(6)
    given = [np.arange(3, dtype=np.int32)[None], None, words, places, None, gamma, beta, None]
    given += [scale(), scale(), None, scale(), scale(), uint8(), uint8(), None, uint8(), uint8()]
    names = [f"i{k}" if a is not None else "" for k, a in enumerate(given)]
    node = helper.make_node(TABLE, names, ["y", "lengths"], domain=MICROSOFT, epsilon=1e-12)
    tensors = [
        numpy_helper.from_array(np.asarray(a), n)
        for a, n in zip(given, names, strict=True)
        if a is not None
    ]
    graph = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="y")], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    stored = oir.serde.deserialize_model(proto).graph.initializers
    first, second, factor, shift = (numbers(stored[f"i{k}"]) for k in (2, 3, 5, 6))
    total = first[:3] + second
    total = (total - total.mean(axis=1, keepdims=True)) / total.std(axis=1, keepdims=True)
    read = np.asarray(run(proto, {})["y"])
    np.testing.assert_allclose(total * factor + shift, read[0], rtol=1e-4, atol=1e-4)


def test_every_reader_is_tested() -> None:
    assert {case[0] for case in CASES.values()} | {*QUANTISED, TABLE, LSTM} == set(READERS)
