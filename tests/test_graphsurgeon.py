"""Passes over gs.Graph: what onnx-graphsurgeon loses comes back, what an edit loses is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.errors import CertificateError, UsageError
from secateur.ir.io import load_model, save_model, to_proto
from secateur.passes.base import Contract, PassContext, PassResult
from secateur.passes.graphsurgeon import GraphSurgeonPass
from secateur.passes.manager import PassManager

from .graphs import GRAPHS, INFO, feeds

gs = pytest.importorskip("onnx_graphsurgeon")


@dataclass(frozen=True)
class Edit(GraphSurgeonPass):
    """A pass whose edit the test chooses."""

    name: ClassVar[str] = "edit"
    contract: ClassVar[Contract] = Contract.PRESERVES
    summary: ClassVar[str] = "for tests"

    function: Callable[[Any], object]

    def edit(self, graph: Any) -> None:
        self.function(graph)


def info(name: str, kind: int, shape: list[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


NARROW: dict[str, npt.DTypeLike] = {
    "bf16": ml_dtypes.bfloat16,
    "f8n": ml_dtypes.float8_e4m3fnuz,
    "f8": ml_dtypes.float8_e5m2,
    "i4": ml_dtypes.int4,
    "u4": ml_dtypes.uint4,
}


def make_model() -> onnx.ModelProto:
    """One of everything that an import and export through gs.Graph loses or changes."""
    branch = [
        helper.make_graph(
            [helper.make_node("Add", ["shifted", "shared"], [f"{name}_out"], name=name)],
            name,
            [],
            [info(f"{name}_out", TensorProto.FLOAT, ["N", 5])],
            doc_string=f"the {name} branch",
        )
        for name in ("then", "else")
    ]
    optional = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    nodes = [
        *(helper.make_node("Cast", [n], [f"{n}_f"], to=1, name=f"cast_{n}") for n in NARROW),
        *(
            helper.make_node("Add", [x, f"{n}_f"], [y], name=f"add_{n}", doc_string=f"adds {n}")
            for x, y, n in zip(["x", *"abcd"], [*"abcd", "e"], NARROW, strict=True)
        ),
        helper.make_node("shift", ["e"], ["shifted"], domain="local", name="call"),
        helper.make_node(
            "If", ["flag"], ["y"], name="if", then_branch=branch[0], else_branch=branch[1]
        ),
        helper.make_node("Optional", [], ["none"], type=optional, name="empty"),
        helper.make_node("OptionalHasElement", ["none"], ["has"], name="ask"),
        helper.make_node("Constant", [], ["number"], value=numpy_helper.from_array(np.ones(1))),
    ]
    nodes[5].metadata_props.add(key="layer", value="first")
    values = np.array([1, 2, 3, 4, 5])
    function = helper.make_function(
        "local",
        "shift",
        ["v"],
        ["r"],
        [helper.make_node("Neg", ["v"], ["r"], doc_string="flip")],
        [helper.make_opsetid("", 21)],
    )
    function.metadata_props.add(key="f", value="g")
    function.doc_string = "a function"
    graph = helper.make_graph(
        nodes,
        "everything",
        [
            info("x", TensorProto.FLOAT, ["N", 5]),
            info("flag", TensorProto.BOOL, []),
            info("bf16", TensorProto.BFLOAT16, [5]),
        ],
        [info("y", TensorProto.FLOAT, ["N", 5]), info("has", TensorProto.BOOL, [])],
        [
            *(numpy_helper.from_array(values.astype(t), n) for n, t in NARROW.items()),
            numpy_helper.from_array(np.ones(5, np.float32), "shared"),
            numpy_helper.from_array(np.ones(3, np.float32), "unused"),
        ],
        doc_string="the graph",
        value_info=[info("a", TensorProto.FLOAT, ["N", 5]), info("e", TensorProto.FLOAT, ["N", 5])],
    )
    graph.input[0].doc_string = "the input"
    graph.value_info[0].metadata_props.add(key="k", value="v")
    graph.metadata_props.add(key="graph", value="props")
    graph.quantization_annotation.add(tensor_name="a").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="shared"
    )
    imports = [helper.make_opsetid(*o) for o in (("idle", 3), ("", 21), ("local", 1))]
    model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=10)
    model.metadata_props.add(key="author", value="someone")
    model.domain, model.model_version, model.doc_string = "org.example", 7, "the model"
    model.producer_name, model.producer_version = "exporter", "1.2"
    onnx.checker.check_model(model, full_check=True)
    return to_proto(load_model(model))


def edit(
    function: Callable[[Any], object], proto: onnx.ModelProto
) -> tuple[onnx.ModelProto, PassResult]:
    model = load_model(proto)
    result = Edit(function).run(model, PassContext())
    assert to_proto(model) == proto
    return to_proto(result.model), result


def refused(function: Callable[[Any], object], message: str) -> None:
    with pytest.raises(CertificateError, match=message) as caught:
        edit(function, make_model())
    assert "\n" not in str(caught.value)


def find(graph: Any, name: str) -> Any:
    return next(node for node in graph.nodes if node.name == name)


def run(model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    outputs: list[Any] = ort.InferenceSession(model.SerializeToString(), options).run(None, feed)
    return outputs


def feed(flag: bool = True) -> dict[str, Any]:
    return {"x": np.arange(10, dtype=np.float32).reshape(2, 5), "flag": np.array(flag)}


def test_the_model_shows_the_losses() -> None:
    """The premise: onnx-graphsurgeon alone does lose these things."""
    proto = make_model()
    bare = gs.export_onnx(gs.import_onnx(proto))
    assert not bare.metadata_props and not bare.doc_string
    assert [i.name for i in bare.graph.input] == ["x", "flag"]
    assert "unused" not in {t.name for t in bare.graph.initializer}
    assert not next(n for n in bare.graph.node if n.name == "empty").attribute
    assert not next(n for n in bare.graph.node if n.name == "add_bf16").doc_string


def test_no_edit_changes_nothing() -> None:
    proto = make_model()
    new, result = edit(lambda graph: None, proto)
    assert not result.modified and new == proto


def test_reading_every_weight_changes_nothing() -> None:
    def read(graph: Any) -> None:
        for part in (graph, *graph.subgraphs(recursive=True)):
            for tensor in part.tensors().values():
                if isinstance(tensor, gs.Constant):
                    assert tensor.values.size

    proto = make_model()
    new, _ = edit(read, proto)
    assert new == proto


def test_an_edit_keeps_everything_else() -> None:
    """x + bf16 becomes bf16 + x: one node differs, and it keeps its doc string and metadata."""

    def swap(graph: Any) -> None:
        find(graph, "add_bf16").inputs.reverse()

    proto = make_model()
    new, result = edit(swap, proto)
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    node = next(n for n in expected.graph.node if n.name == "add_bf16")
    node.input[:] = ["bf16_f", "x"]
    assert result.modified and new == expected
    for flag in (True, False):
        for a, b in zip(run(proto, feed(flag)), run(new, feed(flag)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_edit_inside_a_branch_keeps_everything_else() -> None:
    def swap(graph: Any) -> None:
        find(find(graph, "if").attrs["then_branch"], "then").inputs.reverse()

    proto = make_model()
    new, _ = edit(swap, proto)
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    node = next(n for n in expected.graph.node if n.name == "if")
    then = next(a.g for a in node.attribute if a.name == "then_branch")
    then.node[0].input[:] = ["shared", "shifted"]
    assert new == expected


def test_an_edit_inside_a_function_keeps_everything_else() -> None:
    def twice(graph: Any) -> None:
        (function,) = graph.functions
        (neg,) = function.nodes
        middle = gs.Variable("middle")
        function.nodes.append(gs.Node("Abs", inputs=[middle], outputs=list(neg.outputs)))
        neg.outputs = [middle]

    new, _ = edit(twice, make_model())
    (function,) = new.functions
    assert [n.op_type for n in function.node] == ["Neg", "Abs"]
    assert function.doc_string == "a function" and function.metadata_props[0].key == "f"
    onnx.checker.check_model(new)


@pytest.mark.parametrize("name", NARROW)
def test_new_values_of_a_narrow_weight_are_stored_packed(name: str) -> None:
    def change(graph: Any) -> None:
        tensor = graph.tensors()[name]
        tensor.values = (tensor.values.astype(np.float32) + 1).astype(NARROW[name])

    proto = make_model()
    new, _ = edit(change, proto)
    before = {t.name: t for t in proto.graph.initializer}
    for tensor in new.graph.initializer:
        if tensor.name != name:
            assert tensor == before[tensor.name]
            continue
        assert tensor.data_type == before[name].data_type
        assert len(tensor.raw_data) == len(before[name].raw_data)
        values = numpy_helper.to_array(tensor).astype(np.float32)
        np.testing.assert_array_equal(values, [2, 3, 4, 5, 6])
    onnx.checker.check_model(new, full_check=True)


def test_a_captured_weight_can_be_edited_and_is_not_copied_into_the_branches() -> None:
    def change(graph: Any) -> None:
        branch = find(graph, "if").attrs["else_branch"]
        tensor = find(branch, "else").inputs[1]
        tensor.values = tensor.values * np.float32(3)

    proto = make_model()
    new, _ = edit(change, proto)
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    weight = next(t for t in expected.graph.initializer if t.name == "shared")
    weight.CopyFrom(numpy_helper.from_array(np.full(5, 3, np.float32), "shared"))
    assert new == expected


def test_new_nodes_and_weights() -> None:
    def insert(graph: Any) -> None:
        add = find(graph, "add_f8")
        middle = gs.Variable("middle", np.float32, ["N", 5])
        two = gs.Constant("two", np.full(1, 2, np.float32))
        graph.nodes.insert(
            graph.nodes.index(add) + 1,
            gs.Node("Mul", "double", inputs=[middle, two], outputs=list(add.outputs)),
        )
        add.outputs = [middle]

    proto = make_model()
    new, _ = edit(insert, proto)
    onnx.checker.check_model(new, full_check=True)
    assert next(n for n in new.graph.node if n.name == "add_f8").doc_string == "adds f8"
    assert "middle" in {v.name for v in new.graph.value_info}
    values = np.arange(1, 6, dtype=np.float32)
    x = feed()["x"]
    expected = -((x + 3 * values) * 2 + 2 * values) + 1
    np.testing.assert_allclose(run(new, feed())[0], expected, rtol=1e-6)


def test_removed_nodes_take_their_weights_along() -> None:
    def bypass(graph: Any) -> None:
        add = find(graph, "add_u4")
        find(graph, "call").inputs = [add.inputs[0]]
        graph.cleanup()

    new, _ = edit(bypass, make_model())
    assert {"u4"} == {*NARROW} - {t.name for t in new.graph.initializer}
    assert "unused" in {t.name for t in new.graph.initializer}
    onnx.checker.check_model(new, full_check=True)


def set_dtype(graph: Any) -> None:
    graph.tensors()["a"].dtype = np.float16


def drop_type(graph: Any) -> None:
    graph.tensors()["a"].dtype = graph.tensors()["a"].shape = None


def widen(graph: Any) -> None:
    graph.tensors()["f8n"].values = np.zeros(5, np.float32)


def set_opset(graph: Any) -> None:
    for entry in graph.import_domains:
        entry.version = 22 if not entry.domain else entry.version


def set_doc(graph: Any) -> None:
    graph.doc_string = ""
    find(graph, "call").name = "renamed"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda g: g.outputs.pop(), "lost the output 'has' as it was"),
        (lambda g: g.inputs.pop(0), "lost the input 'x' as it was"),
        (lambda g: setattr(g.outputs[0], "name", "z"), "lost the output 'y' as it was"),
        (lambda g: setattr(g.inputs[0], "shape", [1, 5]), "lost the input 'x' as it was"),
        (lambda g: setattr(g.inputs[0], "dtype", np.float64), "lost the input 'x' as it was"),
        (lambda g: g.outputs.append(g.tensors()["a"]), "has a new output 'a'"),
        (lambda g: g.functions.clear(), "lost the function 'shift', which is still called"),
        (set_opset, "lost the opset import '' 21"),
        (set_dtype, "changed tensor 'a' from FLOAT to FLOAT16"),
        (drop_type, "lost the type of tensor 'a'"),
        (widen, "changed tensor 'f8n' from FLOAT8E4M3FNUZ to FLOAT"),
        (set_doc, "lost the doc string of graph 'everything'"),
        (lambda g: setattr(g, "ir_version", 8), "lost the IR version 10"),
        (lambda g: find(g, "ask").attrs.update(axes=[]), "the edited graph cannot be exported"),
    ],
)
def test_what_an_edit_loses_is_refused_by_name(
    function: Callable[[Any], object], message: str
) -> None:
    refused(function, message)


def test_a_model_that_gs_cannot_hold_is_refused() -> None:
    proto = make_model()
    proto.graph.node[0].attribute.append(
        onnx.AttributeProto(name="axes", type=onnx.AttributeProto.INTS)
    )
    with pytest.raises(CertificateError, match="onnx-graphsurgeon cannot hold this model"):
        edit(lambda graph: None, proto)


def test_external_weights_stay_in_their_file(tmp_path: Path) -> None:
    weight = np.arange(4096, dtype=np.float32).reshape(64, 64)
    x, y = info("x", TensorProto.FLOAT, [1, 64]), info("y", TensorProto.FLOAT, [1, 64])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    save_model(load_model(proto), tmp_path / "model.onnx", external=True)
    model = load_model(tmp_path / "model.onnx")

    def rename(graph: Any) -> None:
        graph.nodes[1].name = "last"
        assert graph.tensors()["w"].values[0, 1] == 1.0

    result = Edit(rename).run(model, PassContext()).model
    tensor = result.graph.initializers["w"].const_value
    assert isinstance(tensor, oir.ExternalTensor)
    assert tensor is model.graph.initializers["w"].const_value
    assert result.meta["external_data"] is True


def test_output_of_the_library_does_not_reach_standard_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    edit(lambda graph: graph.tensors()["f8n"].values, make_model())
    assert capfd.readouterr().out == ""


def test_the_manager_checks_the_numbers() -> None:
    def break_it(graph: Any) -> None:
        find(graph, "add_f8").op = "Sub"

    model = load_model(make_model())
    with pytest.raises(CertificateError, match="pass 'edit': promises to preserve the outputs"):
        PassManager([Edit(break_it)]).run(model)


def test_without_the_library_it_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx_graphsurgeon", None)
    with pytest.raises(UsageError, match=r"pip install 'secateur\[graphsurgeon\]'"):
        Edit(lambda graph: None).run(load_model(make_model()), PassContext())


@pytest.mark.parametrize("name", [n for n in GRAPHS if INFO[n].runnable and not INFO[n].deprecated])
def test_proof_graphs_survive_an_edit(name: str) -> None:
    """Renaming one node changes that name and nothing else."""

    def rename(graph: Any) -> None:
        graph.nodes[-1].name = "renamed by the test"

    proto = to_proto(load_model(GRAPHS[name]()))
    new, result = edit(rename, proto)
    assert result.modified
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    expected.graph.node[-1].name = "renamed by the test"
    assert new == expected
    for a, b in zip(run(proto, feeds(proto)), run(new, feeds(proto)), strict=True):
        np.testing.assert_array_equal(a, b)
