"""What ``prune`` does with which options, with data and without."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import secateur
from secateur.driver.recipe import prune_recipe
from secateur.ir.errors import CertificateError, DataError, TargetError, UsageError
from secateur.passes.pipeline import format_pipeline
from secateur.passes.prune import Prune

from .cli_runs import command, invoke
from .test_recover import error, normalised, outputs, residual, samples


def text(**options: Any) -> str:
    return format_pipeline(prune_recipe(**options))


def test_without_data_there_is_one_pass() -> None:
    assert text(calibrated=False, macs=0.5) == "prune{macs=0.5}"


def test_with_data_the_weights_are_refitted() -> None:
    step = "prune{macs=0.5 criterion=reconstruction scope=global}"
    last = "prune{macs=0.25 of=original criterion=reconstruction scope=global}"
    assert text(calibrated=True, macs=0.25) == f"fold-batchnorm,{step},recover,{last},recover"
    one = text(calibrated=True, macs=0.5, steps=1)
    assert one == f"fold-batchnorm,{step},recover"


def test_what_is_asked_for_counts() -> None:
    options: dict[str, Any] = {"calibrated": True, "macs": 0.5, "criterion": "l1", "scope": "local"}
    assert text(**options, steps=1) == "fold-batchnorm,prune{macs=0.5 criterion=l1},recover"
    assert text(calibrated=True, macs=0.5, recover=False) == "prune{macs=0.5}"
    noise = text(calibrated=False, macs=0.5, recover=True)
    assert noise == "fold-batchnorm,prune{macs=0.5},recover{data=noise}"


def test_distillation_comes_last_where_pytorch_is() -> None:
    options: dict[str, Any] = {"calibrated": True, "macs": 0.5, "steps": 1, "distill": 2.0}
    if importlib.util.find_spec("torch"):
        assert text(**options).endswith("recover,distill{minutes=2.0}")
    else:
        with pytest.raises(UsageError, match="finetune"):
            prune_recipe(**options)


def test_steps_multiply_to_the_whole() -> None:
    steps = prune_recipe(calibrated=True, steps=3, params=0.4, size=0.3)
    found = [p for p in steps if isinstance(p, Prune)]
    assert len(found) == 3
    for name, share in (("params", 0.4), ("size", 0.3)):
        wanted = [share ** (1 / 3), share ** (2 / 3), share]
        assert [getattr(p, name) for p in found] == pytest.approx(wanted)
    assert [p.of for p in found] == ["input", "original", "original"]
    ratios = [p for p in prune_recipe(calibrated=False, steps=2, ratio=0.5) if isinstance(p, Prune)]
    assert np.prod([1 - (p.ratio or 0) for p in ratios]) == pytest.approx(0.5)


def test_a_step_that_went_too_far_leaves_less_to_do() -> None:
    """The last step aims at the original's share, whatever the first has reached."""
    original = residual()
    data = {"x": samples(64)}
    found = secateur.prune(original, macs=0.5, calibration=data, bench=False, threads=1)
    first, second = (t for t in found.report["targets"] if t["target"] == "macs")
    assert second["before"] == first["reached"]
    assert second["goal"] == pytest.approx(0.5 * first["before"])
    assert found.report["totals"]["macs"]["after"] == second["reached"]


def test_a_step_with_nothing_left_to_do_does_nothing() -> None:
    """Rounded to eight, the first step of two meets the whole target."""
    found = secateur.prune(
        residual(), macs=0.85, round_to=8, calibration={"x": samples(64)}, bench=False, threads=1
    )
    assert [r.statistics.get("units") for r in found.results] == [None, 8, None, 0, None]
    assert found.certificate is not None and found.certificate.ok


def test_amounts_take_one_step() -> None:
    passes = prune_recipe(calibrated=True, size="20k")
    assert [p.name for p in passes] == ["fold-batchnorm", "prune", "recover"]
    for options in ({"size": "20k"}, {"latency_ms": 3.0}, {"min_quality": 0.9}):
        with pytest.raises(UsageError, match="`steps`"):
            prune_recipe(calibrated=True, steps=2, **options)


def test_contradictions() -> None:
    with pytest.raises(UsageError, match="--calibration"):
        prune_recipe(calibrated=False, macs=0.5, distill=1.0)
    with pytest.raises(UsageError, match="at least 1"):
        prune_recipe(calibrated=True, macs=0.5, steps=0)
    with pytest.raises(UsageError, match="at least one target"):
        prune_recipe(calibrated=True)


def test_data_keep_the_outputs() -> None:
    """On samples that were not given, with MACs at or below what was asked."""
    original, fresh = residual(), samples(64, seed=1)
    plain = secateur.prune(original, macs=0.5, bench=False, threads=1)
    kept = secateur.prune(original, macs=0.5, calibration={"x": samples()}, bench=False, threads=1)
    macs = kept.report["totals"]["macs"]
    assert macs["after"] <= 0.5 * macs["before"]
    assert error(kept.model, original, fresh) < 0.3 * error(plain.model, original, fresh)


def agreement(model: Any, original: onnx.ModelProto, x: Any) -> float:
    a, b = outputs(model, x), outputs(original, x)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


