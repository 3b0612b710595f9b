"""`secateur run`: pipelines, and what shows how they went."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from .cli_runs import SCHEMA, invoke, outputs, prune

pytestmark = pytest.mark.usefixtures("example_folder")


def test_run_does_what_prune_does() -> None:
    prune("--macs", "0.5", "--criterion", "l1", "--protect", "stage1.*", output="p.onnx")
    text = "prune{macs=0.5 criterion=l1 protect=[stage1.*]}"
    invoke("run", "m.onnx", "-o", "o.onnx", "--pipeline", text, "--no-bench")
    assert Path("o.onnx").read_bytes() == Path("p.onnx").read_bytes()
    Path("c.toml").write_text(
        "[context]\nseed = 3\nthreads = 1\ndims = { batch = 4 }\n"
        "[[pipeline]]\npass = 'fold-constants'\n"
        "[[pipeline]]\npass = 'prune'\nmacs = 0.5\ncriterion = 'l1'\nprotect = ['stage1.*']\n"
    )
    options = ["--config", "c.toml", "--no-bench", "--json"]
    report = json.loads(invoke("run", "m.onnx", "-o", "o.onnx", *options).stdout)
    SCHEMA.validate(report)
    assert (report["seed"], report["threads"], report["dims"]) == (3, 1, {"batch": 4})
    assert report["pipeline"] == f"fold-constants,{text}"
    assert Path("o.onnx").read_bytes() == Path("p.onnx").read_bytes()
    given = ["--seed", "0", "--threads", "2", "--dim", "batch=2"]
    report = json.loads(invoke("run", "m.onnx", "-o", "o.onnx", *options, *given).stdout)
    assert (report["seed"], report["threads"], report["dims"]) == (0, 2, {"batch": 2})


def test_run_shows_passes_on_stderr_when_asked() -> None:
    run = ["run", "m.onnx", "-o", "o.onnx", "--no-bench", "--json"]
    run += ["--pipeline", "fold-constants,prune{ratio=0.5}"]
    result = invoke(*run, "--time-passes", "--statistics", "--print-ir-after", "prune")
    json.loads(result.stdout)
    assert "// After prune (2 of 2)" in result.stderr
    assert "// After fold-constants" not in result.stderr
    assert "%stem.weight = float32[8,1,3,3]" in result.stderr
    assert len(re.findall(r"^.*fold-constants.*$", result.stderr, re.MULTILINE)) >= 2
    everything = invoke(*run, "--print-ir-after", "all").stderr
    assert everything.count("// After ") == 2


def test_run_stops_early_to_bisect() -> None:
    run = ["run", "m.onnx", "-o", "o.onnx", "--no-bench", "--json"]
    run += ["--pipeline", "fold-constants,prune{ratio=0.5}", "--bisect-limit", "1"]
    result = invoke(*run)
    assert "NOT running pass (2) prune" in result.stderr
    report = json.loads(result.stdout)
    SCHEMA.validate(report)
    assert report["pipeline"] == "fold-constants"
    assert report["certificate"] is None
    assert np.array_equal(outputs("o.onnx"), outputs("m.onnx"))


def test_run_leaves_a_reproducer_when_a_pass_fails() -> None:
    run = ["run", "m.onnx", "-o", "o.onnx", "--pipeline", "fold-constants,prune{macs=0.000001}"]
    result = invoke(*run, "--reproducer", "bug", code=4)
    assert len(result.stderr.splitlines()) == 1 and "bug" in result.stderr
    assert not Path("o.onnx").exists()
    pipeline = Path("bug/pipeline.txt").read_text().strip()
    again = ["run", "bug/reproducer.onnx", "-o", "o.onnx", "--pipeline", pipeline]
    assert "MACs cannot go down" in invoke(*again, code=4).stderr
