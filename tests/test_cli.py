"""Every command, as a user types it: what it prints where, what it writes, how it exits."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import typer.main
from jsonschema import Draft202012Validator
from onnx import numpy_helper
from typer.testing import CliRunner, Result

import secateur
from secateur.driver.cli import app

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits.onnx"
CALIBRATION = ROOT / "examples" / "digits_calibration.npz"
SCHEMA = Draft202012Validator(json.loads((ROOT / "docs" / "report.schema.json").read_text("utf-8")))
MANUAL = (ROOT / "docs" / "cli.md").read_text("utf-8")
BLOCKS = "stage1 stage2a stage2b stage3".split()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in a folder of its own that holds ``m.onnx``, a copy of the example."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(DIGITS, "m.onnx")
    return tmp_path


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m secateur`` in another process."""
    return subprocess.run(
        [sys.executable, "-m", "secateur", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def prune(*options: str, output: str = "o.onnx") -> dict[str, Any]:
    """Prunes without timing; gives the report, which is valid."""
    text = invoke("prune", "m.onnx", "-o", output, "--no-bench", "--json", *options).stdout
    report: dict[str, Any] = json.loads(text)
    SCHEMA.validate(report)
    return report


def shapes(path: str) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer}


def widths(path: str) -> list[int]:
    """The inner channels of every residual block."""
    held = shapes(path)
    return [held[f"{block}.conv1.weight"][0] for block in BLOCKS]


def macs(path: str) -> int:
    """Multiply-accumulates of one image, counted from ONNX's own shape inference."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    sizes = {
        v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim]
        for v in [*model.graph.value_info, *model.graph.output]
    }
    held = shapes(path)
    total = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            total += int(np.prod(sizes[node.output[0]]) * np.prod(held[node.input[1]][1:]))
        elif node.op_type == "Gemm":
            total += int(np.prod(held[node.input[1]]))
    return total


def outputs(path: str, batch: int = 3) -> np.ndarray[Any, np.dtype[np.float32]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(7).random((batch, 1, 8, 8)).astype(np.float32)
    found: np.ndarray[Any, np.dtype[np.float32]] = session.run(None, {"image": image})[0]
    return found


# --- prune ---


def test_prune_prints_a_summary_and_writes_a_model_that_runs() -> None:
    result = invoke("prune", "m.onnx", "-o", "o.onnx", "--macs", "0.5")
    for words in ("MACs", "parameters", "peak activations", "latency (P50)", "speed-up"):
        assert words in result.stdout
    assert re.search("certificate: equals the masked original.*relative error", result.stdout)
    assert "wrote o.onnx" in result.stdout
    assert result.stderr == ""
    onnx.checker.check_model("o.onnx", full_check=True)
    for batch in (1, 5):
        assert outputs("o.onnx", batch).shape == (batch, 10)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_macs_are_met_from_above(share: float, scope: str) -> None:
    report = prune("--macs", str(share), "--scope", scope)
    whole, left = macs("m.onnx"), macs("o.onnx")
    assert left <= share * whole
    assert left > (share - 0.05) * whole
    assert report["totals"]["macs"]["before"] == whole
    assert report["totals"]["macs"]["after"] == left


def test_parameters_are_met_from_above() -> None:
    report = prune("--params", "0.6")
    whole, left = (sum(map(np.prod, shapes(p).values())) for p in ("m.onnx", "o.onnx"))
    assert 0.58 * whole < left <= 0.6 * whole
    assert report["totals"]["parameters"]["before"] == whole
    assert report["totals"]["parameters"]["after"] == left


def test_ratio_takes_the_same_share_of_every_group() -> None:
    before = widths("m.onnx")
    report = prune("--ratio", "0.25")
    assert widths("o.onnx") == [n - round(n / 4) for n in before]
    assert {g["removed"] * 4 for g in report["groups"]} == {g["units"] for g in report["groups"]}


def test_criteria_choose_differently() -> None:
    weight = numpy_helper.to_array(
        next(t for t in onnx.load("m.onnx").graph.initializer if t.name == "stage1.conv1.weight")
    )
    after = numpy_helper.to_array(
        next(t for t in onnx.load("m.onnx").graph.initializer if t.name == "stage1.conv2.weight")
    )
    for criterion, power in {"l1": 1, "l2": 2}.items():
        report = prune("--ratio", "0.25", "--criterion", criterion, "--protect", "stem.weight")
        norm = (abs(weight) ** power).sum((1, 2, 3)) + (abs(after) ** power).sum((0, 2, 3))
        (gone,) = (
            r["indices"]
            for r in report["removed"]
            if (r["tensor"], r["axis"]) == ("stage1.conv1.weight", 0)
        )
        assert gone == sorted(np.argsort(norm)[: len(gone)].tolist())


def test_limits() -> None:
    before = widths("m.onnx")
    prune("--macs", "0.5", "--round-to", "8")
    assert all(n % 8 == 0 for n in widths("o.onnx"))
    assert widths("o.onnx") != before
    prune("--ratio", "0.9", "--max-ratio", "0.5")
    assert widths("o.onnx") == [n - n // 2 for n in before]
    prune("--ratio", "0.999")
    assert widths("o.onnx") == [1] * len(before), "a group never falls below one unit"


def test_protected_names_stay_whole() -> None:
    before = shapes("m.onnx")
    prune("--ratio", "0.5", "--protect", "stage1.conv1.*", "--protect", "/stage3/conv2/Conv")
    after = shapes("o.onnx")
    for name in ("stage1.conv1.weight", "stage3.conv2.weight"):
        assert after[name] == before[name]
    assert after["stage2a.conv1.weight"][0] == before["stage2a.conv1.weight"][0] // 2


def test_inexact_groups_are_pruned_when_asked() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,4] x) => (float[N,3] y) {
          h = MatMul(x, a)
          n = LayerNormalization(h, s)
          y = MatMul(n, b)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"a": (4, 8), "s": (8,), "b": (8, 3)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, "m.onnx")
    refused = invoke("prune", "m.onnx", "-o", "o.onnx", "--ratio", "0.5", code=4)
    assert "--inexact" in refused.stderr
    report = prune("--ratio", "0.5", "--inexact")
    assert shapes("o.onnx") == {"a": (4, 4), "s": (4,), "b": (4, 3)}
    assert [g["exact"] for g in report["groups"]] == [False]
    assert report["certificate"]["compactions"]


def test_calibration_seed_threads_and_sizes_are_used() -> None:
    report = prune(
        *("--ratio", "0.5", "--calibration", str(CALIBRATION), "--seed", "5"),
        *("--threads", "1", "--dim", "batch=4"),
    )
    with np.load(CALIBRATION) as data:
        assert report["calibration"] == {"image": list(data["image"].shape)}
    certificate = report["certificate"]
    assert certificate["calibrated"] and certificate["seeds"] == [5, 6, 7]
    labels = {entry["label"] for entry in certificate["runs"]}
    assert {"seed 5, batch=4", "calibration 0"} <= labels
    assert (report["seed"], report["threads"], report["dims"]) == (5, 1, {"batch": 4})


def test_carriers() -> None:
    """Heads or the sizes within them: the two ways to cut the width of an attention."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,6,8] x) => (float[N,6,8] y)
        <int64[4] split = {0, 6, 4, 8}, int64[3] joined = {0, 6, 32}> {
          q = MatMul(x, wq)
          k = MatMul(x, wk)
          v = MatMul(x, wv)
          q4 = Reshape(q, split)
          k4 = Reshape(k, split)
          v4 = Reshape(v, split)
          qh = Transpose<perm = [0, 2, 1, 3]>(q4)
          kh = Transpose<perm = [0, 2, 3, 1]>(k4)
          vh = Transpose<perm = [0, 2, 1, 3]>(v4)
          s = MatMul(qh, kh)
          p = Softmax<axis = -1>(s)
          o = MatMul(p, vh)
          ot = Transpose<perm = [0, 2, 1, 3]>(o)
          oj = Reshape(ot, joined)
          y = MatMul(oj, wo)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"wq": (8, 32), "wk": (8, 32), "wv": (8, 32), "wo": (32, 8)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, "m.onnx")
    heads = prune("--ratio", "0.25")
    assert [(g["units"], g["removed"]) for g in heads["groups"]] == [(4, 1)]
    sizes = prune("--ratio", "0.25", "--carrier", "largest")
    assert {(g["units"], g["removed"]) for g in sizes["groups"]} == {(8, 2)}


# --- what goes where ---


def test_json_is_all_there_is_on_stdout() -> None:
    result = invoke(
        "prune", "m.onnx", "-o", "o.onnx", "--macs", "0.5", "--json", "--report", "r.json"
    )
    printed, written = json.loads(result.stdout), json.loads(Path("r.json").read_text("utf-8"))
    assert printed == written
    assert result.stderr == ""
    SCHEMA.validate(printed)
    for name, file in {"original": "m.onnx", "pruned": "o.onnx"}.items():
        data = Path(file).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        assert printed[name] == {"file": file, "sha256": digest, "bytes": len(data)}


def test_quiet_is_silent() -> None:
    runs = [
        ["prune", "m.onnx", "-o", "o.onnx", "--macs", "0.5", "--report", "r.json"],
        ["run", "m.onnx", "-o", "p.onnx", "--pipeline", "fold-constants", "--no-bench"],
        ["verify", "m.onnx", "o.onnx", "--report", "r.json"],
    ]
    for arguments in runs:
        result = invoke(*arguments, "--quiet")
        assert (result.stdout, result.stderr) == ("", "")


def test_notes_go_to_stderr() -> None:
    model = onnx.load("m.onnx")
    (relu,) = (n for n in model.graph.node if n.output[0] == "/Relu_output_0")
    relu.op_type, relu.domain = "Mystery", "somewhere"
    model.opset_import.append(onnx.helper.make_opsetid("somewhere", 1))
    model.graph.value_info.append(
        onnx.helper.make_tensor_value_info("/Relu_output_0", 1, ["batch", 16, 8, 8])
    )
    onnx.save(model, "m.onnx")
    result = invoke("inspect", "m.onnx")
    assert "note: node '/Relu': no coupling rule for somewhere.Mystery" in result.stderr
    assert "note:" not in result.stdout
    assert invoke("inspect", "m.onnx", "--json").stderr == ""


def test_progress_goes_to_stderr_and_only_to_terminals() -> None:
    """With stderr a terminal there is progress on it; stdout stays as it is."""
    if os.name == "nt":
        pytest.skip("no pseudo-terminals")
    import pty

    master, slave = pty.openpty()
    arguments = ["prune", "m.onnx", "-o", "o.onnx", "--macs", "0.5", "--no-bench", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    program = [sys.executable, "-m", "secateur"]
    with subprocess.Popen(
        [*program, *arguments[:-1]], env=environment, stdout=subprocess.PIPE, stderr=slave
    ) as process:
        os.close(slave)
        drawn = b""
        try:
            while block := os.read(master, 65536):
                drawn += block
        except OSError:  # Linux's end of a terminal
            pass
        assert process.stdout is not None
        printed = process.stdout.read().decode()
    os.close(master)
    assert process.returncode == 0
    assert b"certify" in drawn
    assert "certify" not in printed and "\x1b" not in printed
    done = command(*arguments)
    assert done.stderr == "", "no progress on a file"
    json.loads(done.stdout)


def test_the_same_command_writes_the_same_bytes() -> None:
    for target in ("o.onnx", "p.onnx"):
        done = command("prune", "m.onnx", "-o", target, "--macs", "0.5", "--no-bench", "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Path("o.onnx").read_bytes() == Path("p.onnx").read_bytes()
    assert not [p for p in Path().iterdir() if p.name not in ("m.onnx", "o.onnx", "p.onnx")]


def test_external_data_stays_external() -> None:
    model = onnx.load("m.onnx")
    onnx.save(model, "m.onnx", save_as_external_data=True, location="w.data")
    report = prune("--ratio", "0.5")
    assert {p.name for p in Path().iterdir()} == {"m.onnx", "w.data", "o.onnx", "o.onnx.data"}
    digest = hashlib.sha256(Path("o.onnx").read_bytes() + Path("o.onnx.data").read_bytes())
    assert report["pruned"]["sha256"] == digest.hexdigest()
    assert outputs("o.onnx").shape == (3, 10)


def test_names_that_the_terminal_cannot_show() -> None:
    shutil.copy("m.onnx", "größe.onnx")
    program = [sys.executable, "-m", "secateur", "prune"]
    done = subprocess.run(
        [*program, "größe.onnx", "-o", "ß→.onnx", "--ratio", "0.5", "--no-bench"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("ß→.onnx").exists()


# --- run ---


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


# --- inspect, explain, bench, passes ---


def test_inspect() -> None:
    data = json.loads(invoke("inspect", "m.onnx", "--json").stdout)
    assert data["macs"] == macs("m.onnx")
    assert data["parameters"] == sum(int(np.prod(s)) for s in shapes("m.onnx").values())
    assert sum(g["units"] for g in data["groups"]) == data["units"]
    (group,) = (g for g in data["groups"] if g["name"] == "stage1.conv1.weight[0]")
    assert [(w["tensor"], w["axis"], w["role"]) for w in group["weights"]] == [
        ("stage1.conv1.weight", 0, "producer"),
        ("stage1.conv1.bias", 0, "coupled"),
        ("stage1.conv2.weight", 1, "consumer"),
    ]
    text = invoke("inspect", "m.onnx").stdout
    for group in data["groups"]:
        assert group["name"] in text
    assert "an output of the model" in text
    kept = json.loads(invoke("inspect", "m.onnx", "--protect", "*", "--json").stdout)
    assert kept["groups"] == []


def test_explain() -> None:
    text = invoke("explain", "m.onnx", "stem.weight").stdout
    assert "stem.weight axis 0 (size 16): can be pruned" in text
    assert "stem.weight axis 1 (size 1): must stay" in text
    assert "an input of the model" in text
    data = json.loads(invoke("explain", "m.onnx", "head.weight:0", "--json").stdout)
    (axis,) = data["axes"]
    assert (axis["tensor"], axis["axis"], axis["free"]) == ("head.weight", 0, 0)
    assert "an output of the model" in axis["reason"]
    assert axis["path"][-1]["value"] == "logits"
    protected = invoke("explain", "m.onnx", "stem.weight:0", "--protect", "stem.weight").stdout
    assert "protected by 'stem.weight'" in protected


def test_bench() -> None:
    prune("--macs", "0.5")
    few = ["--runs", "5", "--seconds", "0", "--threads", "1"]
    data = json.loads(invoke("bench", "m.onnx", "o.onnx", *few, "--json").stdout)
    for name, path in {"original": "m.onnx", "pruned": "o.onnx"}.items():
        row = data[name]
        assert row["macs"] == macs(path)
        assert row["runs"] >= 5
        assert 0 < row["p25_ms"] <= row["p50_ms"] <= row["p75_ms"]
    medians = [data[name]["p50_ms"] for name in ("original", "pruned")]
    assert data["speedup"]["ratio"] == pytest.approx(medians[0] / medians[1])
    assert data["macs_ratio"] == pytest.approx(macs("m.onnx") / macs("o.onnx"))
    text = invoke(
        *("bench", "m.onnx", "o.onnx", *few, "--calibration", str(CALIBRATION), "--dim", "batch=8")
    ).stdout
    assert "speed-up" in text and "MACs ratio" in text


def test_passes() -> None:
    data = json.loads(invoke("passes", "--json").stdout)
    found = {row["name"]: row for row in data["passes"]}
    assert {"fold-constants", "fold-batchnorm", "eliminate-dead", "prune"} <= found.keys()
    assert found["prune"]["contract"] == "masks"
    assert all(row["provider"] for row in data["passes"])
    assert {"l1", "l2"} <= {row["name"] for row in data["criteria"]}
    operators = {name for row in data["rules"] for name in row["operators"]}
    assert {"Conv", "Gemm", "Reshape", "LayerNormalization"} <= operators
    text = invoke("passes").stdout
    for name in found:
        assert name in text


# --- verify ---


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
    invoke(*run, "--pipeline", "prune{ratio=0.2},prune{ratio=0.2}")
    result = invoke("verify", "m.onnx", "o.onnx", "--report", "r.json", code=6)
    assert "one pruning pass" in result.stderr


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
    model = onnx.load("o.onnx")
    (bias,) = (t for t in model.graph.initializer if t.name == "head.bias")
    array = numpy_helper.to_array(bias).copy()
    array[0] += 0.01
    bias.CopyFrom(numpy_helper.from_array(array, bias.name))
    onnx.save(model, "o.onnx")
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


# --- the program itself ---


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
        for name in ("prune", "run", "inspect", "explain", "verify", "bench", "passes"):
            assert name in done.stdout
    assert 0 < best < 0.5


def test_help_and_import_load_nothing_heavy() -> None:
    heavy = ("onnx", "onnx_ir", "onnxruntime", "scipy", "networkx", "numpy")
    program = f"""
import sys
import secateur
assert not set({heavy}) & set(sys.modules), "import secateur"
from secateur.driver.cli import app
for arguments in (["--help"], ["prune", "--help"], ["--version"]):
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


# --- the manual ---


def parameters() -> dict[str, Any]:
    """Every command's parameters, as the program itself knows them."""
    group: Any = typer.main.get_command(app)
    return {name: entry.params for name, entry in group.commands.items()}


def section(name: str) -> str:
    found = re.search(rf"^## `secateur {name}.*?(?=^## |\Z)", MANUAL, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section on {name}"
    return found[0]


@pytest.mark.parametrize("name", parameters())
def test_the_manual_has_every_option(name: str) -> None:
    text = section(name)
    rows = dict(re.findall(r"^\| `(-[^|]*)` \| (.*) \|$", text, re.MULTILINE))
    listed = {flag for row in rows for flag in re.findall(r"--?[a-z-]+", row.split(" ")[0])}
    listed |= {flag for row in rows for flag in re.findall(r"(?:^|, )(--?[a-z-]+)", row)}
    known: set[str] = set()
    for parameter in parameters()[name]:
        if parameter.param_type_name == "argument":
            assert f"`{(parameter.metavar or parameter.name).upper()}`" in text
            continue
        known |= {*parameter.opts, *parameter.secondary_opts}
        (row,) = (v for k, v in rows.items() if parameter.opts[0] in re.findall(r"--[a-z-]+", k))
        default = parameter.default
        if isinstance(default, (int, float, str)) and not isinstance(default, bool):
            assert f"`{default}`" in row, f"{parameter.opts[0]} of {name} has default {default}"
    assert listed == known - {"-h", "--help"}


def test_the_manual_has_every_command_and_exit_code() -> None:
    assert re.findall(r"^## `secateur (\w+)", MANUAL, re.MULTILINE) == list(parameters())
    errors = secateur.SecateurError.__subclasses__()
    codes = {0, 1, *(error.exit_code for error in errors)}
    assert set(map(int, re.findall(r"^\| (\d) \|", MANUAL, re.MULTILINE))) == codes
    assert "SECATEUR_DEBUG" in MANUAL


def test_the_manual_shows_a_configuration_that_works() -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", MANUAL, re.MULTILINE | re.DOTALL)
    Path("c.toml").write_text(text)
    (line,) = re.findall(r"^secateur run .*--pipeline '(.*)'$", MANUAL, re.MULTILINE)
    run = ["run", "m.onnx", "-o", "o.onnx", "--no-bench", "--json"]
    by_file = json.loads(invoke(*run, "--config", "c.toml").stdout)
    by_text = json.loads(invoke(*run, "--pipeline", line).stdout)
    assert by_file["pipeline"] == by_text["pipeline"]
