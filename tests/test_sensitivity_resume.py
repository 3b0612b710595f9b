"""`secateur.sensitivity` goes on where it was cut short, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

import secateur
from secateur import CertificateError, DataError
from secateur.driver.sensitivity import affordable
from secateur.runtime.parallel import in_processes

from .cli_runs import ROOT
from .processes import assert_soon, run
from .sensitivity_models import DATA, RATIOS, measured, network, network_weights


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    expected = measured().to_json()

    def interrupt(message: str, done: float | None) -> None:
        if message == "measure" and done is not None and done >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(work=tmp_path, progress=interrupt)
    found = measured(work=tmp_path)
    assert (found.resumed, found.measured) == (3, 3)
    assert found.to_json() == expected
    again = measured(work=tmp_path)
    assert (again.resumed, again.measured) == (6, 0)
    assert again.to_json() == expected


def test_more_shares_go_on_from_the_same_results(tmp_path: Path) -> None:
    measured(work=tmp_path, ratios=[0.5])
    found = measured(work=tmp_path, ratios=[0.25, 0.5], criterion="l2", groups=["a"])
    assert (found.resumed, found.measured) == (1, 1)


KILLED = """
import os, signal, sys
import secateur
def progress(message, done):
    if message == "measure" and done and done >= 0.5:
        if {jobs} > 1:
            import multiprocessing
            print(*(p.pid for p in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    secateur.sensitivity("m.onnx", calibration="c.npz", ratios={ratios}, threads=1, jobs={jobs},
                         work="work", progress=progress)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_run_goes_on(tmp_path: Path, jobs: int) -> None:
    onnx.save(network(network_weights()), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", **DATA)  # type: ignore[arg-type]
    (tmp_path / "run.py").write_text(KILLED.format(jobs=jobs, ratios=RATIOS))
    done = subprocess.run(
        [sys.executable, "run.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    children = [int(pid) for pid in done.stdout.split()]
    assert len(children) == (2 if jobs == 2 else 0)
    found = secateur.sensitivity(
        tmp_path / "m.onnx",
        calibration=tmp_path / "c.npz",
        ratios=RATIOS,
        threads=1,
        work=tmp_path / "work",
    )
    assert (found.resumed, found.measured) == (3, 3)
    assert found.to_json() == measured().to_json()
    assert_soon(lambda: not any(map(run, children)), "processes outlive the one that started them")


def test_a_torn_line_is_measured_again(tmp_path: Path) -> None:
    expected = measured(work=tmp_path).to_json()
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    found = measured(work=tmp_path)
    assert (found.resumed, found.measured) == (2, 4)
    assert found.to_json() == expected
    assert len(path.read_bytes().splitlines()) == len(lines)


def test_results_of_other_inputs_are_left_alone(tmp_path: Path) -> None:
    measured(work=tmp_path)
    others: list[dict[str, object]] = [
        {"calibration": {"x": DATA["x"] + 1}},
        {"samples": 3},
        {"dims": {"N": 2}},
    ]
    for number, other in enumerate(others, 2):
        assert measured(work=tmp_path, **other).resumed == 0
        assert len(list(tmp_path.iterdir())) == number
    weights = network_weights()
    weights["c"] += 1
    found = secateur.sensitivity(
        network(weights), calibration=DATA, ratios=RATIOS, work=tmp_path, threads=1
    )
    assert found.resumed == 0


def test_a_work_file_that_says_something_else_is_refused(tmp_path: Path) -> None:
    measured(work=tmp_path)
    (path,) = tmp_path.iterdir()
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    result = json.loads(lines[1])
    negative = json.loads(lines[1])
    next(iter(negative["outputs"].values()))["error"] = -1
    for wrong, words in (
        ([json.dumps(first | {"samples": 1}), *lines[1:]], "other inputs"),
        ([lines[0], "[]"], "line 2 is no result"),
        ([lines[0], "nonsense"], "line 2 is no result"),
        ([lines[0], json.dumps({"key": result["key"]})], "not a measurement"),
        ([lines[0], json.dumps(negative)], "not a measurement"),
    ):
        path.write_text("".join(f"{line}\n" for line in wrong))
        with pytest.raises(DataError, match=words):
            measured(work=tmp_path)


def test_processes_are_as_many_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx_ir.from_proto(network(network_weights()))
    weights = 4 * sum(array.size for array in network_weights().values())
    for factor, expected in ((1, 1), (8 * 3, 3), (8 * 3.9, 3), (8 * 100, 16)):
        pages = {"SC_PHYS_PAGES": int(factor * weights), "SC_PAGE_SIZE": 1}
        monkeypatch.setattr(os, "sysconf", pages.__getitem__)
        assert affordable(model, 16) == expected


def test_a_process_that_dies_is_an_error() -> None:
    with pytest.raises(CertificateError, match="fewer `jobs`"):
        list(in_processes(os._exit, [3, 4], 2))
