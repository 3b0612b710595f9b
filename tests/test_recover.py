"""The pass recover: outputs come back towards the original's, and nothing else changes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

import secateur
from secateur.ir.errors import UsageError
from secateur.ir.io import to_proto
from secateur.passes.base import PassContext
from secateur.passes.recover import Recover

from .pass_runs import Array, build, run

RESIDUAL = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0)  s = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(s, w1, b1)  d = Relu(c)
    e = Conv<pads = [1, 1, 1, 1]>(d, w2, b2)  f = Add(e, s)  h = Relu(f)
    p = GlobalAveragePool(h)  q = Flatten(p)  y = Gemm<transB = 1>(q, w3, b3)
}"""


def correlated(shape: tuple[int, ...], seed: int, rank: int = 4) -> Array:
    """Weights whose rows nearly lie in a space of few dimensions: what one does others can do."""
    rng = np.random.default_rng(seed)
    columns = int(np.prod(shape[1:]))
    array = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, columns))
    array += 0.1 * rng.standard_normal(array.shape)
    found: Array = (array / np.sqrt(rank * columns)).reshape(shape).astype(np.float32)
    return found


def residual_weights() -> dict[str, Any]:
    shapes = {"w0": (12, 3, 3, 3), "w1": (16, 12, 3, 3), "w2": (12, 16, 3, 3), "w3": (5, 12)}
    weights: dict[str, Any] = {n: correlated(s, k) for k, (n, s) in enumerate(shapes.items())}
    rng = np.random.default_rng(9)
    for k, size in enumerate((12, 16, 12, 5)):
        weights[f"b{k}"] = 0.1 * rng.standard_normal(size).astype(np.float32)
    return weights


def residual() -> onnx.ModelProto:
    return build(RESIDUAL, **residual_weights())


def samples(count: int = 200, seed: int = 0, shape: tuple[int, ...] = (3, 8, 8)) -> Array:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, *shape)) + 0.7 * rng.standard_normal(
        (count, *shape[:-1], 1)
    )
    return mixed.astype(np.float32)


def outputs(model: Any, x: Array, name: str = "x") -> Array:
    proto = model if isinstance(model, onnx.ModelProto) else to_proto(model)
    return run(proto, {name: x})[0].astype(np.float64)


def error(model: Any, original: onnx.ModelProto, x: Array, name: str = "x") -> float:
    wanted = outputs(original, x, name)
    return float(np.sqrt(np.square(outputs(model, x, name) - wanted).mean() / wanted.var()))


def pruned(original: onnx.ModelProto, pipeline: str, **options: Any) -> secateur.PruneResult:
    return secateur.run(original, pipeline, bench=False, threads=1, **options)


def check_drifts(
    alone: secateur.PruneResult, both: secateur.PruneResult, original: onnx.ModelProto, x: Array
) -> None:
    """What the pass says is what the model that was written does."""
    statistics = both.results[-1].statistics
    assert statistics["drift"] == pytest.approx(error(both.model, original, x), rel=0.02)
    assert statistics["drift-before"] == pytest.approx(error(alone.model, original, x), rel=0.02)


def test_a_residual_block_comes_back() -> None:
    """On samples that nobody fitted to, recovery leaves a fraction of the error."""
    original, fresh = residual(), samples(64, seed=1)
    data = {"x": samples()}
    alone = pruned(original, "prune{ratio=0.4}", calibration=data)
    both = pruned(original, "prune{ratio=0.4},recover", calibration=data)
    assert error(both.model, original, fresh) < 0.35 * error(alone.model, original, fresh)
    check_drifts(alone, both, original, data["x"])


def test_only_numbers_change() -> None:
    original, data = residual(), {"x": samples()}
    alone = to_proto(pruned(original, "prune{ratio=0.4}", calibration=data).model)
    both = pruned(original, "prune{ratio=0.4},recover", calibration=data)
    fitted = to_proto(both.model)
    names = both.results[-1].details["refitted"]
    assert names and set(names) <= {t.name for t in alone.graph.initializer}
    for old, new in zip(alone.graph.initializer, fitted.graph.initializer, strict=True):
        assert (old.name, old.dims, old.data_type) == (new.name, new.dims, new.data_type)
        assert (old.raw_data == new.raw_data) == (old.name not in names)
    for part in (alone, fitted):
        del part.graph.initializer[:]
    assert alone == fitted


