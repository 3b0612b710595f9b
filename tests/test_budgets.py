"""Several targets at once: against brute force, and recounted from the model that comes out."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import secateur
from secateur.ir.errors import TargetError, UsageError
from secateur.ir.io import to_proto
from secateur.passes.allocation import Limits, Target, allocate
from secateur.passes.targets import parse_amount

from .graphs import GRAPHS
from .pruning_checks import dims, prune
from .test_allocation import mlp
from .test_cost import counted_macs, counted_parameters, real_shapes

# ---- against brute force ------------------------------------------------------------------------


def widths_costs(widths: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """MACs (one row) and the most floats alive at once of `mlp` for rows of widths; its parameters
    are its MACs."""
    layers = [widths[:, i] * widths[:, i + 1] for i in range(widths.shape[1] - 1)]
    # MatMul h = r @ w: r and h; Relu: h and its output. The input is read once, by the first.
    pairs = [widths[:, i] + widths[:, i + 1] for i in range(widths.shape[1] - 1)]
    relus = [2 * widths[:, i] for i in range(1, widths.shape[1] - 1)]
    return {"macs": np.sum(layers, axis=0), "memory": 4 * np.max([*pairs, *relus], axis=0)}


@pytest.mark.parametrize("kinds", [("macs",), ("memory",), ("macs", "memory")])
def test_close_to_the_best_of_all_allocations(kinds: tuple[Any, ...]) -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(40):
        sizes = [int(n) for n in rng.integers(2, 9, rng.integers(2, 5))]
        found = secateur.analyze(mlp(5, *sizes, 3), dims={"N": 1})
        scores = rng.uniform(0.1, 3, found.unit_count)
        for group in found.groups:  # comparable between groups as they are
            scores[group.units] /= scores[group.units].mean()
        kept = np.array(list(product(*(range(1, n + 1) for n in sizes))), np.int64)
        ends = np.ones((len(kept), 1), np.int64)
        costs = widths_costs(np.hstack([5 * ends, kept, 3 * ends]))
        shares = {kind: float(rng.uniform(0.3, 0.9)) for kind in kinds}
        fits = np.all([costs[k] <= s * costs[k][-1] for k, s in shares.items()], axis=0)
        targets = [Target(k, s) for k, s in shares.items()]
        if not fits.any():
            with pytest.raises(TargetError, match="cannot go down"):
                allocate(found, scores, targets, Limits(), "global")
            continue
        ladders = [np.r_[0, np.sort(scores[g.units]).cumsum()] for g in found.groups]
        lost = sum(
            (
                ladder[n - kept[:, i]]
                for i, (ladder, n) in enumerate(zip(ladders, sizes, strict=True))
            ),
            start=np.zeros(len(kept)),
        )
        best = lost[fits].min()
        removed = allocate(found, scores, targets, Limits(), "global")
        ours = scores[removed].sum()
        assert ours >= best - 1e-9
        ratios.append(ours / best if best else 1.0)
    assert np.mean(np.array(ratios) < 1 + 1e-9) >= 0.9, "nearly all are the best"
    assert np.mean(ratios) < 1.002 and max(ratios) < 1.02


# ---- recounted from the rewritten model ---------------------------------------------------------


def peak_bytes(model: onnx.ModelProto, sizes: dict[str, int]) -> int:
    """The most bytes of FP32 and int64 values alive while a node runs, nothing computed in place,
    the inputs from the start and the outputs to the end."""
    held = {t.name for t in model.graph.initializer}
    shapes = real_shapes(model, sizes)
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds |= {
        v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)
    }
    width = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.INT64: 8}
    last = {name: i for i, node in enumerate(model.graph.node) for name in node.input}
    alive = {v.name for v in model.graph.input} - held
    keep = {v.name for v in model.graph.output}
    peak = 0
    for i, node in enumerate(model.graph.node):
        alive |= set(node.output)
        peak = max(peak, sum(int(np.prod(shapes[v])) * width[kinds[v]] for v in alive))
        alive -= {v for v in alive if last.get(v, i) <= i and v not in keep}
    return peak


SOME = ["residual_identity", "dense_concat", "channel_shuffle", "swiglu_fused", "option_a"]


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("name", SOME)
def test_memory_is_met_when_counted_again(name: str, scope: Any) -> None:
    model = GRAPHS[name]()
    whole = peak_bytes(model, dims(name))
    result = prune(model, name, memory=0.8, scope=scope)
    assert peak_bytes(to_proto(result.model), dims(name)) <= 0.8 * whole
    (target,) = result.results[0].details["targets"]
    assert target["target"] == "memory" and target["asked"] == 0.8 and target["before"] == whole
    assert target["reached"] == peak_bytes(to_proto(result.model), dims(name))
    result = prune(model, name, memory=f"{int(0.9 * whole)}", scope=scope)
    assert 0.7 * whole < peak_bytes(to_proto(result.model), dims(name)) <= 0.9 * whole


@pytest.mark.parametrize("name", SOME)
def test_size_is_met_by_the_file(name: str, tmp_path: Path) -> None:
    model = GRAPHS[name]()
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    onnx.save(model, source)
    whole = source.stat().st_size
    result = prune(source, name, size=0.7, scope="global")
    result.save(target)
    assert target.stat().st_size <= 0.7 * whole
    (reached,) = result.results[0].details["targets"]
    assert reached["reached"] == target.stat().st_size
    assert 0.99 * whole < reached["before"] <= whole, "written once more, it may be a little less"
    limit = round(0.6 * whole)
    prune(source, name, size=f"{limit / 1000}k").save(target)
    assert 0.4 * whole < target.stat().st_size <= limit


def test_size_with_external_data(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    path, output = source / "in.onnx", target / "model.onnx"
    onnx.save(
        GRAPHS["inception"](), path, save_as_external_data=True, location="w", size_threshold=1024
    )
    prune(path, "inception", size=20_000).save(output)
    files = sorted(p.name for p in target.iterdir())
    assert files == ["model.onnx", "model.onnx.data"]
    assert 15_000 < sum(p.stat().st_size for p in target.iterdir()) <= 20_000


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("name", SOME)
def test_several_targets_hold_together(name: str, scope: Any, tmp_path: Path) -> None:
    model = GRAPHS[name]()
    onnx.save(model, tmp_path / "in.onnx")
    shares = {"macs": 0.75, "params": 0.7, "size": 0.85, "memory": 0.85}
    result = prune(model, name, scope=scope, **shares)
    result.save(tmp_path / "out.onnx")
    after = to_proto(result.model)
    assert counted_macs(after, dims(name)) <= 0.75 * counted_macs(model, dims(name))
    assert counted_parameters(after) <= 0.7 * counted_parameters(model)
    assert peak_bytes(after, dims(name)) <= 0.85 * peak_bytes(model, dims(name))
    sizes = [(tmp_path / f"{n}.onnx").stat().st_size for n in ("in", "out")]
    assert sizes[1] <= 0.85 * sizes[0]
    reached = {t["target"]: t for t in result.results[0].details["targets"]}
    assert set(reached) == set(shares)
    assert all(t["reached"] <= t["goal"] for t in reached.values())


# ---- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("targets", [{"ratio": 0.9}, {"macs": 0.4}, {"macs": 0.6, "memory": 0.8}])
def test_floors_and_steps(targets: dict[str, Any], scope: Any) -> None:
    found = secateur.analyze(mlp(5, 24, 40, 30, 6, 3), dims={"N": 1})
    plan = secateur.plan(found, **targets, scope=scope, round_to=4, min_channels=8, max_ratio=0.75)
    kept = [int((~plan.removed[g.units]).sum()) for g in found.groups]
    assert plan.removed.any()
    for size, count in zip((24, 40, 30, 6), kept, strict=True):
        assert count == size or (count % 4 == 0 and count >= max(8, 0.25 * size))


def test_a_floor_that_leaves_no_room() -> None:
    found = secateur.analyze(mlp(5, 6, 3), dims={"N": 1})
    with pytest.raises(TargetError, match="`min_channels`\\) leave no room"):
        secateur.plan(found, macs=0.5, min_channels=6)
    plan = secateur.plan(found, macs=0.9, min_channels=5)
    assert plan.removed.sum() == 1


def test_out_of_reach_says_what_is_within(tmp_path: Path) -> None:
    model = GRAPHS["dense_concat"]()
    for kind in ("memory", "size"):
        with pytest.raises(TargetError, match=r"at best [0-9]+ bytes can") as raised:
            prune(model, "dense_concat", macs=0.9, **{kind: 9})
        assert raised.value.exit_code == 4
        best = int(str(raised.value).split("at best ")[1].split()[0])
        result = prune(model, "dense_concat", **{kind: best})
        assert result.results[0].details["targets"][0]["reached"] == best
        with pytest.raises(TargetError):
            prune(model, "dense_concat", **{kind: best - 1})


def test_targets_of_the_interface() -> None:
    with pytest.raises(UsageError, match="`ratio` cannot be combined"):
        prune(GRAPHS["dense_concat"](), ratio=0.5, size=0.5)
    with pytest.raises(UsageError, match="`size` 'lots' is no amount"):
        prune(GRAPHS["dense_concat"](), size="lots")
    with pytest.raises(UsageError, match="`memory` must be more than 0"):
        prune(GRAPHS["dense_concat"](), memory=0)
    with pytest.raises(UsageError, match="`min_channels` must be at least 1"):
        prune(GRAPHS["dense_concat"](), macs=0.5, min_channels=0)
    result = secateur.run(
        GRAPHS["dense_concat"](), "prune{macs=0.9 size=900k memory=0.9}", dims={"N": 2}, bench=False
    )
    assert "size=900k" in result.report["pipeline"]


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0.5", 0.5), (".5", 0.5), ("500k", 5e5), ("500 kB", 5e5),
        ("2MB", 2e6), ("1.5MiB", 1572864),
        ("3G", 3e9), ("4Ki", 4096), ("12B", 12), (0.25, 0.25), (1000, 1000),
    ],
)  # fmt: skip
def test_amounts(text: str | float, amount: float) -> None:
    assert parse_amount("size", text) == amount


@pytest.mark.parametrize("text", ["", "MB", "-1k", "1T", "1 2", "nan", "2mb", "1e3"])
def test_no_amounts(text: str) -> None:
    with pytest.raises(ValueError, match=r"^`size` .* is no amount"):
        parse_amount("size", text)


def test_pairs_of_widths_are_what_the_graph_has() -> None:
    """The formulas that the brute force uses, on one graph as it is built."""
    model = mlp(5, 6, 7, 3)
    costs = widths_costs(np.array([[5, 6, 7, 3]]))
    assert (
        costs["macs"][0]
        == counted_macs(model, {"N": 1})
        == sum(a * b for a, b in pairwise((5, 6, 7, 3)))
    )
    assert costs["memory"][0] == peak_bytes(model, {"N": 1})
