"""The documentation: its Python runs, its commands do what it shows, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md")),
]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")
FOLDERS = "ir|passes|runtime|driver|secateur|tests|examples|benchmarks|docs|tools"
FILE = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w(?![\w*])")

WITH_PYTHON = [page for page in PAGES if PYTHON.search((ROOT / page).read_text("utf-8"))]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in a folder, with the checkout importable and this Python first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "PATH": path}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a copy of the example in it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def python_of(text: str) -> str:
    """All Python of a page as one program, each line where it stands in the page."""
    program = [""] * text.count("\n")
    for block in PYTHON.finditer(text):
        first = text.count("\n", 0, block.start(1))
        lines = block[1].splitlines()
        program[first : first + len(lines)] = lines
    return "\n".join(program) + "\n"


def command(name: str) -> str:
    """The command line of the README that is marked with ``name``."""
    text = (ROOT / "README.md").read_text("utf-8")
    found = re.findall(rf"^<!-- command: {name} -->\n```sh\n(.*?)\n```$", text, re.M | re.S)
    assert len(found) == 1 and "\n" not in found[0]
    return str(found[0])


def test_these_pages_have_examples() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/architecture.md"} <= set(WITH_PYTHON)


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs(page: str, folder: Path) -> None:
    """Blocks run in the order of the page and share their names; its test functions are called."""
    program = python_of((ROOT / page).read_text("utf-8"))
    calls = re.findall(r"^def (test_\w+)\(\)", program, re.MULTILINE)
    script = folder / f"{Path(page).stem}.py"
    script.write_text(program + "".join(f"{name}()\n" for name in calls), "utf-8")
    done = run([sys.executable, str(script)], folder)
    assert done.returncode == 0, f"{page}:\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    path = ROOT / page
    for target in LINK.findall(path.read_text("utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    named = FILE.findall((ROOT / page).read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_main_command(folder: Path) -> None:
    """What the README shows of the first command, but for what depends on the machine."""
    text = (ROOT / "README.md").read_text("utf-8")
    shown = re.findall(r"^<!-- output: main -->\n```\n(.*?)^```$", text, re.M | re.S)
    assert len(shown) == 1
    environment, install, *steps = command("main").split(" && ")
    assert environment == "python3 -m venv .venv"
    assert install.startswith(".venv/bin/pip install ")
    printed = ""
    for step in steps:
        program, *arguments = shlex.split(step)
        start = {".venv/bin/secateur": ["-m", "secateur"], ".venv/bin/python": []}[program]
        done = run([sys.executable, *start, *arguments], folder)
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    assert unmeasured(printed) == unmeasured(shown[0])
    for word in ("MACs", "parameters", "file", "certificate", "speed-up", "accuracy"):
        assert word in printed


def unmeasured(text: str) -> list[list[str]]:
    """The words of every line, but for times, bytes and how small the certificate's error is:
    they depend on the machine and on the libraries."""
    kept = [line for line in text.splitlines() if not re.match("latency|speed-up|file", line)]
    return [re.sub(r"relative error \S+|\d+,\d{3}", "", line).split() for line in kept]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    """.ci/run takes the line out of the README; this takes it out as .ci/run does."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    (extract,) = re.findall(r"^command=\$\((.*)\)$", script, re.MULTILINE)
    done = subprocess.run(
        ["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == command("test")
    assert re.search(r'^eval "\$command"$', script, re.MULTILINE)
    assert "pytest" in command("test")
