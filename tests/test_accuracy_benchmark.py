"""The program that measures accuracy keeps its rows, and its parts do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks import accuracy, tasks
from benchmarks.cifar_recovery import macs_ratio
from benchmarks.rows import Row, Rows, clock

EXAMPLES = Path(__file__).parent.parent / "examples"


def cifar_row(method: str, png: float, target: float = 2.0) -> Row:
    return Row("resnet20", target, method, {"png": png, "jpeg": 80.25}, ratio=2.01, wall=12.4)


def test_rows_survive_and_the_newest_counts(tmp_path: Path) -> None:
    path = tmp_path / "work" / "rows.jsonl"
    assert Rows(path).read() == {}
    for row in (cifar_row("closed", 90.0), cifar_row("peer", 50.0), cifar_row("closed", 91.5)):
        Rows(path).add(row)
    found = Rows(path).read()
    assert [key[2] for key in found] == ["closed", "peer"]
    assert found["resnet20", 2.0, "closed"].accuracy == {"png": 91.5, "jpeg": 80.25}
    assert "onnxruntime" in found["resnet20", 2.0, "peer"].environment
    assert len(path.read_text().splitlines()) == 3


def test_the_clock_adds_up() -> None:
    row = Row("m", 2.0, "closed")
    for _ in range(2):
        with clock(row):
            sum(range(200_000))
    assert 0 < row.cpu <= 2 * row.wall + 0.1


def test_the_table_prints_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Rows(tmp_path / "rows.jsonl").add(cifar_row("closed", 91.5))
    slow, fast, bad = (
        Row(
            "mnist",
            t,
            "round-to-8",
            {"base": 98.0, "pruned": p},
            found={"speedup": s, "low": s, "high": s},
        )
        for t, p, s in ((1.5, 98.0, 1.2), (2.0, 97.2, 1.6), (4.0, 90.0, 3.0))
    )
    for row in (slow, fast, bad):
        Rows(tmp_path / "rows.jsonl").add(row)
    accuracy.main(["--work", str(tmp_path), "--table"])
    lines = capsys.readouterr().out.splitlines()
    (ours,) = [line for line in lines if line.startswith("| resnet20, 2x ")]
    assert {"closed", "91.50", "80.25", "2.01x", "12"} <= set(ours.replace("|", " ").split())
    assert [line.split("|")[1].strip() for line in lines if " yes |" in line] == [
        "mnist, 2x, round-to-8"
    ]


def test_a_row_needs_the_one_it_builds_on(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="closed of resnet20 at 2 must be measured first"):
        accuracy._needed(Rows(tmp_path / "rows.jsonl"), ("resnet20", 2.0, "closed"), tmp_path / "x")


@pytest.mark.parametrize("arguments", [["--data", "/nowhere"], ["--methods", "magic"]])
def test_wrong_arguments_are_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        accuracy.main([*arguments, "--work", str(tmp_path)])
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


def test_a_task_is_pruned_scored_and_timed(tmp_path: Path) -> None:
    row = tasks.measure(("digits", 2.0, "round-to-8"), tmp_path, tmp_path, None, 1)
    output = tmp_path / "digits-2-round-to-8.onnx"
    with np.load(EXAMPLES / "digits_test.npz") as test:
        for key, path in (("base", EXAMPLES / "digits.onnx"), ("pruned", output)):
            session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
            (logits,) = session.run(None, {"image": test["image"]})
            wanted = 100 * float((logits.argmax(1) == test["label"]).mean())
            assert row.accuracy[key] == pytest.approx(wanted)
    assert row.ratio == pytest.approx(macs_ratio(EXAMPLES / "digits.onnx", output))
    assert row.ratio >= 2 and row.options["samples"] == 256
    assert 0 < row.found["low"] <= row.found["speedup"] <= row.found["high"]
    evaluate = runpy.run_path(str(EXAMPLES / "evaluate.py"))["accuracy"]
    assert row.accuracy["base"] == 100 * evaluate(
        EXAMPLES / "digits.onnx", EXAMPLES / "digits_test.npz"
    )


def test_the_module_of_the_peer_is_the_exported_network(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_pruning")
    from benchmarks import cifar_peer, cifar_torch

    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    wanted = np.pad(x.numpy()[:, :, ::2, ::2], ((0, 0), (2, 2), (0, 0), (0, 0)))
    with torch.no_grad():
        assert np.array_equal(cifar_torch.selection(3, 7, 2)(x).numpy(), wanted)
    module = cifar_torch.ResNet(1)
    cifar_torch.export(module, tmp_path / "module.onnx")
    assert cifar_torch.disagreement(module, tmp_path / "module.onnx") < cifar_torch.AGREES
    sizes = [(3, 16, 32), (16, 16, 32), (16, 16, 32), (16, 32, 16), (32, 32, 16), (32, 64, 8)]
    sizes.append((64, 64, 8))
    assert cifar_peer.macs(module) == sum(9 * i * o * side * side for i, o, side in sizes)
    seen = np.zeros((8, 3, 32, 32), np.float32)
    smaller = cifar_peer.pruned(module, "l2", "global", "inside", 1.5, seen)
    assert 1.5 <= cifar_peer.macs(module) / cifar_peer.macs(smaller) < 1.7
