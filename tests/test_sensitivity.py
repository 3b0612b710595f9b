"""`secateur.sensitivity` against models pruned by hand and run in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

import secateur
from secateur import DataError, TargetError, UsageError
from secateur.ir.io import to_proto
from secateur.passes.criteria import score_units
from secateur.runtime.inputs import random_feed
from secateur.runtime.runnable import runnable

from .graphs import GRAPHS, INFO
from .pass_runs import build, normal
from .pass_runs import run as run_model
from .sensitivity_models import (
    DATA,
    RATIOS,
    Array,
    measured,
    network,
    network_weights,
    normalised,
    normalised_weights,
    outputs,
    without,
)


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
    with pytest.raises(TargetError, match="1 group is inexact: allow it with `inexact`"):
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
    with pytest.raises(UsageError, match=r"`groups` 'z\*' fits no prunable group"):
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


def test_an_input_may_be_called_anything_and_lie_in_any_order() -> None:
    model = network(network_weights())
    model.graph.input[0].name = model.graph.node[0].input[0] = "file"
    data = {"file": np.asfortranarray(DATA["x"])}
    found = secateur.sensitivity(model, calibration=data, ratios=RATIOS, threads=1)
    assert found.to_json() == measured().to_json()


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
        ({"ratios": []}, "`ratios` needs at least one"),
        ({"ratios": [0.5, 0.5]}, "twice"),
        ({"criterion": "l3"}, "unknown criterion 'l3'"),
        ({"metric": "mean"}, "unknown metric 'mean'"),
        ({"jobs": -1}, "`jobs` must be 0"),
        ({"samples": 0}, "`samples` must be at"),
        ({"threads": 5000}, "`threads` must be 0"),
        ({"protect": ["q*"]}, "`protect` .* matches no node"),
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
