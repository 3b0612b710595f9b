"""Control flow, functions and sequences, end to end: from files, and what leaves as it came."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import secateur
from secateur.ir.explain import explain
from secateur.ir.io import to_proto
from secateur.runtime.cost import CostModel

from .cli_runs import invoke
from .faithfulness import normalised
from .graph_builder import build, is_nested, net, subgraphs
from .graphs import GRAPHS, Array, feeds
from .graphs_control import CELL, OUT, STEP
from .graphs_functions import LINEAR
from .pruning_checks import RUNNABLE, analysis, arrays, dims, prune, run, saved

NESTED = [name for name in RUNNABLE if is_nested(GRAPHS[name]())]


def pruned(name: str, ratio: float = 0.5) -> onnx.ModelProto:
    return to_proto(prune(GRAPHS[name](), name, ratio=ratio).model)


def body(model: onnx.ModelProto, name: str) -> onnx.GraphProto:
    return next(graph for graph in subgraphs(model.graph) if graph.name == name)


def sizes(values: Iterable[onnx.ValueInfoProto]) -> list[list[int]]:
    return [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]


@pytest.mark.parametrize("name", NESTED)
def test_proved_again_from_files(name: str, tmp_path: Path) -> None:
    files = [str(tmp_path / file) for file in ("m.onnx", "p.onnx", "r.json")]
    saved(GRAPHS[name](), tmp_path / "m.onnx")
    given = [f"--dim={dim}={size}" for dim, size in dims(name).items()]
    invoke("prune", files[0], "-o", files[1], "--ratio=0.5", "--no-bench", "--report", files[2],
           "--threads=1", *given)  # fmt: skip
    invoke("verify", files[0], files[1], "--report", files[2], "--threads=1")
    onnx.checker.check_model(files[1], full_check=True)
    certificate = secateur.verify(files[0], files[1], files[2], threads=1)
    assert certificate.ok and certificate.notes == ()
    assert certificate.replay is not None and certificate.replay["agrees"]


# ---- subgraphs ----------------------------------------------------------------------------------


def test_what_a_body_declares_is_restated() -> None:
    inner = body(pruned("loop_recurrent"), "step")
    assert sizes(inner.input) == [[], [], [0, 8]] and sizes(inner.output) == [[], [0, 8], [0, 8]]
    assert inner.input[2].type.tensor_type.shape.dim[0].dim_param == "N"


def test_constants_of_a_body_are_weights() -> None:
    model = pruned("if_in_loop")
    deep = body(model, "deep")
    assert {t.name: list(t.dims) for t in deep.initializer} == {"w1": [8, 12], "w2": [12, 8]}
    names = {w.name for w in analysis("if_in_loop").weights}
    assert {"w1", "w2", "wh"} <= names
    (rows, _) = explain(analysis("if_in_loop"), "w2")
    assert rows.free == 24 and rows.groups[0].name == "w1[1]"


def test_protected_inside() -> None:
    result = prune(GRAPHS["if_in_loop"](), "if_in_loop", ratio=0.5, protect=["p"])
    assert arrays(to_proto(result.model))["w1"].shape == (8, 24)


def test_names_of_siblings_come_back() -> None:
    original, small = GRAPHS["if_names_reused"](), pruned("if_names_reused")
    for before, after in zip(subgraphs(original.graph), subgraphs(small.graph), strict=True):
        assert [n.output for n in before.node] == [n.output for n in after.node]
        assert [n.input for n in before.node] == [n.input for n in after.node]
        assert [t.name for t in after.initializer] == ["k"] and after.initializer[0].dims == [6]


def test_a_dead_branch_gives_way_only_where_it_must() -> None:
    dead = body(pruned("if_dead_branch"), "yes")
    assert [n.op_type for n in dead.node] == ["Constant", "ConstantOfShape"]
    live = prune(GRAPHS["if_dead_branch"](), "if_dead_branch", ratio=0.5, protect=["w1"])
    kept = body(to_proto(live.model), "yes")
    assert [n.op_type for n in kept.node] == ["Gemm"], "what it reads is as it was"


@pytest.mark.parametrize("squeezed", ["Squeeze(r, at)", "Identity(r)"])
def test_a_branch_that_other_sizes_take_stays(squeezed: str) -> None:
    """The branches give different ranks, so that in the analysis the length cannot move; in the
    model it may."""
    model = build(
        "ranks",
        net(
            "(float[N,L,8] x) => (float[] y)",
            f"""a = MatMul(x, w1) r = Relu(a) sh = Shape(r) n = Gather(sh, at) one = Equal(n, at)
            u = If(one) <
                then_branch = yes () => (float[] t) {{ t = {squeezed} }},
                else_branch = no () => (float[] e) {{ e = ReduceMean<axes=[1], keepdims=0>(r) }}>
            p = MatMul(u, w2) q = Relu(p) y = MatMul(q, w3)""",
            at=np.array([1]), w1=(8, 16), w2=(16, 12), w3=(12, 4),
        ),
        17,
        "initializers",
    )  # fmt: skip
    for graph in subgraphs(model.graph):
        for value in (*graph.output, *model.graph.output):
            value.type.tensor_type.ClearField("shape")
    small = to_proto(prune(model, ratio=0.5, dims={"L": 1}).model)
    before, after = arrays(model), arrays(small)
    assert after["w1"].shape == (8, 16) and after["w2"].shape == (16, 6)
    kept = (before["w2"][:, :, None] == after["w2"][:, None]).all(axis=0).any(axis=1)
    masked = onnx.ModelProto()
    masked.CopyFrom(model)
    for tensor in masked.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(onnx.numpy_helper.from_array(before["w2"] * kept, "w2"))
    for length in (1, 3):
        x = np.random.default_rng(length).standard_normal((2, length, 8)).astype(np.float32)
        wanted, found = (run(m, {"x": x})["y"] for m in (masked, small))
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_condition_on_a_moving_size_is_not_known() -> None:
    """At both sizes that are tried N is small; yet the other branch must work when it is not."""
    model = build(
        "many",
        net(
            "(float[N,8] x) => (float[N,4] y)",
            """a = MatMul(x, w1) r = Relu(a) sh = Shape(r) n = Gather<axis=0>(sh, at)
            large = Greater(n, hundred)
            u = If(large) <
                then_branch = yes () => (float[N,4] t) { t = MatMul(r, w2) },
                else_branch = no () => (float[N,4] e) { e = MatMul(r, w3) }>
            y = Relu(u)""",
            at=np.array(0), hundred=np.array(100), w1=(8, 16), w2=(16, 4), w3=(16, 4),
        ),
        17,
        "initializers",
    )  # fmt: skip
    small = to_proto(prune(model, ratio=0.5).model)
    assert {k: v.shape for k, v in arrays(small).items() if k in ("w2", "w3")} == {
        "w2": (8, 4),
        "w3": (8, 4),
    }
    x = {"x": np.ones((101, 8), np.float32)}
    held = arrays(small)
    wanted = np.maximum(np.maximum(x["x"] @ held["w1"], 0) @ held["w2"], 0)
    np.testing.assert_allclose(run(small, x)["y"], wanted, rtol=1e-5)


def test_macs_count_for_every_known_iteration() -> None:
    once = 2 * (16 * 16 + 4 * 16)  # one step with a batch of 2
    outside = 2 * 4 * 16 + 2 * 16 * 3
    costs = CostModel(analysis("loop_recurrent")).costs()
    assert costs.macs == outside + 5 * once + 5 * 2 * 16 * 6
    assert CostModel(analysis("scan_recurrent")).costs().macs == costs.macs
    unknown = CostModel(analysis("loop_counted_at_run_time"))
    assert {layer.name: layer.macs for layer in unknown.costs().layers}["a"] == 2 * 16 * 16
    nested = CostModel(analysis("if_in_loop")).costs()
    assert {layer.name: layer.macs for layer in nested.layers}["p"] == 3 * 2 * 16 * 24


def test_costs_of_a_body_are_those_of_what_is_left() -> None:
    """The model's own prediction against an analysis of the pruned model."""
    for name in ("loop_recurrent", "if_convolutions", "if_in_loop"):
        result = prune(GRAPHS[name](), name, ratio=0.5)
        assert result.pruning is not None
        again = CostModel(secateur.analyze(to_proto(result.model), dims=dims(name))).costs()
        after = result.pruning.after
        assert (after.macs, after.parameters) == (again.macs, again.parameters)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_any_number_of_iterations(count: int) -> None:
    """The trip count is an input: nothing of the pruned loop depends on it."""
    model = build(
        "counted",
        net(
            "(float[N,4] x, float[N,4] xi, int64 count) => (float[N,3] y, float[T,N,6] ys)",
            f"""h0 = MatMul(x, w0)
            last, all = Loop(count, , h0) <body = step (int64 i, bool c, float[N,16] h)
                => (bool c, float[N,16] h2, float[N,16] o) {{ {STEP} o = Identity(h2) }}>
            y = MatMul(last, wy) ys = MatMul(all, wo)""",
            **OUT,
        ),
        17,
        "initializers",
    )
    small = to_proto(prune(model, ratio=0.5).model)
    held = arrays(small)
    assert held["wh"].shape == (8, 8)
    feed = feeds(small) | {"count": np.array(count)}
    h, steps = feed["x"] @ held["w0"], []
    for _ in range(count):
        h = np.tanh(h @ held["wh"] + feed["xi"] @ held["wx"] + held["b"])
        steps.append(h @ held["wo"])
    found = run(small, feed)
    np.testing.assert_allclose(found["y"], h @ held["wy"], rtol=1e-4, atol=1e-5)
    wanted: Array = np.array(steps)
    np.testing.assert_allclose(found["ys"].ravel(), wanted.ravel(), rtol=1e-4, atol=1e-5)


