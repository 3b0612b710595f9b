"""The benchmark programs run and report what can be checked elsewhere; no test depends on time."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks import allocation, architectures, cifar, figures, latency, table
from benchmarks.models import swin_like, wide_graph

from .test_latency import Counted, blocked

no_data = not (cifar.DATA / "cifar10" / "cifar10.py").is_file()
no_pillow = importlib.util.find_spec("PIL") is None


@pytest.fixture(scope="module")
def swin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("figures") / "swin.onnx"
    onnx.save(swin_like(800), path)
    return path


def test_prune_file_counts_every_phase_and_the_memory(swin: Path, tmp_path: Path) -> None:
    output = tmp_path / "pruned.onnx"
    (sample,) = figures.repeat(1, "prune_file", str(swin), "0.5", str(output))
    assert all(sample[phase] > 0 for phase in figures.PHASES)
    assert sum(sample[phase] for phase in figures.PHASES) == pytest.approx(sample["seconds"])
    assert sample["peak_bytes"] > swin.stat().st_size  # it held the model at least once
    assert 0 < sample["removed"] < sample["units"]
    onnx.checker.check_model(onnx.load(output), full_check=True)
    assert output.stat().st_size < swin.stat().st_size
    ort.InferenceSession(output, providers=["CPUExecutionProvider"])


def test_prune_call_writes_model_and_report(swin: Path, tmp_path: Path) -> None:
    output = tmp_path / "pruned.onnx"
    (sample,) = figures.repeat(1, "prune_call", str(swin), "0.5", str(output))
    report = json.loads(output.with_suffix(".json").read_text())
    assert report["certificate"]["ok"] is True
    assert sample["certify"] == report["seconds"]["certify"] > 0
    assert sample["seconds"] > 0


def test_analyse_file_counts_coordinates(tmp_path: Path) -> None:
    path, model = tmp_path / "wide.onnx", wide_graph(40_000)
    onnx.save(model, path)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    (sample,) = figures.repeat(1, "analyse_file", str(path))
    # Hubs of carriers and private copies of shared vectors come on top.
    stated = sum(map(sum, shapes.values()))
    assert stated <= sample["coordinates"] < 1.5 * stated
    assert sample["groups"] > 0


def test_a_figure_is_met_by_its_median() -> None:
    samples = [{"seconds": seconds} for seconds in (1.0, 5.0, 2.0)]
    good = figures.row("a", samples, "seconds", 3)
    assert (good["best"], good["median"], good["worst"]) == (1, 2, 5)
    assert good["met"] and not figures.row("b", samples, "seconds", 2)["met"]
    text = figures.show([good], [])
    assert text.splitlines()[-1].split("|")[1:4] == [" a      ", "  < 3 s ", " 1.00 "]


def test_scaling_measures_every_size(capsys: pytest.CaptureFixture[str]) -> None:
    figures.main(["--only-scaling", "--sizes", "800", "--repeat", "1", "--json"])
    (entry,) = json.loads(capsys.readouterr().out)["scaling"]
    assert entry["nodes"] == len(swin_like(800).graph.node)
    assert entry["seconds"] > 0


def test_help_is_timed() -> None:
    samples = figures.help_seconds(2)
    assert len(samples) == 2 and all(sample["seconds"] > 0 for sample in samples)


def test_markdown_aligns_its_columns() -> None:
    lines = table.markdown(["name", "n"], [["a", "1"], ["long name", "1000"]]).splitlines()
    assert lines[1] == "| --------- | ---: |"
    assert lines[2] == "| a         |    1 |"
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("arguments", [["--data", "/nowhere"], ["--scopes", "both"]])
def test_cifar_refuses_wrong_arguments(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cifar.main(arguments)
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.skipif(no_data, reason=f"no pictures: {cifar.DATA} is absent")
@pytest.mark.skipif(no_pillow, reason="the pictures need pillow")
def test_cifar_agrees_with_the_loader_of_the_data() -> None:
    keep = 0.8
    rows = cifar.measure(
        cifar.DATA, ["resnet20"], [keep, 0.001], ["local"], ["l2"], limit=200, min_seconds=0.01
    )
    base, pruned, impossible = rows
    path = cifar.DATA / "cifar10_resnet" / "resnet20_cifar10.onnx"
    loader = cifar._module(cifar.DATA / "cifar10" / "cifar10.py")
    wanted = 100 * loader.accuracy(str(path), kind="png", limit=200)
    assert base.accuracy["png"] == pytest.approx(wanted)
    assert 0.9 * keep < pruned.macs / base.macs <= keep
    assert pruned.params < base.params and pruned.ms > 0
    assert pruned.speedup_low <= pruned.speedup_high
    assert set(pruned.seconds) == set(cifar.PHASES)
    assert "cannot go down" in impossible.note and not impossible.accuracy
    assert np.isfinite(pruned.accuracy["png"])
    text = cifar.show(rows)
    assert f"{pruned.macs / 1e6:.2f} M" in text and impossible.note in text


def test_allocation_rows_hold_bounds() -> None:
    row = allocation.measure("transformer", {"macs": 0.5}, "l2", 2.0)
    assert 0 < row.bound <= row.lost < row.local < 1
    assert row.gap == pytest.approx(1 - row.bound / row.lost, abs=1e-9)
    assert "| transformer |" in allocation.show([row])


def test_latency_rows_count_their_macs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tables come from a clock that counts blocks of 16, so nothing hangs on the machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clock = Counted(blocked(16)).clock
    monkeypatch.setattr("secateur.passes.choose.real_clock", lambda *_: clock)
    row = latency.measure("resnet20", 16, 0.5, 1, "local", 0.01)
    assert 0.4 < row.unaligned.macs <= 0.5 and 0.3 < row.aligned.macs <= 0.5
    assert row.milliseconds > 0 and row.unaligned.kernels > 0
    assert set(row.steps.split("/")) == {"8", "16"}, "16 channels keep two steps"
    assert row.aligned.worth[1] == row.aligned.kernels * row.aligned.macs
    assert latency.show([row]).count("\n") == 2


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_architectures_run(name: str) -> None:
    model = architectures.ARCHITECTURES[name](32)
    onnx.checker.check_model(model, full_check=True)
    value = model.graph.input[0]
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"input": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    (output,) = session.run(None, feed)
    assert np.isfinite(output).all() and output.std() > 0
