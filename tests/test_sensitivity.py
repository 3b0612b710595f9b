"""`secateur.sensitivity` against models pruned by hand and run in ONNX Runtime."""

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
from secateur import CertificateError, DataError, Sensitivity, TargetError, UsageError
from secateur.driver.sensitivity import affordable
from secateur.ir.io import to_proto
from secateur.passes.criteria import score_units
from secateur.runtime.inputs import random_feed
from secateur.runtime.parallel import in_processes
from secateur.runtime.runnable import runnable

from .cli_runs import ROOT
from .graphs import GRAPHS, INFO
from .pass_runs import build, normal
from .pass_runs import run as run_model
from .processes import assert_soon, run
from .sensitivity_models import (
    Array,
    network,
    network_weights,
    normalised,
    normalised_weights,
    outputs,
    without,
)

DATA = {"x": normal(20, 3, 6, 6, seed=9)}
RATIOS = (0.25, 0.5, 0.8)


def measured(**options: object) -> Sensitivity:
    settings: dict[str, object] = {"calibration": DATA, "ratios": RATIOS, "threads": 1} | options
    return secateur.sensitivity(network(network_weights()), **settings)  # type: ignore[arg-type]


def error(a: Array, b: Array) -> float:
    return float(np.sqrt(np.mean((b - a) ** 2) / np.mean(a**2)))


def test_the_numbers_of_models_pruned_by_hand() -> None:
    found = measured()
    weights = network_weights()
    before = outputs(network(weights), DATA)
    sizes = {"a[0]": 8, "b[0]": 6}
    rows = {(row.group, row.ratio): row for row in found.rows}
    assert rows.keys() == {(group, ratio) for group in sizes for ratio in RATIOS}
    for (group, ratio), row in rows.items():
        count = int(sizes[group] * ratio + 0.5)
        assert (row.units, row.removed, row.exact) == (sizes[group], count, True)
        smaller = network(without(weights, group[0], count))
        after = outputs(smaller, DATA)
        assert row.drift.error == pytest.approx(error(before, after), rel=1e-4)
        assert row.drift.mse == pytest.approx(np.mean((after - before) ** 2), rel=1e-4)
        flat = before.ravel(), after.ravel()
        cosine = np.dot(*flat) / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
        assert row.drift.cosine == pytest.approx(1 - cosine, rel=1e-3)
        changed = np.mean(before.argmax(1) != after.argmax(1))
        assert row.drift.top1 == pytest.approx(changed, abs=1e-6)
        left = sum(onnx.numpy_helper.to_array(t).size for t in smaller.graph.initializer)
        whole = sum(array.size for array in weights.values())
        assert row.parameters == pytest.approx(1 - left / whole, abs=1e-6)
    assert any(row.drift.top1 for row in found.rows)


def test_the_most_sensitive_group_comes_first() -> None:
    for metric in ("error", "cosine", "top1", "mse"):
        found = measured(metric=metric)
        largest: dict[str, float] = {}
        for row in found.rows:
            largest[row.group] = max(largest.get(row.group, 0), getattr(row.drift, metric))
        assert list(largest.values()) == sorted(largest.values(), reverse=True)
        for group in largest:
            assert [r.ratio for r in found.rows if r.group == group] == list(RATIOS)


@pytest.mark.parametrize(
    "name",
    [
        *("qlinear_net", "matmul_4bits", "if_in_loop", "scan_recurrent"),
        *("integer_convs", "sequence_between_layers"),
    ],
)
def test_the_numbers_of_rewritten_models(name: str) -> None:
    """Quantised layers and control flow: no candidate is built, but what would be is run here."""
    model = onnx_ir.from_proto(GRAPHS[name]())
    dims = dict.fromkeys(INFO[name].dims, 2)
    with runnable(model) as (proto,):
        feeds = [random_feed(proto, dims, seed) for seed in (1, 2)]
    data = {key: np.stack([feed[key] for feed in feeds]) for key in feeds[0]}
    found = secateur.sensitivity(model, calibration=data, dims=dims, ratios=[0.5], threads=1)
    analysis = secateur.analyze(model, dims=dims)
    scores = score_units(analysis, "l2")
    assert any(row.drift.error for row in found.rows)
    for row in found.rows:
        units = analysis.groups[row.number].units
        removed = np.zeros(analysis.unit_count, np.bool_)
        removed[units[np.argsort(scores[units], kind="stable")[: row.removed]]] = True
        smaller = secateur.rewrite(secateur.Plan(analysis, removed)).model
        before, after = ([run_model(to_proto(m), feed) for feed in feeds] for m in (model, smaller))
        worst = 0.0
        for a, b in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True):
            worst = max(worst, error(*(np.stack(part).astype(np.float64) for part in (a, b))))
        assert row.failure is None
        assert row.drift.error == pytest.approx(worst, rel=1e-3, abs=1e-6)


def test_inexact_groups_run_on_what_is_left() -> None:
    weights = normalised_weights()
    data = {"x": normal(16, 5, seed=8)}
    with pytest.raises(TargetError, match="1 group is inexact: allow it with --inexact"):
        secateur.sensitivity(normalised(weights), calibration=data)
    found = secateur.sensitivity(normalised(weights), calibration=data, ratios=[0.3], inexact=True)
    (row,) = found.rows
    squares = (weights["up"] ** 2).sum(0) + (weights["down"] ** 2).sum(1)
    gone = np.argsort(squares)[:3]
    smaller = {
        "up": np.delete(weights["up"], gone, 1),
        "scale": np.delete(weights["scale"], gone),
        "down": np.delete(weights["down"], gone, 0),
    }
    expected = error(outputs(normalised(weights), data), outputs(normalised(smaller), data))
    assert (row.exact, row.removed) == (False, 3)
    assert row.drift.error == pytest.approx(expected, rel=1e-4)


