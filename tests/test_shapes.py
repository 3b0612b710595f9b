"""Shapes and small values before the run, against those that ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as oir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import secateur
from secateur.ir.bindings import (
    bind_dims,
    moved_alone,
    moved_but_one,
    moved_together,
    symbolic_dims,
)
from secateur.ir.errors import ModelError, UsageError
from secateur.ir.shapes import SMALL, Skeleton, evaluate
from secateur.runtime.observe import observer

from .graph_builder import all_nodes, is_nested
from .graphs import GRAPHS, INFO, Array, feeds
from .test_cost import BY_DATA

PLAIN = [name for name, info in INFO.items() if info.runnable and not is_nested(GRAPHS[name]())]
STANDARD = [name for name in PLAIN if not any(node.domain for node in all_nodes(GRAPHS[name]()))]
"""Inference knows the standard's operators; shapes behind others are seen in a run."""


def to_ir(model: onnx.ModelProto) -> oir.Model:
    return oir.serde.deserialize_model(model)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: list[str],
    weights: Mapping[str, Array] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, *typed) for n, typed in inputs.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run_all(model: onnx.ModelProto, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Every value of the main graph."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    present = {o.name for o in shown.graph.output}
    names = [o for node in model.graph.node for o in node.output if o]
    shown.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(shown.SerializeToString(), options)
    outputs = [o.name for o in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, dict(feed)), strict=True)) | dict(feed)


# ---- symbolic dimensions ------------------------------------------------------------------------


def with_inputs(**shapes: list[Any]) -> oir.Model:
    inputs = {name: (TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    nodes = [helper.make_node("Identity", [n], [f"{n}_out"]) for n in shapes]
    return to_ir(model_of(nodes, inputs, [f"{n}_out" for n in shapes]))


def test_symbolic_dims_by_name_and_place() -> None:
    model = with_inputs(x=["N", 3, "T"], z=["T", None])
    assert symbolic_dims(model) == {
        "N": [("x", 0)],
        "T": [("x", 2), ("z", 0)],
        "z.1": [("z", 1)],
    }
    assert symbolic_dims(with_inputs(x=[1, 3])) == {}


def test_bind_dims() -> None:
    model = with_inputs(x=["N", 3, "T"], z=[None, "N"])
    assert bind_dims(model, {"T": 7}) == {"N": 1, "T": 7, "z.0": 1}
    assert bind_dims(model, {"T": 7, "N": 4, "z.0": 2}) == {"N": 4, "T": 7, "z.0": 2}
    assert bind_dims(with_inputs(x=[1, 3]), {}) == {}


def test_other_sizes() -> None:
    """Longer, shorter, and shorter by one; a batch of 1 only grows, and one of 2 grows or stays."""
    sizes = {"N": 1, "T": 7, "S": 2}
    doubled, *shorter = moved_together(sizes)
    assert doubled == {"N": 2, "T": 14, "S": 4}
    assert shorter == [{"N": 2, "T": t, "S": s} for t in (3, 6) for s in (4, 2)]
    less = shorter[-1]
    assert moved_but_one(sizes)[:3] == [{**doubled, name: sizes[name]} for name in sizes]
    assert {**less, "N": 1} in moved_but_one(sizes) and sizes not in moved_but_one(sizes)
    assert moved_but_one({"N": 1, "T": 7}) == []
    assert moved_alone(sizes) == [
        {**sizes, "N": 2}, {**sizes, "T": 14}, {**sizes, "T": 3}, {**sizes, "S": 4},
    ]  # fmt: skip
    past = {"N": 1, "P": 0, "T": 7, "S": 7}
    assert [other["P"] for other in moved_together(past)] == [7, 4, 1]
    assert {"N": 2, "P": 7, "T": 7, "S": 14} in moved_but_one(past)
    assert moved_together({"N": 1}) == moved_alone({"N": 1}) == [{"N": 2}]
    assert moved_together({}) == moved_alone({}) == moved_but_one({}) == []


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({}, r"without a size \('T': axis 2 of input 'x'\); pass --dim T=SIZE"),
        ({"T": -1}, "'T' needs a size of 0 or more, not -1"),
        ({"T": 4, "batch": 2}, r"no .* called 'batch' \(the model has: N, T\)"),
    ],
)
def test_sizes_that_make_no_sense(dims: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bind_dims(with_inputs(x=["N", 3, "T"]), dims)
    with pytest.raises(UsageError, match="the model has: none"):
        bind_dims(with_inputs(x=[2]), {"T": 4})


def test_weights_that_are_inputs_have_no_symbolic_dims() -> None:
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (1, ["N", 2]), "w": (1, ["K", 3])},
        ["y"],
        {"w": np.ones((2, 3), np.float32)},
    )
    assert symbolic_dims(to_ir(model)) == {"N": [("x", 0)]}


