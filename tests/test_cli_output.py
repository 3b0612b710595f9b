"""What goes where: data on stdout, the rest on stderr, models in files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from secateur.driver.quantities import counts, sizes

from .cli_runs import CALIBRATION, ROOT, SCHEMA, command, invoke, outputs, prune

pytestmark = pytest.mark.usefixtures("example_folder")


def test_json_is_all_there_is_on_stdout() -> None:
    result = invoke(
        "prune", "m.onnx", "-o", "o.onnx", "--macs", "0.5", "--json", "--report", "r.json"
    )
    printed, written = json.loads(result.stdout), json.loads(Path("r.json").read_text("utf-8"))
    assert printed == written
    assert result.stderr == ""
    SCHEMA.validate(printed)
    for name, file in {"original": "m.onnx", "pruned": "o.onnx"}.items():
        data = Path(file).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        assert printed[name] == {"file": file, "sha256": digest, "bytes": len(data)}


def test_quiet_is_silent() -> None:
    runs = [
        ["prune", "m.onnx", "-o", "o.onnx", "--macs", "0.5", "--report", "r.json"],
        ["run", "m.onnx", "-o", "p.onnx", "--pipeline", "fold-constants", "--no-bench"],
        ["verify", "m.onnx", "o.onnx", "--report", "r.json"],
    ]
    for arguments in runs:
        result = invoke(*arguments, "--quiet")
        assert (result.stdout, result.stderr) == ("", "")


def test_notes_go_to_stderr() -> None:
    model = onnx.load("m.onnx")
    (relu,) = (n for n in model.graph.node if n.output[0] == "/Relu_output_0")
    relu.op_type, relu.domain = "Mystery", "somewhere"
    model.opset_import.append(onnx.helper.make_opsetid("somewhere", 1))
    model.graph.value_info.append(
        onnx.helper.make_tensor_value_info("/Relu_output_0", 1, ["batch", 16, 8, 8])
    )
    onnx.save(model, "m.onnx")
    result = invoke("inspect", "m.onnx")
    assert "note: node '/Relu': no coupling rule for somewhere.Mystery" in result.stderr
    assert "note:" not in result.stdout
    assert invoke("inspect", "m.onnx", "--json").stderr == ""


def test_progress_goes_to_stderr_and_only_to_terminals() -> None:
    """With stderr a terminal there is progress on it; stdout stays as it is."""
    if os.name == "nt":
        pytest.skip("no pseudo-terminals")
    import pty

    master, slave = pty.openpty()
    arguments = ["prune", "m.onnx", "-o", "o.onnx", "--macs", "0.5", "--no-bench", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    program = [sys.executable, "-m", "secateur"]
    with subprocess.Popen(
        [*program, *arguments[:-1]], env=environment, stdout=subprocess.PIPE, stderr=slave
    ) as process:
        os.close(slave)
        drawn = b""
        try:
            while block := os.read(master, 65536):
                drawn += block
        except OSError:  # Linux's end of a terminal
            pass
        assert process.stdout is not None
        printed = process.stdout.read().decode()
    os.close(master)
    assert process.returncode == 0
    assert b"certify" in drawn
    assert "certify" not in printed and "\x1b" not in printed
    done = command(*arguments)
    assert done.stderr == "", "no progress on a file"
    json.loads(done.stdout)


def test_the_same_command_writes_the_same_bytes() -> None:
    for target in ("o.onnx", "p.onnx"):
        done = command("prune", "m.onnx", "-o", target, "--macs", "0.5", "--no-bench", "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Path("o.onnx").read_bytes() == Path("p.onnx").read_bytes()
    assert not [p for p in Path().iterdir() if p.name not in ("m.onnx", "o.onnx", "p.onnx")]


def test_external_data_stays_external() -> None:
    model = onnx.load("m.onnx")
    onnx.save(model, "m.onnx", save_as_external_data=True, location="w.data")
    report = prune("--ratio", "0.5")
    assert {p.name for p in Path().iterdir()} == {"m.onnx", "w.data", "o.onnx", "o.onnx.data"}
    digest = hashlib.sha256(Path("o.onnx").read_bytes() + Path("o.onnx.data").read_bytes())
    assert report["pruned"]["sha256"] == digest.hexdigest()
    assert outputs("o.onnx").shape == (3, 10)


def test_names_that_the_terminal_cannot_show() -> None:
    shutil.copy("m.onnx", "größe.onnx")
    program = [sys.executable, "-m", "secateur", "prune"]
    done = subprocess.run(
        [*program, "größe.onnx", "-o", "ß→.onnx", "--ratio", "0.5", "--no-bench", "--no-recover"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("ß→.onnx").exists()


def test_a_step_is_a_pruning_and_what_follows_it() -> None:
    run = ["run", "m.onnx", "-o", "o.onnx", "--no-bench", "--calibration", str(CALIBRATION)]
    fit = "recover{samples=32}"
    text = invoke(*run, "--pipeline", f"prune{{ratio=0.2}},{fit}").stdout
    assert "\nrecover: outputs off by" in text and "step" not in text
    alone = invoke(*run, "--pipeline", "drop-blocks{count=1}").stdout
    assert re.search(r"^drop-blocks: dropped 1 of [234] residual branches$", alone, re.MULTILINE)
    pipeline = f"{fit},drop-blocks{{count=1}},{fit},prune{{ratio=0.2}},{fit}"
    lines = invoke(*run, "--pipeline", pipeline).stdout.splitlines()
    found = [line.partition(": ")[0] for line in lines if "recover" in line or "step" in line]
    steps = ["step 1 of 2, drop-blocks", "step 1 of 2, recover"]
    steps += ["step 2 of 2, prune", "step 2 of 2, recover"]
    assert found == ["recover", *steps]
    (dropped,) = [line for line in lines if line.startswith(f"{steps[0]}: ")]
    assert re.fullmatch(".*: dropped 1 of [234] residual branches", dropped)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((1200 << 10, 300 << 10), ["1.17 MiB", "0.293 MiB"]),
        ((300 << 10, 1200 << 10), ["0.293 MiB", "1.17 MiB"]),
        ((1023 << 10, 1 << 10), ["1023 KiB", "1 KiB"]),
        ((2000 << 30, 1 << 30), ["2000 GiB", "1 GiB"]),
        ((1023, 5, 0), ["1023 B", "5 B", "0 B"]),
    ],
)
def test_sizes_share_a_unit(values: tuple[int, ...], texts: list[str]) -> None:
    assert sizes(*values) == texts


def test_counts_share_a_unit() -> None:
    assert counts(60e6, 237e3) == ["60 M", "0.237 M"]
    assert counts(999_700, 12) == ["1000 k", "0.012 k"]
    assert counts(999, 0) == ["999", "0"]


def test_a_row_has_one_unit() -> None:
    """1.88 M, of which less than 1 M are left."""
    two = ["--dim", "batch=2"]
    text = invoke("prune", "m.onnx", "-o", "o.onnx", "--macs", "0.4", "--no-bench", *two).stdout
    (row,) = [line.split() for line in text.splitlines() if line.startswith("MACs")]
    assert row[2] == row[4] == "M" and float(row[1]) > 1 > float(row[3])
    text = invoke("bench", "m.onnx", "o.onnx", "--runs", "1", "--seconds", "0", *two).stdout
    rows = [line.split() for line in text.splitlines() if line.startswith(("original", "pruned"))]
    assert [line[-2:] for line in rows] == [[row[1], "M"], [row[3], "M"]]


@pytest.mark.parametrize(
    ("low", "ratio", "high", "words"),
    [(0.5, 1.2, 2.0, "too noisy"), (0.6, 0.7, 0.8, "--round-to 8"), (1.5, 1.6, 1.7, "")],
)
def test_advice_on_timings(low: float, ratio: float, high: float, words: str) -> None:
    from secateur.driver.terminal import _timing_advice

    timing = {"threads": 1, "speedup": {"low": low, "ratio": ratio, "high": high}}
    advice = _timing_advice(timing)
    assert any(words in line for line in advice) if words else not advice
    assert not any("--threads 1" in line for line in advice), "as it was"
    if words == "too noisy":
        assert "--threads 1" in _timing_advice(timing | {"threads": 0})[0]


def test_the_row_of_the_latency_agrees_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the pairs say: their speed-up stands below."""
    import secateur
    from secateur.driver.terminal import show_result

    result = secateur.prune("m.onnx", ratio=0.5)
    timing = result.report["timing"]
    timing["original"]["p50_ms"], timing["pruned"]["p50_ms"] = 7.0, 10.4
    timing["speedup"] = {"ratio": 0.4975, "low": 0.4, "high": 1.25}
    show_result(result, Path("o.onnx"))
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("latency")]
    assert row[2:] == ["7", "ms", "10.4", "ms", "-48.6%", "0.67x"]
    assert any(line.startswith("speed-up 0.50x (quartiles 0.40 to 1.25, ") for line in lines)