def test_the_same_data_give_the_same_bytes() -> None:
    original, data = residual(), {"x": samples()}
    one, other = (
        to_proto(pruned(original, "prune{ratio=0.4},recover", calibration=data).model)
        for _ in range(2)
    )
    assert one.SerializeToString() == other.SerializeToString()


def test_in_steps() -> None:
    """Two prunings with a recovery after each: kept channels are counted through both."""
    original, fresh, data = residual(), samples(64, seed=1), {"x": samples()}
    steps = "prune{ratio=0.25},recover,prune{ratio=0.25},recover"
    alone = pruned(original, "prune{ratio=0.25},prune{ratio=0.25}", calibration=data)
    both = pruned(original, steps, calibration=data)
    assert error(both.model, original, fresh) < 0.4 * error(alone.model, original, fresh)


def test_a_model_that_was_not_pruned_stays() -> None:
    found = pruned(residual(), "recover", calibration={"x": samples()})
    assert not found.results[-1].modified


FORMS: dict[str, tuple[str, dict[str, tuple[int, ...]], tuple[int, ...]]] = {
    "transposed": (
        "g (float[N, 6, 5, 5] x) => (float[N, 4, 11, 11] y) {"
        " a = ConvTranspose<strides = [2, 2]>(x, w, b) c = Relu(a) y = Conv(c, v, d) }",
        {"w": (6, 10, 3, 3), "b": (10,), "v": (4, 10, 1, 1), "d": (4,)},
        (6, 5, 5),
    ),
    "grouped": (
        "g (float[N, 6, 7, 7] x) => (float[N, 4, 5, 5] y) {"
        " a = Conv(x, w, b) c = Relu(a) e = Conv<group = 2>(c, u, f)"
        " h = Relu(e) y = Conv(h, v, d) }",
        {
            "w": (12, 6, 1, 1),
            "b": (12,),
            "u": (8, 6, 3, 3),
            "f": (8,),
            "v": (4, 8, 1, 1),
            "d": (4,),
        },
        (6, 7, 7),
    ),
    "products": (
        "g (float[N, 5, 8] x) => (float[N, 5, 4] y) {"
        " a = MatMul(x, w) c = Add(a, b) e = Tanh(c) f = MatMul(e, v) y = Add(d, f) }",
        {"w": (8, 16), "b": (16,), "v": (16, 4), "d": (4,)},
        (5, 8),
    ),
    "no bias": (
        "g (float[N, 5, 8] x) => (float[N, 5, 4] y) { a = MatMul(x, w) c = Tanh(a)"
        " y = MatMul(c, v) }",
        {"w": (8, 16), "v": (16, 4)},
        (5, 8),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_layers(form: str) -> None:
    text, shapes, shape = FORMS[form]
    weights: dict[str, Any] = {n: correlated(s, k) for k, (n, s) in enumerate(shapes.items())}
    original = build(text, **weights)
    data = samples(200, 0, shape)
    alone = pruned(original, "prune{ratio=0.4}", calibration={"x": data})
    both = pruned(original, "prune{ratio=0.4},recover", calibration={"x": data})
    check_drifts(alone, both, original, data)
    fresh = samples(64, 1, shape)
    assert error(both.model, original, fresh) < 0.6 * error(alone.model, original, fresh)


@pytest.mark.parametrize("op, gates", [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_input_weights_of_recurrent_layers(op: str, gates: int) -> None:
    """What feeds the layer loses channels; its input weights make up for it."""
    original = build(
        f"""g (float[6, N, 8] x) => (float[6, a, N, 7] y) {{
            c = MatMul(x, v)  e = Add(c, d)  f = Relu(e)
            y = {op}<hidden_size = 7>(f, w, r, b)
        }}""",
        v=correlated((8, 20), 0),
        d=correlated((20,), 1),
        w=correlated((1, gates * 7, 20), 2).reshape(1, gates * 7, 20),
        r=correlated((1, gates * 7, 7), 3),
        b=0.1 * correlated((1, 2 * gates * 7), 4),
    )
    x = samples(150, 0, (6, 8)).transpose(1, 0, 2)
    data = {"x": x[:, None].transpose(2, 0, 1, 3)}  # whole feeds of one sequence
    alone = pruned(original, "prune{ratio=0.4}", calibration=data)
    both = pruned(original, "prune{ratio=0.4},recover", calibration=data)
    assert "w" in both.results[-1].details["refitted"]
    fresh = samples(40, 1, (6, 8)).transpose(1, 0, 2)
    assert error(both.model, original, fresh) < 0.7 * error(alone.model, original, fresh)


def test_quantised_weights_are_rounded_to_their_steps() -> None:
    rng = np.random.default_rng(0)

    def stored(shape: tuple[int, ...], seed: int) -> tuple[Array, Array]:
        array = correlated(shape, seed)
        scale = np.abs(array).reshape(shape[0], -1).max(axis=1) / 100
        return np.rint(array / scale[:, None, None, None]).astype(np.int8), scale

    (q, s), (p, t) = stored((16, 4, 3, 3), 0), stored((6, 16, 1, 1), 1)
    original = build(
        """g (float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) {
            w = DequantizeLinear<axis = 0>(q, s)  a = Conv(x, w, b)  c = Relu(a)
            v = DequantizeLinear<axis = 0>(p, t)  y = Conv(c, v, d)
        }""",
        q=q,
        s=s,
        p=p,
        t=t,
        b=0.1 * rng.standard_normal(16).astype(np.float32),
        d=0.1 * rng.standard_normal(6).astype(np.float32),
    )
    data = samples(200, 0, (4, 8, 8))
    alone = pruned(original, "prune{ratio=0.4}", calibration={"x": data})
    both = pruned(original, "prune{ratio=0.4},recover", calibration={"x": data})
    assert "p" in both.results[-1].details["refitted"]
    assert to_proto(both.model).graph.initializer[0].data_type == onnx.TensorProto.INT8
    check_drifts(alone, both, original, data)
    fresh = samples(64, 1, (4, 8, 8))
    assert error(both.model, original, fresh) < 0.6 * error(alone.model, original, fresh)


def normalised() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    statistics: dict[str, Any] = {
        **{n: 1 + 0.2 * rng.random(12).astype(np.float32) for n in "sv"},
        **{n: 0.2 * rng.standard_normal(12).astype(np.float32) for n in "om"},
        **{n: 0.2 * rng.standard_normal(10).astype(np.float32) for n in "pn"},
        **{n: 1 + 0.2 * rng.random(10).astype(np.float32) for n in "tz"},
    }
    return build(
        """g (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y) {
            a = Conv(x, w)  c = BatchNormalization(a, s, o, m, v)  e = Relu(c)
            f = Conv(e, u)  h = BatchNormalization(f, t, p, n, z)  k = Relu(h)  y = Conv(k, r)
        }""",
        w=correlated((12, 4, 1, 1), 0),
        u=correlated((10, 12, 1, 1), 1),
        r=correlated((3, 10, 1, 1), 2),
        **statistics,
    )


def test_batch_normalization_gets_new_statistics() -> None:
    """Its inputs, normalised, have the mean and deviation that the original's have."""
    original, data = normalised(), samples(200, 0, (4, 6, 6))
    both = pruned(original, "prune{ratio=0.4},recover", calibration={"x": data})
    assert {"n", "z"} & set(both.results[-1].details["refitted"])
    fresh = samples(64, 1, (4, 6, 6))
    alone = pruned(original, "prune{ratio=0.4}", calibration={"x": data})
    assert error(both.model, original, fresh) < 0.6 * error(alone.model, original, fresh)


def test_on_noise() -> None:
    original, fresh = residual(), samples(64, seed=1)
    alone = pruned(original, "prune{ratio=0.4}")
    both = pruned(original, "prune{ratio=0.4},recover{data=noise samples=512}")
    assert error(both.model, original, fresh) < 0.6 * error(alone.model, original, fresh)


def test_types_stay() -> None:
    original = residual()
    for tensor in original.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*original.graph.input, *original.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    data = {"x": samples().astype(np.float16)}
    both = to_proto(pruned(original, "prune{ratio=0.4},recover", calibration=data).model)
    assert {t.data_type for t in both.graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_errors() -> None:
    with pytest.raises(UsageError, match="--calibration"):
        pruned(residual(), "recover")
    with pytest.raises(UsageError, match="original"):
        Recover().run(secateur.load(residual()), PassContext(calibration={"x": samples()}))
    for option in ("samples=1", "rows=-1", "memory=0"):
        with pytest.raises(UsageError, match=option.split("=")[0]):
            pruned(residual(), f"recover{{{option}}}", calibration={"x": samples()})


PLAIN = {"w": (8, 16), "v": (16, 4), "u": (8, 4), "b": (4,)}
ODD: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "a sum that repeats the layer": (
        "(float[N, 3, 8] x, float[N, 1, 8] z) => (float[N, 3, 4] y) {"
        " o = MatMul(x, u) a = MatMul(z, w) c = Tanh(a) d = MatMul(c, v) y = Add(d, o) }",
        {"x": (3, 8), "z": (1, 8)},
    ),
    "a sum with infinity": (
        "(float[N, 8] x, float[N, 4] m) => (float[N, 4] y) {"
        " r = Relu(m) l = Log(r) a = MatMul(x, w) c = Tanh(a) d = MatMul(c, v) y = Add(d, l) }",
        {"x": (8,), "m": (4,)},
    ),
    "a sequence": (
        "(float[N, 8] x) => (float[N, 4] y) {"
        " s = SplitToSequence<axis = 1>(x, k) a = MatMul(x, w) c = Tanh(a) d = MatMul(c, v)"
        " e = ConcatFromSequence<axis = 1>(s) f = MatMul(e, u) y = Add(d, f) }",
        {"x": (8,)},
    ),
    "an output that is constant": (
        "(float[N, 8] x) => (float[N, 4] y, float[4] b) {"
        " a = MatMul(x, w) c = Tanh(a) y = MatMul(c, v) }",
        {"x": (8,)},
    ),
    "a layer over constants": (
        "(float[N, 8] x) => (float[N, 4] y) {"
        " t = Transpose(w) p = MatMul(t, q) r = Transpose(p) a = MatMul(x, r) c = Tanh(a)"
        " y = MatMul(c, v) }",
        {"x": (8,)},
    ),
}


@pytest.mark.parametrize("criterion", ["l2", "reconstruction"])
@pytest.mark.parametrize("name", ODD)
def test_odd_graphs_come_back_too(name: str, criterion: str) -> None:
    text, shapes = ODD[name]
    weights: dict[str, Any] = {n: correlated(s, k) for k, (n, s) in enumerate(PLAIN.items())}
    weights |= {"q": np.eye(8, dtype=np.float32), "k": np.array(4)}
    used = {n: a for n, a in weights.items() if re.search(rf"\b{n}\b", text)}
    original = build(f"g {text}", **used)
    data = {n: samples(200, 0, s) for n, s in shapes.items()}
    fresh = {n: samples(64, 1, s) for n, s in shapes.items()}
    errors = []
    for pipeline in ("prune{ratio=0.4 criterion=%s}", "prune{ratio=0.4 criterion=%s},recover"):
        model = to_proto(pruned(original, pipeline % criterion, calibration=data).model)
        wanted, found = (run(m, fresh)[0] for m in (original, model))
        finite = np.isfinite(wanted)
        errors.append(float(np.square(found[finite] - wanted[finite]).mean()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("kind", [onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE])
def test_types_without_kernels(kind: int) -> None:
    """ONNX Runtime convolves neither: what is fitted is compared in float32."""
    original = residual()
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    for tensor in original.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*original.graph.input, *original.graph.output):
        value.type.tensor_type.elem_type = kind
    both = pruned(
        original,
        "prune{ratio=0.4 criterion=reconstruction},recover",
        calibration={"x": samples(64).astype(dtype)},
    )
    statistics = both.results[-1].statistics
    assert statistics["drift"] < 0.2 * statistics["drift-before"]
    assert {t.data_type for t in to_proto(both.model).graph.initializer} == {kind}


def test_noise_is_as_many_samples_where_the_model_takes_one_at_a_time() -> None:
    original = residual()
    for value in (*original.graph.input, *original.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    found = pruned(original, "prune{ratio=0.4},recover{data=noise samples=24}")
    statistics = found.results[-1].statistics
    assert statistics["samples"] == 24 and statistics["drift"] < 0.5 * statistics["drift-before"]


def test_too_few_samples_leave_the_weights_and_say_so() -> None:
    original = residual()
    del original.graph.node[-1].input[2:]  # with a bias, three samples do some good
    found = pruned(original, "prune{ratio=0.4},recover", calibration={"x": samples(3)})
    last = found.results[-1]
    assert not last.modified and "3 samples" in last.details["notes"][0]


def test_a_layer_with_a_few_rows_gets_its_bias_alone() -> None:
    """The mean of its outputs is right again, and no other number of it changes."""
    text = """g (float[N, 6] x) => (float[3, 4] y, float[N, 5] z) {
        a = Gemm(x, w0, b0)  h = Relu(a)
        starts = Constant<value_ints = [0]>()  ends = Constant<value_ints = [3]>()
        few = Slice(h, starts, ends)  y = Gemm(few, w1, b1)  z = Gemm(h, w2, b2)
    }"""
    shapes = {"w0": (6, 16), "w1": (16, 4), "w2": (16, 5)}
    weights: dict[str, Any] = {
        n: correlated(s, k, rank=6) for k, (n, s) in enumerate(shapes.items())
    }
    weights |= {f"b{k}": np.full(n, 0.1, np.float32) for k, n in enumerate((16, 4, 5))}
    original, x = build(text, **weights), samples(40, shape=(6,))
    alone, both = (
        pruned(original, f"prune{{ratio=0.5}}{more}", calibration={"x": x})
        for more in ("", ",recover")
    )
    wanted, before, after = (
        run(to_proto(m) if m is not original else original, {"x": x})[0]
        for m in (original, alone.model, both.model)
    )
    assert np.abs(before.mean(axis=0) - wanted.mean(axis=0)).max() > 1e-2
    np.testing.assert_allclose(after.mean(axis=0), wanted.mean(axis=0), atol=1e-5)
    stored = [
        {t.name: onnx.numpy_helper.to_array(t) for t in to_proto(m.model).graph.initializer}
        for m in (alone, both)
    ]
    np.testing.assert_array_equal(stored[0]["w1"], stored[1]["w1"])
    assert not np.array_equal(stored[0]["w2"], stored[1]["w2"])


PYRAMID = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, H, W] z) {{
    a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0)  c = Relu(a)
    d = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)
    e = Conv<pads = [1, 1, 1, 1]>(c, w1, b1)  f = Relu(e)
    y = Conv(f, w2, b2)
    w3 = Identity(w1)  b3 = Identity(b1)
    h = Conv<pads = [1, 1, 1, 1]>({second}, w3, b3)  i = Relu(h)
    z = Conv(i, w2, b2)
}}"""
"""A head that is used twice, its first weights under two names, as exporters write it; what its
second use reads is left open."""


def pyramid(second: str) -> onnx.ModelProto:
    shapes = {"w0": (12, 3, 3, 3), "w1": (12, 12, 3, 3), "w2": (4, 12, 1, 1)}
    weights: dict[str, Any] = {n: correlated(s, k) for k, (n, s) in enumerate(shapes.items())}
    rng = np.random.default_rng(5)
    for k, size in enumerate((12, 12, 4)):
        weights[f"b{k}"] = 0.1 * rng.standard_normal(size).astype(np.float32)
    return build(PYRAMID.format(second=second), **weights)


def test_layers_that_share_a_weight_are_fitted_together() -> None:
    original = pyramid("d")
    alone = pruned(original, "prune{ratio=0.4}", calibration={"x": samples()})
    both = pruned(original, "prune{ratio=0.4},recover", calibration={"x": samples()})
    details = both.results[-1].details
    assert [fit.output for fit in details["fits"]] == ["e", "h", "y", "z"]
    assert details["refitted"] == ["b1", "b2", "w1", "w2"]
    x = samples(64, 1)
    wanted, before, after = (
        run(model, {"x": x}) for model in (original, to_proto(alone.model), to_proto(both.model))
    )
    for output in (0, 1):
        errors = [np.square(found[output] - wanted[output]).mean() for found in (before, after)]
        assert errors[1] < 0.35 * errors[0]


def test_layers_that_read_what_their_weight_made() -> None:
    """The second use of ``w1`` reads what the first one gives, as in a network that goes round."""
    original, x = pyramid("f"), samples(64, 1)
    alone = pruned(original, "prune{ratio=0.4}", calibration={"x": samples()})
    both = pruned(original, "prune{ratio=0.4},recover", calibration={"x": samples()})
    details = both.results[-1].details
    assert details["refitted"] == ["b1", "b2", "w1", "w2"]
    first, second = (fit for fit in details["fits"] if fit.output in "eh")
    assert first == replace(second, output="e") and first.after < 0.5 * first.before
    wanted, before, after = (
        run(model, {"x": x}) for model in (original, to_proto(alone.model), to_proto(both.model))
    )
    for output in (0, 1):
        errors = [np.square(found[output] - wanted[output]).mean() for found in (before, after)]
        assert errors[1] < 0.35 * errors[0]
