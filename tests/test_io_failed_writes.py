"""Writes that fail leave what was there before, and nothing else."""

from __future__ import annotations

import errno
from pathlib import Path

import onnx_ir as oir
import pytest

from secateur.ir import io
from secateur.ir.errors import ModelError, UsageError

from .io_models import dense_model, small_model, weights


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
