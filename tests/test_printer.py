"""Golden text of the printed form."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import onnx.parser
import onnx_ir as oir

from secateur.ir.io import load_model, to_proto
from secateur.ir.printer import format_model

SOURCE = """
<ir_version: 10, opset_import: ["" : 20, "my.ops" : 3]>
net (float[n, 8] x, bool flag) => (float[n, 4] y)
<float[8, 4] w, int64[2] target = {-1, 4}, int64[9] many = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
  h = MatMul(x, w)
  r = Reshape <allowzero = 0> (h, target)
  k = Constant <value = float[4] {1, 2, 3, 4}> ()
  s = If (flag) <
    then_branch = yes () => (float[4] a) <float[4] t = {1, 1, 1, 1}> { a = Add(k, t) },
    else_branch = no () => (float[4] b) { b = Identity(k) }
  >
  c = Clip (r, , k)
  y = my.ops.Scale <factor = 0.1, axes = [1, -2], mode = "a b"> (c, s)
}
<domain: "my.ops", opset_import: ["" : 20]>
Scale <factor, mode: string = "none"> (p, q) => (r) {
  c = Constant <value_float: float = @factor> ()
  m = Mul(p, c)
  r = Add(m, q)
}
"""

GOLDEN = """\
model ir_version=10 opsets[ai.onnx=20, my.ops=3]
function my.ops::Scale opsets[ai.onnx=20]
  attribute mode = "none"
  attribute factor
  input %p
  input %q
  %c = Constant(value_float=@factor)()
  %m = Mul()(%p, %c)
  %r = Add()(%m, %q)
  output %r
graph net
  input %x: float32[n,8]
  input %flag: bool[]
  %w = float32[8,4] #{w}
  %target = int64[2] #{target} [-1, 4]
  %many = int64[9] #{many}
  %h = MatMul()(%x, %w)
  %r = Reshape(allowzero=0)(%h, %target)
  %k = Constant(value=float32[4] #{k})()
  %s = If()(%flag)
    then_branch: graph yes
      %t = float32[4] #{t}
      %a = Add()(%k, %t): float32[4]
      output %a: float32[4]
    else_branch: graph no
      %b = Identity()(%k): float32[4]
      output %b: float32[4]
  %c = Clip()(%r, _, %k)
  %y = my.ops.Scale(factor=0.1, axes=[1, -2], mode="a b")(%c, %s): float32[n,4]
  output %y: float32[n,4]
"""


def model() -> oir.Model:
    proto = onnx.parser.parse_model(SOURCE)
    weight = np.arange(32, dtype=np.float32).reshape(8, 4)
    proto.graph.initializer.insert(0, onnx.numpy_helper.from_array(weight, "w"))
    return load_model(proto)


def short_hash(numbers: object, dtype: type[np.generic]) -> str:
    return hashlib.sha256(np.array(numbers, dtype).tobytes()).hexdigest()[:8]


def golden() -> str:
    return GOLDEN.format(
        w=short_hash(range(32), np.float32),
        target=short_hash([-1, 4], np.int64),
        many=short_hash(range(1, 10), np.int64),
        k=short_hash([1, 2, 3, 4], np.float32),
        t=short_hash([1, 1, 1, 1], np.float32),
    )


def test_model_text() -> None:
    assert format_model(model()) == golden()


def test_text_does_not_depend_on_the_stored_form() -> None:
    proto = to_proto(model())
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, array))
        assert not tensor.HasField("raw_data")
    assert format_model(load_model(proto)) == golden()


def test_a_changed_weight_changes_one_line() -> None:
    changed = model()
    value = changed.graph.initializers["w"]
    assert value.const_value is not None
    array = np.array(value.const_value.numpy())
    array[3, 3] += 1
    value.const_value = oir.tensor(array)
    pairs = zip(format_model(changed).splitlines(), golden().splitlines(), strict=True)
    assert [new[:20] for new, old in pairs if new != old] == ["  %w = float32[8,4] #"[:20]]


def test_names_and_types_of_every_kind() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (seq(float[2, n]) s, optional(int64[3]) o, float[n, 3] x) => (bfloat16 z) {
      z = Cast <to = 16> (x)
      e, f = TopK(x, o)
    }
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.name = "two words"
    proto.graph.node[1].output[0] = ""
    proto.graph.node[1].output[1] = 'a "quoted" name'
    proto.graph.input[2].type.tensor_type.shape.dim[0].ClearField("dim_param")
    words = onnx.TensorProto(name="t", data_type=8, dims=[2], string_data=[b"a", b"bc"])
    attributes = [
        onnx.helper.make_attribute("floats", [1.5, 1e-7]),
        onnx.helper.make_attribute("strings", ["a", "b\n"]),
        onnx.helper.make_attribute("kind", onnx.helper.make_tensor_type_proto(1, [2])),
        onnx.helper.make_attribute("words", words),
    ]
    proto.graph.node[0].attribute.extend(attributes)
    digest = hashlib.sha256(b"1:a2:bc").hexdigest()[:8]
    assert format_model(load_model(proto)) == (
        "model ir_version=8 opsets[ai.onnx=17]\n"
        'graph "two words"\n'
        "  input %s: seq(float32[2,n])\n"
        "  input %o: optional(int64[3])\n"
        "  input %x: float32[?,3]\n"
        '  %z = Cast(to=16, floats=[1.5, 1e-07], strings=["a", "b\\n"], kind=float32[2], '
        f"words=string[2] #{digest})(%x): bfloat16[]\n"
        '  _, %"a \\"quoted\\" name" = TopK()(%x, %o)\n'
        "  output %z: bfloat16[]\n"
    )
