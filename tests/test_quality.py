"""The most pruning that keeps a quality, by metrics that are counted, built in, and the user's."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import secateur
from secateur.ir.errors import TargetError, UsageError
from secateur.ir.io import to_proto
from secateur.passes.allocation import Limits
from secateur.passes.quality import JUDGED, cosine, top1
from secateur.passes.quality_target import most_pruning
from secateur.passes.room import Room

from .pruning_checks import run
from .test_allocation import mlp
from .test_cost import counted_macs

Array = npt.NDArray[Any]


def samples(count: int = 24, width: int = 6) -> dict[str, Array]:
    return {"x": np.random.default_rng(5).standard_normal((count, width)).astype(np.float32)}


def outputs(model: Any, data: dict[str, Array]) -> Array:
    return run(to_proto(model), data)["y"]


def macs_share(removed: npt.NDArray[np.int64], widths: tuple[int, ...]) -> float:
    kept = [widths[0], *(np.array(widths[1:-1]) - removed), widths[-1]]
    whole = sum(a * b for a, b in pairwise(widths))
    return float(sum(a * b for a, b in pairwise(kept)) / whole)


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("floor", [0.35, 0.62, 0.9])
def test_bisection_finds_the_edge(floor: float, scope: Any) -> None:
    """Quality is the share of MACs that is kept: the answer lies within a step of the floor."""
    widths = (6, 40, 50, 30, 5)
    found = secateur.analyze(mlp(*widths), dims={"N": 1})
    scores = np.random.default_rng(0).uniform(0.5, 2, found.unit_count)
    room = Room(found, scores, Limits())
    asked: list[float] = []

    def judge(counts: npt.NDArray[np.int64]) -> float:
        asked.append(macs_share(counts, widths))
        return asked[-1]

    counts, quality, tried = most_pruning(room, floor, judge, scope)
    assert quality == macs_share(counts, widths) >= floor
    assert quality < floor + 0.02
    assert min(asked) < floor and [q for _, q in tried] == asked
    assert min(q for q in asked if q >= floor) == quality


def test_all_room_when_that_is_good_enough() -> None:
    found = secateur.analyze(mlp(6, 40, 50, 5), dims={"N": 1})
    room = Room(found, np.ones(found.unit_count), Limits(max_ratio=0.5))
    calls: list[int] = []
    counts, _, _ = most_pruning(room, 0.5, lambda c: calls.append(1) or 0.9, "global")  # type: ignore[func-returns-value]
    assert counts.tolist() == [20, 25] and len(calls) == 1


def test_a_quality_out_of_reach() -> None:
    found = secateur.analyze(mlp(6, 40, 50, 5), dims={"N": 1})
    room = Room(found, np.ones(found.unit_count), Limits())
    with pytest.raises(TargetError, match=r"no pruning keeps a quality of 0\.99: at best 0\.5 was"):
        most_pruning(room, 0.99, lambda _: 0.5, "global")


# ---- real models --------------------------------------------------------------------------------


def mean_cosine(a: Array, b: Array) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean([x @ y for x, y in zip(a, b, strict=True)] / norms))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("floor", [0.8, 0.95])
def test_cosine_holds_on_the_data(floor: float, scope: Any) -> None:
    model, data = mlp(6, 40, 50, 5), samples()
    result = secateur.prune(
        model,
        min_quality=floor,
        recover=False,
        calibration=data,
        scope=scope,
        dims={"N": 4},
        bench=False,
    )
    reached = mean_cosine(outputs(result.original, data), outputs(result.model, data))
    assert reached >= floor - 1e-6
    (target,) = result.results[0].details["targets"]
    assert target["target"] == "min-quality" and target["goal"] == floor
    assert target["reached"] == pytest.approx(reached, abs=1e-5)
    assert counted_macs(to_proto(result.model), {"N": 1}) < counted_macs(model, {"N": 1})
    assert not result.report["warnings"]


def test_top1_holds_on_the_data() -> None:
    model, data = mlp(6, 40, 50, 5), samples(64)
    result = secateur.prune(
        model,
        min_quality=0.9,
        metric="top1",
        recover=False,
        calibration=data,
        dims={"N": 8},
        bench=False,
    )
    chosen = [outputs(m, data).argmax(1) for m in (result.original, result.model)]
    agreement = float((chosen[0] == chosen[1]).mean())
    assert agreement >= 0.9
    assert result.results[0].details["targets"][0]["reached"] == pytest.approx(agreement)


def test_samples_are_spread_over_the_data() -> None:
    """Of more than are judged, the first would be those of one class where data is sorted."""
    model = mlp(6, 40, 50, 5)
    data = {"x": np.repeat(np.array([1, -1], np.float32), 300)[:, None] * np.ones(6, np.float32)}
    seen: list[Array] = []

    def look(original: Any, candidate: Any, feeds: Any) -> float:
        seen.append(feeds["x"])
        return 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secateur.passes.quality.find_metric", lambda name: look)
        secateur.prune(
            model, min_quality=0.9, metric="my:look", recover=False, calibration=data,
            dims={"N": 8}, bench=False,
        )  # fmt: skip
    assert len(seen[0]) == JUDGED and (seen[0] > 0).all(axis=1).sum() == JUDGED // 2


def test_a_metric_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metric.py").write_text(
        "import numpy as np\n"
        "def closeness(original, pruned, feeds):\n"
        "    assert feeds['x'].shape == (24, 6) and original['y'].shape == (24, 5)\n"
        "    return -float(np.abs(original['y'] - pruned['y']).max())\n"
        "def broken(original, pruned, feeds):\n"
        "    raise KeyError('labels')\n"
        "def nothing(original, pruned, feeds):\n"
        "    return float('nan')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    model, data = mlp(6, 40, 50, 5), samples()
    options: dict[str, Any] = {
        "recover": False,
        "calibration": data,
        "dims": {"N": 4},
        "bench": False,
    }
    result = secateur.prune(model, min_quality=-60.0, metric="my_metric:closeness", **options)
    gap = np.abs(outputs(result.original, data) - outputs(result.model, data)).max()
    assert 0 < gap <= 60 + 1e-3
    for metric, words in (
        ("my_metric:broken", r"failed \(KeyError: 'labels'\)"),
        ("my_metric:nothing", "gave NaN"),
        ("my_metric:number", "is not a function"),
        ("my_metric:absent", r"cannot be imported \(AttributeError"),
        ("no_such_module:f", r"cannot be imported \(ModuleNotFoundError"),
        ("accuracy", "`metric` must be cosine, top1 or MODULE:FUNCTION"),
    ):
        with pytest.raises(UsageError, match=words) as raised:
            secateur.prune(model, min_quality=0.5, metric=metric, **options)
        assert "\n" not in str(raised.value)


def test_data_is_needed_but_for_the_cosine() -> None:
    model = mlp(6, 40, 50, 5)
    for metric in ("top1", "my_metric:f"):
        with pytest.raises(UsageError, match=r"needs data to judge on|cannot be imported"):
            secateur.prune(model, min_quality=0.9, metric=metric, dims={"N": 4})
    result = secateur.prune(model, min_quality=0.9, dims={"N": 4}, bench=False)
    assert result.results[0].details["targets"][0]["reached"] >= 0.9
    assert any("random inputs" in warning for warning in result.report["warnings"])


def test_beside_a_budget_the_quality_must_hold() -> None:
    model, data = mlp(6, 40, 50, 5), samples()
    options: dict[str, Any] = {
        "recover": False,
        "calibration": data,
        "dims": {"N": 4},
        "bench": False,
    }
    result = secateur.prune(model, macs=0.9, min_quality=0.5, **options)
    reached = {t["target"]: t["reached"] for t in result.results[0].details["targets"]}
    assert reached["macs"] <= 0.9 * counted_macs(model, {"N": 4}) and reached["min-quality"] >= 0.5
    with pytest.raises(TargetError, match=r"the quality is 0\.\d+ once the other targets are met"):
        secateur.prune(model, macs=0.2, min_quality=0.999, **options)
    with pytest.raises(UsageError, match="`min_quality` must be a finite number"):
        secateur.prune(model, min_quality=float("inf"), **options)
    for floor, metric in ((1.5, "cosine"), (-2.0, "cosine"), (-0.1, "top1"), (1.01, "top1")):
        with pytest.raises(UsageError, match=f"`min_quality` must be from .* metric {metric}, not"):
            secateur.prune(model, min_quality=floor, metric=metric, **options)


# ---- metrics ------------------------------------------------------------------------------------


def test_metrics_on_arrays() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((4, 7, 3, 3)).astype(np.float32) for _ in range(2))
    assert cosine({"y": a}, {"y": a}, {}) == 1
    assert cosine({"y": a}, {"y": -a}, {}) == pytest.approx(-1)
    flat = [v.reshape(4, -1) for v in (a, b)]
    wanted = mean_cosine(*flat)
    assert cosine({"y": a, "z": a}, {"y": b, "z": a}, {}) == pytest.approx(wanted)
    assert cosine({"y": a}, {"y": a * np.nan}, {}) == 0
    assert cosine({"y": a * 0}, {"y": a * 0}, {}) == 1
    assert top1({"y": a}, {"y": b}, {}) == float((a.argmax(1) == b.argmax(1)).mean())
    text = a[:, :, 0]  # [batch, tokens, classes]
    assert top1({"y": text}, {"y": b[:, :, 0]}, {}) == float(
        (text.argmax(2) == b[:, :, 0].argmax(2)).mean()
    )
    numbers = {"y": np.arange(3)}
    for metric in (cosine, top1):
        with pytest.raises(UsageError, match="finds no"):
            metric(numbers, numbers, {})
