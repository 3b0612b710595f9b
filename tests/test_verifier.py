"""Every rule of the verifier: a model that keeps it and one that breaks it; ONNX Runtime agrees."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnx_ir as oir
import pytest

from secateur.ir.io import load_model, to_proto
from secateur.ir.verifier import Problem, find_problems, stripped_proto

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'

# name -> (model text with a placeholder, the good and the bad value, what the problem says)
SIZES: dict[str, tuple[str, str, str, str]] = {
    "Conv input": (
        "g (float[1,@,8,8] x, float[4,3,3,3] w) => (float[1,4,6,6] y) { y = Conv(x, w) }",
        "3",
        "5",
        "input channels differ from the weight's",
    ),
    "Conv group": (
        """g (float[1,6,8,8] x, float[@,3,3,3] w) => (float[n,m,h,k] y)
        { y = Conv <group = 2> (x, w) }""",
        "4",
        "5",
        "no multiple of group",
    ),
    "Conv bias": (
        """g (float[1,3,8,8] x, float[4,3,3,3] w, float[@] b) => (float[n,m,h,k] y)
        { y = Conv(x, w, b) }""",
        "4",
        "3",
        "the bias differs from the output channels",
    ),
    "Conv kernel": (
        """g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[n,m,h,k] y)
        { y = Conv <kernel_shape = [3, @]> (x, w) }""",
        "3",
        "2",
        "kernel_shape differs",
    ),
    "ConvTranspose input": (
        """g (float[1,@,8,8] x, float[4,3,3,3] w) => (float[n,m,h,k] y)
        { y = ConvTranspose(x, w) }""",
        "4",
        "3",
        "input channels differ from the weight's",
    ),
    "ConvTranspose bias": (
        """g (float[1,4,8,8] x, float[4,3,3,3] w, float[@] b) => (float[n,m,h,k] y)
        { y = ConvTranspose <group = 2> (x, w, b) }""",
        "6",
        "3",
        "the bias differs from the output channels",
    ),
    "QLinearConv input": (
        """g (uint8[1,@,4,4] x, uint8[2,3,1,1] w) => (uint8[n,m,h,k] y) {
          s = Constant <value = float {1.0}> () z = Constant <value = uint8 {0}> ()
          y = QLinearConv(x, s, z, w, s, z, s, z) }""",
        "3",
        "2",
        "input channels differ from the weight's",
    ),
    "Gemm inner": (
        """g (float[5,2] a, float[@,5] b) => (float[n,m] y)
        { y = Gemm <transA = 1, transB = 1> (a, b) }""",
        "3",
        "3",
        "",
    ),
    "Gemm inner differs": (
        "g (float[2,5] a, float[@,3] b) => (float[n,m] y) { y = Gemm(a, b) }",
        "5",
        "4",
        "inner dimensions differ",
    ),
    "Gemm C": (
        """g (float[2,5] a, float[5,3] b, float[@] c) => (float[n,m] y)
        { y = Gemm(a, b, c) }""",
        "3",
        "2",
        "C does not broadcast",
    ),
    "MatMul": (
        "g (float[7,2,5] a, float[@,3] b) => (float[n,m,k] y) { y = MatMul(a, b) }",
        "5",
        "4",
        "inner dimensions differ",
    ),
    "BatchNormalization": (
        """g (float[1,3,4] x, float[3] s, float[3] b, float[@] m, float[3] v) => (float[n,m,k] y)
        { y = BatchNormalization(x, s, b, m, v) }""",
        "3",
        "2",
        "operand 3 differs from the input's channels",
    ),
    "InstanceNormalization": (
        """g (float[1,3,4] x, float[@] s, float[3] b) => (float[n,m,k] y)
        { y = InstanceNormalization(x, s, b) }""",
        "3",
        "2",
        "operand 1 differs from the input's channels",
    ),
    "LayerNormalization": (
        """g (float[2,3,4] x, float[@] s, float[4] b) => (float[n,m,k] y)
        { y = LayerNormalization(x, s, b) }""",
        "4",
        "3",
        "operand 1 differs from the input",
    ),
    "LSTM": (
        """g (float[3,1,5] x, float[1,16,@] w, float[1,16,4] r) => (float[a,b,c,d] y)
        { y = LSTM <hidden_size = 4> (x, w, r) }""",
        "5",
        "6",
        "input size differs from W",
    ),
    "GRU": (
        """g (float[3,1,5] x, float[1,@,5] w, float[1,12,4] r) => (float[a,b,c,d] y)
        { y = GRU <hidden_size = 4> (x, w, r) }""",
        "12",
        "16",
        "rows of W differ from the gates",
    ),
    "Split": (
        """g (float[2,9] x) => (float[n,m] y, float[k,l] z) {
          s = Constant <value_ints = [4, @]> () y, z = Split <axis = 1> (x, s) }""",
        "5",
        "6",
        "split does not add up to the axis",
    ),
    "Reshape": (
        """g (float[2,9] x) => (float[a,b,c] y) {
          s = Constant <value_ints = [0, 3, @]> () y = Reshape(x, s) }""",
        "3",
        "4",
        "another number of elements",
    ),
    "Reshape rest": (
        """g (float[2,9] x) => (float[a,b] y) {
          s = Constant <value_ints = [-1, @]> () y = Reshape(x, s) }""",
        "6",
        "4",
        "another number of elements",
    ),
    "Concat": (
        "g (float[2,9] x, float[@,3] y) => (float[a,b] z) { z = Concat <axis = 1> (x, y) }",
        "2",
        "4",
        "operands differ off the axis",
    ),
    "Add": (
        "g (float[2,9] x, float[@] y) => (float[a,b] z) { z = Add(x, y) }",
        "9",
        "4",
        "shape inference fails",
    ),
    "inside If": (
        """g (bool c, float[2,5] a, float[@,3] b) => (float[n,m] y) { y = If (c) <
          then_branch = t () => (float[p,q] r) { r = Gemm(a, b) },
          else_branch = e () => (float[u,v] s) { s = MatMul(a, b) } > }""",
        "5",
        "4",
        "inner dimensions differ",
    ),
}


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


def runs(proto: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime can load the model and run it once."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    types = {1: np.float32, 2: np.uint8, 9: np.bool_}
    feeds: dict[str, object] = {
        info.name: np.ones(
            [dim.dim_value for dim in info.type.tensor_type.shape.dim],
            types[info.type.tensor_type.elem_type],
        )
        for info in proto.graph.input
    }
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        session.run(None, feeds)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    text, good, bad, phrase = SIZES[name]
    proto = parse(text.replace("@", good))
    assert find_problems(load_model(proto)) == []
    assert runs(proto)
    if not phrase:
        return
    proto = parse(text.replace("@", bad))
    problems = find_problems(load_model(proto))
    assert any(phrase in problem.what for problem in problems), problems
    assert not runs(proto)


def test_declared_results_are_compared() -> None:
    good = "g (float[2,9] x, float[2,3] y) => (float[2,12] z) { z = Concat <axis = 1> (x, y) }"
    assert find_problems(load_model(parse(good))) == []
    found = find_problems(load_model(parse(good.replace("[2,12]", "[2,11]"))))
    assert "the output differs from the sum of the operands" in {p.what for p in found}
    good = "g (float[1,3,8,8] x, float[5,3,3,3] w) => (float[1,5,6,6] y) { y = Conv(x, w) }"
    assert find_problems(load_model(parse(good))) == []
    found = find_problems(load_model(parse(good.replace("[1,5,6,6]", "[1,4,6,6]"))))
    assert "output channels differ from the weight's" in {p.what for p in found}


CHAIN = "g (float[n] x) => (float[n] y) { a = Relu(x) b = Neg(a) y = Add(a, b) }"


def test_a_correct_graph_has_no_problems() -> None:
    assert find_problems(load_model(parse(CHAIN))) == []


def problems_of(proto: onnx.ModelProto) -> str:
    """The problems of a graph that onnx.checker refuses as well, its nodes as they stand."""
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto)
    return "\n".join(map(str, find_problems(oir.serde.deserialize_model(proto))))


def test_order_and_uses() -> None:
    proto = parse(CHAIN)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([nodes[1], nodes[0], nodes[2]])
    assert "'b' (Neg): uses 'a' before it is produced" in problems_of(proto)
    proto = parse(CHAIN)
    proto.graph.node[1].input[0] = "ghost"
    assert "'b' (Neg): uses 'ghost', which nothing produces" in problems_of(proto)
    proto = parse(CHAIN)
    proto.graph.output[0].name = "ghost"
    assert "output 'ghost': is not produced" in problems_of(proto)


def test_operators() -> None:
    proto = parse(CHAIN)
    proto.graph.node[1].op_type = "Negate"
    assert "'b' (Negate): is no operator of opset 17" in problems_of(proto)
    proto.graph.node[1].op_type = "Upsample"  # withdrawn in opset 10
    assert "is no operator of opset 17" in problems_of(proto)
    proto.graph.node[1].op_type = "Gelu"  # introduced in opset 20
    assert "is no operator of opset 17" in problems_of(proto)
    proto.graph.node[1].domain = "my.ops"
    assert "'my.ops', which no opset import names" in problems_of(proto)
    proto.opset_import.add(domain="my.ops", version=1)
    assert find_problems(load_model(proto)) == []


@pytest.mark.parametrize("call", ['RegexFullMatch <pattern = "a"> (h)', "EyeLike <dtype = 1> (h)"])
def test_untyped_operands_do_not_crash(call: str) -> None:
    """ONNX's own inference ends the process on these models."""
    text = f"""<ir_version: 8, opset_import: ["" : 20, "my" : 1]>
    g (float[3, 3] x) => (y) {{ h = my.Unknown(x) y = {call} }}"""
    assert find_problems(load_model(onnx.parser.parse_model(text))) == []


