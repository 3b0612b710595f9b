"""Reading untrusted files: every one gives a model or one clear line."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.external_data_helper
import onnx.numpy_helper
import onnx.parser
import pytest

from secateur.ir import io
from secateur.ir.errors import ModelError

from .io_models import external_model, load_error, small_model

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
    attribute = proto.graph.node[0].attribute.add(name="a", type=onnx.AttributeProto.TYPE_PROTO)
    attribute.tp.map_type.key_type = onnx.TensorProto.INT64


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
    "sparse weight": (lambda p: p.graph.sparse_initializer.add(), "has no name"),
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