def test_quality_is_judged_behind_recovery() -> None:
    """More goes than without, and the cosine of the outputs is still above the floor."""
    original, data = residual(), {"x": samples(64)}
    options: dict[str, Any] = {"calibration": data, "bench": False, "threads": 1, "steps": 1}
    kept = secateur.prune(original, min_quality=0.99, **options)
    plain = secateur.prune(original, min_quality=0.99, recover=False, **options)
    assert agreement(kept.model, original, data["x"]) >= 0.99
    shares = [r.report["totals"]["macs"]["after"] for r in (kept, plain)]
    assert shares[0] < 0.8 * shares[1]
    row = kept.report["targets"][-1]
    assert row["target"] == "min-quality" and row["reached"] >= 0.99
    assert row["reached"] == pytest.approx(agreement(kept.model, original, data["x"]), abs=1e-5)


def test_quality_beside_other_targets_must_hold() -> None:
    original, data = residual(), {"x": samples(64)}
    options: dict[str, Any] = {"calibration": data, "bench": False, "threads": 1, "steps": 1}
    assert secateur.prune(original, macs=0.8, min_quality=0.9, **options).results
    with pytest.raises(TargetError, match="once the other targets are met"):
        secateur.prune(original, macs=0.1, min_quality=0.9999, **options)
    with pytest.raises(TargetError, match="no pruning keeps"):
        secateur.prune(original, min_quality=1.0, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    onnx.save(residual(), folder / "model.onnx")
    np.savez(folder / "data.npz", x=samples())
    model, pruned, data, report = (
        str(folder / name) for name in ("model.onnx", "pruned.onnx", "data.npz", "report.json")
    )
    options = ["--macs", "0.5", "--no-bench", "--threads", "1", "--report", report]
    done = invoke("prune", model, "-o", pruned, "--calibration", data, *options)
    removed = re.findall("^step ([12]) of 2, prune: removed ([0-9]+) units", done.stdout, re.M)
    assert [step for step, _ in removed] == ["1", "2"]
    assert f"removed {sum(int(units) for _, units in removed)} units from" in done.stdout
    steps = re.findall("^step ([12]) of 2, recover: outputs off by", done.stdout, re.M)
    assert steps == ["1", "2"]
    return folder


def test_a_refitted_model_is_verified_from_files(files: Path) -> None:
    found = secateur.verify(files / "model.onnx", files / "pruned.onnx", files / "report.json")
    assert found.ok and found.worst <= found.tolerance


def report_of(files: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files / "report.json").read_text())
    return found


def changed(files: Path, what: str) -> tuple[Path, dict[str, Any]]:
    """The pruned model with another number or attribute, and a report that owns up to the file."""
    model, report = onnx.load(files / "pruned.onnx"), report_of(files)
    if what == "a number":
        report["refitted"] = report["refitted"][1:]
    else:
        node = next(n for n in model.graph.node if n.op_type == "Conv")
        for attribute in node.attribute:
            if attribute.name == "pads":
                attribute.CopyFrom(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))
    path = files / f"{what}.onnx"
    onnx.save(model, path)
    report["pruned"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return path, report


@pytest.mark.parametrize("what", ["a number", "an attribute"])
def test_anything_else_that_changed_is_found(files: Path, what: str) -> None:
    path, report = changed(files, what)
    with pytest.raises(CertificateError, match="not what the recorded"):
        secateur.verify(files / "model.onnx", path, report)


@pytest.mark.parametrize(
    ("pipeline", "late"),
    [
        ("fold-batchnorm,{},eliminate-dead", ""),
        ("{},fold-batchnorm", "pass 3, 'fold-batchnorm'"),
        ("eliminate-dead,{},fold-batchnorm,fold-constants", "pass 4, 'fold-batchnorm'"),
        ("prune{{ratio=0.25}},fold-batchnorm,recover", "pass 2, 'fold-batchnorm'"),
    ],
)
def test_rewriting_what_was_refitted_cannot_be_proved_again(
    pipeline: str, late: str, tmp_path: Path
) -> None:
    model, pruned, data, report = (
        str(tmp_path / name) for name in ("m.onnx", "o.onnx", "d.npz", "r.json")
    )
    onnx.save(normalised(), model)
    np.savez(data, x=samples(64, 0, (4, 6, 6)))
    run = ["run", model, "-o", pruned, "--calibration", data, "--report", report, "--no-bench"]
    invoke(*run, "--pipeline", pipeline.format("prune{ratio=0.25},recover"))
    found = invoke("verify", model, pruned, "--report", report, code=6 if late else 0)
    if late:
        assert late in found.stderr and "come before; run it first" in found.stderr


def test_reports_that_name_no_weight_are_refused(files: Path) -> None:
    report = report_of(files)
    report["refitted"].append("nowhere")
    with pytest.raises(DataError, match="nowhere"):
        secateur.verify(files / "model.onnx", files / "pruned.onnx", report)


def test_the_hint_says_what_data_would_bring(files: Path) -> None:
    paths = str(files / "model.onnx"), "-o", str(files / "other.onnx")
    options = "--macs", "0.5", "--no-bench", "--threads", "1"
    done = command("prune", *paths, *options)
    assert done.returncode == 0 and done.stderr.count("--calibration") == 1
    quiet = command("prune", *paths, "--no-recover", *options)
    assert quiet.returncode == 0 and "--calibration" not in quiet.stderr
