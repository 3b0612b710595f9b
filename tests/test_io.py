"""Reading untrusted files, and writing models without loss and without leftovers."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import random
import tracemalloc
from collections.abc import Callable
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
from secateur.ir.errors import ModelError, UsageError

from .faithfulness import assert_same_model

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


# Files that are no models


def test_files_that_are_not_models(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert "no such file" in load_error(path)
    assert "directory" in load_error(tmp_path)
    assert "cannot be read" in load_error(str(path) + "\0")
    for content, phrase in (
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"\x89PNG\r\n\x1a\n" * 9, "not an ONNX model"),
        (small_model().SerializeToString()[:-40], "truncated"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "no graph"),
    ):
        path.write_bytes(content)
        message = load_error(path)
        assert phrase in message
        assert message.startswith(str(path))


def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in load_error(tmp_path / "pipe")


# Models that are damaged, unknown or could not be written back


def _opset(proto: onnx.ModelProto, version: int) -> None:
    proto.opset_import[0].version = version


def _raw(proto: onnx.ModelProto, data: bytes) -> None:
    proto.graph.initializer[0].raw_data = data


def _value_type(proto: onnx.ModelProto) -> onnx.TypeProto:
    info = proto.graph.value_info.add()
    info.name = "h"
    kind: onnx.TypeProto = info.type
    return kind


def _map_type(proto: onnx.ModelProto) -> None:
    _value_type(proto).map_type.key_type = onnx.TensorProto.INT64


def _sparse_attribute(proto: onnx.ModelProto) -> None:
    attribute = proto.graph.node[0].attribute.add(name="a", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.dims.append(1)


def _annotation(proto: onnx.ModelProto) -> None:
    proto.graph.quantization_annotation.add(tensor_name="nowhere")


def _edit_inner(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.node[2].attribute[0].g.initializer[0]
    tensor.ClearField("float_data")
    tensor.raw_data = b"12"


EDITS: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "no opset": (lambda p: p.ClearField("opset_import"), "no opset of the default domain"),
    "old opset": (lambda p: _opset(p, 6), "opset 6 is below 7"),
    "new opset": (lambda p: _opset(p, 999), "opset 999 is newer"),
    "two opsets": (lambda p: p.opset_import.add(domain="ai.onnx", version=19), "2 times"),
    "new IR version": (lambda p: setattr(p, "ir_version", 999), "IR version 999"),
    "no IR version": (lambda p: p.ClearField("ir_version"), "IR version missing"),
    "undefined type": (lambda p: setattr(p.graph.initializer[0], "data_type", 0), "data type 0"),
    "unknown type": (lambda p: setattr(p.graph.initializer[0], "data_type", 99), "data type 99"),
    "short data": (lambda p: _raw(p, b"1234"), "'w'"),
    "long data": (lambda p: _raw(p, bytes(1000)), "another size"),
    "no data": (lambda p: p.graph.initializer[0].ClearField("raw_data"), "another size"),
    "data twice": (lambda p: p.graph.initializer[0].float_data.append(1), "another size"),
    "negative dim": (lambda p: p.graph.initializer[0].dims.append(-1), "impossible shape"),
    "huge dims": (lambda p: p.graph.initializer[0].dims.extend([0, 2**62]), "impossible shape"),
    "high rank": (lambda p: p.graph.initializer[0].dims.extend([1] * 60), "impossible shape"),
    "inner data": (lambda p: _edit_inner(p), "'t'"),
    "segments": (lambda p: p.graph.initializer[0].segment.SetInParent(), "segments"),
    "unnamed weight": (lambda p: setattr(p.graph.initializer[0], "name", ""), "no name"),
    "weight twice": (lambda p: p.graph.initializer.add().CopyFrom(p.graph.initializer[0]), "'w'"),
    "value twice": (lambda p: p.graph.node.add().CopyFrom(p.graph.node[0]), "'h'"),
    "training": (lambda p: p.training_info.add(), "training_info"),
    "sparse weight": (lambda p: p.graph.sparse_initializer.add(), "parse initializers"),
    "sparse attribute": (_sparse_attribute, "sparse"),
    "annotation": (_annotation, "quantization annotation of 'nowhere'"),
    "map": (_map_type, "map_type"),
    "opaque": (lambda p: _value_type(p).opaque_type.SetInParent(), "opaque_type"),
    "unknown element": (
        lambda p: setattr(_value_type(p).tensor_type, "elem_type", 77),
        "element type 77",
    ),
    "shape only": (lambda p: _value_type(p).tensor_type.shape.dim.add(), "no element type"),
    "untyped attribute": (lambda p: p.graph.node[0].attribute.add(name="a", i=1), "no type"),
    "attribute twice": (
        lambda p: p.graph.node[1].attribute.add().CopyFrom(p.graph.node[1].attribute[0]),
        "'value' appears 2 times",
    ),
    "two values": (lambda p: p.graph.node[1].attribute[0].ints.append(1), "besides its type"),
    "function twice": (lambda p: p.functions.add().CopyFrom(p.functions[0]), "Scale"),
    "metadata twice": (lambda p: p.metadata_props.add(key="licence", value="?"), "'licence'"),
}


@pytest.mark.parametrize("name", EDITS)
def test_invalid_and_lossy_models_are_refused(name: str) -> None:
    edit, phrase = EDITS[name]
    proto = small_model()
    io.load_model(proto)
    edit(proto)
    assert phrase in load_error(proto)


def test_names_with_line_breaks_stay_on_one_line() -> None:
    proto = small_model()
    proto.graph.node[0].op_type = "two\nlines"
    proto.graph.node[0].attribute.add(name="a", i=1)
    assert "(two lines)" in load_error(proto)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    data = small_model().SerializeToString().replace(b"tests", b"te\xffts")
    (tmp_path / "m.onnx").write_bytes(data)
    assert "UTF-8" in load_error(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "equation", [".l.ii->...i", "...ii\r->...i", "...jii...", "bij,b\xb8k->bik", "ij->jk->k"]
)
def test_equations_that_hang_shape_inference_are_refused(equation: str) -> None:
    proto = small_model()
    node = onnx.helper.make_node("Einsum", ["x"], ["e"], equation=equation)
    proto.graph.node.append(node)
    assert "Einsum" in load_error(proto)
    proto.graph.node[-1].attribute[0].s = b"...ij -> ...ji"
    io.load_model(proto)


def test_damaged_files_give_a_model_or_a_model_error(tmp_path: Path) -> None:
    data = small_model().SerializeToString()
    path, rng = tmp_path / "m.onnx", random.Random(5)
    cases = [data[:length] for length in range(0, len(data), 7)]
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 3])):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        cases.append(bytes(damaged))
    loaded = 0
    for case in cases:
        path.write_bytes(case)
        try:
            model = io.load_model(path)
        except ModelError as error:
            assert "\n" not in str(error)
            continue
        loaded += 1
        saved = onnx.ModelProto.FromString(io.model_bytes(model))
        assert io.model_bytes(io.load_model(saved)) == io.model_bytes(model)
    assert 100 < loaded < len(cases) - 100


def test_sources_in_memory(tmp_path: Path) -> None:
    proto = small_model()
    before = proto.SerializeToString(deterministic=True)
    model = io.load_model(proto)
    assert io.load_model(model) is model
    model.graph.initializers["w"].name = "renamed"
    io.model_bytes(model)
    assert proto.SerializeToString(deterministic=True) == before
    path = external_model(tmp_path)
    assert "load the model by its path" in load_error(onnx.load(path, load_external_data=False))


def test_the_other_spelling_of_the_default_domain() -> None:
    proto = small_model()
    proto.opset_import[0].domain = "ai.onnx"
    assert io.load_model(proto).opset_imports[""] == 20


# External data


def test_external_data_is_mapped_not_read(tmp_path: Path) -> None:
    size = 64 << 20
    proto = dense_model(np.zeros((2, 2), np.float32))
    tensor = proto.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend([size // 4])
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="zeros.bin")
    with (tmp_path / "zeros.bin").open("wb") as file:
        file.truncate(size)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    tracemalloc.start()
    model = io.load_model(tmp_path / "m.onnx")
    weight = model.graph.initializers["w0"].const_value
    assert weight is not None
    assert isinstance(weight, oir.ExternalTensor)
    assert weight.numpy().shape == (size // 4,)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size // 8


@pytest.mark.parametrize("location", ["/etc/hostname", "../data.bin", "sub/../../data.bin", ""])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    (tmp_path / "data.bin").write_bytes(bytes(10_000))
    path = external_model(folder)
    relocate(path, location=location)
    assert "outside the model's folder" in load_error(path)


def test_external_data_through_links(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    path = external_model(folder)
    data = folder / "data.bin"
    inner = folder / "inner.bin"
    data.rename(inner)
    data.symlink_to(inner)
    assert np.array_equal(arrays_of(io.load_model(path))[0], weights(32, 16))
    outer = tmp_path / "outer.bin"
    inner.rename(outer)
    data.unlink()
    data.symlink_to(outer)
    assert "outside the model's folder" in load_error(path)
    data.unlink()
    data.hardlink_to(outer)
    assert "not a plain file of its own" in load_error(path)
    data.unlink()
    os.mkfifo(data)
    assert "not a plain file of its own" in load_error(path)


@pytest.mark.parametrize(
    ("entries", "phrase"),
    [
        ({"location": "absent.bin"}, "cannot be read"),
        ({"location": "nul\0.bin"}, "'w0'"),
        ({"offset": "4096"}, "too short"),
        ({"offset": str(2**60)}, "too short"),
        ({"offset": "-8"}, "impossible external offset '-8'"),
        ({"offset": "9" * 5000}, "impossible external offset"),
        ({"length": "many"}, "impossible external length 'many'"),
        ({"length": "12"}, "12 bytes where its shape needs 2048"),
    ],
)
def test_external_data_that_does_not_fit(
    tmp_path: Path, entries: dict[str, str], phrase: str
) -> None:
    path = external_model(tmp_path)
    relocate(path, **entries)
    assert phrase in load_error(path)


def test_external_data_of_constants_and_subgraphs_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    places: list[Callable[[onnx.ModelProto], onnx.TensorProto]] = [
        lambda p: p.graph.node[1].attribute[0].t,
        lambda p: p.graph.node[2].attribute[0].g.initializer[0],
    ]
    for place in places:
        proto = small_model()
        tensor = place(proto)
        wanted = onnx.numpy_helper.to_array(tensor)
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="part.bin")
        path.write_bytes(proto.SerializeToString())
        (tmp_path / "part.bin").write_bytes(wanted.tobytes()[:-1])
        assert "too short" in load_error(path)
        (tmp_path / "part.bin").write_bytes(wanted.tobytes())
        inline = io.to_proto(io.load_model(path))
        assert np.array_equal(onnx.numpy_helper.to_array(place(inline)), wanted)
        io.save_model(io.load_model(path), tmp_path / "saved.onnx")
        assert onnx.load(tmp_path / "saved.onnx") == inline


def test_thousands_of_external_tensors_share_one_map(tmp_path: Path) -> None:
    proto = dense_model(*(np.full((2, 2), number, np.float32) for number in range(3000)))
    onnx.external_data_helper.convert_model_to_external_data(
        proto, location="many.bin", size_threshold=0
    )
    onnx.save(proto, tmp_path / "m.onnx")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    arrays = arrays_of(io.load_model(tmp_path / "m.onnx"))
    assert [array[0, 0] for array in arrays] == list(range(3000))
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208


@pytest.mark.parametrize(
    "dtype", [t for t in oir.DataType if t not in (oir.DataType.UNDEFINED, oir.DataType.STRING)]
)
def test_every_type_survives_both_forms(tmp_path: Path, dtype: oir.DataType) -> None:
    """Odd sizes pad the packed types; the values are compared with onnx's own reader."""
    count = 5001
    packed = np.arange(math.ceil(count * dtype.bitwidth / 8), dtype=np.uint32).astype(np.uint8)
    if dtype == oir.DataType.BOOL:
        packed &= 1
    if count * dtype.bitwidth % 8:
        packed[-1] &= (1 << count * dtype.bitwidth % 8) - 1
    proto = small_model()
    proto.ir_version = onnx.IR_VERSION
    proto.graph.initializer.append(
        onnx.TensorProto(name="e", dims=[count], data_type=dtype, raw_data=packed.tobytes())
    )
    model = io.load_model(proto)
    wanted = onnx.numpy_helper.to_array(proto.graph.initializer[-1]).tobytes()
    for external in (True, False):
        path = tmp_path / f"{external}.onnx"
        files = io.save_model(model, path, external=external)
        assert len(files) == 1 + external
        again = io.load_model(path)
        tensor = again.graph.initializers["e"].const_value
        assert tensor is not None
        assert tensor.tobytes() == packed.tobytes()
        assert tensor.numpy().tobytes() == wanted
        saved = onnx.load(path).graph.initializer[-1]
        assert onnx.numpy_helper.to_array(saved).tobytes() == wanted


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


