"""What a user can get wrong: one clear line on stderr, the documented exit code, no file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper, parser
from typer.testing import CliRunner

from secateur.driver.cli import app

ROOT = Path(__file__).parent.parent
PRUNE = ["prune", "m.onnx", "-o", "o.onnx", "--report", "r.json", "--no-bench"]
HALF = [*PRUNE, "--ratio", "0.5"]
Fails = Callable[..., str]


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Runs a command that must fail in a folder with ``m.onnx`` in it; gives its error line."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "digits.onnx", "m.onnx")

    def run(code: int, *arguments: str) -> str:
        before = contents(tmp_path)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        assert isinstance(result.exception, SystemExit), "not a clean exit"
        assert result.stdout == ""
        assert contents(tmp_path) == before, "a failed command left something behind"
        (line,) = result.stderr.splitlines()
        assert line.startswith("secateur: error: ")
        assert "Traceback" not in line
        assert code == 1 or "internal error" not in line
        return line.removeprefix("secateur: error: ")

    return run


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


# --- 2: usage ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*PRUNE], "exactly one target"),
        ([*HALF, "--macs", "0.5"], "exactly one target"),
        ([*PRUNE, "--ratio", "0"], "ratio must be more than 0 and less than 1, not 0"),
        ([*PRUNE, "--ratio", "1"], "ratio must be more than 0 and less than 1, not 1"),
        ([*PRUNE, "--ratio", "-0.5"], "not -0.5"),
        ([*PRUNE, "--ratio", "nan"], "not nan"),
        ([*PRUNE, "--macs", "1.01"], "macs must be more than 0 and at most 1, not 1.01"),
        ([*PRUNE, "--macs", "inf"], "not inf"),
        ([*PRUNE, "--params", "0"], "params must be more than 0"),
        ([*PRUNE, "--params", "half"], "--params"),
        ([*HALF, "--max-ratio", "2"], "max-ratio must be more than 0 and at most 1, not 2"),
        ([*HALF, "--max-ratio", "nan"], "max-ratio"),
        ([*HALF, "--round-to", "0"], "--round-to"),
        ([*HALF, "--round-to", "99999999999999999999"], "round-to"),
        ([*HALF, "--threads", "-1"], "--threads"),
        ([*HALF, "--threads", "100000"], "--threads"),
        ([*HALF, "--seed", "-1"], "--seed"),
        ([*HALF, "--criterion", "l3"], "unknown criterion 'l3'; known: l1, l2"),
        ([*HALF, "--criterion", ""], "unknown criterion ''"),
        ([*HALF, "--scope", "gloabl"], "'local', 'global'"),
        ([*HALF, "--carrier", "head"], "'heads', 'largest'"),
        ([*HALF, "--protect", "nothing*"], "--protect 'nothing*' matches no node and no tensor"),
        ([*HALF, "--protect", ""], "matches no node"),
        ([*HALF, "--dim", "batch"], "--dim 'batch' is not of the form NAME=SIZE"),
        ([*HALF, "--dim", "batch=two"], "NAME=SIZE"),
        ([*HALF, "--dim", "batch=+-2"], "NAME=SIZE"),
        ([*HALF, "--dim", "=2"], "NAME=SIZE"),
        ([*HALF, "--dim", f"batch={'9' * 5000}"], "NAME=SIZE"),
        ([*HALF, "--dim", "batch=0"], "needs a size of 1 to"),
        ([*HALF, "--dim", "batch=9999999999"], "needs a size of 1 to"),
        ([*HALF, "--dim", "batch=2", "--dim", "batch=3"], "'batch' twice"),
        ([*HALF, "--dim", "bach=2"], "no symbolic dimension is called 'bach'"),
        ([*PRUNE, "--mac", "0.5"], "--macs"),
        (["prun", "m.onnx"], "'prune'"),
        (["prune", "m.onnx", "--ratio", "0.5"], "--output"),
        (["prune", "-o", "o.onnx", "--ratio", "0.5"], "MODEL"),
        (["passes", "more"], "more"),
        (["run", "m.onnx", "-o", "o.onnx"], "exactly one of --pipeline and --config"),
        (["bench", "m.onnx", "m.onnx", "--runs", "0"], "--runs"),
        (["bench", "m.onnx", "m.onnx", "--seconds", "-1"], "--seconds"),
        (["verify", "m.onnx", "m.onnx"], "--report"),
        (["explain", "m.onnx", "stem.weigth"], "did you mean stem.weight"),
        (["explain", "m.onnx", "stem.weight:9"], "has no axis 9"),
        (["explain", "m.onnx", ":"], "no tensor or node is called ':'"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_usage(fails: Fails, arguments: list[str], words: str) -> None:
    assert words in fails(2, *arguments)


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("prun{ratio=0.5}", "unknown pass 'prun'; did you mean 'prune'? (at column 1)"),
        ("prune{ratoi=0.5}", "unknown option 'ratoi' of pass 'prune'; did you mean 'ratio'?"),
        ("prune{ratio=half}", "must be a number or none, not 'half'"),
        ("prune{ratio=0.5", "found the end"),
        ("prune", "exactly one target"),
        ("prune{ratio=0.5 criterion=l3}", "unknown criterion 'l3'"),
        ("fold-constants,", "the name of a pass"),
    ],
)
def test_pipelines(fails: Fails, pipeline: str, words: str) -> None:
    assert words in fails(2, "run", "m.onnx", "-o", "o.onnx", "--pipeline", pipeline)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[pipeline]]\npass = 'prun'\n", "did you mean 'prune'"),
        ("[[pipeline]]\nratio = 0.5\n", 'needs a key pass = "name"'),
        ("[[pipeline]\n", "cannot read pipeline file"),
        ("pipeline = 3\n", "[[pipeline]]"),
        ("[context]\nseed = -1\n", "'seed' in [context]"),
        ("[context]\nseeds = 1\n", "did you mean 'seed'"),
        ("[contxt]\n", "unknown key 'contxt'"),
    ],
)
def test_configurations(fails: Fails, text: str, words: str) -> None:
    Path("c.toml").write_text(text)
    assert words in fails(2, "run", "m.onnx", "-o", "o.onnx", "--config", "c.toml")


def test_options_of_run(fails: Fails) -> None:
    run = ["run", "m.onnx", "-o", "o.onnx", "--pipeline", "eliminate-dead"]
    assert "no such file" in fails(2, *run[:4], "--config", "none.toml").lower()
    assert "no such pass" in fails(2, *run, "--print-ir-after", "eliminate-daed")
    assert "--bisect-limit" in fails(2, *run, "--bisect-limit", "-1")
    assert "not a folder" in fails(2, *run, "--reproducer", "m.onnx")
    assert "one of --pipeline and --config" in fails(2, *run, "--config", "c.toml")


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_places_that_cannot_be_written(fails: Fails, option: str) -> None:
    Path("file").write_text("text")
    Path("folder").mkdir()
    other = ["-o", "o.onnx"] if option == "--report" else []
    command = ["prune", "m.onnx", "--ratio", "0.5", *other, option]
    assert "it is a folder" in fails(2, *command, "folder")
    assert "it is a folder" in fails(2, *command, "")
    assert "file is not a folder" in fails(2, *command, "file/o")
    assert "the folder missing does not exist" in fails(2, *command, "missing/o")
    assert "no plain file" in fails(2, *command, os.devnull)
    assert "too long" in fails(2, *command, "x" * 300)


def test_a_folder_that_is_read_only(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # as root
    assert "the folder . is not writable" in fails(2, *HALF)


def test_a_disk_that_is_full(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(Path, "replace", full)
    assert "No space left on device" in fails(2, *HALF)


def test_nothing_is_written_over_an_input(fails: Fails) -> None:
    Path("link.onnx").symlink_to("m.onnx")
    calibration = ["--calibration", "c.npz"]
    np.savez("c.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    half = ["prune", "m.onnx", "--ratio", "0.5", *calibration]
    for target in ("m.onnx", "./m.onnx", "link.onnx", "c.npz"):
        assert "is an input" in fails(2, *half, "-o", target)
        assert "is an input" in fails(2, *half, "-o", "o.onnx", "--report", target)
    for report in ("o.onnx", "./o.onnx", "o.onnx.data"):
        assert "would be one file" in fails(2, *half, "-o", "o.onnx", "--report", report)


def test_external_data_of_the_original_is_not_written_over(fails: Fails) -> None:
    external("m.onnx", "o.onnx.data")
    assert "o.onnx.data holds weights of the original" in fails(2, *HALF)


# --- 3: models ---


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


def tiny() -> onnx.ModelProto:
    """Two convolutions, few bytes of weights."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,2,5,5] x) => (float[N,2,5,5] y) {
          h = Conv(x, a)
          r = Relu(h)
          y = Conv(r, b)
        }"""
    )
    for name, shape in {"a": (4, 2, 1, 1), "b": (2, 4, 1, 1)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def external(path: str, location: str) -> None:
    """The model with its weights in another file."""
    model = tiny()
    external_data_helper.convert_model_to_external_data(
        model, location=location, size_threshold=0, convert_attribute=False
    )
    onnx.save(model, path)


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


# --- 2 and 4: sizes and targets ---


def test_a_symbolic_dimension_without_a_size(fails: Fails) -> None:
    model = tiny()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, "m.onnx")
    line = fails(2, *HALF)
    assert "'height'" in line and "--dim height=SIZE" in line
    assert "--dim height=SIZE" in fails(2, "inspect", "m.onnx")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--macs", "0.000001"], "MACs cannot go down to 1e-06 of the original"),
        (["--params", "0.000001"], "parameters cannot go down to 1e-06 of the original"),
        (["--macs", "0.5", "--max-ratio", "0.1"], "at best"),
        (["--macs", "0.5", "--round-to", "1000"], "leave no room"),
        (["--ratio", "0.5", "--max-ratio", "0.01"], "leave no room"),
        (["--ratio", "0.000001"], "removes no unit"),
        (["--ratio", "0.5", "--protect", "*"], "nothing in this model can be pruned"),
    ],
)
def test_targets_out_of_reach(fails: Fails, options: list[str], words: str) -> None:
    assert words in fails(4, *PRUNE, *options)


def test_nothing_prunable(fails: Fails) -> None:
    onnx.save(
        parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) {y = Relu(x)}'
        ),
        "m.onnx",
    )
    assert "nothing in this model can be pruned" in fails(4, *HALF)
    assert "nothing" in fails(4, "run", "m.onnx", "-o", "o.onnx", "--pipeline", "prune{ratio=0.5}")


def test_an_unknown_operator_is_named(fails: Fails) -> None:
    model = tiny()
    model.graph.node[1].op_type = "Mystery"
    model.graph.node[1].domain = "somewhere"
    model.opset_import.append(helper.make_opsetid("somewhere", 1))
    onnx.save(model, "m.onnx")
    line = fails(4, *HALF)
    assert "somewhere.Mystery" in line and "no coupling rule" in line


# --- 6: data ---


def images(
    count: int = 4, channels: int = 1, size: int = 8
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).random((count, channels, size, size)).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "no array for input 'image'"),
        ({"images": images()}, "no array for input 'image'"),
        ({"image": images(), "label": np.zeros(4)}, "array 'label' is no input"),
        ({"image": images(channels=3)}, "size 3, not 1"),
        ({"image": images(size=9)}, "size 9, not 8"),
        ({"image": images()[0, 0]}, "ranks do not fit"),
        ({"image": images()[None, None]}, "ranks do not fit"),
        ({"image": images(0)}, "sample"),
        ({"image": (images() * 255).astype(np.uint8)}, "is uint8, not float32"),
        ({"image": images().astype(np.complex64)}, "complex64"),
        ({"image": np.full_like(images(), np.nan)}, "NaN or infinity"),
        ({"image": np.full_like(images(), np.inf)}, "NaN or infinity"),
        ({"image": images().astype(object)}, "Python objects"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_calibration_arrays(fails: Fails, arrays: dict[str, object], words: str) -> None:
    np.savez("c.npz", **arrays)  # type: ignore[arg-type]
    assert words in fails(6, *HALF, "--calibration", "c.npz")


def test_calibration_arrays_of_two_inputs_have_one_count(fails: Fails) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,2] x, float[N,2] z) => (float[N,2] y) {
          h = MatMul(x, a)
          k = MatMul(h, b)
          y = Add(k, z)
        }"""
    )
    for name, shape in {"a": (2, 6), "b": (6, 2)}.items():
        tensor = numpy_helper.from_array(np.ones(shape, np.float32), name)
        model.graph.initializer.append(tensor)
    onnx.save(model, "m.onnx")
    np.savez("c.npz", x=np.ones((4, 2), np.float32), z=np.ones((5, 2), np.float32))
    line = fails(6, *HALF, "--calibration", "c.npz")
    assert "4" in line and "5" in line


