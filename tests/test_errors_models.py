"""Models that are missing, damaged or not supported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from secateur.driver.cli import app

from .failing_runs import HALF, Fails, external, tiny


def test_no_model(fails: Fails) -> None:
    Path("folder").mkdir()
    Path("empty").touch()
    Path("text").write_text("not a model")
    Path("lfs").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for name, words in {
        "none.onnx": "no such file",
        "folder": "is a directory",
        "": "is a directory",
        os.devnull: "is not a regular file",
        "empty": "is empty",
        "text": "is not an ONNX model",
        "lfs": "git lfs pull",
    }.items():
        for command in (
            ["prune", name, "-o", "o.onnx", "--ratio", "0.5"],
            ["run", name, "-o", "o.onnx", "--pipeline", ""],
            ["inspect", name],
            ["explain", name, "x"],
            ["verify", name, "m.onnx", "--report", "r.json"],
            ["bench", "m.onnx", name],
        ):
            assert words in fails(3, *command)


def test_truncated_and_garbled_bytes(fails: Fails) -> None:
    data = Path("m.onnx").read_bytes()
    offsets = [*range(1, 40), *np.linspace(40, len(data) - 1, 40, dtype=int).tolist()]
    for offset in offsets:
        Path("m.onnx").write_bytes(data[:offset])
        fails(3, *HALF)
    rng = np.random.default_rng(0)
    for size in (1, 10, 1000, 100_000):
        Path("m.onnx").write_bytes(rng.bytes(size))
        fails(3, *HALF)


def test_no_byte_of_the_graph_can_break_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flipped bytes give another model or an error of the user's, never an internal one."""
    monkeypatch.chdir(tmp_path)
    data = tiny().SerializeToString()
    rng = np.random.default_rng(0)
    codes = set()
    for _ in range(150):
        broken = bytearray(data)
        for offset in rng.integers(0, len(data), rng.integers(1, 4)):
            broken[offset] = rng.integers(256)
        Path("m.onnx").write_bytes(broken)
        result = CliRunner().invoke(app, HALF)
        assert result.exit_code in (0, 2, 3, 4, 5), result.output
        assert result.exit_code == 0 or len(result.stderr.splitlines()) == 1
        assert Path("o.onnx").exists() == (result.exit_code == 0)
        Path("o.onnx").unlink(missing_ok=True)
        codes.add(result.exit_code)
    assert {0, 3} <= codes


@pytest.mark.parametrize("location", ["m.data", "folder/m.data"])
def test_external_data_that_is_missing(fails: Fails, location: str) -> None:
    Path("folder").mkdir()
    external("m.onnx", location)
    Path(location).unlink()
    line = fails(3, *HALF)
    assert location in line and "No such file" in line


def test_external_data_that_is_short(fails: Fails) -> None:
    external("m.onnx", "m.data")
    Path("m.data").write_bytes(Path("m.data").read_bytes()[:-4])
    assert "m.data" in fails(3, *HALF)


def test_external_data_outside_the_folder(fails: Fails, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    external(str(outside / "m.onnx"), "w.data")
    (inside / "link").symlink_to(outside / "w.data")
    (inside / "folder").symlink_to(outside)
    os.link(outside / "w.data", inside / "hard")
    model = onnx.load(outside / "m.onnx", load_external_data=False)
    for location in (
        "../outside/w.data",
        str(outside / "w.data"),
        "link",
        "folder/w.data",
        "folder/../../outside/w.data",
        "hard",
        "/etc/passwd",
        "",
        ".",
    ):
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        (inside / "m.onnx").write_bytes(model.SerializeToString())
        line = fails(3, "prune", "inside/m.onnx", "-o", "o.onnx", "--ratio", "0.5")
        assert "external data" in line


@pytest.mark.parametrize("version", [0, 6, 99, 2**40])
def test_unknown_opsets(fails: Fails, version: int) -> None:
    model = tiny()
    model.opset_import[0].version = version
    Path("m.onnx").write_bytes(model.SerializeToString())
    assert f"opset {version}" in fails(3, *HALF)


def test_unsupported_models(fails: Fails) -> None:
    def write(change: Callable[[onnx.ModelProto], object]) -> None:
        model = tiny()
        change(model)
        Path("m.onnx").write_bytes(model.SerializeToString())

    write(lambda m: m.graph.initializer[0].ClearField("data_type"))
    assert "unknown data type" in fails(3, *HALF)
    write(lambda m: setattr(m.graph.initializer[0], "data_type", 77))
    assert "unknown data type 77" in fails(3, *HALF)
    write(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 77))
    assert "unknown element type 77" in fails(3, *HALF)
    write(lambda m: m.ClearField("graph"))
    assert "no graph" in fails(3, *HALF)
    write(lambda m: setattr(m, "ir_version", 999))
    assert "IR version 999" in fails(3, *HALF)
    write(lambda m: m.ClearField("opset_import"))
    assert "no opset" in fails(3, *HALF)
    write(lambda m: m.graph.initializer[0].dims.append(3))
    assert "another size" in fails(3, *HALF)
    write(lambda m: m.graph.node[1].output.__setitem__(0, "h"))
    assert "'h'" in fails(3, *HALF)


def test_inputs_that_are_no_tensors(fails: Fails) -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    model = tiny()
    model.graph.input.append(sequence)
    Path("m.onnx").write_bytes(model.SerializeToString())
    assert "'s'" in fails(3, *HALF)
