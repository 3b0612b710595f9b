"""The pass ``distill``: what it changes and what not, and that the outputs come nearer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import numpy_helper

from secateur.ir.constants import constants
from secateur.ir.errors import DataError, UsageError
from secateur.ir.flatten import flatten, with_constants
from secateur.ir.io import load_model, to_proto
from secateur.passes.base import PassContext, PassResult
from secateur.passes.distill import Distill, trained_tensors
from secateur.passes.manager import PassManager
from secateur.passes.prune import Prune

from .graph_builder import Array
from .graphs import GRAPHS, feeds
from .pass_runs import build, normal, run, stored

pytest.importorskip("torch")

MLP = """g (float[N,8] x) => (float[N,4] y) {
    a = Gemm<transB=1>(x, w1, b1) r = Relu(a) c = Gemm<transB=1>(r, w2, b2) s = Relu(c)
    y = Gemm<transB=1>(s, w3, b3) }"""
SHORT = Distill(epochs=30, batch_size=32, learning_rate=3e-3)


def mlp(dtype: Any = np.float32) -> onnx.ModelProto:
    weights = {"w1": (24, 8), "b1": (24,), "w2": (24, 24), "b2": (24,), "w3": (4, 24), "b3": (4,)}
    arrays = {
        name: (normal(*shape, seed=k) / np.sqrt(shape[-1])).astype(dtype)
        for k, (name, shape) in enumerate(weights.items())
    }
    text = MLP if dtype == np.float32 else MLP.replace("float[", "float16[")
    return build(text, 20, **arrays)


def context(x: Array, **more: Any) -> PassContext:
    return PassContext(seed=0, threads=1, calibration={"x": x}, **more)


def pruned(model: onnx.ModelProto, x: Array, ratio: float = 0.4) -> oir.Model:
    return PassManager([Prune(ratio=ratio)]).run(load_model(model), context(x)).model


def distilled(
    original: onnx.ModelProto, model: oir.Model, x: Array, options: Distill = SHORT, **more: Any
) -> tuple[onnx.ModelProto, PassResult]:
    """The model and the result of the pass; the original must not change."""
    teacher = load_model(original)
    before = to_proto(teacher).SerializeToString(deterministic=True)
    outcome = PassManager([options]).run(model, context(x, original=teacher, **more))
    assert to_proto(teacher).SerializeToString(deterministic=True) == before
    return to_proto(outcome.model), outcome.results[0]


def error(a: onnx.ModelProto, b: onnx.ModelProto, x: Array) -> float:
    """|b - a| / |a| of the first outputs."""
    p, q = (run(m, {"x": x})[0].astype(np.float64) for m in (a, b))
    return float(np.linalg.norm(q - p) / np.linalg.norm(p))


def without_weights(model: onnx.ModelProto) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
    return bytes(copy.SerializeToString(deterministic=True))


def test_the_outputs_come_nearer_on_data_not_seen() -> None:
    model, x, fresh = mlp(), normal(600, 8), normal(200, 8, seed=9)
    smaller = pruned(model, x)
    before = to_proto(smaller)
    after, result = distilled(model, smaller, x)
    assert error(model, after, fresh) < 0.5 * error(model, before, fresh)
    assert result.modified
    assert without_weights(after) == without_weights(before)
    assert set(stored(after)) == set(stored(before))
    found = result.statistics
    assert found["weights"] == 6 and found["steps"] == 30 * (540 // 32)
    assert found["parameters"] == sum(a.size for a in stored(after).values())
    assert found["drift"] < 0.5 * found["drift-before"]
    assert found["loss"] < found["loss-before"]


def test_the_drift_is_measured_on_held_out_data() -> None:
    model, x = mlp(), normal(50, 8)
    smaller = pruned(model, x)
    after, result = distilled(model, smaller, x)
    order = np.random.default_rng([0, 0]).permutation(50)
    assert result.statistics["drift"] == pytest.approx(error(model, after, x[order[:5]]), rel=1e-4)


def test_float16_is_trained_in_float32_and_rounded_back() -> None:
    model, x = mlp(np.float16), normal(300, 8).astype(np.float16)
    smaller = pruned(model, x)
    before = to_proto(smaller)
    after, _ = distilled(model, smaller, x)
    assert {a.dtype for a in stored(after).values()} == {np.dtype(np.float16)}
    assert without_weights(after) == without_weights(before)
    assert error(model, after, x) < 0.6 * error(model, before, x)


def test_a_model_that_has_not_changed_stays() -> None:
    model, x = mlp(), normal(64, 8)
    after, result = distilled(model, load_model(model), x, Distill(epochs=2))
    assert not result.modified and result.statistics["weights"] == 0
    assert after == to_proto(load_model(model)) and result.statistics["drift"] == 0


def test_shared_weights_stay_shared_and_constants_constants() -> None:
    """One weight used twice, another one in a Constant node; the latter keeps its node."""
    text = """g (float[N,8] x) => (float[N,8] y) {
        a = MatMul(x, w) r = Tanh(a) c = Add(r, k) y = MatMul(c, w) }"""
    w = normal(8, 8) / 3
    model = build(text, w=w, k=normal(8, seed=1))
    k = model.graph.initializer.pop()
    node = onnx.helper.make_node("Constant", [], ["k"], name="kept", value=k)
    model.graph.node.insert(0, node)
    student = onnx.ModelProto()
    student.CopyFrom(model)
    student.graph.initializer[0].CopyFrom(numpy_helper.from_array(w + normal(8, 8) / 5, "w"))
    after, result = distilled(model, load_model(student), normal(300, 8))
    assert error(model, after, normal(50, 8, seed=5)) < 0.3 * error(model, student, normal(50, 8))
    assert [t.name for t in after.graph.initializer] == ["w"]
    assert after.graph.node[0].name == "kept" and result.statistics["weights"] == 2
    assert not np.array_equal(numpy_helper.to_array(after.graph.node[0].attribute[0].t),
                              numpy_helper.to_array(k))  # fmt: skip


def test_quantised_weights_stay() -> None:
    """The integers, the scales and the zero points stay; the float bias is trained."""
    text = """g (float[N,8] x) => (float[N,4] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(i, t)
        m = MatMul(d, w) y = Add(m, b) }"""
    integers = np.random.default_rng(0).integers(-100, 101, (8, 4)).astype(np.int8)
    fixed: dict[str, Array] = {
        "s": np.array(0.05, np.float32),
        "z": np.array(0, np.int8),
        "i": integers,
        "t": np.full((1,), 0.01, np.float32),
    }
    model = build(text, 20, 10, "", b=normal(4), **fixed)
    student = build(text, 20, 10, "", b=normal(4) + 1, **fixed)
    options = replace(SHORT, learning_rate=3e-2)
    after, result = distilled(model, load_model(student), normal(200, 8), options)
    arrays = stored(after)
    for name, array in fixed.items():
        np.testing.assert_array_equal(arrays[name], array)
    np.testing.assert_allclose(arrays["b"], normal(4), atol=0.05)
    assert result.statistics["weights"] == 1 and result.statistics["parameters"] == 4


def test_the_same_seed_gives_the_same_bytes() -> None:
    model, x = mlp(), normal(100, 8)
    smaller = to_proto(pruned(model, x))
    first, second = (distilled(model, load_model(smaller), x)[0] for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    other = replace(context(x), seed=1, original=load_model(model))
    third = PassManager([SHORT]).run(load_model(smaller), other).model
    assert to_proto(third).SerializeToString() != first.SerializeToString()


class Stopped(Exception):
    """The user lost patience."""


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    model, x = mlp(), normal(200, 8)
    smaller = to_proto(pruned(model, x))
    options = Distill(epochs=40, batch_size=32, augment="none")
    whole, result = distilled(model, load_model(smaller), x, options)
    assert result.statistics["steps"] == 200
    resumable = replace(options, checkpoint=str(tmp_path / "here"))
    stop_after(resumable, model, load_model(smaller), x, steps=90)
    path = tmp_path / "here" / "distill.npz"
    with np.load(path, allow_pickle=False) as data:
        assert 0 < json.loads(data["state"].tobytes())["step"] <= 90
    resumed, result = distilled(model, load_model(smaller), x, resumable)
    assert result.statistics["steps"] == 200
    assert resumed.SerializeToString() == whole.SerializeToString()
    again, _ = distilled(model, load_model(smaller), x, resumable)
    assert again.SerializeToString() == whole.SerializeToString()
    with pytest.raises(UsageError, match="of another model, other data or other options"):
        distilled(model, load_model(smaller), x, replace(resumable, temperature=3.0))


def stop_after(
    options: Distill, original: onnx.ModelProto, model: oir.Model, x: Array, steps: int
) -> None:
    """Runs the pass until that many steps are done, then fails in the middle of it."""
    from secateur.passes.distill_training import Training

    step = Training._step

    def failing(self: Training, state: Any) -> float:
        if state.step == steps + 3:
            raise Stopped
        return step(self, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_step", failing)
        with pytest.raises(Exception, match="Stopped"):
            distilled(original, model, x, options)


def test_training_stops_when_nothing_gets_better() -> None:
    """At a hopeless rate no evaluation beats the start, which is what remains."""
    model, x = mlp(), normal(100, 8)
    smaller = pruned(model, x)
    before = to_proto(smaller)
    options = Distill(epochs=1000, learning_rate=1e3, optimizer="sgd", patience=3)
    after, result = distilled(model, smaller, x, options)
    assert result.statistics["steps"] < 200 and not result.modified
    assert result.statistics["loss"] == result.statistics["loss-before"]
    assert after == before


def test_time_is_up() -> None:
    model, x = mlp(), normal(400, 8)
    messages: list[tuple[str, float | None]] = []
    _, result = distilled(
        model,
        pruned(model, x),
        x,
        Distill(minutes=1.5 / 60),
        progress=lambda text, part: messages.append((text, part)),
    )
    assert result.details["distill"]["history"][-1][0] == result.statistics["steps"] > 0
    steps = [(text, part) for text, part in messages if text.startswith("step ")]
    assert steps and all(part is not None and 0 < part <= 1 for _, part in steps)
    assert "held out" in steps[0][0] and "loss" in steps[0][0]


RESIDUAL = """g (float[N,3,8,8] x) => (float[N,5] y) {
    s = Conv<pads=[1,1,1,1]>(x, w0) a = Conv<pads=[1,1,1,1]>(s, w1) r = Relu(a)
    b = Conv<pads=[1,1,1,1]>(r, w2) t = Add(s, b) p = GlobalAveragePool(t) f = Flatten(p)
    y = Gemm<transB=1>(f, w3) }"""


def residual() -> onnx.ModelProto:
    shapes = {"w0": (8, 3, 3, 3), "w1": (12, 8, 3, 3), "w2": (8, 12, 3, 3), "w3": (5, 8)}
    weights: dict[str, Array] = {
        n: normal(*s, seed=k) / np.float32(6) for k, (n, s) in enumerate(shapes.items())
    }
    return build(RESIDUAL, 20, 10, "", **weights)


def test_values_inside_are_those_of_equal_shape() -> None:
    model, x = residual(), normal(60, 3, 8, 8)
    options = Distill(epochs=3, batch_size=16)
    for protect, inside in (("t", ["t"]), ("a", ["a"])):
        prune = Prune(ratio=0.4, protect=(protect,))
        smaller = PassManager([prune]).run(load_model(model), context(x)).model
        result = distilled(model, smaller, x, options)[1]
        assert result.details["distill"]["inside"] == inside
    prune = Prune(ratio=0.4, protect=("t",))
    smaller = PassManager([prune]).run(load_model(model), context(x)).model
    named = replace(options, values=("s", "f"))
    result = distilled(model, smaller, x, named)[1]
    assert result.details["distill"]["inside"] == ["s", "f"]
    off = replace(options, hidden=0.0)
    assert distilled(model, smaller, x, off)[1].details["distill"]["inside"] == []
    with pytest.raises(UsageError, match="no value inside both models matches 'nothing'"):
        distilled(model, smaller, x, replace(options, values=("nothing",)))


@pytest.mark.parametrize("augment", ["flip", "flip-shift"])
def test_augmented_images(augment: Any) -> None:
    model, x = residual(), normal(64, 3, 8, 8)
    smaller = pruned(model, x)
    before = to_proto(smaller)
    after, _ = distilled(model, smaller, x, Distill(epochs=15, batch_size=16, augment=augment))
    fresh = normal(64, 3, 8, 8, seed=7)
    assert error(model, after, fresh) < 0.7 * error(model, before, fresh)


def test_a_fixed_batch() -> None:
    model = residual()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    x = normal(64, 3, 8, 8)
    smaller = pruned(model, x)
    before = to_proto(smaller)
    after, result = distilled(model, smaller, x, Distill(epochs=10, batch_size=8))
    assert result.statistics["steps"] == 10 * (14 // 2)
    assert error(model, after, x[:4]) < 0.7 * error(model, before, x[:4])


def test_statistics_of_batch_norm_follow_the_data() -> None:
    """The student's mean is off; renewed statistics come back to those of the data."""
    text = """g (float[N,2,4,4] x) => (float[N,2,4,4] y) {
        c = Conv(x, w) y = BatchNormalization(c, s, b, m, v) }"""
    x = normal(256, 2, 4, 4)
    w = normal(2, 2, 1, 1)
    c = np.einsum("oi,nihw->nohw", w[:, :, 0, 0], x)
    right = {"m": c.mean((0, 2, 3)), "v": c.var((0, 2, 3)), "s": np.ones(2, np.float32),
             "b": np.zeros(2, np.float32)}  # fmt: skip
    model = build(text, w=w, **right)
    student = build(text, w=w, **{**right, "m": right["m"] + 2, "v": right["v"] * 3})
    options = Distill(epochs=20, batch_size=64, learning_rate=1e-6)
    kept = stored(distilled(model, load_model(student), x, options)[0])
    np.testing.assert_array_equal(kept["m"], stored(student)["m"])
    renewed = replace(options, batch_norm="renew")
    after, result = distilled(model, load_model(student), x, renewed)
    np.testing.assert_allclose(stored(after)["m"], right["m"], atol=0.05)
    np.testing.assert_allclose(stored(after)["v"], right["v"], rtol=0.1)
    assert result.statistics["drift"] < 0.1


