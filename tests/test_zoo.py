"""The framework of the zoo benchmark: steps in processes of their own, resume, limits, reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks.zoo import __main__ as zoo
from benchmarks.zoo import (
    catalog,
    nursery,
    origin,
    record,
    records,
    report,
    runner,
    shares,
    torch_pruning_step,
)

MODULE = "tests.zoo_cases"
PARAMETERS = 8 * 32 + 32 + 32 * 4
FILES = ["model.onnx", "weights.data"]


def command(work: Path, *more: str) -> None:
    zoo.main(["--work", str(work), "--modules", MODULE, *more])


def result(work: Path, case: str, step: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / case / f"{step}.json").read_text())
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which one case succeeds and two fail to export."""
    folder = tmp_path_factory.mktemp("zoo")
    command(folder, "--only", "tiny/*", "--only", "broken/crash")
    return folder


def test_a_case_is_exported_pruned_and_proved(work: Path) -> None:
    found = result(work, "tiny/mlp", "secateur")
    assert found["status"] == "ok"
    assert found["groups"] == {"exact": 1, "inexact": 0}
    assert found["units"] == {"exact": 32, "inexact": 0}
    assert (found["parameters"], found["macs"]) == (PARAMETERS, 8 * 32 + 32 * 4)
    assert found["prunable"] == {"exact": 1, "all": 1}
    assert found["left"] == {"macs": 0.5, "parameters": 0.5}
    assert found["certificate"]["ok"] and found["certificate"]["worst"] < 1e-5
    assert 0 < found["speedup"]["low"] <= found["speedup"]["high"]
    assert found["peak_bytes"] > 0 and found["versions"]["onnx"] == onnx.__version__
    again = result(work, "tiny/mlp", "secateur-inexact")
    assert again["status"] == "ok" and again["speedup"] == found["speedup"], "the same pruning"
    assert [p.name for p in (work / "tiny/mlp/files").iterdir()] == ["model"]
    assert sorted(p.name for p in (work / "tiny/mlp/files/model").iterdir()) == FILES


def test_a_failed_step_is_one_result_with_its_reason(work: Path) -> None:
    refused = result(work, "tiny/refuse", "export")
    assert refused["status"] == "failed" and refused["stage"] == "export"
    assert refused["reason"] == "ValueError: operator 'fold' is not supported (model.onnx)"
    crashed = result(work, "broken/crash", "export")
    assert crashed["status"] == "failed"
    assert crashed["reason"] == "the process died of SIGSEGV (stage: export)"
    assert not list(work.rglob("*.part"))
    assert not (work / "tiny/refuse/secateur.json").exists()


@pytest.mark.parametrize(
    ("case", "limits", "why"),
    [
        ("broken/hang", {"timeout": 1.0}, "more than 1 s (stage: "),
        ("broken/devour", {"memory": 5e8}, "more than 0.5 GB of memory (stage: export)"),
    ],
)
def test_limits_end_a_step(case: str, limits: dict[str, Any], why: str, tmp_path: Path) -> None:
    (tmp_path / case).mkdir(parents=True)
    spec = record.Spec(case, MODULE, "export", str(tmp_path / case))
    with nursery.Nursery(1) as forking:
        found = runner.run_step(spec, runner.Options(tmp_path, **limits), forking)
    assert found["status"] == "failed" and found["reason"].startswith(why)
    assert record.read_result(spec.done) == found


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's schedstat")
def test_waiting_for_a_processor_does_not_count_as_time() -> None:
    """Two processes that share one processor wait half of their time; one that sleeps does not."""
    processor = min(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, [{processor}])\nwhile True: pass"
    commands = (spin, spin, "import time; time.sleep(60)")
    running = [subprocess.Popen([sys.executable, "-c", text]) for text in commands]
    try:
        time.sleep(2)
        first, second, sleeper = (runner.waited(process.pid) for process in running)
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert first + second > 0.8
    assert sleeper < min(first, second)