def test_several_processes_find_the_same() -> None:
    assert measured(jobs=2).to_json() == measured(jobs=1).to_json()


def test_a_batch_at_a_time_finds_the_same() -> None:
    one, many = measured(), measured(dims={"N": 8})
    assert many.dims == {"N": 8}
    for a, b in zip(one.rows, many.rows, strict=True):
        assert a.drift.error == pytest.approx(b.drift.error, rel=1e-4)


def test_only_so_many_samples() -> None:
    found = measured(samples=5)
    few = measured(calibration={"x": DATA["x"][:5]})
    assert found.samples == few.samples == 5
    assert found.to_json() == few.to_json()
    assert found.rows[0].drift != measured().rows[0].drift


def test_a_share_that_is_no_unit_moves_nothing() -> None:
    found = measured(ratios=[0.01, 0.02, 0.99])
    still = [row for row in found.rows if row.ratio < 0.5]
    assert len(still) == 4
    for row in still:
        assert (row.removed, row.macs, row.drift.error, row.drift.top1) == (0, 0.0, 0.0, 0.0)
    assert {r.group: r.removed for r in found.rows if r.ratio > 0.5} == {"a[0]": 7, "b[0]": 5}
    assert found.measured == 3


def test_groups_by_name() -> None:
    for glob in ("a[0]", "a", "[aq]*"):
        assert {row.group for row in measured(groups=[glob]).rows} == {"a[0]"}
    with pytest.raises(UsageError, match=r"--groups 'z\*' fits no prunable group"):
        measured(groups=["a", "z*"])
    assert {row.group for row in measured(protect=["c"]).rows} == {"a[0]"}


def test_data_in_every_form_and_models_too(tmp_path: Path) -> None:
    expected = measured().to_json()
    model = network(network_weights())
    path, data = tmp_path / "m.onnx", tmp_path / "c.npz"
    np.savez(data, **DATA)  # type: ignore[arg-type]
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    for source in (path, onnx_ir.load(path)):
        found = secateur.sensitivity(source, calibration=data, ratios=RATIOS, threads=1)
        assert found.to_json() == expected


def test_outputs_that_are_labels() -> None:
    model = build(
        """g (float[N,5] x) => (int64[N] y) {
          h = MatMul(x, up)
          r = Relu(h)
          z = MatMul(r, down)
          y = ArgMax<axis = 1, keepdims = 0>(z)
        }""",
        up=normal(5, 12, seed=1),
        down=normal(12, 3, seed=3),
    )
    data = {"x": normal(32, 5, seed=8)}
    with pytest.raises(UsageError, match="no output is of floats"):
        secateur.sensitivity(model, calibration=data)
    found = secateur.sensitivity(model, calibration=data, metric="top1", ratios=[0.9])
    (row,) = found.rows
    assert row.drift.error is None
    assert row.drift.top1 is not None and 0 < row.drift.top1 < 1


def test_several_outputs_count_as_the_worst() -> None:
    model = build(
        """g (float[N,5] x) => (float[N,3] y, float[N,5] z) {
          h = MatMul(x, up)
          r = Relu(h)
          y = MatMul(r, down)
          z = Neg(x)
        }""",
        up=normal(5, 12, seed=1),
        down=normal(12, 3, seed=3),
    )
    (row,) = secateur.sensitivity(model, calibration={"x": normal(8, 5, seed=8)}, ratios=[0.5]).rows
    assert row.outputs["z"].error == 0.0
    assert row.drift.error == row.outputs["y"].error != 0.0


def test_a_static_batch_and_whole_feeds() -> None:
    model = network(network_weights())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    samples = secateur.sensitivity(model, calibration=DATA, ratios=RATIOS)
    feeds = secateur.sensitivity(
        model, calibration={"x": DATA["x"].reshape(5, 4, 3, 6, 6)}, ratios=RATIOS
    )
    assert [row.drift for row in samples.rows] == [row.drift for row in feeds.rows]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratios": [1.0]}, "more than 0 and less than 1, not 1"),
        ({"ratios": [float("nan")]}, "not nan"),
        ({"ratios": []}, "at least one ratio"),
        ({"ratios": [0.5, 0.5]}, "twice"),
        ({"criterion": "l3"}, "unknown criterion 'l3'"),
        ({"metric": "mean"}, "unknown metric 'mean'"),
        ({"jobs": -1}, "number of jobs"),
        ({"samples": 0}, "number of samples"),
        ({"threads": 5000}, "number of threads"),
        ({"protect": ["q*"]}, "matches no node"),
    ],
)
def test_wrong_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        measured(**options)


def test_data_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="axis 2 of 'x' has size 7, not 6"):
        measured(calibration={"x": normal(20, 3, 7, 6)})


def test_one_candidate_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from secateur.runtime import candidates

    def masked(model: onnx.ModelProto, masks: list[object], *rest: object) -> onnx.ModelProto:
        if len(masks) and getattr(masks[0], "indices", ()) != ():
            raise secateur.ModelError("cannot be masked")
        return model

    monkeypatch.setattr(candidates, "masked_model", masked)
    found = measured(ratios=[0.01, 0.5])
    assert {row.failure for row in found.rows if row.removed} == {"cannot be masked"}
    assert all(row.drift.error is None for row in found.rows if row.removed)
    assert all(row.drift.error == 0 for row in found.rows if not row.removed)


# --- going on after an interruption ---


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
    with pytest.raises(CertificateError, match="fewer --jobs"):
        list(in_processes(os._exit, [3, 4], 2))
