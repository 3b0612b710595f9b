"""Latency tables and targets with a clock that counts instead of measuring, and once with a real
one. The counting clock knows blocks of channels; nobody tells the code under test."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import helper, numpy_helper

import secateur
from secateur.ir.analysis import Analysis
from secateur.ir.errors import TargetError, UsageError
from secateur.ir.io import to_proto
from secateur.passes.choose import Choice, choose
from secateur.passes.prune import Prune
from secateur.runtime import latency_cache
from secateur.runtime.benchmark import Timing
from secateur.runtime.kernel_times import kernel_times
from secateur.runtime.latency import Clock, LatencyModel, latency_model
from secateur.runtime.timed_layers import KERNELS, timed_layers

from .graphs import GRAPHS, INFO

Cost = Callable[[onnx.ModelProto], float]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "secateur" / "latency"


def convnet(*channels: int, size: int = 6) -> onnx.ModelProto:
    """x [1, channels[0], size, size] through 3x3 convolutions with Relu, then the mean and Gemm."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"
    for i, (a, b) in enumerate(pairwise(channels)):
        w = rng.standard_normal((b, a, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        nodes.append(helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        x = f"r{i}"
    w = rng.standard_normal((channels[-1], 10)).astype(np.float32)
    weights.append(numpy_helper.from_array(w, "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "head"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, [1, channels[0], size, size])]
    outputs = [helper.make_tensor_value_info("y", 1, [1, 10])]
    graph = helper.make_graph(nodes, "convnet", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def blocked(block: int) -> Cost:
    """Milliseconds of all Conv and Gemm nodes of a model, channels counted in whole blocks."""

    def cost(model: onnx.ModelProto) -> float:
        shapes = {t.name: list(t.dims) for t in model.graph.initializer}
        layers = [shapes[n.input[1]] for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
        whole = [[math.ceil(n / block) * block for n in s[:2]] + s[2:] for s in layers]
        return float(sum(map(math.prod, whole))) / 1e5

    return cost


class Counted:
    """A clock that counts; ``bias`` is what pruned models cost on top of what layers say. Where
    ``all_shrinks``, so does what is in no table."""

    def __init__(
        self, cost: Cost, rest: float = 0.05, bias: float = 0.0, all_shrinks: bool = False
    ) -> None:
        self.cost, self.rest, self.bias, self.all_shrinks = cost, rest, bias, all_shrinks
        self.timed = 0
        self.pairs: list[float] = []

    def layers(
        self,
        models: Sequence[onnx.ModelProto],
        threads: int,
        dims: Mapping[str, int],
        without: Collection[str],
    ) -> list[float]:
        if set(without) == set(KERNELS):
            return [self.rest for _ in models]
        self.timed += len(models)
        return [self.cost(model) for model in models]

    def pair(self, original: oir.Model, candidate: oir.Model) -> tuple[Timing, Timing]:
        before, after = (self.cost(to_proto(m)) + self.rest for m in (original, candidate))
        after += self.bias * (before - after)
        if self.all_shrinks:
            after -= self.rest * (
                1 - self.cost(to_proto(candidate)) / self.cost(to_proto(original))
            )
        self.pairs.append(after / before)
        return Timing.of([before]), Timing.of([after])

    @property
    def clock(self) -> Clock:
        return Clock(self.layers, self.pair)


def scores(analysis: Analysis) -> Any:
    return np.random.default_rng(1).uniform(0.5, 1.5, analysis.unit_count)


def chosen(analysis: Analysis, clock: Counted, options: dict[str, Any]) -> Choice:
    asked = Prune(**options)
    return choose(
        analysis,
        scores(analysis),
        asked.targets,
        asked.limits,
        asked.scope,
        clock=clock.clock,
    )


def kept(analysis: Analysis, choice: Choice) -> list[int]:
    return [int((~choice.removed[g.units]).sum()) for g in analysis.groups]


def model_of(analysis: Analysis, clock: Counted) -> LatencyModel:
    return latency_model(analysis, clock.clock, 1)


# ---- tables -------------------------------------------------------------------------------------


def test_the_prediction_is_what_the_clock_says_at_aligned_counts() -> None:
    found = secateur.analyze(convnet(3, 64, 96, 32))
    clock = Counted(blocked(16))
    model = model_of(found, clock)
    for widths in ((64, 96, 32), (16, 16, 16), (48, 80, 16), (32, 64, 32)):
        gone = np.array([[n - w for n, w in zip((64, 96, 32), widths, strict=True)]])
        wanted = blocked(16)(convnet(3, *widths)) + clock.rest
        assert model.milliseconds(gone)[0] == pytest.approx(wanted, rel=1e-9)
    every = np.array([[0, 0, 0], [32, 0, 0], [0, 48, 0], [32, 48, 16]])
    each = [model.milliseconds(row[None])[0] for row in every]
    np.testing.assert_allclose(model.milliseconds(every), each, rtol=1e-12)


def test_layers_of_one_shape_are_timed_once(cache: Path) -> None:
    found = secateur.analyze(convnet(32, 32, 32, 32, 32))
    layers = timed_layers(found)
    assert len(layers) == 5 and len({layer.signature for layer in layers}) == 3
    clocks = [Counted(blocked(16)), Counted(blocked(16))]
    model_of(found, clocks[0])
    for file in cache.iterdir():
        file.unlink()
    model_of(secateur.analyze(convnet(32, 32, 32)), clocks[1])
    assert clocks[0].timed == clocks[1].timed > 0


def test_grouped_and_transposed_layers_run_at_any_count() -> None:
    """Depthwise, grouped by whole groups, ConvTranspose, MatMul and products of activations."""
    operators = set()
    names = ["grouped_conv", "depthwise_multiplier", "gemm_transposed_weight", "channel_shuffle"]
    for name in (*names, "conv_transpose_grouped", "transformer_layer_norm", "pixel_shuffle_crd"):
        dims = dict.fromkeys(INFO[name].dims, 2)
        for layer in timed_layers(secateur.analyze(GRAPHS[name](), dims=dims)):
            least = layer.quanta
            half = [max(n // 2 // q, 1) * q for n, q in zip(layer.full, least, strict=True)]
            models = [layer.model(sizes) for sizes in (layer.full, half, least)]
            assert all(ms >= 0 for ms in kernel_times(models, 1))
            operators.add(models[0].graph.node[0].op_type)
    assert operators == {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@pytest.mark.parametrize("block", [1, 4, 8, 16])
def test_the_alignment_is_measured(block: int) -> None:
    found = secateur.analyze(convnet(3, 64, 96, 64))
    units = [len(g.units) for g in found.groups]
    assert model_of(found, Counted(blocked(block))).alignments(units) == (block,) * 3


def test_small_and_large_groups_follow_the_others() -> None:
    """24 channels are not probed and keep at least two steps; of 1024, one block is next to
    nothing, so that nothing speaks against whole ones."""
    found = secateur.analyze(convnet(3, 64, 24, 1024, size=2))
    units = [len(g.units) for g in found.groups]
    assert model_of(found, Counted(blocked(16))).alignments(units) == (16, 8, 16)


# ---- the cache ----------------------------------------------------------------------------------


def test_times_are_kept_and_reused(cache: Path) -> None:
    found = secateur.analyze(convnet(3, 32, 48))
    first = Counted(blocked(16))
    one = model_of(found, first)
    files = sorted(cache.iterdir())
    assert first.timed > 0 and len(files) == len({x.signature for x in timed_layers(found)})
    head = json.loads(files[0].read_text())
    assert head["machine"]["threads"] == 1 and head["machine"]["onnxruntime"]
    second = Counted(blocked(4))  # never asked
    two = model_of(found, second)
    assert second.timed == 0
    gone = np.array([[10, 20]])
    assert one.milliseconds(gone) == two.milliseconds(gone)
    other = Counted(blocked(16))
    latency_model(found, other.clock, 2)
    assert other.timed == first.timed, "another number of threads is another machine"


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"[]", b"\xff\xfe", b'{"version": 1}', b"[" * 100_000,
        b'{"version": 1, "machine": {}, "layer": {}, "ms": {"1": 1}}',
    ],
)  # fmt: skip
def test_a_damaged_cache_is_measured_again(cache: Path, damage: bytes) -> None:
    found = secateur.analyze(convnet(3, 32, 48))
    first = Counted(blocked(16))
    wanted = model_of(found, first).milliseconds(np.array([[4, 4]]))
    for file in cache.iterdir():
        file.write_bytes(damage)
    again = Counted(blocked(16))
    assert model_of(found, again).milliseconds(np.array([[4, 4]])) == wanted
    assert again.timed == first.timed


@pytest.mark.parametrize("value", ["NaN", "-1", '"1"', "true", "null", "1e999"])
def test_impossible_times_are_measured_again(cache: Path, value: str) -> None:
    found = secateur.analyze(convnet(3, 32))
    first = Counted(blocked(16))
    model_of(found, first)
    for file in cache.iterdir():
        head, _, rest = file.read_text().partition('"ms": {')
        key = rest.split(":")[0]
        file.write_text(f'{head}"ms": {{{key}: {value}}}}}')
    again = Counted(blocked(16))
    model_of(found, again)
    assert again.timed == first.timed


def test_another_processor_or_library_measures_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    found = secateur.analyze(convnet(3, 32))
    first = Counted(blocked(16))
    model_of(found, first)
    monkeypatch.setattr(latency_cache, "_processor", lambda: "Another CPU")
    again = Counted(blocked(16))
    model_of(found, again)
    assert again.timed == first.timed
    monkeypatch.setattr("onnxruntime.__version__", "0.0.1")
    once_more = Counted(blocked(16))
    model_of(found, once_more)
    assert once_more.timed == first.timed


def test_without_a_place_for_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = secateur.analyze(convnet(3, 32))
    assert model_of(found, Counted(blocked(16))).milliseconds(np.array([[0]]))[0] > 0


def test_the_home_folder_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", "/nowhere")
        assert latency_cache.cache_folder() == Path("/nowhere/.cache/secateur/latency")


# ---- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("bias", [0.0, 0.25])
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_latency_is_met_by_whole_candidates(share: float, bias: float, scope: Any) -> None:
    """With a bias the tables promise too much, so the first candidate cannot do."""
    found = secateur.analyze(convnet(3, 64, 96, 64))
    clock = Counted(blocked(16), bias=bias)
    choice = chosen(found, clock, {"latency": share, "scope": scope})
    small = to_proto(secateur.rewrite(secateur.Plan(found, choice.removed)).model)
    cost = blocked(16)
    whole, left = (cost(m) + clock.rest for m in (convnet(3, 64, 96, 64), small))
    left += bias * (whole - left)
    assert left <= share * whole
    (reached,) = choice.details()
    assert reached["before"] == pytest.approx(whole) and reached["reached"] == pytest.approx(left)
    assert all(n % 16 == 0 for n in kept(found, choice)), "in steps of the clock's blocks"
    assert len(clock.pairs) > (2 if bias else 1), "the original, then candidates"
    assert choice.extra["alignment"] == [16, 16, 16]


def test_milliseconds_and_other_targets_together() -> None:
    found = secateur.analyze(convnet(3, 64, 96, 64))
    clock = Counted(blocked(16))
    whole = blocked(16)(convnet(3, 64, 96, 64)) + clock.rest
    options = {"latency_ms": 0.6 * whole, "latency": 0.8, "params": 0.3, "scope": "global"}
    choice = chosen(found, clock, options)
    reached = {r["target"]: r for r in choice.details()}
    assert set(reached) == {"params", "latency", "latency-ms"}
    assert all(r["reached"] <= r["goal"] for r in reached.values())
    assert reached["latency"]["reached"] < 0.5 * whole, "the parameters ask for more"


def test_unaligned_steps_when_the_goal_needs_them() -> None:
    """Sixteen channels in each group are a tenth of this model's time, and no less is aligned."""
    found = secateur.analyze(convnet(3, 64, 64, 64))

    def likes_sixteen(model: onnx.ModelProto) -> float:
        shapes = [tuple(t.dims[:2]) for t in model.graph.initializer]
        odd = any(n > 16 and n % 16 for shape in shapes for n in shape if n != 10)
        return blocked(1)(model) * (1.5 if odd else 1)

    aligned = chosen(found, Counted(likes_sixteen, rest=0), {"latency": 0.2})
    assert all(n % 16 == 0 for n in kept(found, aligned))
    clock = Counted(likes_sixteen, rest=0)
    choice = chosen(found, clock, {"latency": 0.03, "scope": "global"})
    assert choice.details()[0]["reached"] <= choice.details()[0]["goal"]
    assert min(kept(found, choice)) < 16 and max(kept(found, choice)) > 4


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_goal_below_what_the_tables_promise(scope: Any) -> None:
    """The smallest model meets it by far; a larger one that does is found, in liked steps."""
    found = secateur.analyze(convnet(3, 256, 256, 256))
    clock = Counted(blocked(16), rest=12.0, all_shrinks=True)
    assert model_of(found, clock).share(np.full((1, 3), 255))[0] > 0.3
    choice = chosen(found, clock, {"latency": 0.3, "scope": scope})
    (reached,) = choice.details()
    assert 0.9 * reached["goal"] <= reached["reached"] <= reached["goal"] < reached["predicted"]
    assert all(n % 16 == 0 for n in kept(found, choice))


def test_a_goal_for_a_model_without_macs() -> None:
    """What lies between is told apart by parameters."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (int64[N] x) => (float[N] y) {
        a = Gather(table, x)  b = Add(a, bias)  c = Relu(b)  y = ReduceSum<keepdims = 0>(c, axes)
    }"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name, array in {
        "table": rng.standard_normal((50, 256)).astype(np.float32),
        "bias": rng.standard_normal(256).astype(np.float32),
        "axes": np.array([1]),
    }.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))

    def cost(model: onnx.ModelProto) -> float:
        return float(sum(math.prod(t.dims) for t in model.graph.initializer)) / 1e4

    clock = Counted(cost, rest=12.0, all_shrinks=True)
    choice = chosen(secateur.analyze(model, dims={"N": 2}), clock, {"latency": 0.5})
    (reached,) = choice.details()
    assert 0.9 * reached["goal"] <= reached["reached"] <= reached["goal"]


def test_round_to_overrides_the_measured_alignment() -> None:
    found = secateur.analyze(convnet(3, 64, 96))
    choice = chosen(found, Counted(blocked(16)), {"latency": 0.6, "round_to": 12})
    assert all(n % 12 == 0 or n in (64, 96) for n in kept(found, choice))


def test_a_latency_out_of_reach() -> None:
    found = secateur.analyze(convnet(3, 64, 96))
    clock = Counted(blocked(16), rest=10.0)
    with pytest.raises(TargetError, match=r"cannot go down to 0\.5 of the original: at best 0\.9"):
        chosen(found, clock, {"latency": 0.5})


def test_latency_options() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"latency": 1.5}, "`latency` must be more than 0 and at most 1"),
        ({"latency_ms": 0.0}, "`latency_ms` must be more than 0"),
        ({"ratio": 0.5, "latency": 0.5}, "`ratio` cannot be combined"),
    ]
    for options, message in cases:
        with pytest.raises(UsageError, match=message):
            secateur.prune(convnet(3, 32), **options)


# ---- a real clock -------------------------------------------------------------------------------


def test_kernels_are_told_apart() -> None:
    found = secateur.analyze(convnet(3, 64, 64, size=16))
    layer = timed_layers(found)[1]
    large, small = kernel_times([layer.model((64, 64)), layer.model((16, 16))], 1)
    assert large > 2 * small > 0
    (rest,) = kernel_times([convnet(3, 64, 64, size=16)], 1, {}, KERNELS)
    (whole,) = kernel_times([convnet(3, 64, 64, size=16)], 1)
    assert 0 <= rest < whole


def test_a_real_latency() -> None:
    model = convnet(3, 64, 64, 64, size=20)
    seen: list[str] = []
    result = secateur.prune(
        model,
        latency=0.7,
        threads=1,
        bench=False,
        progress=lambda message, done: seen.append(message),
    )
    (reached,) = result.results[0].details["targets"]
    assert 0 < reached["reached"] <= reached["goal"] == pytest.approx(0.7 * reached["before"])
    assert result.certificate is not None and result.certificate.ok
    assert {"time layers", "time candidates"} <= set(seen)


def test_weights_that_nodes_compute_from_constants_are_timed_as_weights() -> None:
    weights: dict[str, Any] = {"w": np.ones((2, 16, 24), np.float32), "s": np.array([32, 24])}
    node = helper.make_node
    graph = helper.make_graph(
        [node("Reshape", ["w", "s"], ["v"]), node("MatMul", ["x", "v"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 32])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 24])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (layer,) = timed_layers(secateur.analyze(model))
    alone = layer.model(layer.full).graph
    assert [list(t.dims) for t in alone.initializer] == [[32, 24]]
    (x,) = alone.input
    assert [d.dim_value for d in x.type.tensor_type.shape.dim] == [4, 32]
