"""Models and damaged files for the tests of `secateur.ir.io`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.external_data_helper
import onnx.numpy_helper
import onnx.parser
import onnx_ir as oir
import pytest

from secateur.ir import io
from secateur.ir.errors import ModelError

SOURCE = """
<ir_version: 10, opset_import: ["" : 20, "my.ops" : 3], producer_name: "tests",
 metadata_props: ["licence": "CC0"]>
net (float[n, 8] x, bool flag) => (float[n, 4] y) {
  h = MatMul(x, w)
  k = Constant <value = float[4] {1, 2, 3, 4}> ()
  s = If (flag) <
    then_branch = yes () => (float[4] a) <float[4] t = {1, 1, 1, 1}> { a = Add(k, t) },
    else_branch = no () => (float[4] b) { b = Identity(k) }
  >
  y = my.ops.Scale <factor = 2.0> (h, s)
}
<domain: "my.ops", opset_import: ["" : 20]>
Scale <factor> (p, q) => (r) {
  c = Constant <value_float: float = @factor> ()
  m = Mul(p, c)
  r = Add(m, q)
}
"""


def weights(rows: int = 8, columns: int = 4) -> npt.NDArray[np.float32]:
    return np.random.default_rng(7).normal(size=(rows, columns)).astype(np.float32)


def small_model() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(SOURCE)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights(), "w"))
    return proto


def dense_model(*arrays: npt.NDArray[np.float32]) -> onnx.ModelProto:
    """A chain of additions of the given arrays, all initializers."""
    names = [f"w{index}" for index in range(len(arrays))]
    shape = list(arrays[0].shape)
    nodes = [
        onnx.helper.make_node("Add", [f"v{index}", name], [f"v{index + 1}"])
        for index, name in enumerate(names)
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "chain",
        [onnx.helper.make_tensor_value_info("v0", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info(f"v{len(names)}", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True)],
    )
    return onnx.helper.make_model(
        graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]
    )


def external_model(folder: Path, location: str = "data.bin") -> Path:
    """A saved model whose two 2 KiB initializers lie in ``location``."""
    proto = dense_model(weights(32, 16), weights(32, 16) + 1)
    onnx.external_data_helper.convert_model_to_external_data(
        proto, location=location, size_threshold=0
    )
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def relocate(path: Path, **entries: str) -> None:
    """Edits the external data entries of the first initializer in place."""
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in kept.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


def arrays_of(model: oir.Model) -> list[npt.NDArray[np.generic]]:
    return [
        np.array(value.const_value.numpy())
        for value in model.graph.initializers.values()
        if value.const_value is not None
    ]


def load_error(source: str | Path | onnx.ModelProto) -> str:
    with pytest.raises(ModelError) as caught:
        io.load_model(source)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)