CONVOLUTIONS = """g (float[N,3,8,8] x) => (float[N,5] y, float[N,12,8,8] e) {
    a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a) d = Conv<group=2>(r, w1, b1) t = Tanh(d)
    e = Add(r, t) f = ConvTranspose(e, w2, b2) h = Relu(f) p = GlobalAveragePool(h)
    q = Flatten(p) y = Gemm<transB=1>(q, w3, b3) }"""


def convolutions() -> onnx.ModelProto:
    """Convolutions of several kinds with biases, whose channels differ much in size."""
    shapes = {"w0": (12, 3, 3, 3), "w1": (12, 6, 1, 1), "w2": (12, 8, 1, 1), "w3": (5, 8)}
    weights: dict[str, Array] = {n: normal(*s, seed=k) for k, (n, s) in enumerate(shapes.items())}
    weights["w0"] *= np.logspace(-1, 1, 12, dtype=np.float32).reshape(-1, 1, 1, 1)
    weights |= {f"b{k}": normal(n, seed=9 + k) for k, n in enumerate((12, 12, 8, 5))}
    return build(CONVOLUTIONS, 20, 10, "", **weights)


def test_norms_for_the_time_of_the_training_change_nothing_by_themselves() -> None:
    """Put in and folded again, they leave the weights but for rounding, and the graph as it is."""
    from secateur.passes.distill_norms import insert_norms

    model, x = convolutions(), normal(64, 3, 8, 8)
    student = load_model(model)
    weights = {str(v.name): t.numpy() for v, t in constants(student.graph)}
    norms = insert_norms(student, weights.keys(), [{"x": x}], "cpu")
    assert [norm.layer.node.op_type for norm in norms] == ["Conv", "Conv", "ConvTranspose"]
    for wanted, found in zip(run(model, {"x": x}), run(to_proto(student), {"x": x}), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    arrays = {str(v.name): t.numpy() for v, t in constants(student.graph)}
    for norm in norms:
        for name, array in norm.folded(arrays).items():
            np.testing.assert_allclose(array, weights[name], rtol=1e-5, atol=1e-6)


def test_training_with_norms_in_place_of_folded_ones() -> None:
    """What was trained with them is folded, so that the outputs come nearer in the same graph."""
    model, x = convolutions(), normal(256, 3, 8, 8)
    smaller = pruned(model, x, 0.3)
    before = to_proto(smaller)
    options = Distill(epochs=10, batch_size=32, batch_norm="insert")
    after, result = distilled(model, smaller, x, options)
    assert without_weights(after) == without_weights(before)
    assert result.statistics["loss"] < 0.8 * result.statistics["loss-before"]
    fresh = normal(64, 3, 8, 8, seed=5)
    assert error(model, after, fresh) < 0.9 * error(model, before, fresh)


def test_norms_need_batches() -> None:
    model, x = convolutions(), normal(64, 3, 8, 8)
    with pytest.raises(UsageError, match="batches of at least 8 samples"):
        distilled(model, load_model(model), x, Distill(batch_norm="insert", batch_size=4))


def test_labels(tmp_path: Path) -> None:
    """With labels that contradict the original, their classes become more likely."""
    model, x = mlp(), normal(400, 8)
    smaller = to_proto(pruned(model, x))
    classes = run(model, {"x": x})[0].argmin(1)
    np.save(tmp_path / "labels.npy", classes)
    options = replace(SHORT, labels=str(tmp_path / "labels.npy"))
    plain, with_labels = (distilled(model, load_model(smaller), x, o)[0] for o in (SHORT, options))
    chances = []
    for outcome in (plain, with_labels):
        z = np.exp(run(outcome, {"x": x})[0].astype(np.float64))
        chances.append((z / z.sum(1, keepdims=True))[np.arange(400), classes].mean())
    assert chances[1] > 1.1 * chances[0]
    np.save(tmp_path / "labels.npy", classes[:10])
    with pytest.raises(DataError, match="fewer labels than samples"):
        distilled(model, load_model(smaller), x, options)
    np.save(tmp_path / "labels.npy", classes.astype(np.float32))
    with pytest.raises(DataError, match="must hold one array of class numbers"):
        distilled(model, load_model(smaller), x, options)
    (tmp_path / "labels.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"not a readable \.npy file"):
        distilled(model, load_model(smaller), x, options)


# -- what is refused ------------------------------------------------------------------------------


def refused(
    match: str, kind: type[Exception], model: onnx.ModelProto, x: Mapping[str, Array]
) -> None:
    with pytest.raises(kind, match=match):
        PassManager([Distill(epochs=1)]).run(
            load_model(model), PassContext(calibration=dict(x) or None)
        )


def test_it_needs_data_to_hold_out() -> None:
    refused("give --calibration FILE", UsageError, mlp(), {})
    refused(
        "needs samples to train on and others to hold out", DataError, mlp(), {"x": normal(1, 8)}
    )


def test_it_needs_a_weight() -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    refused("no weight that distill could train", UsageError, model, {"x": normal(9, 4)})


def test_the_operator_that_is_unknown_is_named() -> None:
    text = """g (float[N,4,4] x) => (float[N,4] y) {
        h = MatMul(x, w) d = Det(h) u = Unsqueeze(d, a) y = MatMul(u, v) }"""
    model = build(text, w=normal(4, 4), a=np.array([1], np.int64), v=normal(1, 4))
    refused(r"node 'd' \(Det\): .* does not know Det", UsageError, model, {"x": normal(9, 4, 4)})


def test_what_follows_the_last_weight_may_be_unknown() -> None:
    text = """g (float[N,4,4] x) => (float[N] y) {
        h = MatMul(x, w) r = Relu(h) y = Det(r) }"""
    model = build(text, w=normal(4, 4))
    student = build(text, w=normal(4, 4) + normal(4, 4, seed=1) / 5)
    after, result = distilled(model, load_model(student), normal(300, 4, 4))
    assert result.details["distill"]["outputs"] == [{"value": "r", "kind": "values"}]
    np.testing.assert_allclose(stored(after)["w"], normal(4, 4), atol=0.1)


def test_another_original(tmp_path: Path) -> None:
    """A pruned file learns from the original's; the interfaces must be equal."""
    model, x = mlp(), normal(200, 8)
    smaller = to_proto(pruned(model, x))
    onnx.save(model, tmp_path / "original.onnx")
    options = replace(SHORT, original=str(tmp_path / "original.onnx"))
    outcome = PassManager([options]).run(load_model(smaller), context(x))
    assert error(model, to_proto(outcome.model), x) < 0.5 * error(model, smaller, x)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "other"
    onnx.save(model, tmp_path / "original.onnx")
    with pytest.raises(UsageError, match="other inputs or outputs"):
        PassManager([options]).run(load_model(smaller), context(x))


@pytest.mark.parametrize("name", ["computed_attention", "gru_bidirectional", "if_convolutions"])
def test_other_architectures_learn(name: str) -> None:
    """Weights that are off by a tenth come back nearer to those of the original."""
    model = GRAPHS[name]()
    given = [feeds(model, seed=k, size=4) for k in range(12)]
    data = {key: np.stack([feed[key] for feed in given]) for key in given[0]}
    rng = np.random.default_rng(0)
    student = onnx.ModelProto()
    student.CopyFrom(model)
    for tensor in student.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.ndim > 1:
            noise = 1 + 0.1 * rng.standard_normal(array.shape)
            tensor.CopyFrom(
                numpy_helper.from_array((array * noise).astype(array.dtype), tensor.name)
            )
    context = PassContext(threads=1, calibration=data, original=load_model(model))
    options = Distill(epochs=20, batch_size=4, learning_rate=2e-3)
    result = PassManager([options]).run(load_model(student), context).results[0]
    assert result.statistics["drift"] < 0.8 * result.statistics["drift-before"]


def test_equal_names_in_two_branches_are_two_weights() -> None:
    """Both branches call their weight k; what was trained is stored, each in its place."""
    model = load_model(GRAPHS["if_names_reused"]())
    before = floats(model)
    tensors = trained_tensors(flatten(model), {n: a + k for k, (n, a) in enumerate(before.items())})
    assert len(tensors) == len(before) - 1
    after = floats(with_constants(model, tensors))
    for k, (name, array) in enumerate(before.items()):
        np.testing.assert_array_equal(after[name], array + k)


def test_weights_in_the_body_of_a_function() -> None:
    """It is called twice, before and after."""
    model, x = GRAPHS["function_with_weights"](), normal(200, 8)
    smaller = pruned(model, x)
    before = to_proto(smaller)
    after, result = distilled(model, smaller, x)
    assert result.statistics["weights"] == 5
    assert error(model, after, x) < 0.8 * error(model, before, x)
    assert [node.op_type for node in after.graph.node].count("block") == 2


def floats(model: oir.Model) -> dict[str, Array]:
    """The float32 constants of the flat form."""
    found = constants(flatten(model).graph)
    return {str(v.name): t.numpy() for v, t in found if t.dtype == oir.DataType.FLOAT}