def test_calibration_files_that_are_none(fails: Fails) -> None:
    Path("text").write_text("text")
    Path("folder").mkdir()
    with zipfile.ZipFile("wrong.npz", "w") as archive:
        archive.writestr("image.npy", b"not an array")
    np.save("array.npy", images())
    np.savez("cut.npz", image=images(500))
    Path("cut.npz").write_bytes(Path("cut.npz").read_bytes()[:-1000])
    for name in ("text", "folder", "none.npz", "wrong.npz", "array.npy", "cut.npz", "m.onnx"):
        for command in (HALF, ["inspect", "m.onnx"], ["bench", "m.onnx", "m.onnx"]):
            assert name in fails(6, *command, "--calibration", name)


def test_reports_that_are_none(fails: Fails) -> None:
    Path("text").write_text("text")
    Path("folder").mkdir()
    Path("list").write_text("[]")
    Path("other").write_text('{"schema_version": 99}')
    Path("deep").write_text("[" * 200_000)
    Path("bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("text", "folder", "none", "list", "other", "deep", "bytes"):
        assert name in fails(6, "verify", "m.onnx", "m.onnx", "--report", name)


# --- 5: proofs ---


def test_a_pass_that_breaks_its_promise(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that the slicing removes and the masks do not: no certificate, no file."""
    monkeypatch.setattr("secateur.passes.prune.reference_points", lambda *_: ([], []))
    assert "certificate failed" in fails(5, *HALF)


def test_models_that_do_not_run(fails: Fails) -> None:
    """ONNX Runtime has no kernel for this convolution on a CPU."""
    model = tiny()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            helper.make_tensor(tensor.name, TensorProto.BFLOAT16, array.shape, array.ravel())
        )
    onnx.save(model, "m.onnx")
    assert "ONNX Runtime" in fails(5, *HALF)


# --- 1: our own mistakes ---


def test_internal_errors(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("two\nlines")

    monkeypatch.delenv("SECATEUR_DEBUG", raising=False)
    monkeypatch.setattr("secateur.driver.api.load_model", broken)
    line = fails(1, *HALF)
    assert "internal error: KeyError" in line and "SECATEUR_DEBUG=1" in line


def test_too_little_memory(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("unable to allocate 9 EiB")

    monkeypatch.setattr("secateur.driver.api.load_model", full)
    assert fails(1, "inspect", "m.onnx").startswith("not enough memory: unable to allocate 9 EiB")


def test_internal_errors_inside_a_pass(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("so be it")

    monkeypatch.setattr("secateur.passes.prune.rewrite", broken)
    assert "pass 'prune': ZeroDivisionError: so be it" in fails(1, *HALF)


def test_internal_errors_show_their_traceback_when_asked(
    fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("lost")

    monkeypatch.setenv("SECATEUR_DEBUG", "1")
    monkeypatch.setattr("secateur.driver.api.load_model", broken)
    assert isinstance(CliRunner().invoke(app, HALF).exception, KeyError)


@pytest.mark.skipif(os.name == "nt", reason="pipes of another kind")
@pytest.mark.parametrize("arguments", [["passes"], ["passes", "--json"], ["--help"]])
def test_a_reader_that_leaves_early(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "secateur", *arguments],
            cwd=ROOT,
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write)
    assert done.stderr == b""
    assert done.returncode == 1


def test_interrupting_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("secateur.passes.prune.prove", interrupt)
    model = str(ROOT / "examples" / "digits.onnx")
    result = CliRunner().invoke(app, ["prune", model, "-o", "o.onnx", "--ratio", "0.5"])
    assert result.exit_code == 130
    assert contents(tmp_path) == {}
