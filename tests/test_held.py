"""Discrete choices between nearly equal scores: held, compared, and no way around the proof."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from jsonschema import Draft202012Validator
from onnx import helper, numpy_helper

import secateur
from secateur.ir.errors import CertificateError
from secateur.ir.io import to_proto
from secateur.ir.rewrite import Rewritten
from secateur.runtime.certificate import Certificate

from .certified_models import Array, parse

SCHEMA = json.loads(
    (Path(__file__).parent.parent / "docs" / "report.schema.json").read_text(encoding="utf-8")
)

# a and b are the same scores, summed in another order: rounding alone tells them apart. What is
# chosen picks rows of a table, and these are all different.
SCORES = """
    h0 = MatMul(x, w1)  h = Relu(h0)
    a = MatMul(h, w2)  b1 = MatMul(h, w3)  b2 = MatMul(h, w4)  b = Add(b1, b2)
    s = Concat <axis = 1> (a, b)
"""
CHOICES = {
    "TopK": "v, i = TopK(s, k)  t = Gather(table, i)  u = Unsqueeze(v, m1)  y = Mul(t, u)",
    "TopK, smallest": """v, i = TopK <largest = 0> (s, k)
        t = Gather(table, i)  u = Unsqueeze(v, m1)  y = Mul(t, u)""",
    "TopK, filled": """f = Where(valid, s, lowest)  v, i = TopK(f, k)  y = Gather(table, i)""",
    "ArgMax": "i = ArgMax <axis = 1, keepdims = 0> (s)  y = Gather(table, i)",
    "ArgMin": "i = ArgMin <axis = -1> (s)  y = Gather(table, i)",
    "Greater": "i = Greater(a, b)  c = Cast <to = 1> (i)  y = MatMul(c, half)",
    "Equal": "i = Equal(a, b)  c = Cast <to = 1> (i)  d = MatMul(c, half)  y = Add(d, d)",
    "Round": "d = Sub(a, b)  e = Add(d, halves)  i = Round(e)  y = MatMul(i, half)",
    "Floor": "d = Sub(a, b)  e = Add(d, wholes)  i = Floor(e)  y = MatMul(i, half)",
    "Sign": "d = Sub(a, b)  e = Concat <axis = 1> (d, a)  i = Sign(e)  y = Identity(i)",
    "Cast": """d = Sub(a, b)  e = Add(d, wholes)  i = Cast <to = 7> (e)
        c = Cast <to = 1> (i)  y = MatMul(c, half)""",
    "NonZero": """d = Sub(a, b)  e = Concat <axis = 1> (d, a)  r = Relu(e)  i = NonZero(r)
        j = Transpose(i)  y = GatherND(s, j)""",
    "Hardmax": "i = Hardmax(s)  y = MatMul(i, table)",
    "MaxPool": """u = Unsqueeze(s, one_axis)  p, i = MaxPool <kernel_shape = [48]> (u)
        y = Gather(rows, i)""",
    "NonMaxSuppression": """u = Unsqueeze(s, one_axis)
        i = NonMaxSuppression(boxes, u, most, overlap)  z = Gather <axis = 1> (i, two)
        y = Gather(table, z)""",
}
DAMAGE: dict[str, Callable[[onnx.NodeProto], None]] = {
    "TopK": lambda node: _set(node, "largest", 0),
    "TopK, smallest": lambda node: _set(node, "largest", 1),
    "TopK, filled": lambda node: _set(node, "axis", 0),
    "ArgMax": lambda node: _set(node, "axis", 0),
    "ArgMin": lambda node: _rename(node, "ArgMax"),
    "Greater": lambda node: _rename(node, "Less"),
    "Round": lambda node: _rename(node, "Ceil"),
    "Floor": lambda node: _rename(node, "Round"),
    "Cast": lambda node: _set(node, "to", 9),
    "Hardmax": lambda node: _set(node, "axis", 0),
    "MaxPool": lambda node: _replace(node, "kernel_shape", [47]),
    "NonMaxSuppression": lambda node: _set(node, "center_point_box", 1),
}


def _set(node: onnx.NodeProto, name: str, value: int) -> None:
    _replace(node, name, value)


def _replace(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _rename(node: onnx.NodeProto, op_type: str) -> None:
    node.op_type = op_type


def model(choice: str) -> onnx.ModelProto:
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    w2 = normal(640, 24)
    w3 = (w2 * np.float32(0.3)).astype(np.float32)
    corners = rng.uniform(0, 9, (1, 24, 2))
    boxes = np.concatenate([corners, corners + 1], 2).astype(np.float32)
    tensors = {
        "w1": normal(8, 640),
        "w2": w2,
        "w3": w3,
        "w4": w2 - w3,
        "table": normal(48, 5),
        "rows": normal(4 * 48, 5),
        "half": normal(24, 5),
        "k": np.array([40]),
        "m1": np.array([-1]),
        "one_axis": np.array([1]),
        "two": np.array([2]),
        "wholes": np.arange(1, 25, dtype=np.float32),
        "halves": np.arange(24, dtype=np.float32) + np.float32(0.5),
        "valid": rng.random(48) < 0.9,
        "lowest": np.array(np.finfo(np.float32).min),
        "boxes": np.tile(np.concatenate([boxes, boxes], 1), (4, 1, 1)),
        "most": np.array([20]),
        "overlap": np.array([0.7], np.float32),
    }
    body = SCORES + CHOICES[choice]
    return parse(
        f"g (float[4, 8] x) => (y) {{ {body} }}", {n: t for n, t in tensors.items() if n in body}
    )


def pruned(choice: str) -> tuple[secateur.Plan, Rewritten]:
    plan = secateur.plan(secateur.analyze(model(choice)), ratio=0.3)
    return plan, secateur.rewrite(plan)


def certified(plan: secateur.Plan, rewritten: Rewritten, proto: onnx.ModelProto) -> Certificate:
    other = replace(rewritten, model=oir.serde.deserialize_model(proto))
    return secateur.certify(plan, other, threads=1)


@pytest.mark.parametrize("choice", CHOICES)
def test_choices_between_equals_are_held(choice: str) -> None:
    plan, rewritten = pruned(choice)
    certificate = secateur.certify(plan, rewritten, threads=1)
    assert certificate.ok and certificate.kind == "held"
    assert certificate.tolerance <= 1e-4
    assert "with discrete choices held" in certificate.describe()
    assert any(choice.split(",")[0] in note for note in certificate.notes)
    assert all(run.label.endswith("choices held") for run in certificate.runs)


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        (c, n)
        for c in CHOICES
        for n in ("w1", "w2", "w3")
        if n != "w1" or "Add(d," not in CHOICES[c]
    ],
)
def test_a_damaged_weight_is_noticed(choice: str, name: str) -> None:
    """Also where the weight reaches the output through the choice alone. (What changes both scores
    alike does not change their difference.)"""
    plan, rewritten = pruned(choice)
    proto = to_proto(rewritten.model)
    weight = next(t for t in proto.graph.initializer if t.name == name)
    array = numpy_helper.to_array(weight).copy()
    array[2] += 0.01
    weight.CopyFrom(numpy_helper.from_array(array, name))
    assert not certified(plan, rewritten, proto).ok


@pytest.mark.parametrize("choice", DAMAGE)
def test_a_damaged_choice_is_noticed(choice: str) -> None:
    plan, rewritten = pruned(choice)
    proto = to_proto(rewritten.model)
    DAMAGE[choice](next(n for n in proto.graph.node if "i" in n.output))
    with contextlib.suppress(CertificateError):
        assert not certified(plan, rewritten, proto).ok


@pytest.mark.parametrize(
    ("choice", "name", "value"),
    [
        ("TopK", "k", np.array([39])),
        ("NonMaxSuppression", "most", np.array([21])),
        ("NonMaxSuppression", "overlap", np.array([0.9], np.float32)),
    ],
)
def test_a_damaged_parameter_of_a_choice_is_noticed(choice: str, name: str, value: Array) -> None:
    plan, rewritten = pruned(choice)
    proto = to_proto(rewritten.model)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    assert not certified(plan, rewritten, proto).ok


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("factor", [1, 1 - 1e-6, np.inf])
def test_a_filler_hides_no_damage(added: bool, factor: float) -> None:
    """Where all scores are taken, the best values hold the fillers, too: much larger numbers."""
    proto = model("TopK, filled")
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    put(tensors["k"], np.array([48]))
    if added:
        where = next(node for node in proto.graph.node if node.op_type == "Where")
        where.CopyFrom(helper.make_node("Add", ["s", "lowest"], ["f"]))
        put(tensors["lowest"], np.where(np.arange(48) % 9, 0, -1e4).astype(np.float32))
    plan = secateur.plan(secateur.analyze(proto), ratio=0.3)
    rewritten = secateur.rewrite(plan)
    assert secateur.certify(plan, rewritten, threads=1).kind == "held"
    wrong = to_proto(rewritten.model)
    tensors = {tensor.name: tensor for tensor in wrong.graph.initializer}
    weight, filler = (numpy_helper.to_array(tensors[name]).copy() for name in ("w3", "lowest"))
    weight[2] += 0.01
    put(tensors["w3"], weight)
    filler[filler < 0] *= np.float32(factor)
    put(tensors["lowest"], filler)
    assert not certified(plan, rewritten, wrong).ok


def put(tensor: onnx.TensorProto, array: Array) -> None:
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def test_clear_choices_are_not_held() -> None:
    proto = model("TopK")
    proto.graph.node[3].input[1] = proto.graph.node[4].input[1] = "w5"
    rng = np.random.default_rng(4)
    w5 = rng.standard_normal((640, 24)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(w5, "w5"))
    plan = secateur.plan(secateur.analyze(proto), ratio=0.3)
    certificate = secateur.certify(plan, secateur.rewrite(plan), threads=1)
    assert certificate.ok and certificate.kind == "masked"
    assert "held" not in certificate.describe()


def test_reports_and_verification_know_held_choices(tmp_path: Path) -> None:
    onnx.save(model("TopK"), tmp_path / "model.onnx")
    result = secateur.prune(tmp_path / "model.onnx", ratio=0.3, bench=False)
    result.save(tmp_path / "pruned.onnx", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    Draft202012Validator(SCHEMA).validate(report)
    assert report["certificate"]["kind"] == "held"
    assert any("TopK" in warning for warning in report["warnings"])
    again = secateur.verify(
        tmp_path / "model.onnx", tmp_path / "pruned.onnx", tmp_path / "report.json"
    )
    assert again.ok and again.kind == "held"


def in_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with everything that computes scores and chooses inside a local function."""
    graph = proto.graph
    stored = [tensor.name for tensor in graph.initializer]
    function = helper.make_function(
        "local", "Choose", ["x", *stored], ["y"], list(graph.node), proto.opset_import
    )
    del graph.node[:]
    graph.node.append(helper.make_node("Choose", ["x", *stored], ["y"], "call", domain="local"))
    proto.functions.append(function)
    proto.opset_import.add(domain="local", version=1)
    return proto


def double(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float64, with an operator that ONNX Runtime lacks for that."""
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for node in proto.graph.node:
        node.op_type = "Elu" if node.op_type == "Relu" else node.op_type
    return proto


@pytest.mark.parametrize("change", [in_function, double])
@pytest.mark.parametrize("choice", ["TopK", "Round"])
def test_choices_are_held_in_other_guises(
    choice: str, change: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> None:
    plan = secateur.plan(secateur.analyze(change(model(choice))), ratio=0.3)
    rewritten = secateur.rewrite(plan)
    certificate = secateur.certify(plan, rewritten, threads=1)
    assert certificate.ok and certificate.kind == "held"
    proto = to_proto(rewritten.model)
    weight = next(t for t in proto.graph.initializer if t.name == "w3")
    array = numpy_helper.to_array(weight).copy()
    array[2] += 0.01
    weight.CopyFrom(numpy_helper.from_array(array, "w3"))
    assert not certified(plan, rewritten, proto).ok
