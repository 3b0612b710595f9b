"""Fixtures that several files share, and skips of what an older ONNX Runtime cannot show.

The tests are written against ONNX Runtime 1.32; for Python 3.10 there is none after 1.23.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import hypothesis
import onnxruntime
import pytest
from typer.testing import CliRunner

from secateur.driver.cli import app

from .failing_runs import Fails, contents

pytest.register_assert_rewrite(
    *(f"tests.{name}" for name in ("cli_runs", "io_models", "pass_runs", "pruning_checks"))
)

# No test is a benchmark: how long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("secateur", deadline=None)
hypothesis.settings.load_profile("secateur")

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.onnx"
WRITTEN_FOR = (1, 32)

NEEDS_IT = {
    r"test_certificate\.py::test_a_pruned_model_that_does_not_run": "runs a Conv with a short bias",
    r"test_pruned_graphs\.py::test_inexact_with_one_unit_left": "refuses norms of one element",
    r"test_masked\.py::.*-24\]": "does not know opset 24",
    r"test_probing_generated\.py::test_generated\[(conv_transpose|layer_norm|pad|unary)": "has "
    "no kernels for the newest forms",
    r"test_round_trip\.py::test_backend_models": "runs fewer of the models",
    r"test_verifier\.py::test_sizes\[(Conv bias|ConvTranspose bias|LSTM)\]": "runs wrong sizes",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    major, minor = (int(part) for part in onnxruntime.__version__.split(".")[:2])
    if (major, minor) >= WRITTEN_FOR:
        return
    for item in items:
        for pattern, why in NEEDS_IT.items():
            if re.search(pattern, item.nodeid):
                reason = f"ONNX Runtime {onnxruntime.__version__} {why}"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def example_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, entered, that holds ``m.onnx``, a copy of the example."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, "m.onnx")
    return tmp_path


@pytest.fixture
def fails(example_folder: Path) -> Fails:
    """Runs a command that must fail in a folder with ``m.onnx`` in it; gives its error line."""

    def run(code: int, *arguments: str) -> str:
        before = contents(example_folder)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        assert isinstance(result.exception, SystemExit), "not a clean exit"
        assert result.stdout == ""
        assert contents(example_folder) == before, "a failed command left something behind"
        (line,) = result.stderr.splitlines()
        assert line.startswith("secateur: error: ")
        assert "Traceback" not in line
        assert code == 1 or "internal error" not in line
        return line.removeprefix("secateur: error: ")

    return run
