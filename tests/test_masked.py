from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from secateur.ir.errors import DataError, ModelError
from secateur.ir.masks import Compaction, Mask
from secateur.runtime.masked import masked_model
from secateur.runtime.session import make_session, run
from secateur.runtime.zeroed import zeroed_model

Array = np.ndarray[Any, np.dtype[Any]]


def parse(body: str, opset: int = 17, /, **weights: Array) -> onnx.ModelProto:
    ir_version = 8 if opset < 19 else 10
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> {body}')
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def execute(model: onnx.ModelProto, **feed: Array) -> dict[str, Array]:
    onnx.checker.check_model(model, full_check=True)
    return run(make_session(model), feed)


def interface(model: onnx.ModelProto) -> list[bytes]:
    return [v.SerializeToString() for v in (*model.graph.input, *model.graph.output)]


# --- the descriptions ---------------------------------------------------------------------------


def test_descriptions_survive_json() -> None:
    mask = Mask("y", 1, 0, (2, 5))
    compaction = Compaction("y", ((0, -1), (1, 0)), ((0, -1),), (1,), 4)
    assert Mask.from_json(json.loads(json.dumps(mask.to_json()))) == mask
    assert Compaction.from_json(json.loads(json.dumps(compaction.to_json()))) == compaction


@pytest.mark.parametrize(
    "change", [{"axis": "0"}, {"output": 3}, {"indices": 4}, {"indices": [True]}, {"input": None}]
)
def test_malformed_masks_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Mask.from_json(Mask("y", 1, 0, (2,)).to_json() | change)


@pytest.mark.parametrize("change", [{"inputs": [[1]]}, {"size": 1.5}, {"outputs": "ab"}])
def test_malformed_compactions_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Compaction.from_json(Compaction("y", ((0, 0),), (), (1,), 4).to_json() | change)
    with pytest.raises(DataError):
        Compaction.from_json({})


# --- masks --------------------------------------------------------------------------------------

DTYPES: list[tuple[str, Any, int]] = [
    *((name, name, opset) for opset in (7, 13, 24) for name in ("float32", "float64", "float16")),
    *((name, name, opset) for opset in (7, 13, 24) for name in ("int64", "int32", "uint32")),
    *((name, name, 24) for name in ("int8", "uint8", "int16", "uint16", "uint64", "bool")),
    *((name, name, 13) for name in ("int8", "uint8", "int16", "uint16", "uint64", "bool")),
    ("int8", "int8", 7),
    ("bool", "bool", 7),
    ("bfloat16", ml_dtypes.bfloat16, 21),
]


@pytest.mark.parametrize(("name", "dtype", "opset"), DTYPES)
def test_masks_zero_every_element_type(name: str, dtype: Any, opset: int) -> None:
    x = np.random.default_rng(0).integers(1, 100, (2, 5, 3)).astype(dtype)
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 2])],
        "g",
        [helper.make_tensor_value_info("x", element, ["N", 5, 3])],
        [helper.make_tensor_value_info("y", element, ["N", 5, 3])],
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8 if opset < 19 else 10)
    masked = masked_model(model, [Mask("y", 0, 1, (0, 3))])
    expected = x.copy()
    expected[:, [0, 3]] = np.zeros((), dtype)
    got = execute(masked, x=x)["y"]
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got.astype(np.float64), expected.astype(np.float64))


def test_masks_unite_and_compose() -> None:
    model = parse("g (float[N, 4] x, float[4, 6] w) => (float[N, 6] y) { y = MatMul(x, w) }")
    before, frozen = interface(model), model.SerializeToString()
    masks = [
        Mask("y", 0, 1, (1,)),
        Mask("y", 0, 1, (3,)),
        Mask("y", 1, -1, (5,)),
        Mask("y", 1, 0, ()),
    ]
    rng = np.random.default_rng(1)
    x, w = rng.random((3, 4), np.float32), rng.random((4, 6), np.float32)
    masked = masked_model(model, masks)
    assert interface(masked) == before
    assert model.SerializeToString() == frozen
    expected = x[:, [0, 2]] @ w[[0, 2]]
    expected[:, 5] = 0
    np.testing.assert_allclose(execute(masked, x=x, w=w)["y"], expected, rtol=1e-6)


