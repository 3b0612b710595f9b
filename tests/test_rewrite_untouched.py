"""That rewriting changes nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import secateur
from secateur.ir.io import to_proto

from .graphs import GRAPHS, feeds
from .pruning_checks import (
    PLAIN,
    RUNNABLE,
    assert_same,
    at_random,
    constants,
    dims,
    prune,
    run,
    saved,
)

# ---- what is not touched ------------------------------------------------------------------------

STATES_A_SIZE = set("group hidden_size split pads starts ends axes num_groups num_outputs".split())
STATES_MORE = {
    "Attention": {"num_heads", "q_num_heads", "kv_num_heads"},
    "GroupQueryAttention": {"num_heads", "kv_num_heads"},
    "LinearRegressor": {"coefficients"},
    "MatMulNBits": {"K", "N"},
    "MultiHeadAttention": {"num_heads"},
    "Scaler": {"offset", "scale"},
}
"""Attributes that count heads or features, or hold a number for each."""

ARITHMETIC = ("Add", "Constant", "Div", "Gather", "Identity", "Mod", "Mul", "Sub")
"""What corrects numbers that hold a size, and positions that are computed."""

MESH = ("Concat", "Expand", "Range", "Reshape", "Shape", "Slice")
"""What else puts a mesh of indices together."""


def plain(attribute: onnx.AttributeProto) -> onnx.AttributeProto:
    """Without what says nothing: the domain "" stated or left out in nodes of subgraphs."""
    for node in attribute.g.node:
        if not node.domain:
            node.ClearField("domain")
    return attribute


@pytest.mark.parametrize("name", PLAIN)
def test_nodes_keep_everything_but_sizes(name: str) -> None:
    original = GRAPHS[name]()
    for number, node in enumerate(original.graph.node):
        node.name, node.doc_string = f"node {number}", f"the {number}th"
        for attribute in node.attribute:
            plain(attribute)
    result = prune(original, name, ratio=0.5)
    pruned = to_proto(result.model)
    old = {n.output[0]: n for n in original.graph.node}
    names = [n.output[0] for n in pruned.graph.node if n.output[0] in old]
    assert names == [n for n in old if n in set(names)], "in the same order"
    known = old.keys() | constants(original).keys() | {i.name for i in original.graph.input}
    meshed = {n.op_type for n in original.graph.node} & {"GatherND", "ScatterND"}
    for node in pruned.graph.node:
        before = old.get(node.output[0])
        if before is None:
            assert node.op_type in ARITHMETIC + (MESH if meshed else ())
            continue
        assert (node.name, node.doc_string) == (before.name, before.doc_string)
        assert (node.op_type, node.domain) == (before.op_type, before.domain)
        assert node.output == before.output
        for a, b in zip(before.input, node.input, strict=False):
            assert a == b or b not in known, "only new constants and corrections take a place"
        mine, theirs = ({a.name: a for a in n.attribute} for n in (node, before))
        if node.op_type != "Constant":
            states = STATES_A_SIZE | STATES_MORE.get(node.op_type, set())
            kept = (mine.keys() | theirs.keys()) - states
            assert all(mine[k] == theirs[k] for k in kept)
    before, after = constants(original), constants(pruned)
    touched = {e["tensor"] for e in result.report["removed"]}
    for tensor in before.keys() & after.keys() - touched:
        if before[tensor].data_type != onnx.TensorProto.INT64:
            assert before[tensor] == after[tensor]
    assert pruned.opset_import == original.opset_import
    assert pruned.ir_version == original.ir_version
    assert pruned.graph.name == original.graph.name


def documented() -> onnx.ModelProto:
    """Two stages and everything that a model can say about itself."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (8, 16, 3, 3), "b2": (8,), "w3": (8, 8, 1, 1)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n)
               for n, s in shapes.items()]  # fmt: skip
    nodes = [
        helper.make_node(
            "Conv", ["x", "w1", "b1"], ["a"], "first", doc_string="a stem", pads=[1] * 4
        ),
        helper.make_node("Relu", ["a"], ["r"], "act"),
        helper.make_node("Conv", ["r", "w2", "b2"], ["y"], "second", pads=[1] * 4),
        helper.make_node("Conv", ["y", "w3"], ["z"], "third", doc_string="not touched"),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, ["batch", 3, 8, 8], "an image")]
    outputs = [
        helper.make_tensor_value_info(n, 1, ["batch", 8, 8, 8], f"features {n}") for n in "yz"
    ]
    infos = [helper.make_tensor_value_info(n, 1, ["batch", 16, 8, 8], f"hidden {n}") for n in "ar"]
    graph = helper.make_graph(nodes, "net", inputs, outputs, weights, "a graph", infos)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 3)]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=10, producer_name="maker", producer_version="1.2",
        domain="org.example", model_version=7, doc_string="a model",
    )  # fmt: skip
    helper.set_model_props(model, {"classes": "ten", "author": "someone"})
    for thing in (*model.graph.node, *model.graph.initializer, *model.graph.value_info,
                  *model.graph.input, *model.graph.output, model.graph):  # fmt: skip
        entry = thing.metadata_props.add()
        entry.key, entry.value = "origin", f"metadata of {thing.name}"
    for tensor in model.graph.initializer:
        tensor.doc_string = f"weight {tensor.name}"
    return model


