"""Reading and writing changes nothing, and editing changes nothing else.

The models of the ONNX backend test data go through the same comparison in test_round_trip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as oir
import pytest

import secateur
from secateur.ir.inference import CRASHING, infer_shapes
from secateur.ir.io import load_model, model_bytes, save_model, to_proto
from secateur.ir.shapes import Skeleton
from secateur.passes.base import clone_model

from .faithfulness import assert_same_model, normalised
from .graph_builder import subgraphs
from .graphs import GRAPHS

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.onnx"

SOURCE = """
<ir_version: 10, opset_import: ["" : 20, "my.ops" : 3]>
net (float[2, 8] x, bool flag) => (float[2, 4] y)
  <float[2, 4] s, float[8, 4] w = {1}, float[2, 4] h>
{
  h = MatMul(x, w)
  g = Add(h, v)
  s = If (flag) <
    then_branch = yes () => (float[2, 4] a)
      <float[2, 4] c, float[4] t = {1, 1, 1, 1}, float[2, 4] b>
      { b = Add(h, t) c = Relu(b) a = Neg(c) },
    else_branch = no () => (float[2, 4] d) { d = Identity(g) }
  >
  y = my.ops.Scale (s)
}
<domain: "my.ops", opset_import: ["" : 20]>
Scale (p) => (r) { q = Relu(p) r = Neg(q) }
"""


def tangled() -> onnx.ModelProto:
    """Value infos in no useful order, of some values only, in every kind of body."""
    proto = onnx.parser.parse_model(SOURCE)
    graph = proto.graph
    del graph.initializer[:]
    for name, shape in (("v", (4,)), ("w", (8, 4))):
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    stated = (("s", (2, 4)), ("y", (2, 4)), ("w", (8, 4)), ("x", (2, 8)), ("h", (2, 4)))
    state(graph, *stated)
    branch = graph.node[2].attribute[0].g
    assert [tensor.name for tensor in branch.initializer] == ["t"]
    state(branch, ("c", (2, 4)), ("t", (4,)), ("b", (2, 4)))
    state(proto.functions[0], ("r", (2, 4)), ("p", (2, 4)), ("q", (2, 4)))
    for name in ("w", "y", "h", "x"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="v")
    return proto


def state(body: onnx.GraphProto | onnx.FunctionProto, *infos: tuple[str, tuple[int, ...]]) -> None:
    del body.value_info[:]
    for name, shape in infos:
        kind = onnx.TensorProto.FLOAT
        body.value_info.append(onnx.helper.make_tensor_value_info(name, kind, shape))


def names(body: onnx.GraphProto | onnx.FunctionProto) -> list[str]:
    return [info.name for info in body.value_info]


def sizes(info: onnx.ValueInfoProto) -> list[int | str]:
    dims = info.type.tensor_type.shape.dim
    return [dim.dim_param if dim.HasField("dim_param") else dim.dim_value for dim in dims]


# The comparison itself


def _swap(proto: onnx.ModelProto) -> None:
    infos = list(proto.graph.value_info)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(infos[::-1])


EDITS: dict[str, Callable[[onnx.ModelProto], object]] = {
    "order": _swap,
    "missing": lambda p: p.graph.value_info.pop(),
    "added": lambda p: p.graph.value_info.add(name="g"),
    "size": lambda p: setattr(p.graph.value_info[0].type.tensor_type.shape.dim[0], "dim_value", 3),
    "weight": lambda p: setattr(p.graph.initializer[0], "raw_data", bytes(16)),
    "inner": lambda p: p.graph.node[2].attribute[0].g.value_info.pop(),
    "function": lambda p: p.functions[0].value_info.pop(),
    "attribute": lambda p: setattr(p.graph.node[2].attribute[0], "name", "other"),
    "presence": lambda p: setattr(p.graph, "doc_string", ""),
    "opset": lambda p: p.opset_import.pop(),
}


@pytest.mark.parametrize("name", EDITS)
def test_the_comparison_sees(name: str) -> None:
    proto = tangled()
    assert_same_model(proto, normalised(proto))
    saved = normalised(proto)
    EDITS[name](saved)
    with pytest.raises(AssertionError, match="model"):
        assert_same_model(proto, saved)


# Nothing touched


def every_way(model: oir.Model, folder: Path) -> Iterator[onnx.ModelProto]:
    yield to_proto(model)
    yield onnx.ModelProto.FromString(model_bytes(model))
    yield to_proto(clone_model(clone_model(model)))
    for external in (False, True):
        save_model(model, folder / "m.onnx", external=external)
        saved = onnx.load(folder / "m.onnx")
        for graph in (saved.graph, *subgraphs(saved.graph)):
            for tensor in graph.initializer:
                tensor.ClearField("data_location")  # onnx.load sets it when it reads the data
        yield saved


def test_value_infos_and_annotations_stay_in_order(tmp_path: Path) -> None:
    proto = tangled()
    onnx.checker.check_model(proto)
    for saved in every_way(load_model(proto), tmp_path):
        assert_same_model(proto, saved)
        assert names(saved.graph) == ["s", "y", "w", "x", "h"]


@pytest.mark.parametrize("name", GRAPHS)
def test_proof_graphs_come_back_equal(name: str, tmp_path: Path) -> None:
    proto = GRAPHS[name]()
    inferred = onnx.shape_inference.infer_shapes(proto)
    for original in (proto, inferred):
        for saved in every_way(load_model(original), tmp_path):
            assert_same_model(original, saved)


def test_the_example_comes_back_equal(tmp_path: Path) -> None:
    for saved in every_way(load_model(EXAMPLE), tmp_path):
        assert_same_model(onnx.load(EXAMPLE), saved)


def test_value_infos_without_a_value_are_left_out() -> None:
    proto = tangled()
    proto.graph.value_info.insert(1, onnx.ValueInfoProto(name="nowhere"))
    proto.graph.value_info.insert(0, proto.graph.value_info[-1])
    saved = to_proto(load_model(proto))
    assert names(saved.graph) == ["h", "s", "y", "w", "x"]
    assert_same_model(proto, saved)


# Something touched


def test_new_values_follow_and_gone_ones_leave() -> None:
    model = clone_model(load_model(tangled()))
    graph = model.graph
    relu = oir.node("Relu", [graph.node(0).outputs[0]], name="relu")
    relu.outputs[0].name = "new"
    relu.outputs[0].type = oir.TensorType(oir.DataType.FLOAT)
    relu.outputs[0].shape = oir.Shape([2, 4])
    graph.insert_after(graph.node(0), relu)
    for name in ("plain", "told"):
        tensor = oir.tensor(np.ones(4, np.float32), name=name)
        shape, kind = oir.Shape([4]), oir.TensorType(oir.DataType.FLOAT)
        graph.initializers[name] = oir.Value(name=name, shape=shape, type=kind, const_value=tensor)
    graph.initializers["told"].doc_string = "by hand"
    del graph.initializers["w"]
    graph.node(0).replace_input_with(1, graph.initializers["plain"])
    assert names(to_proto(model).graph) == ["s", "y", "x", "h", "told", "new"]


def test_a_model_made_in_memory_states_no_initializers() -> None:
    model = oir.serde.deserialize_model(tangled())
    assert names(to_proto(model).graph) == ["h", "s"]


def test_pruning_keeps_the_order_and_states_the_new_sizes() -> None:
    original = onnx.shape_inference.infer_shapes(onnx.load(EXAMPLE))
    graph = original.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for name in list(weights)[::2]:
        tensor = weights[name]
        info = onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        graph.value_info.insert(0, info)
    pruned = to_proto(secateur.prune(original, ratio=0.5, bench=False).model)
    assert names(pruned.graph) == names(graph)
    found = {info.name: sizes(info) for info in pruned.graph.value_info}
    after = {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}
    stated = set(found) & set(after)
    assert stated == set(list(weights)[::2])
    assert all(found[name] == after[name] for name in stated)
    assert any(found[name] != list(weights[name].dims) for name in stated)
    onnx.shape_inference.infer_shapes(pruned, check_type=True, strict_mode=True)


# Inference


@pytest.mark.parametrize("name", sorted(CRASHING))
def test_inference_survives_operators_with_unknown_operands(name: str) -> None:
    """Each of these kills the process when ONNX's inference meets it as it is."""
    domain = "" if name in ("EyeLike", "RegexFullMatch") else "ai.onnx.ml"
    attributes: dict[str, Any] = {"dtype": onnx.TensorProto.FLOAT} if name == "EyeLike" else {}
    if name == "TreeEnsemble":
        splits = onnx.helper.make_tensor("splits", onnx.TensorProto.FLOAT, [1], [0.5])
        attributes["nodes_splits"] = splits
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Unknown", ["x"], ["u"], domain="others"),
            onnx.helper.make_node(name, ["u"], ["v"], domain=domain, **attributes),
            onnx.helper.make_node("Relu", ["x"], ["y"]),
        ],
        "crash",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3])],
        [onnx.ValueInfoProto(name="v"), onnx.ValueInfoProto(name="y")],
    )
    imports = [onnx.helper.make_opsetid(d, n) for d, n in (("", 22), ("ai.onnx.ml", 5))]
    imports.append(onnx.helper.make_opsetid("others", 1))
    proto = onnx.helper.make_model(graph, ir_version=10, opset_imports=imports)
    facts = Skeleton(load_model(proto)).infer({})
    assert facts.types["y"] == (onnx.TensorProto.FLOAT, (2, 3))
    assert "v" not in facts.types
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    assert sizes(infer_shapes(copy).graph.output[1]) == [2, 3]


def test_a_typed_operand_of_such_an_operator_is_inferred() -> None:
    model = load_model(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 20]> net (float[2, 3] x) => (y)'
            " { e = EyeLike <dtype = 7> (x) y = Neg (e) }"
        )
    )
    facts = Skeleton(model).infer({})
    assert facts.types["e"] == facts.types["y"] == (onnx.TensorProto.INT64, (2, 3))
