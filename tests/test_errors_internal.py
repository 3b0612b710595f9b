"""Proofs that fail, mistakes of our own, and ends that come from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_interrupting_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("secateur.passes.prune.prove", interrupt)
    model = str(ROOT / "examples" / "digits.onnx")
    result = CliRunner().invoke(app, ["prune", model, "-o", "o.onnx", "--ratio", "0.5"])
    assert result.exit_code == 130
    assert contents(tmp_path) == {}
