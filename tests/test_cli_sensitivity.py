"""``secateur sensitivity``: tables, plots, and what a user can get wrong."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import secateur

from .cli_runs import CALIBRATION, ROOT, invoke
from .failing_runs import Fails
from .pass_runs import normal
from .processes import assert_soon, of_group
from .sensitivity_models import network, network_weights

LINE = ["sensitivity", "m.onnx", "--calibration", "c.npz", "--jobs", "1", "--ratios", "0.25,0.5"]
NUMBERS = ("error", "mse", "cosine", "top1", "macs", "parameters", "ratio")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, entered, with a small model and data for it."""
    monkeypatch.chdir(tmp_path)
    onnx.save(network(network_weights()), "m.onnx")
    np.savez("c.npz", x=normal(10, 3, 6, 6, seed=9))
    return tmp_path


def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(invoke(*LINE, "--json").stdout)["rows"]
    return found


def test_json_says_what_the_function_says(small: Path) -> None:
    found = secateur.sensitivity("m.onnx", calibration="c.npz", ratios=(0.25, 0.5))
    assert json.loads(invoke(*LINE, "--json").stdout) == found.to_json()
    assert len(found.rows) == 4


@pytest.mark.parametrize("suffix", ["csv", "md", "json"])
def test_tables_hold_every_number(small: Path, suffix: str) -> None:
    result = invoke(*LINE, "-o", f"t.{suffix}", "--quiet")
    assert result.output == ""
    text = Path(f"t.{suffix}").read_text("utf-8")
    if suffix == "json":
        assert json.loads(text)["rows"] == rows()
        return
    if suffix == "csv":
        lines = list(csv.reader(text.splitlines()))
    else:
        lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
        assert re.fullmatch(r"(\| ---:? ?)+(\| ---: )+\|", text.splitlines()[1])
        del lines[1]
    names, *cells = lines
    for line, row in zip(cells, rows(), strict=True):
        data = dict(zip(names, line, strict=True))
        assert (data["group"], data["exact"]) == (row["group"], "yes")
        assert int(data["removed"]) == row["removed"]
        for name in NUMBERS:
            assert float(data[name]) == row[name]


def test_the_same_command_writes_the_same_bytes(small: Path) -> None:
    invoke(*LINE, "-o", "a.csv", "--plot", "a.svg", "-q", "--threads", "1")
    invoke(*LINE, "-o", "b.csv", "--plot", "b.svg", "-q", "--threads", "1", "--jobs", "2")
    for suffix in ("csv", "svg"):
        assert Path(f"a.{suffix}").read_bytes() == Path(f"b.{suffix}").read_bytes()


def test_the_terminal_has_a_line_for_each_group(small: Path) -> None:
    text = invoke(*LINE, "--work", "w").stdout
    assert "relative RMS error when a share of one group goes, on 10 samples" in text
    (head,) = re.findall(r"^group +units +0.25 +0.5$", text, re.MULTILINE)
    for group in ("a[0]", "b[0]"):
        shown = [row for row in rows() if row["group"] == group]
        numbers = " +".join(f"{row['error']:.3g}" for row in shown)
        (line,) = re.findall(rf"^{re.escape(group)} +\d +{numbers}$", text, re.MULTILINE)
        assert len(line) == len(head)
    assert "4 candidates measured" in text
    assert "4 candidates measured, 4 of them from before" in invoke(*LINE, "--work", "w").stdout


def test_the_terminal_shows_some_of_many_shares(small: Path) -> None:
    shares = [f"{k / 20:g}" for k in range(1, 20)]
    line = [*LINE[:-1], ",".join(shares)]
    text = invoke(*line).stdout
    (head,) = re.findall(r"^group +units +(.*)$", text, re.MULTILINE)
    assert head.split() == ["0.15", "0.35", "0.55", "0.75", "0.95"]
    assert "… and 14 more shares" in text
    assert max(map(len, text.splitlines())) <= 80