def test_a_body_without_a_rule_holds_what_it_captures() -> None:
    found = analysis("sequence_map")
    assert any("no coupling rule for SequenceMap" in w for w in found.warnings)
    (axis,) = explain(found, "scale")
    assert axis.free == 0 and axis.reason.startswith("used inside SequenceMap")
    assert CELL["w0"] == (4, 16)


# ---- functions ----------------------------------------------------------------------------------


def test_calls_stay_calls() -> None:
    original = GRAPHS["function_per_layer"]()
    original.functions[0].doc_string = "a layer"
    original.functions[1].metadata_props.add(key="from", value="somewhere")
    original.graph.node[0].name, original.graph.node[0].doc_string = "block", "the first"
    original.graph.node[0].metadata_props.add(key="scope", value="model.block")
    result = prune(original, "function_per_layer", ratio=0.5)
    small = to_proto(result.model)
    original = normalised(original)
    assert list(small.functions) == list(original.functions)
    assert list(small.graph.node) == list(original.graph.node)
    assert small.opset_import == original.opset_import
    assert not result.report["warnings"]
    assert {s["tensor"] for s in result.report["removed"]} >= {"w1", "b1", "w2"}
    layers = {row["name"] for row in result.report["layers"]}
    assert "block/h/a" in layers or "block/a" in layers, layers


