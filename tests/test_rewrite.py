"""What rewriting changes: declared shapes, weights in all their forms, shared constants, sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import secateur
from secateur.ir.io import to_proto

from .graph_builder import Form, Weight, build, net, subgraphs
from .graphs import GRAPHS, INFO, feeds
from .pruning_checks import (
    PLAIN,
    RUNNABLE,
    arrays,
    assert_same,
    at_random,
    check_pruned,
    constants,
    dims,
    prune,
    run,
    zeroed,
)
from .quantised_models import packed
from .test_cost import counted_parameters

# ---- declared shapes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_declared_shapes_are_restated_and_stay_symbolic(name: str) -> None:
    """Every value has a declared shape; after pruning it is the shape that ONNX Runtime sees."""
    model = onnx.shape_inference.infer_shapes(GRAPHS[name](), data_prop=True)
    declared, binding = {v.name: v for v in model.graph.value_info}, dims(name, 3)
    declared = {k: v for k, v in declared.items() if v.type.tensor_type.HasField("shape")}
    found = secateur.analyze(model, dims=dims(name))
    rewritten = secateur.rewrite(secateur.Plan(found, at_random(found, 0.5, 7)))
    pruned = to_proto(rewritten.model)
    infos = {v.name: v.type.tensor_type for v in pruned.graph.value_info if v.name in declared}
    moved = 0
    for value in infos.keys() & declared.keys():
        info, before = infos[value], declared[value].type.tensor_type
        assert info.elem_type == before.elem_type
        for old, new in zip(before.shape.dim, info.shape.dim, strict=True):
            assert old.dim_param not in binding or old.dim_param == new.dim_param
            assert not old.HasField("dim_value") or 0 < new.dim_value <= old.dim_value
            moved += old.dim_value != new.dim_value
    own = any(node.domain for node in model.graph.node)  # whose shapes ONNX does not infer
    assert moved or own, "no declared shape has changed"
    outputs = {o.name for o in pruned.graph.output}
    shown = onnx.ModelProto()
    shown.CopyFrom(pruned)
    shown.graph.output.extend(v for v in pruned.graph.value_info if v.name not in outputs)
    for value, array in run(shown, feeds(model, **binding)).items():
        if value in infos:
            for size, dim in zip(array.shape, infos[value].shape.dim, strict=True):
                assert not dim.HasField("dim_value") or dim.dim_value == size, value
                assert dim.dim_param not in binding or binding[dim.dim_param] == size, value


# ---- where the weights are ----------------------------------------------------------------------


def as_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with every initializer in a Constant node."""
    for graph in (model.graph, *subgraphs(model.graph)):
        as_nodes(graph)
    return model


def as_nodes(graph: onnx.GraphProto) -> None:
    nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in
             graph.initializer]  # fmt: skip
    nodes.extend(graph.node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)


