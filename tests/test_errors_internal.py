"""Proofs that fail, mistakes of our own, and ends that come from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import secateur
from secateur.driver.cli import app
from secateur.ir.rules.base import Rule
from secateur.ir.rules.registry import find_rule

from .failing_runs import HALF, ROOT, Fails, contents, tiny

# --- 5: proofs ---


def test_a_pass_that_breaks_its_promise(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that the slicing removes and the masks do not: no certificate, no file."""
    monkeypatch.setattr("secateur.passes.prune.reference_points", lambda *_: ([], []))
    assert "certificate failed" in fails(5, *HALF)


def test_models_that_do_not_run(fails: Fails) -> None:
    """ONNX Runtime does not know an operator of somebody's own."""
    model = tiny()
    model.graph.node[-1].output[0] = "c"
    model.graph.node.add(op_type="Own", domain="my.own", input=["c"], output=["y"])
    model.opset_import.add(domain="my.own", version=1)
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


def test_a_rule_that_fails_pins_its_node_or_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 2] x) => (float[1, 2] y)
        <float[2, 3] v = {1, 2, 3, 4, 5, 6}, float[3, 2] w = {1, 2, 3, 4, 5, 6}> {
            h = MatMul(x, v) r = Relu(h) y = MatMul(r, w) }""")

    def couple(site: object) -> None:
        raise IndexError("so be it")

    broken = Rule(couple, family="other")
    monkeypatch.setattr(
        "secateur.ir.visitor.find_rule",
        lambda domain, op: broken if op == "Relu" else find_rule(domain, op),
    )
    monkeypatch.delenv("SECATEUR_DEBUG", raising=False)
    analysis = secateur.analyze(model)
    assert not analysis.groups
    (warning,) = analysis.warnings
    assert "IndexError: so be it; everything it touches stays" in warning
    monkeypatch.setenv("SECATEUR_DEBUG", "1")
    with pytest.raises(IndexError, match="so be it"):
        secateur.analyze(model)


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


RUN = ["run", "m.onnx", "-o", "o.onnx", "--pipeline", "prune{ratio=0.5}"]


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "command", "said", "written"),
    [
        ("passes.prune.prove", HALF, "; nothing was written to o.onnx or r.json", set()),
        ("passes.prune.prove", RUN, "; nothing was written to o.onnx", set()),
        ("driver.report.write_report", HALF, "; written: o.onnx", {"o.onnx"}),
        ("driver.prune_command.print_result", HALF, "", {"o.onnx", "r.json"}),
        ("driver.inspection.describe_analysis", ["inspect", "m.onnx"], "", set()),
        ("driver.api.load_model", ["explain", "m.onnx", "stem.weight"], "", set()),
    ],
)
def test_interrupting_says_what_it_leaves(
    where: str,
    command: list[str],
    said: str,
    written: set[str],
    example_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = set(contents(example_folder))
    monkeypatch.setattr(f"secateur.{where}", interrupt)
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == f"secateur: interrupted{said}\n"
    assert set(contents(example_folder)) - before == written


@pytest.mark.parametrize("old", [True, False])
def test_interrupting_a_write_keeps_the_old_file(
    old: bool, example_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        Path("o.onnx").write_text("old")
    before = contents(example_folder)
    monkeypatch.setattr("secateur.ir.files._rename", interrupt)
    result = CliRunner().invoke(app, [*HALF, "--json"])
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "secateur: interrupted; nothing was written to o.onnx or r.json\n"
    assert contents(example_folder) == before


@pytest.mark.parametrize("output", [[], ["-o", "t.csv"]])
def test_interrupting_packing_and_measuring(
    output: list[str], example_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez("c.npz", image=np.zeros((4, 1, 8, 8), np.float32))
    monkeypatch.setattr("secateur.driver.sensitivity.cases", interrupt)
    monkeypatch.setattr("secateur.runtime.packing.write_files", interrupt)
    line = ["sensitivity", "m.onnx", "--calibration", "c.npz", *output]
    left = "; nothing was written to t.csv" if output else ""
    assert CliRunner().invoke(app, line).stderr == f"secateur: interrupted{left}\n"
    line = ["calibrate", "c.npz", "--model", "m.onnx", "-o", "d.npz"]
    left = "; nothing was written to d.npz"
    assert CliRunner().invoke(app, line).stderr == f"secateur: interrupted{left}\n"