def test_other_consumers_see_the_unmasked_value() -> None:
    model = parse("g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { y = Relu(x)  z = Abs(x) }")
    out = execute(masked_model(model, [Mask("y", 0, 1, (0,))]), x=np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(out["y"], [[0, 1, 1]] * 2)
    np.testing.assert_array_equal(out["z"], np.ones((2, 3)))


def test_a_quantised_operand_is_zero_at_its_zero_point() -> None:
    model = parse(
        "g (uint8[2, 3] x) => (int32[2, 4] y) { y = MatMulInteger(x, w, p, q) }",
        w=np.arange(12, dtype=np.uint8).reshape(3, 4),
        p=np.array(7, np.uint8),
        q=np.array(2, np.uint8),
    )
    x = np.array([[1, 200, 3], [9, 5, 6]], np.uint8)
    out = execute(masked_model(model, [Mask("y", 0, 1, (1,))]), x=x)["y"]
    w = np.arange(12).reshape(3, 4) - 2
    kept = [0, 2]
    np.testing.assert_array_equal(out, (x.astype(int) - 7)[:, kept] @ w[kept])


def test_masks_reach_into_subgraphs_and_functions() -> None:
    model = parse(
        """g (float[N, 3] x, bool c) => (float[N, 3] y) {
            y = If (c) <then_branch = t () => (float[N, 3] a) { a = Relu(x) },
                        else_branch = e () => (float[N, 3] b) { b = Neg(x) }> }"""
    )
    masked = masked_model(model, [Mask("a", 0, 1, (2,))])
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(execute(masked, x=x, c=np.array(True))["y"], [[1, 1, 0]] * 2)
    np.testing.assert_array_equal(execute(masked, x=x, c=np.array(False))["y"], -x)

    called = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N, 3] x) => (float[N, 3] y) { y = local.f(x) }
        <domain: "local", opset_import: ["": 17]> f (u) => (v) { v = Relu(u) }"""
    )
    with pytest.raises(ModelError, match="unknown"):
        masked_model(called, [Mask("v", 0, 1, (1,))])
    masked = masked_model(called, [Mask("v", 0, 1, (1,))], types={"u": (TensorProto.FLOAT, (2, 3))})
    np.testing.assert_array_equal(execute(masked, x=x)["y"], [[1, 0, 1]] * 2)


def test_large_constants_keep_their_place() -> None:
    model = parse("g (float[N, 100] x) => (float[N, 60] y) { h = Relu(x)  y = MatMul(h, w) }")
    w = np.random.default_rng(0).random((100, 60), np.float32)
    node = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(w, "w"))
    model.graph.node.insert(0, node)
    masked = masked_model(model, [Mask("y", 1, 0, (4,))])
    assert [n.op_type for n in masked.graph.node if n.op_type != "Mul"][:2] == ["Constant", "Relu"]
    x = np.ones((1, 100), np.float32)
    expected = np.delete(x, 4, 1) @ np.delete(w, 4, 0)
    np.testing.assert_allclose(execute(masked, x=x)["y"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Mask("z", 0, 1, (0,)), "no node writes"),
        (Mask("y", 4, 1, (0,)), "no input 4"),
        (Mask("y", 0, 2, (0,)), "axes"),
        (Mask("y", 0, 1, (3,)), "coordinates"),
        (Mask("y", 0, 1, (-1,)), "coordinates"),
        (Mask("y", 0, 0, (0,)), "size of axis"),
    ],
)
def test_masks_that_do_not_fit(mask: Mask, message: str) -> None:
    model = parse("g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match=message):
        masked_model(model, [mask])


def test_masks_that_cannot_be() -> None:
    mask = Mask("y", 0, 0, (0,))
    with pytest.raises(ModelError, match="opset 6"):
        masked_model(parse("g (float[3] x) => (float[3] y) { y = Relu(x) }", 6), [mask])
    with pytest.raises(ModelError, match="element type"):
        masked_model(parse("g (string[3] x) => (string[3] y) { y = Identity(x) }"), [mask])
    twice = parse(
        """g (float[3] x, bool c) => (float[3] o) {
            o = If (c) <then_branch = t () => (float[3] y) { y = Relu(x) },
                        else_branch = e () => (float[3] y) { y = Neg(x) }> }"""
    )
    with pytest.raises(ModelError, match="two nodes"):
        masked_model(twice, [mask])


# --- compactions --------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4])
def test_layer_normalisation_on_the_kept_coordinates(rows: int) -> None:
    rng = np.random.default_rng(2)
    scale, bias = rng.random(6, np.float32), rng.random(6, np.float32)
    model = parse(
        """g (float[N, 6] x) => (float[N, 6] y, float[N, 6] z) {
            y = LayerNormalization <axis = -1> (x, s, b)  z = Neg(y) }""",
        s=scale,
        b=bias,
    )
    removed = (1, 4)
    compaction = Compaction("y", ((0, 1), (1, 0), (2, 0)), ((0, -1),), removed, 6)
    masked = masked_model(model, [], [compaction])
    assert interface(masked) == interface(model)
    x = rng.random((rows, 6), np.float32) * 5
    part = np.delete(x, removed, 1).astype(np.float64)
    part = (part - part.mean(1, keepdims=True)) / np.sqrt(part.var(1, keepdims=True) + 1e-5)
    expected = np.zeros((rows, 6))
    expected[:, [0, 2, 3, 5]] = part * np.delete(scale, removed) + np.delete(bias, removed)
    out = execute(masked, x=x)
    np.testing.assert_allclose(out["y"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out["z"], -out["y"])


def test_removed_outputs_are_zero_even_next_to_nan() -> None:
    model = parse("g (float[2, 3] x) => (float[2, 3] y) { y = Softmax(x) }")
    x = np.array([[np.nan, 1, 1], [1, 1, 1]], np.float32)
    masked = masked_model(model, [], [Compaction("y", ((0, 1),), ((0, 1),), (1,), 3)])
    out = execute(masked, x=x)["y"]
    np.testing.assert_array_equal(out[:, 1], [0, 0])
    np.testing.assert_array_equal(out[1], [0.5, 0, 0.5])


def test_a_mean_over_the_kept_coordinates_at_opset_7() -> None:
    model = parse(
        "g (float[N, 4, 2] x) => (float[N, 2] y) { y = ReduceMean <axes=[1], keepdims=0> (x) }", 7
    )
    x = np.random.default_rng(3).random((2, 4, 2), np.float32)
    parts = [Compaction("y", ((0, 1),), (), (0,), 4), Compaction("y", ((0, 1),), (), (2,), 4)]
    out = execute(masked_model(model, [], parts), x=x)["y"]
    np.testing.assert_allclose(out, x[:, [1, 3]].mean(1), rtol=1e-6)
    both = [Compaction("y", ((0, 1),), (), (0,), 4), Compaction("y", ((0, 2),), ((0, 1),), (1,), 2)]
    out = execute(masked_model(model, [], both), x=x)["y"]
    np.testing.assert_allclose(out[:, 0], x[:, 1:, 0].mean(1), rtol=1e-6)
    np.testing.assert_array_equal(out[:, 1], [0, 0])


def test_masks_come_before_compactions() -> None:
    model = parse("g (float[1, 4] x) => (float[1, 1] y) { y = ReduceMean <axes=[1]> (x) }")
    masks = [Mask("y", 0, 1, (3,))]
    masked = masked_model(model, masks, [Compaction("y", ((0, 1),), (), (0,), 4)])
    out = execute(masked, x=np.array([[9, 1, 2, 5]], np.float32))["y"]
    np.testing.assert_allclose(out, [[1.0]])


@pytest.mark.parametrize("removed", [(2, 3), (0, 3), (1, 2, 5)])
def test_group_normalisation_keeps_its_groups_consistent(removed: tuple[int, ...]) -> None:
    ones, zeros = np.ones(6, np.float32), np.zeros(6, np.float32)
    model = parse(
        """g (float[1, 6, 4] x) => (float[1, 6, 4] y) {
            y = GroupNormalization <num_groups = 3> (x, s, b) }""",
        21,
        s=ones,
        b=zeros,
    )
    compaction = Compaction("y", ((0, 1), (1, 0), (2, 0)), ((0, 1),), removed, 6)
    x = np.random.default_rng(4).random((1, 6, 4), np.float32)
    kept = [np.setdiff1d([2 * g, 2 * g + 1], removed) for g in range(3)]
    if len({len(k) for k in kept if len(k)}) > 1:
        with pytest.raises(ModelError, match="unequal"):
            masked_model(model, [], [compaction])
        return
    expected = np.zeros((1, 6, 4))
    for channels in (k for k in kept if len(k)):
        part = x[:, channels].astype(np.float64)
        expected[:, channels] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    out = execute(masked_model(model, [], [compaction]), x=x)["y"]
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("compaction", "message"),
    [
        (Compaction("y", ((0, 1),), ((0, 1),), (0, 1, 2), 3), "every coordinate"),
        (Compaction("y", ((0, 1),), ((1, 1),), (0,), 3), "output 1"),
        (Compaction("y", ((0, 1),), (), (7,), 3), "coordinates"),
        (Compaction("y", ((0, 1),), (), (0,), 10**13), "is 3, not 10000000000000"),
        (Compaction("y", (), ((0, 1),), (0,), -3), "is 3, not -3"),
    ],
)
def test_compactions_that_do_not_fit(compaction: Compaction, message: str) -> None:
    model = parse("g (float[N, 3] x) => (float[N, 3] y) { y = Softmax(x) }")
    with pytest.raises(ModelError, match=message):
        masked_model(model, [], [compaction])
    other = Compaction("y", compaction.inputs, compaction.outputs, (0,), 5)
    with pytest.raises(ModelError, match="disagree"):
        masked_model(model, [], [compaction, other])


# --- zeroed weights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "float16",
        "int8",
        "uint8",
        ml_dtypes.bfloat16,
        ml_dtypes.int4,
        ml_dtypes.uint4,
    ],
)
def test_slices_of_every_type_become_zero(dtype: Any) -> None:
    array = np.random.default_rng(5).integers(1, 7, (3, 5)).astype(dtype)
    model = parse("g (float[1] x) => (float[1] y) { y = Relu(x) }", w=array)
    zeroed = zeroed_model(model, [("w", 0, (1,)), ("w", -1, (0, 4))])
    expected = array.copy()
    expected[1] = np.zeros((), dtype)
    expected[:, [0, 4]] = np.zeros((), dtype)
    got = zeroed.graph.initializer[0]
    assert (got.data_type, got.name) == (model.graph.initializer[0].data_type, "w")
    np.testing.assert_array_equal(numpy_helper.to_array(got), expected)
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), array)


def test_what_is_picked_before_it_is_dequantised_becomes_its_zero_point() -> None:
    """A table of rows, as an embedding is stored."""
    model = parse(
        """g (int64[N] i) => (float[N, 5] y) {
            r = Gather(w, i) y = DequantizeLinear(r, s, p) }""",
        w=np.arange(15, dtype=np.uint8).reshape(3, 5),
        s=np.array(0.5, np.float32),
        p=np.array(7, np.uint8),
    )
    out = execute(zeroed_model(model, [("w", 1, (0, 4))]), i=np.arange(3))
    assert not out["y"][:, [0, 4]].any() and out["y"][:, 1].tolist() == [-3.0, -0.5, 2.0]


@pytest.mark.parametrize("dtype", ["bool", "int64"])
def test_flags_and_indices_stay(dtype: str) -> None:
    array = np.ones((3, 5), dtype)
    model = parse("g (float[1] x) => (float[1] y) { y = Relu(x) }", w=array)
    assert zeroed_model(model, [("w", 0, (1,))]) == model


def test_constants_and_typed_fields_become_zero() -> None:
    model = parse(
        """g (float[3] x) => (float[3] z) {
            a = Constant <value = float[3] {1, 2, 3}> ()
            b = Constant <value_floats = [4.0, 5.0, 6.0]> ()
            y = Add(x, a)  z = Add(y, b) }"""
    )
    zeroed = zeroed_model(model, [("a", 0, (0,)), ("b", 0, (2,))])
    out = execute(zeroed, x=np.zeros(3, np.float32))
    np.testing.assert_array_equal(out["z"], [4, 7, 3])


def test_zeroing_what_is_not_there() -> None:
    model = parse("g (float[1] x) => (float[1] y) { y = Relu(x) }", w=np.ones((2, 2), np.float32))
    for name, axis, indices in (("v", 0, (0,)), ("w", 2, (0,)), ("w", 0, (2,))):
        with pytest.raises(ModelError):
            zeroed_model(model, [(name, axis, indices)])
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ModelError, match="external"):
        zeroed_model(model, [("w", 0, (0,))])
