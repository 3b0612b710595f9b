"""Functions inlined and names made unique: the same model in ONNX Runtime, and back again."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx.reference import ReferenceEvaluator

from secateur.ir.flatten import flatten, restore
from secateur.ir.graphs import own_values, value_names
from secateur.ir.io import load_model, to_proto

from .graphs import GRAPHS, feeds
from .pruning_checks import RUNNABLE, dims, run


def parse(text: str) -> oir.Model:
    return load_model(onnx.parser.parse_model(text))


def same(before: onnx.ModelProto, after: onnx.ModelProto, **sizes: int) -> None:
    for seed in range(2):
        feed = feeds(before, seed=seed, **sizes)
        for name, array in run(before, feed).items():
            np.testing.assert_array_equal(run(after, feed)[name], array)


WRITTEN = [name for name in RUNNABLE if flatten(m := load_model(GRAPHS[name]())) is not m]


@pytest.mark.parametrize("name", WRITTEN)
def test_flat_models_compute_the_same_and_come_back(name: str) -> None:
    written = load_model(GRAPHS[name]())
    text = to_proto(written).SerializeToString(deterministic=True)
    flat = flatten(written)
    names = list(value_names(flat.graph))
    assert len(set(names)) == len(names)
    assert not any(node.op_identifier() in flat.functions for node in flat.graph.all_nodes())
    same(to_proto(written), to_proto(flat), **dims(name))
    assert flatten(flat) is flat
    again = flatten(load_model(GRAPHS[name]()))
    assert list(value_names(again.graph)) == names, "the same names every time"
    copy = flat.clone()
    values = {str(v.name): v for g in (copy.graph, *copy.graph.subgraphs()) for v in own_values(g)}
    assert restore(copy, values) == []
    assert to_proto(copy).SerializeToString(deterministic=True) == text
    assert to_proto(written).SerializeToString(deterministic=True) == text, "not touched"


def test_some_are_not_flat() -> None:
    assert len(WRITTEN) >= 5


FUNCTIONS = """
    <domain: "f", opset_import: ["": 17]> act <alpha, beta: float = 2.0> (x) => (y) {
        s = LeakyRelu<alpha: float = @alpha>(x) b = Constant<value_float: float = @beta>()
        y = Mul(s, b) }
    <domain: "f", opset_import: ["": 17, "f": 1]> twice (x) => (y) {
        h = f.act<alpha = 0.5>(x) y = f.act<beta = 3.0>(h) }
    <domain: "f", opset_import: ["": 17]> clip (x, low, high) => (y, z) {
        y = Clip(x, low, high) z = Identity(y) }"""


def test_attributes_defaults_and_operands_that_are_left_out() -> None:
    model = parse(
        """<ir_version: 9, opset_import: ["": 17, "f": 1]>
        g (float[2, 3] x, float top) => (float[2, 3] y, float[2, 3] z) {
            a = f.twice(x) y, rest = f.clip(a, , top) low, z = f.clip(x, top) }"""
        + FUNCTIONS
    )
    flat = flatten(model)
    slopes = [n.attributes.get("alpha") for n in flat.graph if n.op_type == "LeakyRelu"]
    assert slopes[0] is not None and slopes[0].as_float() == 0.5 and slopes[1] is None
    factors = [
        n.attributes["value_float"].as_float() for n in flat.graph if n.op_type == "Constant"
    ]
    assert factors == [2.0, 3.0]
    same(to_proto(model), to_proto(flat))


def test_results_that_are_operands_or_alike() -> None:
    """The standard allows what ONNX Runtime does not load: the reference runs it."""
    model = parse(
        """<ir_version: 9, opset_import: ["": 17, "f": 1]>
        g (float[3] x) => (float[3] y, float[3] z, float[3] w) { y, z, w = f.same(x) }
        <domain: "f", opset_import: ["": 17]> same (a) => (a, b, b) { b = Neg(a) }"""
    )
    feed = {"x": np.array([1, 2, 3], np.float32)}
    found = ReferenceEvaluator(to_proto(flatten(model))).run(None, feed)
    for array, wanted in zip(found, (feed["x"], -feed["x"], -feed["x"]), strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_imports_that_only_a_function_has() -> None:
    model = parse(
        """<ir_version: 9, opset_import: ["": 17, "f": 1]>
        g (float[2, 3] x) => (float[2, 3] y) { y = f.scale(x) }
        <domain: "f", opset_import: ["": 17, "ai.onnx.ml": 3]> scale (x) => (y) {
            y = ai.onnx.ml.Scaler<offset = [0.0], scale = [2.0]>(x) }"""
    )
    flat = flatten(model)
    assert flat.graph.opset_imports["ai.onnx.ml"] == 3
    assert "ai.onnx.ml" not in model.graph.opset_imports
    same(to_proto(model), to_proto(flat))


def test_an_older_opset_that_means_the_same() -> None:
    text = """<ir_version: 9, opset_import: ["": 17, "f": 1]>
        g (float[2, 3] x) => (float[2, 3] y) { y = f.other(x) }
        <domain: "f", opset_import: ["": 11]> other (x) => (y) { y = OP(x) }"""
    assert [n.op_type for n in flatten(parse(text.replace("OP", "Cos"))).graph] == ["Cos"]
    assert [n.op_type for n in flatten(parse(text.replace("OP", "Softmax"))).graph] == ["other"]


def test_a_function_that_calls_itself_stays_a_call() -> None:
    model = parse(
        """<ir_version: 9, opset_import: ["": 17, "f": 1]>
        g (float[3] x) => (float[3] y) { y = f.loop(x) }
        <domain: "f", opset_import: ["": 17, "f": 1]> loop (x) => (y) {
            a = Neg(x) y = f.loop(a) }"""
    )
    assert [n.op_type for n in flatten(model).graph] == ["Neg", "loop"]


def test_a_function_that_calls_itself_in_a_branch_stays_a_call_there() -> None:
    model = parse(
        """<ir_version: 9, opset_import: ["": 17, "f": 1]>
        g (float[3] x, bool c) => (float[3] y) { y = f.loop(x, c) }
        <domain: "f", opset_import: ["": 17, "f": 1]> loop (x, c) => (y) {
            y = If(c) <then_branch = t () => (a) { a = f.loop(x, c) },
                       else_branch = e () => (b) { b = Neg(x) }> }"""
    )
    assert [n.op_type for n in flatten(model).graph.all_nodes()] == ["If", "loop", "Neg"]


def test_constants_of_a_body_are_one_for_all_calls() -> None:
    """Those of branches, too, but not one that is a result, nor one that the call decides."""
    model = parse(
        """<ir_version: 9, opset_import: ["": 17, "f": 1]>
        g (float[3] x, bool c) => (float[3] y, float[3] z) {
            z, a = f.either(c, x) b, y = f.either<beta = 3.0>(c, a) }
        <domain: "f", opset_import: ["": 17]> either <beta: float = 2.0> (c, x) => (y, v) {
            k = Constant<value = float[3] {1, 2, 3}>() s = Constant<value_float: float = @beta>()
            m = Mul(x, s) y = Constant<value = float[3] {4, 5, 6}>()
            v = If(c) <then_branch = t () => (a) <float[3] w = {7, 8, 9}> { a = Mul(m, w) },
                       else_branch = e () => (b) { b = Mul(m, k) }> }"""
    )
    flat = flatten(model)
    assert sorted(flat.graph.initializers) == ["either/k", "either/w"]
    assert [n.op_type for n in flat.graph].count("Constant") == 4
    assert not any(part.initializers for part in flat.graph.subgraphs())
    same(to_proto(model), to_proto(flat))
    copy = flat.clone()
    values = {str(v.name): v for g in (copy.graph, *copy.graph.subgraphs()) for v in own_values(g)}
    assert restore(copy, values) == []
    assert to_proto(copy) == to_proto(model)


def test_names_come_back_only_where_they_hide_nothing() -> None:
    """Inside the function `h` was free; inlined, it would hide the graph's own."""
    model = parse(
        """<ir_version: 9, opset_import: ["": 17, "f": 1]>
        g (float[3] x, bool c) => (float[3] y, float[3] z) {
            h = Neg(x) y = f.either(c, h) z = f.either(c, y) }
        <domain: "f", opset_import: ["": 17]> either (c, v) => (y) {
            y = If(c) <then_branch = t () => (a) { h = Exp(v) a = Neg(h) },
                       else_branch = e () => (b) { h = Cos(v) b = Neg(h) }> }"""
    )
    copy = flatten(model).clone()
    inlined = next(node for node in copy.graph if node.op_type == "If")  # of two calls
    branch = inlined.attributes["else_branch"].as_graph()
    branch[0].op_type = "Sin"  # so that the call cannot come back
    values = {str(v.name): v for g in (copy.graph, *copy.graph.subgraphs()) for v in own_values(g)}
    assert len(restore(copy, values)) == 1
    names = [[n.outputs[0].name for n in graph] for graph in copy.graph.subgraphs()]
    assert names == [["h_1", "a"], ["h_2", "b"]]
    proto = to_proto(copy)
    x = np.array([1, 2, 3], np.float32)
    np.testing.assert_allclose(run(proto, {"x": x, "c": np.array(False)})["y"], np.sin(x), 1e-6)