def listen() -> None:
    """Lets a process have Ctrl-C even where the tests run in the background, without it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_all_processes_and_keeps_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "digits.onnx", "m.onnx")
    shares = ",".join(f"{k / 40:g}" for k in range(1, 40))
    line = ["m.onnx", "--calibration", str(CALIBRATION), "--ratios", shares, "--work", "w"]
    with subprocess.Popen(
        [sys.executable, "-m", "secateur", "sensitivity", *line, "--jobs", "2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=listen,
    ) as running:
        files = tmp_path.glob
        assert_soon(lambda: any(p.read_bytes().count(b"\n") > 2 for p in files("w/*")), "no result")
        assert running.poll() is None
        os.killpg(running.pid, signal.SIGINT)  # a terminal sends it to all of them
        stdout, stderr = running.communicate(timeout=60)
    assert (running.returncode, stdout) == (130, "")
    assert stderr == "secateur: interrupted; the same command goes on from what is in w\n"
    assert_soon(lambda: not any(of_group(running.pid)), "processes outlive the command")
    (path,) = tmp_path.glob("w/*")
    kept = len(path.read_bytes().splitlines()) - 1
    found = secateur.sensitivity(
        "m.onnx",
        calibration=CALIBRATION,
        ratios=[k / 40 for k in range(1, 40)],
        groups=["stem*"],
        work="w",
    )
    assert kept > 0 and found.resumed + found.measured == 15 + 1


def test_the_plot_shows_every_number(small: Path) -> None:
    invoke(*LINE, "--plot", "p.svg", "--metric", "cosine", "-q")
    drawn = re.findall(r">([^<>]+)</text>", Path("p.svg").read_text("utf-8"))
    for row in rows():
        assert f"{row['cosine']:.3g}" in drawn and row["group"] in drawn
    assert {"share of units removed", "cosine distance", "0.25", "0.5"} <= set(drawn)
    for suffix, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        invoke(*LINE, "--plot", f"p.{suffix}", "-q")
        assert Path(f"p.{suffix}").read_bytes().startswith(magic)


def test_a_plot_of_many_groups_and_of_no_drift(small: Path) -> None:
    """Hundreds of groups: some named, none with numbers; zeros and missing ones do not matter."""
    from dataclasses import replace

    from secateur.runtime.drift import Drift

    found = secateur.sensitivity("m.onnx", calibration="c.npz", ratios=(0.5,))
    row = found.rows[0]
    many = [replace(row, number=k, group=f"layer{k:03}[0]") for k in range(300)]
    replace(found, rows=tuple(many)).plot("many.svg")
    drawn = re.findall(r">([^<>]+)</text>", Path("many.svg").read_text("utf-8"))
    named = [text for text in drawn if text.startswith("layer")]
    assert 40 <= len(named) <= 80 and len(set(named)) == len(named)
    for drift, text in ((Drift(), "-"), (Drift(0.0, 0.0, 0.0, 0.0), "0")):
        replace(found, rows=(replace(row, drift=drift),)).plot("none.svg")
        assert f">{text}</text>" in Path("none.svg").read_text("utf-8")


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits model was trained so that half of its channels do next to nothing."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "digits.onnx", "m.onnx")
    line = ["sensitivity", "m.onnx", "--calibration", str(CALIBRATION), "--jobs", "1"]
    found = json.loads(
        invoke(*line, "--ratios", "0.25,0.75", "--groups", "stage*", "--json").stdout
    )
    quarter = {row["group"]: row for row in found["rows"] if row["ratio"] == 0.25}
    most = {row["group"]: row for row in found["rows"] if row["ratio"] == 0.75}
    assert len(quarter) == 6 and all(name.startswith("stage") for name in quarter)
    assert all(row["error"] < 1e-3 and row["top1"] == 0 for row in quarter.values())
    assert max(row["error"] for row in most.values()) > 0.1


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        (2, ["--ratios", "a"], "--ratios 'a' is not a list of numbers"),
        (2, ["--ratios", "0.5,1"], "--ratios must be more than 0 and less than 1, not 1"),
        (2, ["--metric", "mean"], "'error', 'mse', 'cosine', 'top1'"),
        (2, ["--criterion", "l3"], "unknown criterion 'l3'"),
        (2, ["-o", "t.txt"], "must end in one of .csv, .md, .json"),
        (2, ["--plot", "p.jpg"], "must end in one of .svg, .png, .pdf"),
        (2, ["-o", "no/t.csv"], "the folder no does not exist"),
        (2, ["--plot", "no/p.svg"], "the folder no does not exist"),
        (2, ["--work", "m.onnx"], "--work m.onnx is not a folder"),
        (2, ["--jobs", "-1"], "--jobs"),
        (2, ["--samples", "0"], "--samples"),
        (2, ["--groups", "q"], "--groups 'q' fits no prunable group"),
        (2, ["--dim", "batch=0"], "needs a size of 1"),
        (2, ["--scheduler", "nonsense://x"], "no scheduler answers at nonsense://x"),
        (4, ["--protect", "*"], "what could go is protected by '*': narrow --protect"),
        (6, ["--calibration", "none.npz"], "none.npz: cannot be read: No such file"),
        (6, ["--calibration", "m.onnx"], "not a readable .npz file"),
    ],
)
def test_errors(fails: Fails, code: int, options: list[str], words: str) -> None:
    shutil.copy(CALIBRATION, "c.npz")
    line = ["sensitivity", "m.onnx", "--calibration", "c.npz", "--jobs", "1", *options]
    assert words in fails(code, *line)


def test_a_model_that_does_not_run(fails: Fails) -> None:
    model = network(network_weights())
    node = model.graph.node[-1]
    node.op_type, node.domain = "Nothing", "nowhere"
    model.opset_import.add(domain="nowhere", version=1)
    onnx.save(model, "custom.onnx")
    np.savez("c.npz", x=normal(4, 3, 6, 6))
    line = ["sensitivity", "custom.onnx", "--calibration", "c.npz", "--jobs", "1"]
    assert "ONNX Runtime cannot load the model" in fails(5, *line)


def test_an_input_is_not_overwritten(fails: Fails) -> None:
    shutil.copy(CALIBRATION, "c.csv")
    line = ["sensitivity", "m.onnx", "--calibration", "c.csv", "-o", "c.csv"]
    assert "is an input of this command" in fails(2, *line)


def test_without_matplotlib() -> None:
    program = """
import sys
sys.modules["matplotlib"] = None
from secateur.driver.cli import app
app(["sensitivity", "m.onnx", "--calibration", "c.npz", "--plot", "p.svg"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'secateur[plots]'" in done.stderr
