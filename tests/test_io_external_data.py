"""Weights in other files: mapped, kept inside the folder, and of every type."""

from __future__ import annotations

import math
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.numpy_helper
import onnx.parser
import onnx_ir as oir
import pytest

from secateur.ir import io

from .io_models import (
    arrays_of,
    dense_model,
    external_model,
    load_error,
    relocate,
    small_model,
    weights,
)


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