# Failing to write


def failing_model() -> oir.Model:
    """Its second weight of two cannot be computed."""
    model = io.load_model(dense_model(weights(40, 40)))

    def broken() -> oir.TensorProtocol:
        raise RuntimeError("sensor on fire")

    lazy = oir.LazyTensor(broken, dtype=oir.DataType.FLOAT, shape=oir.Shape([40, 40]), name="w9")
    model.graph.initializers["w9"] = oir.Value(name="w9", const_value=lazy)
    return model


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("external", [False, True])
def test_a_tensor_that_fails_leaves_the_old_files(tmp_path: Path, external: bool) -> None:
    path = tmp_path / "m.onnx"
    io.save_model(io.load_model(dense_model(weights(40, 40))), path, external=external)
    before = listing(tmp_path)
    with pytest.raises(ModelError, match="sensor on fire"):
        io.save_model(failing_model(), path, external=external)
    assert listing(tmp_path) == before


def test_a_wrong_tensor_size_is_an_error() -> None:
    model = io.load_model(dense_model(weights(4, 4)))
    wrong = oir.LazyTensor(
        lambda: oir.tensor(weights(2, 4)), dtype=oir.DataType.FLOAT, shape=oir.Shape([4, 4])
    )
    model.graph.initializers["w0"].const_value = wrong
    with pytest.raises(ModelError, match="32 bytes where its shape needs 64"):
        io.model_bytes(model)
    model.graph.initializers["w0"].const_value = None
    with pytest.raises(ModelError, match="'w0' has no data"):
        io.model_bytes(model)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    model = io.load_model(small_model())
    for path in (tmp_path / "absent" / "m.onnx", tmp_path, Path("/dev/null")):
        with pytest.raises(UsageError, match="cannot write") as caught:
            io.save_model(model, path)
        assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("fail_at", [1, 2, 3])
@pytest.mark.parametrize("old", [False, True])
def test_a_failing_rename_brings_the_old_files_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int, old: bool
) -> None:
    path = tmp_path / "m.onnx"
    if old:
        io.save_model(io.load_model(dense_model(weights(50, 40))), path, external=True)
    before = listing(tmp_path)
    calls = 0
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    model = io.load_model(dense_model(weights(40, 40)))
    if not old and fail_at == 3:  # nothing to set aside: only two renames
        assert len(io.save_model(model, path, external=True)) == 2
        return
    with pytest.raises(UsageError, match="No space left"):
        io.save_model(model, path, external=True)
    assert listing(tmp_path) == before


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    io.atomic_write(path, "größer")
    assert path.read_bytes() == "größer".encode()
    path.chmod(0o640)
    io.atomic_write(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(UsageError, match="cannot write"):
        io.atomic_write(tmp_path / "no" / "where", b"")
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


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
