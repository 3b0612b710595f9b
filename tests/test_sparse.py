"""Sparse initializers: read, pruned and written without becoming dense or getting lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import secateur
from secateur.ir.errors import ModelError
from secateur.ir.io import load_model, model_bytes, save_model, to_proto

Array = npt.NDArray[Any]


def sparse(name: str, array: Array, flat: bool) -> onnx.SparseTensorProto:
    places = np.flatnonzero(array) if flat else np.argwhere(array)
    values = array.reshape(-1)[np.flatnonzero(array)]
    return helper.make_sparse_tensor(
        numpy_helper.from_array(values, name),
        numpy_helper.from_array(places.astype(np.int64), f"{name}_places"),
        array.shape,
    )


def model(flat: bool = True) -> tuple[onnx.ModelProto, dict[str, Array]]:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 8] x) => (float[N, 4] y)
        { a = MatMul(x, w1)  b = Relu(a)  y = MatMul(b, w2) }"""
    )
    for node in proto.graph.node:
        node.ClearField("domain")  # the parser writes an empty one
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in (("w1", (8, 12)), ("w2", (12, 4))):
        array = rng.standard_normal(shape).astype(np.float32)
        array[rng.random(shape) < 0.7] = 0
        arrays[name] = array
        proto.graph.sparse_initializer.append(sparse(name, array, flat))
    return proto, arrays


def dense(proto: onnx.SparseTensorProto) -> Array:
    """By the text of the standard, not by the code under test."""
    array = np.zeros(tuple(proto.dims), np.float32)
    values, places = map(numpy_helper.to_array, (proto.values, proto.indices))
    for value, place in zip(values, places, strict=True):
        array[np.unravel_index(place, array.shape) if places.ndim == 1 else tuple(place)] = value
    return array


@pytest.mark.parametrize("flat", [True, False])
def test_an_untouched_model_comes_back_equal(flat: bool, tmp_path: Path) -> None:
    proto, _ = model(flat)
    proto.graph.sparse_initializer[0].values.doc_string = "kept"
    loaded = load_model(proto)
    assert to_proto(loaded) == proto
    assert onnx.load_from_string(model_bytes(loaded)) == proto
    save_model(loaded, tmp_path / "m.onnx", external=True)
    assert onnx.load(str(tmp_path / "m.onnx")) == proto


@pytest.mark.parametrize("flat", [True, False])
def test_what_is_left_stays_sparse(flat: bool) -> None:
    proto, arrays = model(flat)
    result = secateur.prune(proto, ratio=0.5, bench=False)
    assert result.certificate is not None and result.certificate.ok
    data = model_bytes(result.model)
    written = onnx.load_from_string(data)
    assert not written.graph.initializer
    left = {s.values.name: s for s in written.graph.sparse_initializer}
    columns = sorted(
        {i for r in result.report["removed"] if r["tensor"] == "w1" for i in r["indices"]}
    )
    keep = np.setdiff1d(np.arange(12), columns)
    assert keep.size == 6
    np.testing.assert_array_equal(dense(left["w1"]), arrays["w1"][:, keep])
    np.testing.assert_array_equal(dense(left["w2"]), arrays["w2"][keep])
    for tensor in left.values():
        assert len(tensor.indices.dims) == (1 if flat else 2)
    onnx.checker.check_model(written)
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    wanted = np.maximum(x @ arrays["w1"][:, keep], 0) @ arrays["w2"][keep]
    found = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def _break(proto: onnx.SparseTensorProto, what: str) -> None:
    if what == "index outside":
        proto.indices.CopyFrom(numpy_helper.from_array(np.full(len(proto.values.dims), 10**6)))
    elif what == "huge":
        proto.dims[:] = [2**40, 2**20]
    elif what == "external":
        proto.values.data_location = TensorProto.EXTERNAL
    elif what == "lengths differ":
        proto.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "w1"))
    elif what == "negative":
        proto.dims[:] = [-1, 8]


@pytest.mark.parametrize(
    "what", ["index outside", "huge", "external", "lengths differ", "negative"]
)
def test_what_is_no_sparse_tensor_is_refused_by_name(what: str) -> None:
    proto, _ = model()
    _break(proto.graph.sparse_initializer[0], what)
    with pytest.raises(ModelError, match="w1"):
        load_model(proto)