def test_an_input_without_a_rank_is_refused() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, [2])}, ["y"])
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="input 'x' has no tensor type or no rank"):
        Skeleton(to_ir(model)).infer({})


# ---- inference ----------------------------------------------------------------------------------


def left_open(
    name: str, skeleton: Skeleton, binding: Mapping[str, int]
) -> dict[str, tuple[bool, ...]]:
    """Which axes have a size that only the data tells: it differs from one look to the other."""
    looks = [skeleton.infer(binding, observer(skeleton.model), look=k).types for k in (0, 1)]
    found = {
        value: tuple(a != b for a, b in zip(shape, looks[1][value][1], strict=True))
        for value, (_, shape) in looks[0].items()
    }
    assert any(map(any, found.values())) == (name in BY_DATA)
    return found


@pytest.mark.parametrize("name", STANDARD)
def test_types_and_values_are_those_of_a_run(name: str) -> None:
    """At both bindings, for every value; known values equal the computed ones."""
    model = GRAPHS[name]()
    given = {d: 2 + i for i, d in enumerate(INFO[name].dims)}
    skeleton = Skeleton(to_ir(model))
    known = 0
    for binding in (given, *moved_together(given), *moved_alone(given)):
        facts, other = (skeleton.infer(binding, look=k) for k in (0, 1))
        opened = left_open(name, skeleton, binding)
        real = run_all(model, feeds(model, **binding))
        for value, array in real.items():
            dtype, shape = facts.types[value]
            assert dtype == helper.np_dtype_to_tensor_dtype(array.dtype), value
            sizes = zip(shape, array.shape, opened[value], strict=True)
            assert all(found == size or free for found, size, free in sizes), value
        for value, array in facts.values.items():
            if value in real and np.array_equal(array, other.values[value], equal_nan=True):
                assert array.dtype == real[value].dtype
                if array.dtype.kind == "f":  # to rounding: a cosine, say
                    near = np.isclose(array.astype(float), real[value], rtol=3e-7, atol=0)
                    assert near.all(), value
                else:
                    np.testing.assert_array_equal(array, real[value], err_msg=value)
                known += 1
    shape_nodes = sum(n.op_type in ("Shape", "Constant") for n in model.graph.node)
    assert known >= shape_nodes or name in BY_DATA


@pytest.mark.parametrize("name", PLAIN)
def test_axes_that_move_with_the_binding_are_dynamic(name: str) -> None:
    model = GRAPHS[name]()
    given = {d: 2 + i for i, d in enumerate(INFO[name].dims)}
    found = secateur.analyze(model, dims=given)
    opened = left_open(name, Skeleton(to_ir(model)), given)
    first, second = (
        run_all(model, feeds(model, **{k: factor * v for k, v in given.items()}))
        for factor in (1, 2)
    )
    for operand in found.operands.values():
        if operand.name in first:
            sizes = (values[operand.name].shape for values in (first, second))
            moves = tuple(
                a != b or free for a, b, free in zip(*sizes, opened[operand.name], strict=True)
            )
            assert operand.dynamic == moves
            for axis, (one, two) in zip(
                operand.axes, zip(operand.shape, operand.later, strict=True), strict=True
            ):
                if one != two and not found.coupling.is_pinned(axis):
                    units = found.units_of(axis)
                    assert units is not None
                    count = len(np.unique(units))
                    assert 1 < count <= one and one % count == 0 == two % count