def test_what_is_done_is_not_done_again(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {path: path.stat().st_mtime_ns for path in work.rglob("*.json")}
    command(work, "--only", "tiny/*")
    assert capsys.readouterr().err == ""
    assert files == {path: path.stat().st_mtime_ns for path in work.rglob("*.json")}


def test_redo_makes_one_step_again_and_the_file_that_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ("--only", "tiny/mlp", "--steps", "export", "secateur", "--keep", "0")
    command(tmp_path, *only)
    assert not list((tmp_path / "tiny/mlp/files").iterdir())
    capsys.readouterr()
    command(tmp_path, *only, "--redo", "*/mlp:secateur")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["tiny/mlp export", "tiny/mlp secateur"]


def test_retry_runs_only_what_failed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(work, "--only", "tiny/*", "--retry", "--steps", "export", "secateur")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tiny/refuse export: failed")


def test_environments_list_their_own_cases(capsys: pytest.CaptureFixture[str]) -> None:
    options = runner.Options(Path(), {"tensorflow": sys.executable})
    entries, notes = runner.list_cases(options, [MODULE, "benchmarks.zoo.no_models"])
    found = {entry.name: entry.environment for entry in entries}
    assert found["elsewhere/mlp"] == "tensorflow" and found["tiny/mlp"] == "torch"
    assert len(entries) == 6
    assert notes == ["benchmarks.zoo.no_models: No module named 'benchmarks.zoo.no_models'"]
    with pytest.raises(SystemExit):
        command(Path(), "--only", "elsewhere/*")  # needs a Python of its own
    assert "no case has such a name" in capsys.readouterr().err


def test_modules_are_found_by_name() -> None:
    found = catalog.modules()
    assert {"benchmarks.zoo.torchvision_models", "benchmarks.zoo.variants"} <= set(found)
    assert "benchmarks.zoo.case" not in found


def test_shares_from_shapes() -> None:
    before = {"up": [8, 32], "down": [32, 4], "fixed": [10]}
    assert shares.prunable_share(before, before, 0.5) == 0
    half = before | {"up": [8, 16], "down": [16, 4]}
    assert shares.prunable_share(before, half, 0.5) == pytest.approx(384 / 394)
    assert shares.elements(half) == 8 * 16 + 16 * 4 + 10
    # Half of the columns may go, and half of those went; rows and columns count once.
    assert shares.prunable_share({"w": [8, 8]}, {"w": [8, 6]}, 0.5) == pytest.approx(0.5)
    assert shares.prunable_share({"w": [8, 8]}, {"w": [6, 6]}, 0.5) == pytest.approx(0.75)
    assert shares.prunable_share({"w": [3]}, {"w": [1]}, 0.5) == 1


class Part:
    """What the step of Torch-Pruning asks of a PyTorch module: its parts, and attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__ |= attributes

    def named_children(self) -> list[tuple[str, Part]]:
        return [(name, part) for name, part in vars(self).items() if isinstance(part, Part)]

    def modules(self) -> list[Part]:
        return [self, *(m for _, part in self.named_children() for m in part.modules())]


def test_modules_remember_the_head_sizes_that_pruning_left() -> None:
    qkv, query = Part(out_features=3 * 4 * 16), Part(out_features=4 * 16)
    packed = Part(qkv=qkv, num_heads=4, head_dim=16, attn_dim=64, embed_dim=64)
    plain = Part(query=query, attention_head_size=16, all_head_size=64, head_dim=7)
    other = Part(head_dim=16)
    widths = {qkv: 3 * 4 * 16, query: 4 * 16}
    vars(qkv)["out_features"], vars(query)["out_features"] = 3 * 4 * 8, 4 * 10
    model = Part(first=packed, second=plain, last=other)
    torch_pruning_step.restate_heads(model, {qkv: 4, query: 4}, widths)
    assert vars(packed).items() >= {"head_dim": 8, "attn_dim": 32, "embed_dim": 64}.items()
    assert vars(plain).items() >= {"attention_head_size": 10, "all_head_size": 40}.items()
    assert vars(plain)["head_dim"] == 7 and vars(other)["head_dim"] == 16


def ours(macs: float, share: float, **more: Any) -> dict[str, Any]:
    return {
        "status": "ok",
        "groups": {"exact": 3, "inexact": 1},
        "units": {"exact": 30, "inexact": 8},
        "prunable": {"exact": share / 2, "all": share},
        "left": {"macs": macs, "parameters": 0.4},
        "certificate": {"ok": True, "worst": 2e-7},
        "speedup": {"ratio": 2.0, "low": 1.9, "high": 2.1},
        "seconds": {"analyse": 0.5, "whole": 3.0},
        "warnings": ["node 'a7': no rule for Foo"],
        **more,
    }


def peer(macs: float, share: float, runs: bool = True) -> dict[str, Any]:
    left = {"macs": macs, "parameters": 0.3}
    return {"status": "ok", "prunable": share, "left": left, "runs": runs}


EXPORT: dict[str, Any] = {"status": "ok", "versions": {"onnx": "1.2"}}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "f/behind": {
        "export": EXPORT,
        "secateur": ours(0.6, 0.8),
        "secateur-inexact": ours(0.5, 0.8),
        "torch-pruning": peer(0.25, 0.9),
        "onnxsim": peer(0.497, 0.803),
    },
    "f/ahead": {
        "export": EXPORT,
        "secateur": ours(0.6, 0.8),
        "secateur-inexact": ours(0.3, 0.8),
        "torch-pruning": peer(0.1, 1.0, runs=False),
        "onnxsim": {"status": "failed", "reason": "ValueError: 3 nodes in 'a'"},
    },
    "g/unpruned": {
        "export": EXPORT,
        "secateur": {"status": "failed", "reason": "ModelError: node 'b12' is odd"},
        "secateur-inexact": {"status": "failed", "reason": "ModelError: node 'c9' is odd"},
        "onnxsim": peer(0.9, 0.2),
    },
    "g/refused": {"export": {"status": "failed", "reason": "no"}},
}
ROWS = report.rows_of(CASES.items())


def test_gaps_are_where_a_peer_that_runs_is_better() -> None:
    lines = report.gaps(ROWS).splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "f/behind: MACs removed 0.500",
        "g/unpruned: prunable share 0.000",
        "f/behind: prunable share 0.800",
        "g/unpruned: MACs removed 0.000",
    ]
    assert lines[0].endswith("Torch-Pruning 0.750 (+0.250)")


def cells(text: str, model: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {model} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_marks_what_peers_do_better() -> None:
    text = report.table(ROWS, "Other work went on.")
    assert "\n\nOther work went on.\n\n## Summary" in text
    assert cells(text, "behind") == [
        "behind",
        "3+1",
        "30+8",
        "0.40 / 0.80",
        "0.60 / 0.50",
        "0.40 / 0.40",
        "2e-07 / 2e-07",
        "2.00 (1.90-2.10) / 2.00 (1.90-2.10)",
        "0.5",
        "3.0",
        "1",
        *("**0.90**", "**0.25**", "0.30"),
        *("0.80", "0.50", "0.30"),
    ]
    assert cells(text, "ahead")[-6:] == ["broken", "-", "-", "failed", "-", "-"]
    assert cells(text, "unpruned")[6] == "failed / failed"
    assert cells(text, "refused")[1] == "not exported"
    assert "onnx 1.2" in text


def test_the_summary_counts_by_family() -> None:
    text = report.summary(ROWS)
    assert cells(text, "f") == ["f", "2", "2", "2", "2", "2", "1", "1", "1"]
    assert cells(text, "g") == ["g", "2", "1", "0", "0", "0", "0", "1", "1"]
    assert cells(text, "all") == ["all", "4", "3", "2", "2", "2", "1", "2", "2"]


def test_failures_and_warnings_are_grouped_by_cause() -> None:
    assert report.cause("node 'b12' is 3 odd") == report.cause("node 'c9' is 14 odd")
    text = report.failures([*ROWS, report.Row("g/other", ROWS[3].steps)], ["secateur"])
    assert text == "- **secateur**, 2: ModelError: node 'b12' is odd - g/unpruned, g/other"
    assert report.reasons(ROWS) == "    2  node _: no rule for Foo"


def test_the_table_of_a_run_is_written(work: Path, tmp_path: Path) -> None:
    page = tmp_path / "zoo.md"
    command(work, "--no-run", "--table", str(page), "--only", "tiny/*")
    text = page.read_text()
    assert cells(text, "mlp")[1:5] == ["1+0", "32+0", "1.00 / 1.00", "0.50 / 0.50"]
    assert "operator 'fold' is not supported" in text
    assert "crash" not in text


# ---- records ------------------------------------------------------------------------------------


def test_records_take_the_place_of_a_lost_folder(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "records.jsonl", tmp_path / "zoo.md"
    command(work, "--no-run", "--records", str(file))
    text = file.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    cases = [line["case"] for line in lines if "case" in line]
    assert cases == ["broken/crash", "tiny/mlp", "tiny/refuse"]
    (kept,) = [line["steps"]["secateur"] for line in lines if line.get("case") == "tiny/mlp"]
    found = result(work, "tiny/mlp", "secateur")
    assert kept["speedup"]["ratio"] == pytest.approx(found["speedup"]["ratio"], rel=1e-3)
    assert (kept["units"], kept["code"]) == (found["units"], origin.code())
    assert str(found["speedup"]["ratio"]) not in text, "rounded"
    assert "kept" not in kept and "trace" not in text
    found_again = dict(records.read_records(file))["tiny/mlp"]
    assert {s: sorted(r) for s, r in found_again.items()} == {
        s: sorted(result(work, "tiny/mlp", s).keys() - {"case", "step", "kept", "trace"})
        for s in found_again
    }
    assert len([line for line in lines if "environment" in line]) < 6, "written once each"

    new = tmp_path / "new"
    more = ("--records", str(file), "--table", str(page))
    command(new, "--only", "tiny/*", "--only", "broken/crash", *more)
    assert capsys.readouterr().err == "", "all is done"
    assert cells(page.read_text(), "mlp")[1:5] == ["1+0", "32+0", "1.00 / 1.00", "0.50 / 0.50"]
    assert file.read_text() == text
    assert not (new / "tiny/mlp/files").exists()


def test_records_are_written_when_a_run_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "say", stop)
    file = tmp_path / "records.jsonl"
    with pytest.raises(KeyboardInterrupt):
        command(tmp_path / "work", "--only", "tiny/*", "--jobs", "1", "--records", str(file))
    assert list(dict(records.read_records(file))["tiny/mlp"]) == ["export"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["records.jsonl"]


def test_records_are_written_now_and_then(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = records.Keeper(work, tmp_path / "records.jsonl")
    keeper.tick()
    assert not keeper.file.exists()
    keeper.next -= records.EVERY
    keeper.tick()
    assert keeper.file.exists()


def test_a_result_of_the_folder_is_newer_than_the_record(tmp_path: Path) -> None:
    file, folder = tmp_path / "records.jsonl", tmp_path / "f/m"
    file.write_text(records.pack([("f/m", {"export": {"status": "ok", "bytes": 1}})]))
    folder.mkdir(parents=True)
    record.write_result(folder / "export.json", {"case": "f/m", "status": "ok", "bytes": 2})
    records.unpack(file, tmp_path)
    assert record.read_result(folder / "export.json") == {
        "case": "f/m",
        "status": "ok",
        "bytes": 2,
    }


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", '{"case": "f/m"}', '{"case": "f/m", "steps": {"export": {"made_in": "x"}}}'],
)
def test_what_is_no_record_is_said(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(SystemExit):
        command(tmp_path / "work", "--no-run", "--records", str(file))
    assert f"{file}, line 1: not a record of the zoo" in capsys.readouterr().err
    assert file.read_text() == line + "\n"


def test_rows_of_several_sittings_are_told_apart() -> None:
    def made(when: str, machine: str, code: str) -> dict[str, str]:
        return {"when": when, "machine": machine, "code": code}

    def case(when: str, machine: str, code: str) -> dict[str, dict[str, Any]]:
        return {
            "export": EXPORT | made("2026-01-01 00:00", "elsewhere", "c0"),
            "secateur": ours(0.6, 0.8) | made(when, machine, code),
        }

    cases = {
        "f/new": case("2026-02-03 10:00", "8 cores", "c2"),
        "f/newer": case("2026-02-03 11:00", "8 cores", "c2"),
        "f/old": case("2026-02-01 09:00", "8 cores", "c1"),
    }
    text = report.table(report.rows_of(cases.items()))
    assert "1. 1 models: 2026-02-01 09:00 (UTC), 8 cores, code c1\n" in text
    assert "2. 2 models: 2026-02-03 10:00 to 2026-02-03 11:00 (UTC), 8 cores, code c2\n" in text
    assert [cells(text, name)[-1] for name in ("new", "newer", "old")] == ["2", "2", "1"]
    one = report.table(report.rows_of([("f/old", cases["f/old"])]))
    assert "\n1 models: 2026-02-01 09:00 (UTC), 8 cores, code c1.\n" in one
    assert "sitting" not in one.partition("## f")[2]
