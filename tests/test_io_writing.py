"""Writing models without loss, and the digests of what was written."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.numpy_helper
import onnx.parser
import onnx_ir as oir
import pytest

from secateur.ir import io
from secateur.ir.errors import ModelError

from .faithfulness import assert_same_model
from .io_models import dense_model, external_model, small_model, weights

# Writing


def test_save_gives_back_what_was_loaded(tmp_path: Path) -> None:
    model = io.load_model(small_model())
    assert io.save_model(model, tmp_path / "m.onnx") == [tmp_path / "m.onnx"]
    data = (tmp_path / "m.onnx").read_bytes()
    assert data == io.model_bytes(model) == io.model_bytes(io.load_model(tmp_path / "m.onnx"))
    assert onnx.load(tmp_path / "m.onnx") == io.to_proto(model)
    assert_same_model(small_model(), io.to_proto(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


def test_tensors_of_every_origin_are_equal_to_the_reference_serializer() -> None:
    model = io.load_model(small_model())
    strings = oir.StringTensor([b"a", b"", b"\xff"], shape=oir.Shape([3]), name="s")
    typed = onnx.helper.make_tensor("typed", onnx.TensorProto.INT64, [2], [3, -4])
    tensors = [
        oir.tensor(weights(), name="array", doc_string="text"),
        strings,
        oir.serde.deserialize_tensor(typed),
        oir.tensor(np.zeros((0, 3), np.float32), name="empty"),
        oir.LazyTensor(
            lambda: oir.tensor(weights(), name="lazy"),
            dtype=oir.DataType.FLOAT,
            shape=oir.Shape([8, 4]),
            name="lazy",
        ),
    ]
    tensors[0].metadata_props["key"] = "value"
    for tensor in tensors:
        value = oir.Value(name=tensor.name, const_value=tensor)
        model.graph.initializers[value.name or ""] = value
    reference = oir.serde.serialize_model(model).graph.initializer
    saved = onnx.ModelProto.FromString(io.model_bytes(model)).graph.initializer
    assert list(saved) == list(reference)


def test_what_onnx_ir_keeps_apart_comes_back() -> None:
    proto = small_model()
    weight = proto.graph.initializer[0]
    weight.doc_string = "trained"
    weight.metadata_props.add(key="origin", value="lab")
    proto.graph.quantization_annotation.add(tensor_name="h").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="w"
    )
    proto.graph.metadata_props.add(key="graph", value="g")
    proto.graph.node[0].metadata_props.add(key="node", value="n")
    for _ in range(2):
        proto = io.to_proto(io.load_model(onnx.ModelProto.FromString(proto.SerializeToString())))
    weight = proto.graph.initializer[0]
    assert weight.doc_string == "trained"
    assert [(entry.key, entry.value) for entry in weight.metadata_props] == [("origin", "lab")]
    assert len(proto.graph.quantization_annotation) == 1
    assert proto.graph.quantization_annotation[0].tensor_name == "h"
    assert proto.graph.metadata_props[0].value == "g"
    assert proto.graph.node[0].metadata_props[0].value == "n"
    assert {entry.key for entry in proto.metadata_props} == {"licence"}


def test_external_form(tmp_path: Path) -> None:
    arrays = [weights(20, 15), weights(1, 15), weights(20, 15) + 1]
    proto = dense_model(arrays[0], arrays[2])
    proto.graph.initializer.insert(1, onnx.numpy_helper.from_array(arrays[1], "small"))
    path = tmp_path / "m.onnx"
    model = io.load_model(proto)
    assert io.save_model(model, path, external=True) == [path, tmp_path / "m.onnx.data"]
    bare = onnx.load(path, load_external_data=False).graph.initializer
    entries = {t.name: {e.key: e.value for e in t.external_data} for t in bare}
    assert entries == {
        "w0": {"location": "m.onnx.data", "offset": "0", "length": "1200"},
        "small": {},
        "w1": {"location": "m.onnx.data", "offset": "1216", "length": "1200"},
    }
    assert all(
        np.array_equal(onnx.numpy_helper.to_array(tensor), array)
        for tensor, array in zip(onnx.load(path).graph.initializer, arrays, strict=True)
    )
    onnx.checker.check_model(str(path), full_check=True)
    assert io.to_proto(io.load_model(path)) == io.to_proto(model)
    assert model.graph.initializers["w0"].const_value is not None
    assert not isinstance(model.graph.initializers["w0"].const_value, oir.ExternalTensor)


def test_a_model_keeps_its_form(tmp_path: Path) -> None:
    model = io.load_model(external_model(tmp_path))
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "m.onnx"
    assert len(io.save_model(model, out)) == 2
    for value in model.graph.initializers.values():
        value.const_value = oir.tensor(np.ones((32, 16), np.float32))
    assert len(io.save_model(model, out)) == 2
    assert len(io.save_model(model, tmp_path / "out" / "inline.onnx", external=False)) == 1
    assert io.load_model(tmp_path / "out" / "inline.onnx").meta.get("external_data") is None


def test_large_models_go_external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = io.load_model(dense_model(weights(300, 10), weights(300, 10)))
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 20_000)
    assert len(io.save_model(model, tmp_path / "m.onnx")) == 2
    with pytest.raises(ModelError, match="external data"):
        io.model_bytes(model)
    with pytest.raises(ModelError, match="external data"):
        io.save_model(model, tmp_path / "n.onnx", external=False)
    assert not (tmp_path / "n.onnx").exists()


@pytest.mark.parametrize("location", ["data.bin", "model.onnx.data"])
def test_saving_over_the_loaded_files_is_safe(tmp_path: Path, location: str) -> None:
    path = external_model(tmp_path, location)
    model = io.load_model(path)
    first = model.graph.initializers.pop("w0")
    model.graph.initializers["w0"] = first  # the other order moves every offset
    io.save_model(model, path)
    wanted = {"w0": weights(32, 16), "w1": weights(32, 16) + 1}
    for source in (model, io.load_model(path)):
        for value in source.graph.initializers.values():
            assert value.const_value is not None
            assert np.array_equal(value.const_value.numpy(), wanted[value.name or ""])
    io.save_model(model, path)
    for tensor in onnx.load(path).graph.initializer:
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), wanted[tensor.name])


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        model = io.load_model(dense_model(weights(40, 40), weights(40, 40)))
        contents.append(
            [
                path.read_bytes()
                for path in io.save_model(model, tmp_path / name / "m.onnx", external=True)
            ]
        )
    assert contents[0] == contents[1]


def test_peak_memory_is_a_few_tensors(tmp_path: Path) -> None:
    size = 8 << 20
    model = io.load_model(dense_model(np.zeros((2, 2), np.float32)))
    for index in range(8):
        name = f"big{index}"
        tensor = oir.tensor(np.full(size // 4, index, np.float32), name=name)
        model.graph.initializers[name] = oir.Value(name=name, const_value=tensor)
    for external in (False, True):
        tracemalloc.start()
        io.save_model(model, tmp_path / "m.onnx", external=external)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2.5 * size
    saved = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert [onnx.numpy_helper.to_array(t).ravel()[-1] for t in saved] == [0, *range(8)]


# Digests


def test_digest(tmp_path: Path) -> None:
    model = io.load_model(small_model())
    path = io.save_model(model, tmp_path / "m.onnx")[0]
    assert io.digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert io.digest(model) == hashlib.sha256(io.model_bytes(model)).hexdigest()
    assert io.digest(model) == io.digest(small_model()) == io.digest(str(path))


def test_digest_covers_external_data(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    data = tmp_path / "data.bin"
    wanted = hashlib.sha256(path.read_bytes() + data.read_bytes()).hexdigest()
    assert io.digest(path) == wanted
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    assert io.digest(path) != wanted
