"""Weights computed inside the graph are data that pruning slices, not sizes to be kept.

Low-rank updates, weight normalisation and the like compute a weight from constants; those values
are known before the run just as shape arithmetic is, and must not be mistaken for it.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import secateur
from secateur.ir.io import to_proto

ROW = "(float[N,10] x) => (float[N,4] y)"
GRAPHS: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    "low-rank update": (
        ROW,
        "ba = MatMul(b, a) w = Add(w0, ba) h = MatMul(x, w) y = MatMul(h, w3)",
        {"b": (10, 6), "a": (6, 8), "w0": (10, 8), "w3": (8, 4)},
    ),
    "low rank": (
        ROW,
        "wa = MatMul(w1, w2) h = MatMul(x, wa) y = MatMul(h, w3)",
        {"w1": (10, 6), "w2": (6, 8), "w3": (8, 4)},
    ),
    "weight normalisation": (
        ROW,
        """h = MatMul(x, w1) r = Relu(h) n = ReduceL2<axes=[0], keepdims=1>(v)
        q = Div(v, n) w2 = Mul(q, g) y = MatMul(r, w2)""",
        {"w1": (10, 8), "v": (8, 4), "g": (1, 4)},
    ),
    "sum of a bias": (
        ROW,
        "m = MatMul(x, w) h = Add(m, b) s = ReduceSum(b) k = Mul(h, s) y = MatMul(k, w2)",
        {"w": (10, 8), "b": (8,), "w2": (8, 4)},
    ),
    "no inputs": (
        "() => (float[10,4] y)",
        "h = MatMul(x, w) y = MatMul(h, w2)",
        {"x": (10, 10), "w": (10, 8), "w2": (8, 4)},
    ),
}


def build(signature: str, body: str, weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g {signature} {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_computed_weights_are_sliced(name: str, ratio: float) -> None:
    result = secateur.prune(build(*GRAPHS[name]), ratio=ratio, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert result.report["certificate"]["replay"]["agrees"]
    parameters = result.report["totals"]["parameters"]
    assert parameters["after"] < parameters["before"]


def stored(result: secateur.PruneResult) -> dict[str, np.ndarray]:
    """The initializers of the pruned model."""
    model = to_proto(result.model)
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_a_vector_stored_twice_counts_twice() -> None:
    model = build(
        ROW,
        "h = Gemm(x, w, b) r = Relu(h) k = Gemm(r, w1, b) q = Relu(k) y = MatMul(q, w2)",
        {"w": (10, 12), "b": (12,), "w1": (12, 12), "w2": (12, 4)},
    )
    result = secateur.prune(model, ratio=0.4, bench=False)
    arrays = stored(result)
    size = sum(array.nbytes for array in arrays.values())
    assert result.report["totals"]["weight_bytes"]["after"] == size
    assert result.report["totals"]["parameters"]["after"] == size // 4
    copies = {copy["stored_as"]: copy["indices"] for copy in result.report["copies"]}
    original = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "b"))
    for name, gone in copies.items():
        kept = np.delete(original, gone)
        assert np.array_equal(arrays[name], kept)
    assert len(copies) == 2


def test_an_unread_output_of_split_does_not_pin_the_axis() -> None:
    model = build(
        ROW, "a = MatMul(x, w) z, unread = Split<axis=1>(a) y = MatMul(z, w2)",
        {"w": (10, 12), "w2": (6, 4)},
    )  # fmt: skip
    result = secateur.prune(model, ratio=0.5, bench=False)
    arrays = stored(result)
    assert arrays["w2"].shape == (3, 4) and arrays["w"].shape == (10, 6)


def test_round_to_holds_on_every_contraction() -> None:
    model = build(
        "(float[N,3,4,4] x) => (float[N,4,8,8] y)",
        "h = Conv(x, w) d = DepthToSpace<blocksize=2>(h) y = Conv(d, w2)",
        {"w": (128, 3, 1, 1), "w2": (4, 32, 1, 1)},
    )
    result = secateur.prune(model, ratio=0.4, round_to=8, bench=False)
    arrays = stored(result)
    assert arrays["w"].shape[0] % 8 == 0 and arrays["w2"].shape[1] % 8 == 0
    assert arrays["w2"].shape[1] < 32


def test_units_of_unequal_cost_meet_the_target() -> None:
    indices = numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 0, 1, 2, 3]), "i")
    model = build(
        ROW.replace("4", "40"), "h = MatMul(x, w) a = Gather<axis=1>(h, i) y = MatMul(a, w2)",
        {"w": (10, 4), "w2": (9, 40)},
    )  # fmt: skip
    model.graph.initializer.append(indices)
    for target in (0.4, 0.7, 0.9):
        try:
            result = secateur.prune(model, macs=target, bench=False)
        except secateur.TargetError as error:
            assert "at best" in str(error)
            continue
        macs = result.report["totals"]["macs"]
        assert macs["after"] <= target * macs["before"]