def as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in IR version 3, where every initializer is an input as well; subgraphs hold
    Constant nodes.
    """
    model.ir_version = 3
    for graph in subgraphs(model.graph):
        as_nodes(graph)
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in model.graph.initializer
    )
    return model


@pytest.mark.parametrize("form", [as_constants, as_inputs], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", [n for n in RUNNABLE if INFO[n].form == "initializers"])
def test_other_forms_of_weights(
    name: str, form: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> None:
    original = form(GRAPHS[name]())
    found = secateur.analyze(original, dims=dims(name))
    plan = secateur.Plan(found, at_random(found, 0.5, 8))
    rewritten = secateur.rewrite(plan)
    assert secateur.certify(plan, rewritten, threads=1).ok
    pruned = check_pruned(name, rewritten, exact=True, sizes=[3], original=original)
    assert {s.tensor for s in rewritten.slices} >= {*INFO[name].must_shrink}
    if form is as_constants:
        added = {"pruned", "by", *map(str, range(9))}
        assert all(t.name.rpartition("_")[2] in added for t in pruned.graph.initializer)


def test_weights_in_constant_nodes_stay_there() -> None:
    original = GRAPHS["weights_in_constants"]()
    pruned = to_proto(prune(original, "weights_in_constants", ratio=0.5).model)
    assert not pruned.graph.initializer
    before, after = ([(n.op_type, n.output[0]) for n in m.graph.node] for m in (original, pruned))
    assert before == after
    assert arrays(pruned)["w2"].shape == (12, 8, 3, 3)


def test_packed_types_stay_packed() -> None:
    """Three blocks of three: a unit is a whole block, of odd length in 4 bits."""
    model = packed(3)
    before = arrays(model)
    result = prune(model, ratio=0.34)
    assert [(g["units"], g["removed"]) for g in result.report["groups"]] == [(3, 1)]
    pruned = to_proto(result.model)
    onnx.checker.check_model(pruned, full_check=True)
    held, after = constants(pruned), arrays(pruned)
    assert held["q1"].data_type == held["q2"].data_type == TensorProto.INT4
    assert len(held["q1"].raw_data) == 15 and len(held["q2"].raw_data) == 18
    gone = next(e["indices"] for e in result.report["removed"] if e["tensor"] == "q1")
    assert gone[0] % 3 == 0 and gone == list(range(gone[0], gone[0] + 3))
    np.testing.assert_array_equal(after["q1"], np.delete(before["q1"], gone, 1))
    np.testing.assert_array_equal(after["s1"], np.delete(before["s1"], gone))
    np.testing.assert_array_equal(after["q2"], np.delete(before["q2"], gone, 0))
    np.testing.assert_array_equal(after["s2"], np.delete(before["s2"], gone[0] // 3, 0))


# ---- shared constants ---------------------------------------------------------------------------


def test_a_shared_target_is_cloned_and_not_edited() -> None:
    """[0, 16, 16] is channels first for one Reshape and channels last for the other."""
    model = GRAPHS["shared_target"]()
    result = prune(model, "shared_target", ratio=0.5, protect=["w2"])
    pruned = to_proto(result.model)
    held = arrays(pruned)
    targets = {n.output[0]: held[n.input[1]].tolist() for n in pruned.graph.node
               if n.op_type == "Reshape"}  # fmt: skip
    assert targets == {"p": [0, 8, 16], "q": [0, 16, 16]}
    assert held["target"].tolist() in ([0, 16, 16], [0, 8, 16])
    result = prune(model, "shared_target", ratio=0.25)
    pruned = to_proto(result.model)
    held = arrays(pruned)
    targets = {n.output[0]: held[n.input[1]].tolist() for n in pruned.graph.node
               if n.op_type == "Reshape"}  # fmt: skip
    assert targets == {"p": [0, 12, 16], "q": [0, 16, 12]}


def shared_bias() -> onnx.ModelProto:
    """Two hidden layers of 16 that share one bias vector, on parallel branches."""
    rng = np.random.default_rng(1)
    shapes = {"w1": (4, 16), "w2": (4, 16), "bias": (16,), "v1": (16, 3), "v2": (16, 3)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n)
               for n, s in shapes.items()]  # fmt: skip
    nodes = []
    for k in "12":
        nodes += [
            helper.make_node("MatMul", ["x", f"w{k}"], [f"h{k}"]),
            helper.make_node("Add", [f"h{k}", "bias"], [f"a{k}"]),
            helper.make_node("Relu", [f"a{k}"], [f"r{k}"]),
            helper.make_node("MatMul", [f"r{k}", f"v{k}"], [f"y{k}"]),
        ]
    graph = helper.make_graph(
        nodes, "shared", [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info(f"y{k}", 1, ["N", 3]) for k in "12"], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("form", ["initializers", "constants"])
def test_a_shared_target_that_all_need_alike_stays_one(form: Form) -> None:
    """Three Reshapes to [0, 4, 8], whose 8 columns halve; a fourth, of what stays, is not cut."""
    text = """h = MatMul(x, w) r = Relu(h) s = Tanh(h) k = MatMul(x, u)
    a = Reshape(h, t) b = Reshape(r, t) c = Reshape(s, t) d = Reshape(k, KEPT)
    e = Add(a, b) f = Add(e, c) g = MatMul(f, v) y = MatMul(d, z) o = Add(g, y)"""
    weights: dict[str, Weight] = {"w": (6, 32), "u": (6, 32), "v": (8, 3), "z": (8, 3)}
    for kept, names in (("t", {"t", "t_pruned"}), ("q", {"t", "q"})):
        targets: dict[str, Weight] = {name: [0, 4, 8] for name in {"t", kept}}
        parts = net(
            "(float[N,6] x) => (float[N,4,3] o)", text.replace("KEPT", kept), **weights, **targets
        )
        model = build("alike", parts, 17, form)
        result = secateur.prune(model, ratio=0.5, protect=["u"], bench=False)
        small = to_proto(result.model)
        read = [n.input[1] for n in small.graph.node if n.op_type == "Reshape"]
        held = {k: numpy_helper.to_array(t).tolist() for k, t in constants(small).items()}
        assert set(read) == names == held.keys() - weights.keys()
        assert read[0] == read[1] == read[2] != read[3]
        assert held[read[0]] == [0, 4, 4] and held[read[3]] == [0, 4, 8]


@pytest.mark.parametrize("protect", [(), ("w1",), ("w2",)])
def test_a_shared_bias_is_cut_differently_for_each_use(protect: tuple[str, ...]) -> None:
    model = shared_bias()
    bias = arrays(model)["bias"]
    result = prune(model, ratio=0.5, protect=protect)
    pruned = to_proto(result.model)
    held = arrays(pruned)
    removed = {(e["tensor"], e["axis"]): e["indices"] for e in result.report["removed"]}
    for k in "12":
        gone = removed.get((f"w{k}", 1), [])
        assert len(gone) == (0 if f"w{k}" in protect else 8)
        add = next(n for n in pruned.graph.node if n.output[0] == f"a{k}")
        np.testing.assert_array_equal(held[add.input[1]], np.delete(bias, gone))
    feed = {"x": np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)}
    zeros = [(f"v{k}", 0, removed[f"v{k}", 0]) for k in "12" if (f"v{k}", 0) in removed]
    assert_same(run(pruned, feed), run(zeroed(model, zeros), feed))
    # Zeroing the report's slices must be right as well: only what no use keeps is listed.
    replay = [(e["tensor"], e["axis"], e["indices"]) for e in result.report["removed"]]
    assert_same(run(pruned, feed), run(zeroed(model, replay), feed))
    count = counted_parameters(pruned)
    assert result.report["totals"]["parameters"]["after"] == count
    target = prune(model, params=0.6, protect=protect)
    assert counted_parameters(to_proto(target.model)) <= 0.6 * counted_parameters(model)


def test_a_shared_weight_is_cut_once() -> None:
    result = prune(GRAPHS["tied_convs"](), "tied_convs", ratio=0.5)
    pruned = to_proto(result.model)
    assert [t.name for t in pruned.graph.initializer] == ["w1", "w2", "wy"]
    assert arrays(pruned)["w2"].shape == (8, 8, 3, 3)


# ---- sizes --------------------------------------------------------------------------------------


def with_shape_output(dynamic: bool) -> onnx.ModelProto:
    """The shape of a hidden layer is an output, and its channel count scales another one."""
    rng = np.random.default_rng(4)
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n)
               for n, s in {"w": (4, 16), "v": (16, 3)}.items()]  # fmt: skip
    weights.append(numpy_helper.from_array(np.array(1, np.int64), "one"))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["z"]),
        helper.make_node("Shape", ["r"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["width"]),
        helper.make_node("Cast", ["width"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["z", "number"], ["y"]),
    ]
    batch = "N" if dynamic else 2
    graph = helper.make_graph(
        nodes, "shape", [helper.make_tensor_value_info("x", 1, [batch, 4])],
        [helper.make_tensor_value_info("y", 1, [batch, 3]),
         helper.make_tensor_value_info("shape", TensorProto.INT64, [2])],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_size_that_is_an_output_or_a_number_stays(dynamic: bool) -> None:
    original = with_shape_output(dynamic)
    result = prune(original, ratio=0.5)
    pruned = to_proto(result.model)
    onnx.checker.check_model(pruned, full_check=True)
    assert arrays(pruned)["w"].shape == (4, 8)
    assert [o.name for o in pruned.graph.output] == ["y", "shape"]
    gone = next(e["indices"] for e in result.report["removed"] if e["tensor"] == "v")
    for batch in (2, 5) if dynamic else (2,):
        feed = {"x": np.random.default_rng(batch).standard_normal((batch, 4)).astype(np.float32)}
        got = run(pruned, feed)
        assert got["shape"].tolist() == [batch, 16]
        assert_same(got, run(zeroed(original, [("v", 0, gone)]), feed))


def test_dynamic_sizes_are_still_computed() -> None:
    """Every target is built from Shape at run time; none may become a constant."""
    model = GRAPHS["computed_attention"]()
    pruned = to_proto(prune(model, "computed_attention", ratio=0.5).model)
    kinds = [n.op_type for n in pruned.graph.node]
    assert kinds.count("Reshape") == 4 and "Shape" in kinds
    held = constants(pruned)
    targets = [n.input[1] for n in pruned.graph.node if n.op_type == "Reshape"]
    assert not held.keys() & set(targets)
    for batch, time in ((1, 1), (3, 7)):
        feed = feeds(model, N=batch, T=time)
        assert run(pruned, feed)["y"].shape == (batch, time, 16)


@pytest.mark.parametrize("annotated", ["w1", "h"])
def test_annotations_with_several_scales_hold_what_they_describe(annotated: str) -> None:
    """No axis is stated, so neither the tensor nor its scales are cut; a single scale is no
    hindrance, and every annotation comes out as it came."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 3] y) {
            h = MatMul(x, w1) r = Relu(h) k = MatMul(r, w2) s = Tanh(k) y = MatMul(s, w3) }"""
    )
    rng = np.random.default_rng(0)
    weights = {"w1": (4, 8), "w2": (8, 6), "w3": (6, 3), "each": (8,), "one": (1,)}
    for name, shape in weights.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for tensor, scale in ((annotated, "each"), ("w2", "one")):
        annotation = model.graph.quantization_annotation.add(tensor_name=tensor)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=scale)
    pruned = to_proto(prune(model, ratio=0.5).model)
    assert pruned.graph.quantization_annotation == model.graph.quantization_annotation
    sizes = {name: tuple(tensor.dims) for name, tensor in constants(pruned).items()}
    assert sizes == {"w1": (4, 8), "w2": (8, 3), "w3": (3, 3), "each": (8,), "one": (1,)}
    found = secateur.analyze(model)
    assert any("several scales" in pin.reason for pin in found.coupling.pins)
