"""Wrong options, places that cannot be written, and targets out of reach."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from .failing_runs import HALF, PRUNE, Fails, external, tiny

# --- 2: usage ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*PRUNE], "at least one target: --ratio, --macs, --params"),
        ([*HALF, "--macs", "0.5"], "--ratio cannot be combined"),
        ([*PRUNE, "--ratio", "0"], "--ratio must be more than 0 and less than 1, not 0"),
        ([*PRUNE, "--ratio", "1"], "--ratio must be more than 0 and less than 1, not 1"),
        ([*PRUNE, "--ratio", "-0.5"], "not -0.5"),
        ([*PRUNE, "--ratio", "nan"], "not nan"),
        ([*PRUNE, "--macs", "1.01"], "--macs must be more than 0 and at most 1, not 1.01"),
        ([*PRUNE, "--macs", "inf"], "not inf"),
        ([*PRUNE, "--params", "0"], "--params must be more than 0"),
        ([*PRUNE, "--params", "half"], "--params must be a number, not 'half'"),
        ([*PRUNE, "--size", "2XB"], "--size '2XB' is no amount"),
        ([*PRUNE, "--latency-ms", "0"], "--latency-ms must be more than 0, not 0"),
        ([*PRUNE, "--min-quality", "1.5"], "--min-quality must be from -1 to 1 for the metric"),
        ([*PRUNE, "--min-quality", "-0.1", "--metric", "top1"], "--min-quality must be from 0 to"),
        ([*PRUNE, "--min-quality", "nan"], "--min-quality must be a finite number, not nan"),
        ([*HALF, "--metric", "accuracy"], "--metric must be cosine, top1 or"),
        ([*HALF, "--steps", "2", "--size", "3k"], "--ratio cannot be combined"),
        ([*PRUNE, "--steps", "2", "--size", "3k"], "--steps needs targets that are shares: --"),
        ([*HALF, "--distill", "0"], "--distill must be more than 0 minutes, not 0"),
        ([*HALF, "--distill", "1"], "--distill learns from data"),
        ([*HALF, "--max-ratio", "2"], "--max-ratio must be more than 0 and at most 1, not 2"),
        ([*HALF, "--max-ratio", "nan"], "--max-ratio must be"),
        ([*HALF, "--round-to", "0"], "--round-to must be at least 1, not '0' (see 'secateur prune"),
        ([*HALF, "--round-to", "1.5"], "--round-to must be a whole number, not '1.5'"),
        ([*HALF, "--round-to", "99999999999999999999"], "--round-to must be at least 1"),
        ([*HALF, "--threads", "-1"], "--threads"),
        ([*HALF, "--threads", "100000"], "--threads must be at most 1024, not '100000'"),
        ([*HALF, "--seed", "-1"], "--seed"),
        ([*HALF, "--criterion", "l3"], "unknown criterion 'l3'; known: activation, bn-scale"),
        ([*HALF, "--criterion", "L2"], "unknown criterion 'L2'; did you mean 'l2'?"),
        ([*HALF, "--criterion", ""], "unknown criterion ''"),
        ([*HALF, "--criterion", "activation"], "calibration data: give --calibration FILE"),
        ([*HALF, "--criterion", "bn-scale"], "no unit of this model owns one"),
        (
            [*HALF, "--scope", "gloabl"],
            "--scope: 'gloabl' is not one of 'local', 'global' (",
        ),
        ([*HALF, "--carrier", "head"], "'heads', 'head-dim'"),
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
        (["explain", "m.onnx", "stem.weigth"], "did you mean 'stem.weight' or "),
        (["explain", "m.onnx", "stem.weigth:0"], "no tensor or node is called 'stem.weigth'; did"),
        (["explain", "m.onnx", "CONV1"], "did you mean '/stage1/conv1/Conv' or"),
        (["explain", "m.onnx", "q"], "'q'; known: /Flatten, /Flatten_output_0, "),
        (["explain", "m.onnx", ""], "no tensor or node is called ''; known: "),
        (["explain", "m.onnx", "stem.weight:--1"], "no tensor or node is called 'stem.weight:--1'"),
        (["explain", "m.onnx", f"stem.weight:{'9' * 5000}"], "is called 'stem.weight:999"),
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
        ("prune", "at least one target: ratio, macs, params"),
        ("prune{macs=2}", "pass 'prune': macs must be more than 0"),
        ("prune{ratio=0.5 max-ratio=2}", "pass 'prune': max-ratio must be more than 0"),
        ("prune{ratio=0.5 protect=[nothing*]}", "pass 'prune': protect 'nothing*' matches no"),
        ("prune{min-quality=2}", "pass 'prune': min-quality must be from -1 to 1"),
        ("drop-blocks", "needs exactly one of count and similarity"),
        ("prune{ratio=0.5 criterion=l3}", "unknown criterion 'l3'"),
        ("prune{ratio=0.5 combine=least}", "least"),
        ("prune{ratio=0.5 normalize=z}", "gauss"),
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


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that takes no files")
def test_a_folder_that_takes_no_files(fails: Fails) -> None:
    """Known before the work: no model is written without the report that was asked for."""
    assert "cannot write /proc/r.json" in fails(2, *HALF, "--report", "/proc/r.json")
    assert not Path("o.onnx").exists()


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
        (
            ["--ratio", "0.5", "--protect", "*"],
            "what could go is protected by '*': narrow --protect",
        ),
        (
            ["--macs", "0.5", "--protect", "/*", "--protect", "*.*"],
            "protected by '/*' and protected",
        ),
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