def test_functions_are_checked() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "my" : 1]>
    g (float[4] x) => (float[4] y) { y = my.Twice(x) }
    <domain: "my", opset_import: ["" : 17]> Twice (a) => (b) { b = Add(a, @) }
    """
    assert find_problems(load_model(onnx.parser.parse_model(text.replace("@", "a")))) == []
    assert "nothing produces" in problems_of(onnx.parser.parse_model(text.replace("@", "z")))


def test_subgraphs_see_what_was_computed_before() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) {
      a = Relu(x)
      y = If (c) < then_branch = t () => (float[2] p) { p = Neg(a) },
                   else_branch = e () => (float[2] q) { q = Abs(x) } >
      b = Relu(y)
    }"""
    assert find_problems(load_model(parse(text))) == []
    assert "before it is produced" in problems_of(parse(text.replace("Neg(a)", "Neg(b)")))
    assert "nothing produces" in problems_of(parse(text.replace("Neg(a)", "Neg(q)")))


def test_initializers() -> None:
    text = "g (float[2,3] x) => (float[2,3] y) <float[3] w = {1, 2, 3}> { y = Add(x, w) }"
    model = load_model(parse(text))
    assert find_problems(model) == []
    value = model.graph.initializers["w"]
    value.shape = oir.Shape([4])
    assert "has another shape than its tensor" in str(find_problems(model)[0])
    value.shape, value.type = oir.Shape([None]), oir.TensorType(oir.DataType.DOUBLE)
    assert "has another type than its tensor" in str(find_problems(model)[0])
    value.const_value = None
    assert find_problems(model) == [Problem("initializer 'w'", "has no data")]


