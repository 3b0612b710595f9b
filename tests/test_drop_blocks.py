"""The pass drop-blocks: which branches it finds, which it drops, and that the rest is untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper, parser

import secateur
from secateur.ir.branches import residual_branches
from secateur.ir.errors import TargetError, UsageError
from secateur.passes.drop_blocks import DropBlocks
from tests.graphs import GRAPHS
from tests.pruning_checks import run

Array = npt.NDArray[Any]

# Three blocks, the second of which adds little; the outer shortcut leads around all three.
STACK = """<ir_version: 8, opset_import: ["": 17]> stack (float[N, 16] x) => (float[N, 16] y) {
  a1 = MatMul(x, w1)  b1 = Relu(a1)  f1 = MatMul(b1, v1)  x1 = Add(x, f1)
  a2 = MatMul(x1, w2)  b2 = Relu(a2)  f2 = MatMul(b2, v2)  x2 = Add(f2, x1)
  a3 = MatMul(x2, w3)  b3 = Relu(a3)  f3 = MatMul(b3, v3)  x3 = Add(x2, f3)
  y = Add(x3, x)
}"""


def stack(small: float = 0.01) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    model = parser.parse_model(STACK)
    for k in (1, 2, 3):
        for name, shape in ((f"w{k}", (16, 32)), (f"v{k}", (32, 16))):
            array = rng.standard_normal(shape).astype(np.float32) * 0.3
            array *= small if name == "v2" else 1
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def samples(*shape: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal((8, *shape)).astype(np.float32)}


def branches(model: onnx.ModelProto) -> dict[str, tuple[str, int, tuple[str, ...]]]:
    found = residual_branches(secateur.load(model).graph)
    return {b.joint: (b.source, b.operands[0][0], b.nodes) for b in found}


def test_branches_are_what_lies_between_a_value_and_its_add() -> None:
    found = branches(stack())
    assert found["x1"] == ("x", 1, ("a1", "b1", "f1"))
    assert found["x2"] == ("x1", 0, ("a2", "b2", "f2"))
    assert found["x3"] == ("x2", 1, ("a3", "b3", "f3"))
    assert found["y"][:2] == ("x", 0) and len(found["y"][2]) == 12


def test_what_something_else_needs_is_no_branch() -> None:
    model = stack()
    model.graph.output.append(onnx.helper.make_tensor_value_info("b2", 1, ["N", 32]))
    assert branches(model).keys() == {"x1", "x3"}
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x, float[N, 4] z)
        => (float[N, 4] y) { a = Relu(x)  b = Sigmoid(z)  y = Add(a, b) }"""
    )
    assert branches(model) == {}


def test_a_formula_is_no_branch() -> None:
    """GELU, written out, adds a cube to its input; the product behind it closes a branch."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y)
        <float three = {3}, float by = {0.044715}> {
        c = Pow(x, three) d = Mul(c, by) e = Add(x, d) t = Tanh(e) f = MatMul(t, w)
        y = Add(x, f) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    assert branches(model) == {"y": ("x", 1, ("c", "d", "e", "t", "f"))}


def test_the_branch_that_changes_least_goes() -> None:
    model, data = stack(), samples(1, 16)
    result = secateur.run(model, [DropBlocks(count=1)], calibration=data, bench=False)
    assert result.certificate is not None and result.certificate.ok
    dropped = {b["joint"] for b in result.report["blocks"] if b["dropped"]}
    assert dropped == {"x2"}
    proto = onnx.load_from_string(secateur.ir.io.model_bytes(result.model))
    assert {t.name for t in proto.graph.initializer} == {"w1", "v1", "w3", "v3"}
    assert [o for n in proto.graph.node for o in n.output] == [
        *("a1", "b1", "f1", "x1", "a3", "b3", "f3", "x3", "y")
    ]
    w = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    x = data["x"][0].astype(np.float64)
    x1 = x + np.maximum(x @ w["w1"], 0) @ w["v1"]
    y = x1 + np.maximum(x1 @ w["w3"], 0) @ w["v3"] + x
    np.testing.assert_allclose(run(proto, {"x": data["x"][0]})["y"], y, rtol=1e-5, atol=1e-5)


def test_similarity_is_the_cosine_of_input_and_sum() -> None:
    model, data = stack(), samples(1, 16)
    result = secateur.run(model, [DropBlocks(count=1)], calibration=data, bench=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in ("x1", "x2"))
    cosines = []
    for row in data["x"]:
        values = run(model, {"x": row})
        a, b = (values[n].ravel().astype(np.float64) for n in ("x1", "x2"))
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    (block,) = (b for b in result.report["blocks"] if b["joint"] == "x2")
    assert block["similarity"] == pytest.approx(np.mean(cosines), abs=1e-5)


def test_nested_branches_do_not_go_twice() -> None:
    result = secateur.run(stack(1e-6), [DropBlocks(count=3)], calibration=samples(1, 16))
    assert {b["joint"] for b in result.report["blocks"] if b["dropped"]} == {"x1", "x2", "x3"}
    with pytest.raises(TargetError, match="4 residual branches found"):
        secateur.run(stack(), [DropBlocks(count=4)], calibration=samples(1, 16))


def test_a_joint_that_is_an_output_keeps_its_name() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y)
        { h = Relu(x)  r = Tanh(h)  f = Mul(r, s)  y = Add(h, f) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.full(4, 0.1, np.float32), "s"))
    result = secateur.run(model, [DropBlocks(similarity=0.9)], calibration=samples(1, 4))
    assert result.certificate is not None and result.certificate.ok
    proto = onnx.load_from_string(secateur.ir.io.model_bytes(result.model))
    assert [n.op_type for n in proto.graph.node] == ["Relu", "Identity"]
    assert [v.name for v in proto.graph.output] == ["y"]


def test_no_branch_is_similar_enough() -> None:
    with pytest.raises(TargetError, match="highest similarity is"):
        secateur.run(stack(1.0), [DropBlocks(similarity=1.0)], calibration=samples(1, 16))


def test_without_calibration_data_there_is_nothing_to_compare() -> None:
    with pytest.raises(UsageError, match="calibration"):
        secateur.run(stack(), [DropBlocks(count=1)])


@pytest.mark.parametrize("options", [{}, {"count": 1, "similarity": 0.5}, {"count": 0}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="count"):
        DropBlocks(**options)
    with pytest.raises(ValueError, match="similarity"):
        DropBlocks(similarity=1.5)


def test_a_dropped_block_is_verified_from_files(tmp_path: Path) -> None:
    source, target, report = (tmp_path / n for n in ("a.onnx", "b.onnx", "r.json"))
    onnx.save(stack(), str(source))
    result = secateur.run(source, "drop-blocks{count=1}", calibration=samples(1, 16), bench=False)
    result.save(target, report)
    assert secateur.verify(source, target, report).ok


def test_blocks_and_channels_go_in_one_pipeline() -> None:
    result = secateur.run(
        stack(), "drop-blocks{count=1},prune{ratio=0.5}", calibration=samples(1, 16), bench=False
    )
    assert result.report["totals"]["parameters"]["after"] == 4 * 16 * 16


TRANSFORMERS = ["swin_block", "transformer_decomposed_norm", "transformer_layer_norm"]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_blocks_of_transformers_are_found(name: str) -> None:
    assert len(branches(GRAPHS[name]())) >= 2
