"""The pass drop-blocks on operators that add and do something else, against the model as it would
have been written without the branch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import secateur
from secateur.ir.branches import residual_branches
from secateur.ir.io import model_bytes
from secateur.passes.drop_blocks import DropBlocks
from tests.graph_builder import Weight, build, net
from tests.graphs import GRAPHS
from tests.pruning_checks import run

Array = npt.NDArray[Any]
ROWS = "(float[N,4,8] x) => (float[N,4,8] y, float[N,4,8] t)"
TABLE = "(float[N,8] x) => (float[N,8] y)"
IMAGE = "(float[N,6,5,5] x) => (float[N,6,5,5] y)"
BRANCH = "h = MatMul(e, w) f = Tanh(h)"
CONV: dict[str, Weight] = {"w": (6, 6, 1, 1), "v": (6, 6, 3, 3), "b": 6}
NORM: dict[str, Weight] = {"w": (8, 8), "g": 8, "b": 8, "c": 8}

# signature, before the branch, the branch and its sum, the same without the branch, weights
CASES: dict[str, tuple[str, str, str, str, dict[str, Weight]]] = {
    "Add": (TABLE, "e = Abs(x)", f"{BRANCH} y = Add(e, f)", "y = Identity(e)", {"w": (8, 8)}),
    "SkipLayerNormalization, its sum read": (
        ROWS,
        "e = Abs(x)",
        BRANCH
        + """ y, m, d, s = com.microsoft.SkipLayerNormalization<epsilon=0.01>(e, f, g, b, c)
        t = Relu(s)""",
        "y = LayerNormalization<epsilon=0.01>(e, g, b) t = Relu(e)",
        NORM,
    ),
    "SkipLayerNormalization, neither shift nor epsilon": (
        ROWS,
        "e = Abs(x)",
        f"{BRANCH} y = com.microsoft.SkipLayerNormalization(f, e, g, , c) t = Neg(y)",
        "y = LayerNormalization<epsilon=1e-12>(e, g) t = Neg(y)",
        NORM,
    ),
    "SkipSimplifiedLayerNormalization, its sum an output": (
        ROWS,
        "e = Abs(x)",
        BRANCH
        + " y, m, d, t = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.01>(e, f, g, c)",
        "y = SimplifiedLayerNormalization<epsilon=0.01>(e, g) t = Identity(e)",
        NORM,
    ),
    "FusedConv": (
        IMAGE,
        "e = Abs(x)",
        """h = Conv(e, w) y = com.microsoft.FusedConv<pads=[1,1,1,1], activation="LeakyRelu",
        activation_params=[0.3]>(h, v, b, e)""",
        "y = LeakyRelu<alpha=0.3>(e)",
        CONV,
    ),
    "FusedConv of what it adds, without activation and bias": (
        IMAGE,
        "e = Tanh(x)",
        "y = com.microsoft.FusedConv<pads=[1,1,1,1]>(e, v, , e)",
        "y = Identity(e)",
        CONV,
    ),
    "Gemm": (
        TABLE,
        "e = Abs(x)",
        "h = Tanh(e) y = Gemm<transB=1, alpha=0.5>(h, w, e)",
        "y = Identity(e)",
        {"w": (8, 8)},
    ),
    "FusedGemm": (
        TABLE,
        "e = Tanh(x)",
        """h = Tanh(e) y = com.microsoft.FusedGemm<activation="LeakyRelu", activation_alpha=0.2>(
        h, w, e)""",
        "y = LeakyRelu<alpha=0.2>(e)",
        {"w": (8, 8)},
    ),
    "Sum": (TABLE, "e = Abs(x)", f"{BRANCH} y = Sum(e, f)", "y = Identity(e)", {"w": (8, 8)}),
    "Sum with a term that stays": (
        TABLE,
        "e = Abs(x)",
        f"{BRANCH} z = Neg(x) y = Sum(f, z, e)",
        "z = Neg(x) y = Sum(z, e)",
        {"w": (8, 8)},
    ),
}


def found(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    return {b.joint: b.nodes for b in residual_branches(secateur.load(model).graph)}


def used(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.input}


@pytest.mark.parametrize("case", CASES)
def test_without_its_branch_a_sum_is_what_it_added_to(case: str) -> None:
    signature, before, branch, without, weights = CASES[case]
    model = build("fused", net(signature, f"{before} {branch}", **weights), 17, "initializers")
    plain = build("fused", net(signature, f"{before} {without}", **weights), 17, "initializers")
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = np.random.default_rng(1).standard_normal((4, 1, *shape)).astype(np.float32)
    result = secateur.run(model, [DropBlocks(count=1)], calibration={"x": x}, bench=False)
    assert result.certificate is not None and result.certificate.ok
    proto = onnx.load_from_string(model_bytes(result.model))
    assert sorted(n.op_type for n in proto.graph.node if n.op_type != "Identity") == sorted(
        n.op_type for n in plain.graph.node if n.op_type != "Identity"
    )
    left = {t.name for t in proto.graph.initializer} & used(model)
    assert left == used(plain) & weights.keys()
    got, wanted = run(proto, {"x": x[0]}), run(plain, {"x": x[0]})
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-6, atol=1e-6)


def test_two_branches_of_one_sum_go_together() -> None:
    text = "h = MatMul(x, w) i = MatMul(x, v) y = Sum(i, x, h)"
    model = build("both", net(TABLE, text, w=(8, 8), v=(8, 8)), 17, "initializers")
    x = np.random.default_rng(1).standard_normal((4, 1, 8)).astype(np.float32)
    result = secateur.run(model, [DropBlocks(count=2)], calibration={"x": x}, bench=False)
    proto = onnx.load_from_string(model_bytes(result.model))
    np.testing.assert_array_equal(run(proto, {"x": x[0]})["y"], x[0])


def test_the_sum_is_compared_before_it_is_normalised() -> None:
    case = "SkipLayerNormalization, neither shift nor epsilon"
    signature, before, branch, _, weights = CASES[case]
    model = build("fused", net(signature, f"{before} {branch}", **weights), 17, "initializers")
    x = np.random.default_rng(1).standard_normal((1, 2, 4, 8)).astype(np.float32)
    result = secateur.run(model, [DropBlocks(count=1)], calibration={"x": x}, bench=False)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    e = np.abs(x[0].astype(np.float64))
    total = e + np.tanh(e @ stored["w"]) + stored["c"]
    cosine = (e * total).sum() / np.linalg.norm(e) / np.linalg.norm(total)
    assert result.report["blocks"][0]["similarity"] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "y, m = com.microsoft.SkipLayerNormalization(x, f, g) t = Add(y, m)",
        """y = com.microsoft.FusedGemm<activation="Softsign">(f, w, x)""",
        "y = Gemm<beta=2.0>(f, w, x)",
        "y = Mul(x, f)",
    ],
)
def test_no_branch_ends_where_more_than_the_sum_is_needed(text: str) -> None:
    model = build("none", net(TABLE, f"f = Tanh(x) {text}", w=(8, 8), g=8), 17, "initializers")
    assert found(model) == {}


FUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "encoder_fused": {"a": ("o", "p"), "f": ("h", "g", "d")},
    "llama_fused": {
        "a": ("n", "m", "sh", "t", "total", "u", "u32", "batch", "ends", "o", "p"),
        "f": ("g", "q", "w", "h", "d"),
    },
    "convolutions_fused": {"c": ("b",)},
}


@pytest.mark.parametrize(
    ("name", "opset"), [*((name, None) for name in FUSED), ("encoder_fused", 13)]
)
def test_all_blocks_of_a_fused_network_go(name: str, opset: int | None) -> None:
    model = GRAPHS[name]()
    model.opset_import[0].version = opset or model.opset_import[0].version
    assert found(model) == FUSED[name]
    rng = np.random.default_rng(0)
    samples: dict[str, Array] = {
        "encoder_fused": rng.integers(0, 32, (4, 1, 7)).astype(np.int32),
        "llama_fused": rng.integers(0, 32, (4, 1, 7)),
        "convolutions_fused": rng.standard_normal((4, 1, 3, 8, 8)).astype(np.float32),
    }
    result = secateur.run(
        model,
        [DropBlocks(count=len(FUSED[name]))],
        calibration={"x": samples[name]},
        dims={} if name == "convolutions_fused" else {"T": 7},
        bench=False,
    )
    assert result.certificate is not None and result.certificate.ok
    proto = onnx.load_from_string(model_bytes(result.model))
    gone = {value for nodes in FUSED[name].values() for value in nodes}
    assert not gone & {value for node in proto.graph.node for value in node.output}