def test_a_body_that_changes_alike_in_all_calls_is_the_functions() -> None:
    original = GRAPHS["function_with_sizes"]()
    original.functions.append(onnx.parser.parse_function(LINEAR))
    result = prune(original, "function_with_sizes", ratio=0.5)
    small = to_proto(result.model)
    heads, linear = small.functions
    assert linear == normalised(original).functions[1], "nothing called it before either"
    assert [n.output[0] for n in heads.node] == [n.output[0] for n in original.functions[0].node]
    stated = [numpy_helper.to_array(heads.node[k].attribute[0].t).tolist() for k in (1, 4)]
    assert stated == [[0, 2, 4], [0, 8]]
    assert [n.op_type for n in small.graph.node] == ["heads", "Relu", "heads"]
    assert not result.report["warnings"]


def test_one_call_of_two_is_inlined() -> None:
    result = prune(
        GRAPHS["function_with_sizes"](), "function_with_sizes", ratio=0.5, protect=["w1"]
    )
    small = to_proto(result.model)
    assert [f.name for f in small.functions] == ["heads"]
    assert small.graph.node[0].op_type == "heads" and small.graph.node[-1].op_type == "MatMul"
    (note,) = result.report["warnings"]
    assert note == "the call 'y' of 'm.heads' is inlined: its body changes"


def test_shapes_that_a_function_declares_are_dropped_where_wrong() -> None:
    original = GRAPHS["function_per_layer"]()
    original.ir_version = 10
    for name, size in (("h", 16), ("y", 12)):
        info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size])
        original.functions[1].value_info.append(info)
    small = to_proto(prune(original, "function_per_layer", ratio=0.5).model)
    infos = small.functions[1].value_info
    assert not any(i.type.tensor_type.HasField("shape") for i in infos)
    run(small, feeds(small))


def test_a_counter_that_ends_a_loop_tells_how_often_it_runs() -> None:
    model = GRAPHS["loop_of_bags"]()
    found = analysis("loop_of_bags")
    model.graph.output.append(onnx.ValueInfoProto(name="k"))
    assert found.facts[0].trips == {"s": run(model, feeds(model))["k"]}


def test_a_function_of_another_opset_is_a_barrier() -> None:
    """Its Softmax means something else than the model's."""
    text = """<domain: "m", opset_import: ["": 11]> soft (x) => (y) { y = Softmax(x) }"""
    body = "a = MatMul(x, w1) b = m.soft(a) c = MatMul(b, w2) r = Relu(c) y = MatMul(r, w3)"
    parts = net("(float[N,8] x) => (float[N,4] y)", body, w1=(8, 16), w2=(16, 12), w3=(12, 4))
    model = build("other_opset", parts, 17, "initializers", (), text)
    found = secateur.analyze(model)
    assert any("no coupling rule for m.soft" in warning for warning in found.warnings)
    assert [group.name for group in found.groups] == ["w2[1]"]
