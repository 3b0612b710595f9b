"""The program itself: its version, its help, and how soon it answers."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import secateur

from .cli_runs import ROOT, command, invoke

pytestmark = pytest.mark.usefixtures("example_folder")


def test_version() -> None:
    assert invoke("--version").stdout == f"{secateur.__version__}\n"
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{secateur.__version__}\n", "")


def test_help_answers_at_once() -> None:
    """Under half a second of processor time, which other tests beside this one hardly change."""

    def spent() -> float:
        times = os.times()
        return times.children_user + times.children_system

    best = np.inf
    for _ in range(5):
        begin = spent()
        done = command("--help")
        best = min(best, spent() - begin)
        assert done.returncode == 0
        for name in (
            *("prune", "run", "inspect", "explain", "verify", "bench", "passes"),
            *("sensitivity", "calibrate"),
        ):
            assert name in done.stdout
    assert 0 < best < 0.5


def test_help_and_import_load_nothing_heavy() -> None:
    heavy = ("onnx", "onnx_ir", "onnxruntime", "scipy", "networkx", "numpy")
    program = f"""
import sys
import secateur
assert not set({heavy}) & set(sys.modules), "import secateur"
from secateur.driver.cli import app
for arguments in (["--help"], ["prune", "--help"], ["calibrate", "--help"], ["--version"]):
    try:
        app(arguments)
    except SystemExit as end:
        assert end.code == 0
assert not set({heavy}) & set(sys.modules), sorted(set({heavy}) & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_command_shows_the_help() -> None:
    assert "Usage: secateur" in invoke(code=2).stdout