def test_edits_that_only_the_graph_shows() -> None:
    """Uses are edges between values; a file would hide that two values share a name."""
    model = load_model(parse(CHAIN))
    node = model.graph.node(1)
    node.outputs[0].name = "a"
    assert "value 'a': is defined twice" in map(str, find_problems(model))
    model = load_model(parse(CHAIN))
    model.graph.node(1).replace_input_with(0, oir.Value(name="x"))
    assert "not the one its graph knows" in str(find_problems(model)[0])
    model = load_model(parse(CHAIN))
    model.graph.outputs.clear()
    assert Problem("graph", "has no outputs") in find_problems(model)


def test_problems_compare_without_their_sizes() -> None:
    text = """g (float[2,5] a, float[@,3] b, float[4] c) => (float[n,m] y, float[k] z)
    { y = Gemm(a, b) z = Add(c, c) }"""
    before, after = (find_problems(load_model(parse(text.replace("@", n)))) for n in ("4", "3"))
    assert before
    assert before == after
    assert [p.detail for p in before] != [p.detail for p in after]
    broken = find_problems(
        load_model(parse(text.replace("@", "3").replace("Add(c, c)", "Add(c, a)")))
    )
    new = set(broken) - set(before)
    assert {problem.where for problem in new} == {"node 'z' (Add)"}
    with pytest.raises(FrozenInstanceError):
        before[0].where = "elsewhere"  # type: ignore[misc]


def test_stripped_proto_holds_no_weights() -> None:
    proto = parse(
        """g (float[1,64] x) => (float[n,m] y) <float[64,64] w, int64[2] s = {8, 8}>
        { h = MatMul(x, w) y = Reshape(h, s) }"""
    )
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    proto.graph.initializer.append(weight)
    model = load_model(proto)
    before = to_proto(model)
    stripped = stripped_proto(model)
    assert stripped.ByteSize() < 1000
    assert [tensor.name for tensor in stripped.graph.initializer] == ["s"]
    assert [info.name for info in stripped.graph.input] == ["x", "w"]
    assert to_proto(model) == before
    inferred = onnx.shape_inference.infer_shapes(stripped, data_prop=True).graph.output[0]
    assert [dim.dim_value for dim in inferred.type.tensor_type.shape.dim] == [8, 8]
