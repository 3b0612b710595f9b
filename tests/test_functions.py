"""Local functions in pruned models: weights in bodies, new bodies, and what stays inlined."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

import secateur
from secateur.ir.io import load_model, to_proto
from secateur.ir.rewrite import Rewritten

from .graph_builder import Net, all_nodes, build, net
from .graphs import GRAPHS, feeds
from .pruning_checks import (
    analysis,
    at_random,
    constants,
    dims,
    prune,
    run,
    saved,
)

NAMES = [name for name, make in GRAPHS.items() if make().functions]
WITH_WEIGHTS = [name for name in NAMES if any("/" in key for key in constants(GRAPHS[name]()))]


PERCEPTRON = """<domain: "m", opset_import: ["": 17]> block (x) => (y) {
    h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"""


def calls(model: onnx.ModelProto) -> Counter[str]:
    """How often each function is called in the model's graphs and functions."""
    return Counter(node.op_type for node in all_nodes(model) if node.domain == "m")


def bodies(model: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """The functions, read and written once."""
    return [*to_proto(load_model(model)).functions]


@pytest.mark.parametrize("name", NAMES)
def test_calls_come_back(name: str) -> None:
    """With the weights in their bodies smaller; `test_pruned_graphs` certifies these models."""
    original = GRAPHS[name]()
    for seed, ratio in enumerate((0.3, 0.6, 1.0)):
        found = analysis(name)
        rewritten = secateur.rewrite(secateur.Plan(found, at_random(found, ratio, seed)))
        pruned = to_proto(rewritten.model)
        assert pruned.ByteSize() < original.ByteSize()
        if name in WITH_WEIGHTS:
            assert rewritten.notes == []
        assert (calls(pruned) == calls(original)) == (not rewritten.notes)


def test_there_are_some_with_weights() -> None:
    assert len(WITH_WEIGHTS) >= 3


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_bodies_keep_what_they_say_of_themselves(name: str) -> None:
    """Names, order, attributes and descriptions of a body whose weights shrink."""
    original = GRAPHS[name]()
    for function in original.functions:
        function.doc_string = f"about {function.name}"
        for number, node in enumerate(function.node):
            node.name, node.doc_string = f"node {number}", f"what {number} does"
    result = prune(original, name, ratio=0.5)
    pruned = to_proto(result.model)
    assert [f.name for f in pruned.functions] == [f.name for f in original.functions]
    for before, after in zip(original.functions, pruned.functions, strict=True):
        assert (before.input, before.output) == (after.input, after.output)
        assert before.doc_string == after.doc_string
        kept = [n for n in after.node if n.doc_string]
        for old, new in zip(before.node, kept, strict=True):
            assert (old.name, old.op_type, old.output) == (new.name, new.op_type, new.output)
            assert [a.name for a in old.attribute if old.op_type != "Constant"] == [
                a.name for a in new.attribute if new.op_type != "Constant"
            ]
            assert [a for a in old.attribute if a.ref_attr_name] == [
                a for a in new.attribute if a.ref_attr_name
            ]


BLOCK = """<domain: "m", opset_import: ["": 17]> block (x, p, v) => (y) {
    h = MatMul(x, w) r = Relu(h) q = MatMul(r, p) four = Constant<value_ints = [0, 4, 4]>()
    s = Reshape(q, four) t = Relu(s) back = Constant<value_ints = [0, -1]>()
    u = Reshape(t, back) y = MatMul(u, v) }"""


def two_sizes(hidden: int) -> onnx.ModelProto:
    """A function with a weight of its own and one that it is given, cut into heads."""
    parts: Net = net(
        "(float[N,8] x) => (float[N,8] y)",
        "a = m.block(x, p1, v1) b = m.block(a, p2, v2) c = m.block(b, p3, v3) y = Relu(c)",
        w=(8, hidden), p1=(hidden, 16), v1=(16, 8), p2=(hidden, 16), v2=(16, 8),
        p3=(hidden, 16), v3=(16, 8),
    )  # fmt: skip
    return build("two_sizes", parts, 17, "initializers", functions=BLOCK)


def cut(model: onnx.ModelProto, heads: dict[str, int], hidden: int = 0) -> Rewritten:
    """So many heads less in each of these weights, so much less of the shared one."""
    found = secateur.analyze(model, dims={"N": 2})
    removed = np.zeros(found.unit_count, np.bool_)
    axes = {w.name: w.axes[0] for w in found.weights}
    for name, count in {**heads, "block/w": hidden}.items():
        units = found.units_of(axes[name][1])
        assert units is not None
        removed[np.unique(units)[:count]] = True
    plan = secateur.Plan(found, removed)
    rewritten = secateur.rewrite(plan)
    certificate = secateur.certify(plan, rewritten, threads=1)
    assert certificate.ok, certificate.describe()
    onnx.checker.check_model(to_proto(rewritten.model), full_check=True)
    return rewritten


def stored(model: onnx.ModelProto, shape: tuple[int, ...]) -> int:
    """How many tensors of this shape a file holds."""
    tensors = [*model.graph.initializer]
    tensors += [a.t for n in all_nodes(model) for a in n.attribute if a.HasField("t")]
    return sum(tuple(t.dims) == shape for t in tensors)


def test_one_way_for_all_calls_is_a_new_body() -> None:
    pruned = to_proto((r := cut(two_sizes(24), {"p1": 2, "p2": 2, "p3": 2}, 5)).model)
    assert r.notes == [] and calls(pruned) == {"block": 3}
    held = constants(pruned)
    assert held["block/w"].dims == [8, 19]
    assert numpy_helper.to_array(held["block/four"]).tolist() == [0, 2, 4]


def test_two_ways_and_small_constants_are_one_body_and_nodes() -> None:
    """Most calls change in one way: these come back. What they share with the rest is small."""
    r = cut(two_sizes(4), {"p1": 1, "p2": 2, "p3": 2}, 1)
    pruned = to_proto(r.model)
    assert r.notes == ["the call 'a' of 'm.block' is inlined: its body changes"]
    assert calls(pruned) == {"block": 2}
    assert numpy_helper.to_array(constants(pruned)["block/four"]).tolist() == [0, 2, 4]


def test_weights_are_stored_once_where_calls_differ() -> None:
    original = two_sizes(24)
    r = cut(original, {"p1": 1, "p2": 2, "p3": 2}, 5)
    pruned = to_proto(r.model)
    assert len(r.notes) == 3 and all("share its weights" in note for note in r.notes)
    assert not pruned.functions and not any(n.domain for n in pruned.graph.node)
    assert stored(pruned, (8, 19)) == 1
    assert pruned.ByteSize() < original.ByteSize()


@pytest.mark.parametrize(("hidden", "kept"), [(4, {"pair": 2, "block": 1}), (24, {"pair": 2})])
def test_a_new_body_that_holds_calls_and_inlined_ones(hidden: int, kept: dict[str, int]) -> None:
    """A function calls another twice; the two calls change in different ways, but in the same two
    wherever the outer one is called."""
    pair = """<domain: "m", opset_import: ["": 17, "m": 1]> pair (x, p1, v1, p2, v2) => (y) {
        a = m.block(x, p1, v1) y = m.block(a, p2, v2) }"""
    parts = net(
        "(float[N,8] x) => (float[N,8] y)",
        "a = m.pair(x, p1, v1, p2, v2) y = m.pair(a, p1, v1, p2, v2)",
        w=(8, hidden), p1=(hidden, 16), v1=(16, 8), p2=(hidden, 16), v2=(16, 8),
    )  # fmt: skip
    original = build("pairs", parts, 17, "initializers", functions=f"{BLOCK}\n\n{pair}")
    r = cut(original, {"p1": 1, "p2": 2}, 1)
    pruned = to_proto(r.model)
    assert len(r.notes) == 4 - 2 * kept.get("block", 0)
    assert calls(pruned) == kept and [n.op_type for n in pruned.graph.node] == ["pair"] * 2
    assert stored(pruned, (8, hidden - 1)) == len(kept)
    assert pruned.ByteSize() < original.ByteSize()


def test_calls_that_do_not_change_keep_the_body() -> None:
    original = two_sizes(4)
    r = cut(original, {"p1": 2, "p2": 2, "p3": 0})
    pruned = to_proto(r.model)
    assert len(r.notes) == 2 and calls(pruned) == {"block": 1}
    assert bodies(pruned) == bodies(original)


def test_a_body_that_something_else_needs_stays() -> None:
    """A function that nothing calls stays in the model, and so does all that it calls."""
    original = two_sizes(4)
    other = """<domain: "m", opset_import: ["": 17, "m": 1]> other (x, p, v) => (y) {
        y = m.block(x, p, v) }"""
    original.functions.append(parser.parse_function(other))
    r = cut(original, {"p1": 2, "p2": 2, "p3": 2})
    pruned = to_proto(r.model)
    assert len(r.notes) == 3 and bodies(pruned) == bodies(original)
    assert calls(pruned) == {"block": 1}


def test_other_constants_are_cut_for_each_call() -> None:
    """A bias is no weight: two streams that add it may lose other channels. Its copies are then
    two, and the calls are inlined."""
    parts = net(
        "(float[N,8] x) => (float[N,4] y, float[N,4] z)",
        """a = MatMul(x, w1) b = m.shift(a) y = MatMul(b, w2)
        c = MatMul(x, w3) d = m.shift(c) z = MatMul(d, w4)""",
        w1=(8, 16), w2=(16, 4), w3=(8, 16), w4=(16, 4), bias=16,
    )  # fmt: skip
    shift = (
        '<domain: "m", opset_import: ["": 17]> shift (x) => (y) { a = Add(x, bias) y = Relu(a) }'
    )
    original = build("shifts", parts, 17, "initializers", functions=shift)
    found = secateur.analyze(original, dims={"N": 2})
    plan = secateur.Plan(found, at_random(found, 0.5, 1))
    rewritten = secateur.rewrite(plan)
    assert secateur.certify(plan, rewritten, threads=1).ok
    pruned = to_proto(rewritten.model)
    assert calls(pruned) == {"shift": 1} and len(rewritten.notes) == 1
    assert stored(pruned, (8,)) == 2


def test_a_shape_that_a_function_is_given_is_changed_outside() -> None:
    parts = net(
        "(float[N,8] x) => (float[N,4] y)",
        "a = MatMul(x, w1) b = m.fold(a, four) c = m.fold(b, back) y = MatMul(c, w2)",
        w1=(8, 16), w2=(16, 4), four=[0, 4, 4], back=[0, 16],
    )  # fmt: skip
    fold = """<domain: "m", opset_import: ["": 17]> fold (x, s) => (y) {
        r = Relu(x) y = Reshape(r, s) }"""
    original = build("folds", parts, 17, "initializers", functions=fold)
    result = prune(original, ratio=0.5)
    pruned = to_proto(result.model)
    assert bodies(pruned) == bodies(original) and calls(pruned) == {"fold": 2}
    assert numpy_helper.to_array(constants(pruned)["four"]).tolist() == [0, 2, 4]


def test_a_shape_that_is_an_attribute_of_the_calls() -> None:
    """It changes with the weights in the body, which then states it itself, and only there."""
    parts = net(
        "(float[N,8] x) => (float[N,4] y)",
        """a = MatMul(x, wx) b = m.heads<shape = [0, 4, 4]>(a) c = m.heads<shape = [0, 4, 4]>(b)
        y = MatMul(c, wy)""",
        wx=(8, 12), w=(12, 16), v=(16, 12), wy=(12, 4),
    )  # fmt: skip
    heads = """<domain: "m", opset_import: ["": 17]> heads <shape> (x) => (y) {
        h = MatMul(x, w) to = Constant<value_ints: ints = @shape>() s = Reshape(h, to)
        r = Relu(s) back = Constant<value_ints = [0, 16]>() t = Reshape(r, back)
        y = MatMul(t, v) }"""
    result = prune(build("shapes", parts, 17, "initializers", functions=heads), ratio=0.5)
    pruned = to_proto(result.model)
    assert calls(pruned) == {"heads": 2} and constants(pruned)["heads/w"].dims == [6, 8]
    assert not any(node.attribute for node in pruned.graph.node)
    assert not any(function.attribute for function in pruned.functions)
    certificate = result.certificate
    assert certificate is not None and certificate.replay is not None
    assert certificate.replay["agrees"]


# -- other passes, and proofs from files ----------------------------------------------------------


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_proved_from_files(name: str, tmp_path: Path) -> None:
    source = saved(GRAPHS[name](), tmp_path / "model.onnx")
    result = prune(source, name, ratio=0.5)
    written, report = tmp_path / "pruned.onnx", tmp_path / "report.json"
    result.save(written, report)
    assert written.stat().st_size < source.stat().st_size
    assert secateur.verify(source, written, report).ok


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_after_constants_are_folded(name: str) -> None:
    original = GRAPHS[name]()
    result = secateur.run(
        original, "fold-constants,prune{ratio=0.5},fold-constants", dims=dims(name), bench=False
    )
    assert result.certificate is not None and result.certificate.ok
    assert calls(to_proto(result.model)) == calls(original)


def test_redundant_channels_of_a_function() -> None:
    """Columns of zeros in a body go, in the body."""
    original = GRAPHS["function_with_weights"]()
    tensor = constants(original)["block/w1"]
    array = numpy_helper.to_array(tensor).copy()
    array[:, [1, 5, 6]] = 0
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    bias = constants(original)["block/b1"]
    shift = numpy_helper.to_array(bias).copy()
    shift[[1, 5, 6]] = -1
    bias.CopyFrom(numpy_helper.from_array(shift, bias.name))
    result = secateur.run(original, "remove-redundant", dims={"N": 2}, bench=False)
    pruned = to_proto(result.model)
    assert constants(pruned)["block/w1"].dims == [12, 13]
    assert calls(pruned) == {"block": 2}
    feed = feeds(original, seed=3, N=3)
    np.testing.assert_allclose(run(pruned, feed)["y"], run(original, feed)["y"], 1e-5, 1e-5)


def test_a_block_that_is_dropped() -> None:
    """A residual branch that is a call goes as one; other calls of its function stay."""
    parts = net(
        "(float[N,8] x) => (float[N,4] y)",
        """a = MatMul(x, wx) b = m.block(a) c = Add(a, b) d = m.block(c) e = Add(c, d)
        y = MatMul(e, wy)""",
        wx=(8, 12), w1=(12, 16), w2=(16, 12), wy=(12, 4),
    )  # fmt: skip
    original = build("blocks", parts, 17, "initializers", functions=PERCEPTRON)
    data = {"x": np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)}
    result = secateur.run(
        original, "drop-blocks{count=1},prune{ratio=0.5}", calibration=data, bench=False
    )
    assert result.certificate is not None and result.certificate.ok
    pruned = to_proto(result.model)
    assert calls(pruned) == {"block": 1} and constants(pruned)["block/w1"].dims == [6, 8]


def test_weights_in_a_body_are_refitted(tmp_path: Path) -> None:
    """Over the rows of both calls; the file can be verified."""
    parts = net(
        "(float[N,8] x) => (float[N,4] y)",
        """a = MatMul(x, wx) b = m.block(a) n = Tanh(a) c = m.block(n) d = Concat<axis = 1>(b, c)
        y = MatMul(d, wy)""",
        wx=(8, 12), w1=(12, 16), w2=(16, 12), wy=(24, 4),
    )  # fmt: skip
    original = build("towers", parts, 17, "initializers", functions=PERCEPTRON)
    x = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    found = [
        secateur.run(original, f"prune{{ratio=0.3}}{then}", calibration={"x": x[:200]}, bench=False)
        for then in ("", ",recover")
    ]
    assert "block/w2" in found[1].report["refitted"]
    plain, pruned = (to_proto(result.model) for result in found)
    assert calls(pruned) == {"block": 2}
    wanted, before, after = (run(m, {"x": x[200:]})["y"] for m in (original, plain, pruned))
    assert np.square(after - wanted).mean() < 0.7 * np.square(before - wanted).mean()
    files = [tmp_path / name for name in ("pruned.onnx", "report.json")]
    found[1].save(*files)
    assert secateur.verify(original, *files).ok


def test_shapes_that_a_new_body_declares() -> None:
    """What still holds stays, the rest is dropped."""
    original = GRAPHS["function_with_weights"]()
    original.ir_version = 10
    (function,) = original.functions
    for name, first, second in (("h", "M", 16), ("k", "M", 12), ("w2", 16, 12)):
        function.value_info.append(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [first, second])
        )
    found = secateur.analyze(original, dims={"N": 2})
    removed = np.zeros(found.unit_count, np.bool_)
    units = found.units_of(next(w for w in found.weights if w.name == "block/w1").axes[0][1])
    assert units is not None
    removed[units[:6]] = True
    plan = secateur.Plan(found, removed)
    rewritten = secateur.rewrite(plan)
    assert secateur.certify(plan, rewritten, threads=1).ok
    (new,) = to_proto(rewritten.model).functions
    shapes = {
        info.name: [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in new.value_info
        if info.type.tensor_type.HasField("shape")
    }
    assert shapes.get("k") == ["M", 12]
    assert "h" not in shapes and shapes.get("w2", [10, 12]) == [10, 12]