def test_documentation_and_metadata_survive(tmp_path: Path) -> None:
    original = documented()
    onnx.checker.check_model(original, full_check=True)
    path = saved(original, tmp_path / "in.onnx")
    prune(path, ratio=0.5).save(tmp_path / "out.onnx")
    pruned = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(pruned, full_check=True)
    entries = ({p.key: p.value for p in m.metadata_props} for m in (original, pruned))
    assert next(entries) == next(entries) == {"classes": "ten", "author": "someone"}
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version",
                  "doc_string", "opset_import"):  # fmt: skip
        assert getattr(pruned, field) == getattr(original, field), field
    for field in ("name", "doc_string", "metadata_props", "input", "output", "node"):
        assert getattr(pruned.graph, field) == getattr(original.graph, field), field
    assert [t.name for t in pruned.graph.initializer] == [
        t.name for t in original.graph.initializer
    ]
    for before, after in zip(original.graph.initializer, pruned.graph.initializer, strict=True):
        assert (after.doc_string, after.metadata_props, after.data_type) == (
            before.doc_string, before.metadata_props, before.data_type
        )  # fmt: skip
        if after.name in ("b2", "w3"):
            assert after == before
        else:
            assert math.prod(after.dims) == math.prod(before.dims) // 2
    infos = {v.name: v for v in pruned.graph.value_info}
    for before in original.graph.value_info:
        after = infos[before.name]
        assert (after.doc_string, after.metadata_props) == (
            before.doc_string,
            before.metadata_props,
        )
        dim = after.type.tensor_type.shape.dim
        assert dim[0].dim_param == "batch" and [d.dim_value for d in dim] == [0, 8, 8, 8]


# ---- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNNABLE)
def test_removing_nothing_changes_nothing(name: str) -> None:
    found = secateur.analyze(GRAPHS[name](), dims=dims(name))
    before = to_proto(found.source).SerializeToString(deterministic=True)
    rewritten = secateur.rewrite(secateur.Plan(found, np.zeros(found.unit_count, np.bool_)))
    assert rewritten.slices == []
    assert to_proto(rewritten.model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_analysed_model_is_not_edited(name: str) -> None:
    """So that one analysis serves any number of plans."""
    found = secateur.analyze(GRAPHS[name](), dims=dims(name))
    before = to_proto(found.model).SerializeToString(deterministic=True)
    plan = secateur.Plan(found, at_random(found, 0.5, 0))
    first = to_proto(secateur.rewrite(plan).model).SerializeToString(deterministic=True)
    secateur.rewrite(secateur.Plan(found, at_random(found, 0.8, 1)))
    assert to_proto(found.model).SerializeToString(deterministic=True) == before
    assert to_proto(secateur.rewrite(plan).model).SerializeToString(deterministic=True) == first


def test_new_names_keep_clear_of_all_that_exist() -> None:
    """Values are called what the clones and corrections would have been called."""
    for name in ("shared_target", "computed_attention", "computed_rows"):
        plain_model = to_proto(prune(GRAPHS[name](), name, ratio=0.5).model)
        known = {o for n in GRAPHS[name]().graph.node for o in n.output}
        known |= constants(GRAPHS[name]()).keys()
        made = {o for n in plain_model.graph.node for o in n.output} - known
        made |= constants(plain_model).keys() - known
        assert made
        model = GRAPHS[name]()
        wanted = {o.name for o in model.graph.output}
        for number, taken in enumerate(sorted(made)):
            model.graph.node.append(
                helper.make_node("Identity", [sorted(wanted)[0]], [taken], f"taken {number}")
            )
            info = onnx.ValueInfoProto()
            info.CopyFrom(model.graph.output[sorted(wanted).index(sorted(wanted)[0])])
            info.name = taken
            model.graph.output.append(info)
        onnx.checker.check_model(model)
        pruned = to_proto(prune(model, name, ratio=0.5).model)
        onnx.checker.check_model(pruned, full_check=True)
        feed = feeds(model, **dims(name))
        clean = run(plain_model, feed)
        assert_same({k: v for k, v in run(pruned, feed).items() if k in clean}, clean)


def test_dead_nodes_of_the_model_stay_and_orphans_of_ours_go() -> None:
    model = GRAPHS["single_head_computed_scale"]()
    model.graph.node.append(helper.make_node("Shape", ["x"], ["unused"], "dead"))
    pruned = to_proto(prune(model, "single_head_computed_scale", ratio=0.5).model)
    assert [n.name for n in pruned.graph.node if n.name] == ["dead"]
    used = {i for n in pruned.graph.node for i in n.input} | {o.name for o in pruned.graph.output}
    dead = [n.output[0] for n in pruned.graph.node if not used & set(n.output)]
    assert dead == ["unused"]
    assert "Sqrt" not in {n.op_type for n in pruned.graph.node}, "its place took a number"
    unused = {t.name for t in pruned.graph.initializer} - used
    assert not unused
