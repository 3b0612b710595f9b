"""Inputs and outputs that are no tensors: sequences, optionals, maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import secateur
from secateur.ir.errors import DataError, ModelError
from secateur.ir.io import load_model, to_proto
from secateur.runtime.inputs import index_bounds, random_feed
from secateur.runtime.session import make_session, run

from .faithfulness import assert_same_model
from .graph_builder import build, net

LAYERS = {"w1": (4, 8), "w2": (8, 3)}
ML = 'opset_import: ["": 17, "ai.onnx.ml": 3]'


def with_weights(text: str, opset: int = 18) -> onnx.ModelProto:
    signature, _, body = text.partition("{")
    return build("net", net(signature, body.rpartition("}")[0], **LAYERS), opset, "initializers")


MODELS = {
    "optional and sequence inputs": """(optional(float[N,4]) o, seq(float[N,4]) s, float[N,4] t)
        => (float[N,3] y, seq(float[N,3]) z) {
        i = Constant<value_int=1>() a = OptionalGetElement(o) b = SequenceAt(s, i)
        c = Add(a, b) d = Add(c, t) h = MatMul(d, w1) r = Relu(h) y = MatMul(r, w2)
        z = SequenceConstruct(y, y) }""",
    "an optional sequence": """(optional(seq(float[N,4])) o) => (float[N,3] y) {
        i = Constant<value_int=0>() s = OptionalGetElement(o) b = SequenceAt(s, i)
        h = MatMul(b, w1) r = Relu(h) y = MatMul(r, w2) }""",
}


@pytest.mark.parametrize("name", MODELS)
def test_interfaces_that_are_no_tensors(name: str, tmp_path: Path) -> None:
    model = with_weights(MODELS[name])
    onnx.save(model, tmp_path / "m.onnx")
    result = secateur.prune(tmp_path / "m.onnx", ratio=0.5, threads=1)
    assert result.certificate is not None and result.certificate.ok
    small = to_proto(result.model)
    assert small.graph.input == model.graph.input and small.graph.output == model.graph.output
    assert {t.name: list(t.dims) for t in small.graph.initializer} == {"w1": [4, 4], "w2": [4, 3]}
    result.save(tmp_path / "p.onnx", tmp_path / "r.json")
    assert secateur.verify(tmp_path / "m.onnx", tmp_path / "p.onnx", tmp_path / "r.json").ok


def test_feeds_of_sequences() -> None:
    model = with_weights(MODELS["optional and sequence inputs"])
    feed = random_feed(model, {"N": 2}, 0)
    assert {k: v.shape for k, v in feed.items()} == {
        "o": (2, 4), "s[0]": (2, 4), "s[1]": (2, 4), "s[2]": (2, 4), "t": (2, 4)
    }  # fmt: skip
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    x = feed["o"] + feed["s[1]"] + feed["t"]
    wanted = np.maximum(x @ held["w1"], 0) @ held["w2"]
    outputs = run(make_session(model, threads=1), feed)
    assert outputs["z.length"] == 2
    for name in ("y", "z[0]", "z[1]"):
        np.testing.assert_allclose(outputs[name], wanted, rtol=1e-5, atol=1e-6)


def test_no_array_feeds_a_sequence() -> None:
    model = with_weights(MODELS["an optional sequence"])
    with pytest.raises(DataError, match="'o' is a sequence"):
        secateur.prune(model, ratio=0.5, calibration={"o": np.ones((5, 4), np.float32)})


def test_maps_pass_through(tmp_path: Path) -> None:
    """As classifiers of scikit-learn are converted: probabilities as a list of maps."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, {ML}>
        g (float[N,4] x) => (float[N,3] p, seq(map(int64, float)) z) {{
            h = MatMul(x, w1) r = Relu(h) q = MatMul(r, w2) p = Softmax(q)
            z = ai.onnx.ml.ZipMap<classlabels_int64s = [0, 1, 2]>(p) }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in LAYERS.items():
        weight = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    assert_same_model(model, to_proto(load_model(model)))
    result = secateur.prune(model, ratio=0.5, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert {run.output for run in result.certificate.runs} >= {"p", "z[0][1]", "z.length"}
    small = to_proto(result.model)
    assert small.graph.output == model.graph.output
    assert [list(t.dims) for t in small.graph.initializer] == [[4, 4], [4, 3]]


def test_a_map_as_input_is_analysed_but_not_fed() -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, {ML}>
        g (map(int64, float) m, float[N,4] x) => (float[N,3] y, float[1,3] v) {{
            v = ai.onnx.ml.DictVectorizer<int64_vocabulary = [1, 2, 3]>(m)
            h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }}"""
    )
    for name, shape in LAYERS.items():
        weight = np.ones(shape, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    assert [len(group.units) for group in secateur.analyze(model).groups] == [8]
    with pytest.raises(ModelError, match="input 'm' is not a tensor: it cannot be fed"):
        secateur.prune(model, ratio=0.5, bench=False)


def test_what_a_loop_indexes_bounds_how_often_it_runs() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (int64 n, float[4,3] xs, int64[2] ids, bool yes, float[3] h0)
            => (float[3] h, float[k,3] hs) {
            h, hs = Loop(n, yes, h0) <body = b (int64 i, bool c, float[3] h1)
                => (bool c2, float[3] h2, float[3] o) {
                x = Gather<axis = 0>(xs, i) h2 = Add(h1, x) o = Identity(h2) c2 = Identity(c) }>
            e = Gather<axis = 0>(xs, ids) }"""
    )
    assert index_bounds(model, {}) == {"n": (0, 3), "ids": (0, 3)}
    conditions = {bool(random_feed(model, {}, seed)["yes"]) for seed in range(2)}
    assert conditions == {True, False}, "two seeds see both"