def unknowable() -> onnx.ModelProto:
    """Reshape to a target that depends on the data: (N, trunc(max(x)) * 0 + 24)."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "sizes"], ["target"]),
        helper.make_node("Reshape", ["h", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "v"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": rng.standard_normal((6, 3, 3, 3)).astype(np.float32),
        "v": rng.standard_normal((24, 5)).astype(np.float32),
        "zero": np.array([0], np.int64),
        "sizes": np.array([-1, 24], np.int64),
    }
    return model_of(nodes, {"x": (1, ["N", 3, 2, 2])}, ["y"], weights)


def test_calibration_data_is_observed_at_the_sizes_of_the_binding() -> None:
    proto = unknowable()
    rows = np.ones((3, *(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:])))
    data = {proto.graph.input[0].name: rows.astype(np.float32)[:, None]}
    seen = observer(to_ir(proto), data)({"N": 5}, ["flat", "y"])
    assert seen == {"flat": (TensorProto.FLOAT, (5, 24)), "y": (TensorProto.FLOAT, (5, 5))}


def test_what_inference_cannot_find_is_declared_or_observed() -> None:
    proto = unknowable()
    model = to_ir(proto)
    binding = bind_dims(model, {"N": 2})
    assert "flat" not in Skeleton(model).infer(binding).types
    asked: list[str] = []

    def observe(seen: Mapping[str, int], names: list[str]) -> dict[str, Any]:
        assert seen == binding
        asked.extend(names)
        return dict(observer(model)(seen, names))

    facts = Skeleton(model).infer(binding, observe)
    assert asked[0] == "flat" and "h" not in asked
    assert facts.types["flat"] == (TensorProto.FLOAT, (2, 24))
    assert facts.types["y"] == (TensorProto.FLOAT, (2, 5))
    assert "target" not in facts.values

    proto.graph.value_info.append(helper.make_tensor_value_info("flat", 1, ["N", 24]))
    declared = Skeleton(to_ir(proto)).infer(binding, lambda *_: pytest.fail("nothing to observe"))
    assert declared.types["flat"] == facts.types["flat"]
    assert declared.types["y"] == facts.types["y"]


def test_inference_comes_before_what_is_declared() -> None:
    proto = GRAPHS["option_a"]()
    proto.graph.value_info.append(helper.make_tensor_value_info("d", 1, ["N", 8, 80, 80]))
    facts = Skeleton(to_ir(proto)).infer({"N": 2})
    assert facts.types["d"] == (TensorProto.FLOAT, (2, 8, 8, 8))


def test_the_channels_behind_an_observed_reshape_are_pruned() -> None:
    result = secateur.prune(unknowable(), ratio=0.5, dims={"N": 2}, bench=False, threads=1)
    assert result.certificate is not None and result.certificate.ok


def test_a_shape_that_nobody_knows_pins_its_neighbours() -> None:
    model = GRAPHS["custom_operator"]()
    assert model.graph.value_info[0].name == "u"
    del model.graph.value_info[:]
    found = secateur.analyze(model, dims={"N": 2})
    assert any("the shape of 'u' is not known" in warning for warning in found.warnings)
    assert any("vendor.ops.Mystery" in warning for warning in found.warnings)
    free = {found.owners[a] for g in found.groups for a in g.axes}
    assert ("w1", 0) in free and ("w2", 0) not in free and ("w3", 0) not in free


def test_large_constants_have_a_type_but_no_value() -> None:
    weights: dict[str, Array] = {
        "small": np.zeros((SMALL,), np.float32),
        "large": np.zeros((SMALL + 1,), np.float32),
    }
    nodes = [helper.make_node("Concat", ["small", "large"], ["y"], axis=0)]
    skeleton = Skeleton(to_ir(model_of(nodes, {}, ["y"], weights)))
    facts = skeleton.infer({})
    assert facts.values.keys() == {"small"}
    assert facts.types["y"] == (TensorProto.FLOAT, (2 * SMALL + 1,))


# ---- evaluate -----------------------------------------------------------------------------------

I64 = np.int64


def ints(*values: int) -> Array:
    return np.array(values, I64)


CASES: list[tuple[str, dict[str, Array], dict[str, Any]]] = [
    ("Gather", {"a": ints(3, 5, 7), "i": np.array(-1, I64)}, {"axis": 0}),
    ("Gather", {"a": ints(3, 5, 7), "i": ints(2, 0)}, {}),
    ("Concat", {"a": ints(3, 5), "b": ints(7)}, {"axis": 0}),
    (
        "Slice",
        {"a": ints(3, 5, 7, 9), "s": ints(-1), "e": ints(-9), "x": ints(0), "t": ints(-2)},
        {},
    ),
    ("Unsqueeze", {"a": np.array(4, I64), "x": ints(0)}, {}),
    ("Squeeze", {"a": ints(4), "x": ints(0)}, {}),
    ("Reshape", {"a": ints(1, 2, 3, 4), "s": ints(-1, 2)}, {}),
    ("Transpose", {"a": ints(1, 2, 3, 4).reshape(2, 2)}, {"perm": [1, 0]}),
    ("Add", {"a": ints(3), "b": ints(5, 6)}, {}),
    ("Sub", {"a": ints(3, 4), "b": ints(5, 6)}, {}),
    ("Mul", {"a": ints(3, 4), "b": np.array(2, I64)}, {}),
    ("Div", {"a": ints(7, -7, 8), "b": ints(2, 2, -3)}, {}),
    ("Div", {"a": np.array([7, 1], np.float32), "b": np.array([2, 3], np.float32)}, {}),
    ("Mod", {"a": ints(7, -7), "b": ints(3, 3)}, {}),
    ("Floor", {"a": np.array([1.5, -1.5], np.float32)}, {}),
    ("Ceil", {"a": np.array([1.5, -1.5], np.float32)}, {}),
    ("Sqrt", {"a": np.array([2, 9], np.float32)}, {}),
    ("Pow", {"a": np.array([2, 9], np.float32), "b": np.array(0.5, np.float32)}, {}),
    ("Cast", {"a": np.array([2.9, -2.9], np.float32)}, {"to": TensorProto.INT64}),
    ("Cast", {"a": ints(2, 0)}, {"to": TensorProto.BOOL}),
    ("Range", {"a": np.array(1, I64), "b": np.array(9, I64), "c": np.array(3, I64)}, {}),
    ("ReduceProd", {"a": ints(2, 3, 4)}, {"keepdims": 0}),
    ("ReduceSum", {"a": ints(2, 3, 4), "x": ints(0)}, {"keepdims": 1}),
    ("ReduceMax", {"a": ints(2, 3, 4)}, {"keepdims": 0}),
    ("Min", {"a": ints(2, 3), "b": ints(1, 9)}, {}),
    ("Max", {"a": ints(2, 3), "b": ints(1, 9)}, {}),
    ("Equal", {"a": ints(2, 3), "b": ints(2, 9)}, {}),
    ("Greater", {"a": ints(2, 3), "b": ints(2, 1)}, {}),
    ("Not", {"a": np.array([True, False])}, {}),
    ("Where", {"c": np.array([True, False]), "a": ints(2, 3), "b": ints(5, 6)}, {}),
    ("Expand", {"a": ints(2), "s": ints(3)}, {}),
    ("Tile", {"a": ints(2, 3), "r": ints(2)}, {}),
    ("ConstantOfShape", {"s": ints(3)}, {"value": numpy_helper.from_array(ints(5))}),
    ("NonZero", {"a": ints(0, 2, 3)}, {}),
    ("Identity", {"a": ints(0, 2, 3)}, {}),
    ("Neg", {"a": ints(0, 2, 3)}, {}),
    ("ScatterElements", {"a": ints(1, 2, 3), "i": ints(1), "u": ints(9)}, {"axis": 0}),
    ("Pad", {"a": ints(1, 2), "p": ints(1, 2)}, {"mode": "constant"}),
    ("CumSum", {"a": ints(1, 2, 3), "x": np.array(0, I64)}, {}),
]


@pytest.mark.parametrize(
    ("op", "values", "attributes"), CASES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_evaluate_agrees_with_onnx_runtime(
    op: str, values: dict[str, Array], attributes: dict[str, Any]
) -> None:
    node = helper.make_node(op, list(values), ["y"], **attributes)
    inputs = {
        n: (helper.np_dtype_to_tensor_dtype(a.dtype), list(a.shape)) for n, a in values.items()
    }
    real = run_all(model_of([node], inputs, ["y"]), values)["y"]
    result = evaluate(node, 17, values, {})["y"]
    assert result.dtype == real.dtype and result.shape == real.shape
    np.testing.assert_array_equal(result, real)


@pytest.mark.parametrize("opset", [9, 12])
def test_evaluate_knows_the_attributes_of_old_opsets(opset: int) -> None:
    old: list[tuple[str, dict[str, Any], Array]] = [
        ("Unsqueeze", {"axes": [0]}, ints(1, 2)[None]),
        ("Squeeze", {"axes": [0]}, ints(1, 2)),
        ("ReduceSum", {"axes": [0], "keepdims": 0}, np.array(3, I64)),
    ]
    for op, attributes, wanted in old:
        given = ints(1, 2)[None] if op == "Squeeze" else ints(1, 2)
        node = helper.make_node(op, ["a"], ["y"], **attributes)
        np.testing.assert_array_equal(evaluate(node, opset, {"a": given}, {})["y"], wanted)
    cut = helper.make_node("Slice", ["a"], ["y"], starts=[1], ends=[9], axes=[0])
    np.testing.assert_array_equal(evaluate(cut, 9, {"a": ints(1, 2, 3)}, {})["y"], ints(2, 3))


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ({}, [4, 5, 6]),
        ({"start": 1}, [5, 6]),
        ({"end": -1}, [4, 5]),
        ({"start": -2, "end": 9}, [5, 6]),
    ],
)
def test_shape_needs_only_the_type(attributes: dict[str, Any], wanted: list[int]) -> None:
    node = helper.make_node("Shape", ["a"], ["y"], **attributes)
    types = {"a": (TensorProto.FLOAT, (4, 5, 6))}
    assert evaluate(node, 17, {}, types)["y"].tolist() == wanted
    real = run_all(model_of([node], {"a": (1, [4, 5, 6])}, ["y"]), {"a": np.zeros((4, 5, 6), "f")})
    assert real["y"].tolist() == wanted
    assert evaluate(node, 17, {}, {}) == {}


def test_size_is_a_scalar() -> None:
    node = helper.make_node("Size", ["a"], ["y"])
    result = evaluate(node, 17, {}, {"a": (TensorProto.FLOAT, (4, 5))})["y"]
    assert result.ndim == 0 and result.dtype == np.int64 and result.item() == 20


def test_what_is_not_evaluated() -> None:
    one = ints(1)
    body = helper.make_graph([helper.make_node("Identity", ["a"], ["z"])], "b", [],
                             [onnx.ValueInfoProto(name="z")])  # fmt: skip
    refused = [
        (helper.make_node("Add", ["a", "data"], ["y"]), {"a": one}),
        (helper.make_node("Add", ["a", "a"], ["y"], domain="com.example"), {"a": one}),
        (helper.make_node("RandomUniformLike", ["a"], ["y"]), {"a": one}),
        (helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
         {"a": one, "c": np.array(True)}),
        (helper.make_node("Expand", ["a", "s"], ["y"]), {"a": one, "s": ints(SMALL + 1)}),
        (helper.make_node("Reshape", ["a", "s"], ["y"]), {"a": one, "s": ints(7)}),
        (helper.make_node("NoSuchOperator", ["a"], ["y"]), {"a": one}),
    ]  # fmt: skip
    for node, values in refused:
        assert evaluate(node, 17, values, {}) == {}, node.op_type
