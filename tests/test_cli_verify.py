"""`secateur verify`: proves a certificate again, and refuses what was changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from .cli_runs import CALIBRATION, SCHEMA, invoke, prune
from .sensitivity_models import normalised, normalised_weights

pytestmark = pytest.mark.usefixtures("example_folder")


def change_bias(file: str) -> None:
    model = onnx.load(file)
    (bias,) = (t for t in model.graph.initializer if t.name == "head.bias")
    array = numpy_helper.to_array(bias).copy()
    array[0] += 0.01
    bias.CopyFrom(numpy_helper.from_array(array, bias.name))
    onnx.save(model, file)


def test_verify_proves_it_again_from_files() -> None:
    prune("--macs", "0.5", "--report", "r.json")
    text = invoke("verify", "m.onnx", "o.onnx", "--report", "r.json").stdout
    assert "equals the masked original" in text
    assert "reproduces the pruned outputs" in text
    more = ["--calibration", str(CALIBRATION), "--threads", "1", "--json"]
    data = json.loads(invoke("verify", "m.onnx", "o.onnx", "--report", "r.json", *more).stdout)
    assert data["ok"] and data["calibrated"] and data["replay"]["agrees"]


def test_verify_after_a_pipeline() -> None:
    run = ["run", "m.onnx", "-o", "o.onnx", "--no-bench", "--report", "r.json"]
    invoke(*run, "--pipeline", "fold-constants,fold-batchnorm,prune{macs=0.5},eliminate-dead")
    invoke("verify", "m.onnx", "o.onnx", "--report", "r.json")


TWICE = "prune{ratio=0.2},fold-batchnorm,prune{ratio=0.25},eliminate-dead"
BLOCKS_FIRST = "drop-blocks{count=1},prune{ratio=0.25},prune{ratio=0.2}"


@pytest.mark.parametrize("pipeline", [TWICE, BLOCKS_FIRST])
def test_verify_goes_through_all_pruning_passes(pipeline: str) -> None:
    run = ["run", "m.onnx", "-o", "o.onnx", "--no-bench", "--report", "r.json"]
    calibration = ["--calibration", str(CALIBRATION)]
    invoke(*run, *calibration, "--pipeline", pipeline)
    report = json.loads(Path("r.json").read_text())
    SCHEMA.validate(report)
    assert [s["pass"] for s in report["steps"]] == ([1] if pipeline == TWICE else [1, 2])
    data = json.loads(invoke("verify", "m.onnx", "o.onnx", "--report", "r.json", "--json").stdout)
    assert data["ok"] and not data["calibrated"], "no calibration data is needed"
    steps = {run["label"].split(",")[0] for run in data["runs"]}
    assert steps == {f"step {k + 1}" for k in range(len(report["steps"]) + 1)}
    if pipeline == TWICE:
        assert data["replay"]["agrees"]


@pytest.mark.parametrize("pipeline", [TWICE, BLOCKS_FIRST])
def test_verify_refuses_steps_that_were_changed(pipeline: str) -> None:
    run = ["run", "m.onnx", "-o", "o.onnx", "--no-bench", "--report", "r.json", "--quiet"]
    invoke(*run, "--calibration", str(CALIBRATION), "--pipeline", pipeline)
    text = Path("r.json").read_text()
    verify = ["verify", "m.onnx", "o.onnx", "--report", "r.json", "--quiet"]

    def refused(change: Callable[[Any], object], code: int, wrong: str) -> None:
        report = json.loads(text)
        change(report["steps"])
        Path("r.json").write_text(json.dumps(report))
        (line,) = invoke(*verify, code=code).stderr.splitlines()
        assert wrong in line

    def other(steps: Any) -> None:
        indices = steps[-1]["masks"][0]["indices"]
        indices[0] = next(i for i in range(99) if i not in indices)

    def more(steps: Any) -> None:
        """One more unit is gone than the masks say."""
        for cut in steps[-1]["removed"]:
            free = [i for i in range(max(cut["indices"]) + 2) if i not in cut["indices"]]
            cut["indices"].append(free[0])

    def slices_at(index: int) -> Callable[[Any], object]:
        return lambda steps: steps[-1]["removed"][0].update(indices=[index])

    refused(lambda steps: steps.clear(), 6, "does not say what pass 1")
    refused(lambda steps: steps[-1]["masks"].pop(0), 5, "certificate failed")
    refused(other, 5, "certificate failed")
    refused(more, 5, "")
    refused(lambda steps: steps[-1]["removed"].clear(), 5, "certificate failed")
    for index in (10**6, -(10**6), -1):
        refused(slices_at(index), 6, "no such slices")
    refused(lambda steps: steps[0].pop("masks"), 6, "proved again")
    if pipeline == BLOCKS_FIRST:
        refused(lambda steps: steps[0]["masks"][0].update(output="elsewhere"), 6, "elsewhere")
        refused(lambda steps: steps[0]["masks"].clear(), 5, "certificate failed")


def test_verify_passes_that_preserve_the_outputs() -> None:
    """The result is held to the original as it is."""
    run = ["run", "m.onnx", "-o", "o.onnx", "--no-bench", "--report", "r.json"]
    text = invoke(*run, "--pipeline", "remove-redundant,fold-constants").stdout
    assert "certificate: equals the original: " in text
    assert re.search(r"^remove-redundant: removed [1-9]\d* units$", text, re.M)
    SCHEMA.validate(json.loads(Path("r.json").read_text()))
    verify = ("verify", "m.onnx", "o.onnx", "--report", "r.json")
    assert "equals the original: " in invoke(*verify).stdout
    change_bias("o.onnx")
    report = json.loads(Path("r.json").read_text())
    report["pruned"]["sha256"] = hashlib.sha256(Path("o.onnx").read_bytes()).hexdigest()
    Path("r.json").write_text(json.dumps(report))
    assert "DIFFERS from the original" in invoke(*verify, code=5).stderr


def test_a_certificate_for_what_changed_the_model() -> None:
    """Passes that changed nothing do not count."""
    run = ["run", "m.onnx", "-o", "o.onnx", "--no-bench", "--report", "r.json"]
    more = ["--calibration", str(CALIBRATION)]
    invoke(*run, *more, "--pipeline", "remove-redundant,recover,eliminate-dead")
    report = json.loads(Path("r.json").read_text())
    assert [done["modified"] for done in report["passes"]] == [True, False, False]
    assert report["certificate"]["kind"] == "original"
    assert (
        "equals the original" in invoke("verify", "m.onnx", "o.onnx", "--report", "r.json").stdout
    )


def test_without_sizes_that_run_there_is_no_certificate() -> None:
    """The pipeline ends all the same, and says why there is none."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[6] y) {
        a = Add(one, one)  b = Reshape(x, six)  y = Mul(b, a)
    }"""
    model = onnx.parser.parse_model(text)
    for name, array in {"one": np.ones(1, np.float32), "six": np.array([6])}.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, "fixed.onnx")
    result = invoke(
        "run", "fixed.onnx", "-o", "o.onnx", "--no-bench", "--pipeline", "fold-constants"
    )
    assert "note: no certificate: " in result.stderr + result.stdout and Path("o.onnx").exists()


def test_verify_refuses_a_pass_that_moves_the_outputs() -> None:
    report = prune("--macs", "0.5")
    report["pipeline"] = "fold-constants"
    Path("r.json").write_text(json.dumps(report))
    result = invoke("verify", "m.onnx", "o.onnx", "--report", "r.json", code=6)
    assert "prune or preserve" in result.stderr


def test_verify_refuses_other_files() -> None:
    prune("--macs", "0.5", "--report", "r.json")
    prune("--macs", "0.6", output="p.onnx")
    for files, wrong in {
        ("m.onnx", "p.onnx"): "p.onnx is not the pruned model",
        ("o.onnx", "o.onnx"): "o.onnx is not the original model",
        ("m.onnx", "m.onnx"): "m.onnx is not the pruned model",
    }.items():
        result = invoke("verify", *files, "--report", "r.json", code=5)
        assert wrong in result.stderr and len(result.stderr.splitlines()) == 1


def test_verify_refuses_a_pruned_model_that_was_changed() -> None:
    """Even when the report was made to name the changed file."""
    report = prune("--macs", "0.5")
    change_bias("o.onnx")
    Path("r.json").write_text(json.dumps(report))
    assert (
        "not the pruned model"
        in invoke("verify", "m.onnx", "o.onnx", "--report", "r.json", code=5).stderr
    )
    report["pruned"]["sha256"] = hashlib.sha256(Path("o.onnx").read_bytes()).hexdigest()
    Path("r.json").write_text(json.dumps(report))
    result = invoke("verify", "m.onnx", "o.onnx", "--report", "r.json", code=5)
    assert "certificate failed" in result.stderr and len(result.stderr.splitlines()) == 1


def test_verify_refuses_a_report_that_was_changed() -> None:
    original = prune("--macs", "0.5")

    def verify(report: dict[str, Any], code: int) -> str:
        Path("r.json").write_text(json.dumps(report))
        (line,) = invoke(
            *("verify", "m.onnx", "o.onnx", "--report", "r.json", "--quiet"), code=code
        ).stderr.splitlines()
        return line

    def changed(*path: str | int, value: object) -> dict[str, Any]:
        report = json.loads(json.dumps(original))
        place: Any = report
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        found: dict[str, Any] = report
        return found

    masks = original["certificate"]["masks"]
    first = masks[0]["indices"]
    other = [next(i for i in range(99) if i not in first), *first[1:]]
    mask = ("certificate", "masks")
    assert "certificate failed" in verify(changed(*mask, value=masks[1:]), 5)
    assert "certificate failed" in verify(changed(*mask, 0, "indices", value=other), 5)
    assert "certificate failed" in verify(changed(*mask, value=[]), 5)
    for key, value in {"axis": 7, "output": "elsewhere", "input": 9, "indices": [999]}.items():
        verify(changed(*mask, 0, key, value=value), 5)
    for path, value in {
        (*mask, 0, "indices"): "all",
        ("certificate",): None,
        ("pipeline",): "prune{macs=2}",
        ("dims",): {"batch": 0},
        ("dims", "height"): 3,
        ("seed",): -1,
        ("original",): {},
        ("removed", 0, "indices"): "all",
        ("removed", 0, "indices", 0): 10**30,
    }.items():
        verify(changed(*path, value=value), 6 if path[-1] != 0 else 5)
    compaction = {"output": masks[0]["output"], "inputs": [[0, 1]], "outputs": [], "indices": [0]}
    for size in (10**13, -3, 0):
        path = ("certificate", "compactions")
        assert "cannot compact" in verify(changed(*path, value=[compaction | {"size": size}]), 5)


def test_the_verdict_on_inexact_groups_is_one() -> None:
    """A slice of zeros still counts in a normalisation, one that is gone does not: that is no
    disagreement."""
    onnx.save(normalised(normalised_weights()), "n.onnx")
    line = ["prune", "n.onnx", "-o", "o.onnx", "--ratio", "0.3", "--inexact", "--no-bench"]
    invoke(*line, "--report", "r.json")
    result = invoke("verify", "n.onnx", "o.onnx", "--report", "r.json")
    (verdict,) = result.stdout.splitlines()
    assert verdict.startswith("equals the masked original")
    (note,) = result.stderr.splitlines()
    assert "normalisations and means now count only what is left: inexact groups" in note
    data = json.loads(invoke("verify", "n.onnx", "o.onnx", "--report", "r.json", "--json").stdout)
    assert data["ok"] and not data["replay"]["agrees"], "as documented"
