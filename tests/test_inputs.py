from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from secateur.ir.errors import DataError, ModelError, UsageError
from secateur.runtime import calibration as module
from secateur.runtime.calibration import calibration_feeds, load_calibration
from secateur.runtime.inputs import index_bounds, random_feed
from secateur.runtime.session import make_session, run
from secateur.runtime.signature import input_dims, value_types

Array = np.ndarray[Any, np.dtype[Any]]


def parse(body: str, opset: int = 17, /, **weights: Array) -> onnx.ModelProto:
    ir_version = 8 if opset < 19 else 10
    imports = f'"": {opset}, "com.microsoft": 1'
    model = parser.parse_model(f"<ir_version: {ir_version}, opset_import: [{imports}]> {body}")
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


# --- dimensions and types -----------------------------------------------------------------------


def test_symbolic_dimensions_and_their_places() -> None:
    model = parse(
        "g (float[N, 3, L] x, int64[N] i, float[2] w) => (float[N, 3, L] y) { y = Relu(x) }"
    )
    unnamed = helper.make_tensor_value_info("z", TensorProto.FLOAT, [None, 4])
    model.graph.input.append(unnamed)
    model.graph.initializer.append(numpy_helper.from_array(zeros(2), "w"))
    dims = input_dims(model)
    assert dims == {"N": [("x", 0), ("i", 0)], "L": [("x", 2)], "z.0": [("z", 0)]}
    feed = random_feed(model, {"N": 2, "L": 5, "z.0": 7}, 0)
    shapes = {name: array.shape for name, array in feed.items()}
    assert shapes == {"x": (2, 3, 5), "i": (2,), "z": (7, 4)}
    with pytest.raises(UsageError, match="'L'"):
        random_feed(model, {"N": 2, "z.0": 7}, 0)


def test_inputs_that_cannot_be_fed() -> None:
    rankless = parse("g (float x) => (float y) { y = Relu(x) }")
    rankless.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="no shape"):
        input_dims(rankless)
    with pytest.raises(ModelError, match="not a tensor"):
        input_dims(parse("g (map(int64, float) x) => (float[2] y) { y = DictVectorizer(x) }"))


def test_types_are_inferred_without_the_weights() -> None:
    weight = zeros(100, 60)  # more numbers than take part in inference
    model = parse(
        """g (float[N, 100] x, bool c) => (float[N, 60] y) {
            h = MatMul(x, w)
            y = If (c) <then_branch = t () => (float[N, 60] a) { s = Relu(h)  a = Neg(s) },
                        else_branch = e () => (float[N, 60] b) { b = Abs(h) }> }""",
        w=weight,
    )
    types = value_types(model)
    assert types["h"] == (TensorProto.FLOAT, ("N", 60))
    assert types["w"] == (TensorProto.FLOAT, (100, 60))
    assert types["s"] == (TensorProto.FLOAT, ("N", 60))
    constant = numpy_helper.from_array(weight, "w")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=constant))
    del model.graph.initializer[:]
    assert value_types(model)["h"] == (TensorProto.FLOAT, ("N", 60))


# --- random feeds -------------------------------------------------------------------------------


def test_seeds_decide_and_types_are_kept() -> None:
    kinds = ("float", "double", "float16", "bfloat16", "bool", "int64", "uint8", "int8", "string")
    listed = ", ".join(f"{kind}[1000] {kind}_" for kind in kinds)
    model = parse(f"g ({listed}) => (float[1000] y) {{ y = Relu(float_) }}", 21)
    feed, again, other = (random_feed(model, {}, seed) for seed in (0, 0, 1))
    for value in model.graph.input:
        array = feed[value.name]
        element = value.type.tensor_type.elem_type
        assert array.dtype == helper.tensor_dtype_to_np_dtype(element)
        assert (array == again[value.name]).all()
        assert (array != other[value.name]).any()
    for name in ("float_", "double_", "float16_", "bfloat16_"):
        values = feed[name].astype(np.float64)
        assert abs(values.mean()) < 0.2 and abs(values.std() - 1) < 0.2
    assert set(feed["int64_"].tolist()) == {0, 1}
    assert feed["uint8_"].max() > 200 and feed["int8_"].min() < -100
    assert (feed["float_"] != feed["double_"]).any()


INDEXED = [
    ("g (int64[N, 50] i) => (float[N, 50, 2] y) { y = Gather(t, i) }", (0, 6)),
    ("g (int64[N, 50] i) => (o) { c = Cast<to=6>(i)  r = Unsqueeze(c, z)"
     "  o = Gather(t, r) }", (0, 6)),
    ("g (float[N, 50] i) => (o) { c = Cast<to=7>(i)  o = Gather(t, c) }", (0, 6)),
    ("g (int64[N, 50] i) => (o) { c = Add(i, two)  o = Gather(t, c) }", (0, 4)),
    ("g (int64[N, 50] i) => (o) { c = Sub(i, two)  o = Gather(t, c) }", (2, 8)),
    ("g (int64[N, 50] i) => (o) { c = Mul(two, i)  o = Gather(t, c) }", (0, 3)),
    ("g (int64[N, 50] i) => (o) { o = Gather(t, i)"
     "  s = Gather<axis=1>(t, i) }", (0, 1)),
    ("g (int64[1, 50] i) => (o) { c = Concat<axis=0>(i, i)  a = Abs(t)"
     "  o = GatherElements<axis=1>(a, c) }", (0, 1)),
    ("g (int64[1, 50, 2] i) => (o) { o = GatherND(t, i) }", (0, 1)),
    ("g (int64[N, 50] i) => (o) { o = OneHot(i, two, pair) }", (0, 1)),
    ("g (int64[N, 50] i, float[M, 2] d) => (o) { o = Gather(d, i) }", (0, 2)),
    ("g (int64[N, 50] i, bool c) => (o) { o = If (c) <then_branch = a () => (float[N, 50, 2] p)"
     " { p = Gather(t, i) }, else_branch = b () => (float[N, 50, 2] q) { q = Gather(t, i) }> }",
     (0, 6)),
]  # fmt: skip


@pytest.mark.parametrize(("body", "bounds"), INDEXED)
def test_indices_are_valid_and_use_the_whole_range(body: str, bounds: tuple[int, int]) -> None:
    constants = {
        "t": zeros(7, 2),
        "two": np.array(2),
        "z": np.array([0]),
        "pair": np.array([0, 1], np.float32),
    }
    used = {name: array for name, array in constants.items() if name in body}
    model = parse(body, **used)
    dims = {"N": 4, "M": 3}
    assert index_bounds(model, dims)["i"] == bounds
    feed = random_feed(model, dims, 0)
    assert (feed["i"].min(), feed["i"].max()) == bounds
    run(make_session(model), feed)


LENGTHS = {
    "given": ("int32[N] ends, int32 total", "", {"ends": (3, 8), "total": (9, 9)}),
    "counted in a mask": (
        "int64[N, U] mask",
        """sum = ReduceSum<keepdims = 0>(mask, axes) last = Sub(sum, one)
        ends = Cast<to = 6>(last) sizes = Shape(mask) size = Gather<axis = 0>(sizes, one)
        total = Cast<to = 6>(size)""",
        {"mask": (1, 1)},
    ),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_of_cached_sequences(name: str) -> None:
    """Four new tokens behind five, as decoders take them."""
    inputs, lengths, bounds = LENGTHS[name]
    model = parse(
        f"""g (float[N, S, 32] q, float[N, S, 16] k, float[N, S, 16] v, {inputs},
            float[N, 2, P, 8] pk, float[N, 2, P, 8] pv) => (float[N, S, 32] y, pk2, pv2)
        {{ {lengths} y, pk2, pv2 = com.microsoft.GroupQueryAttention<num_heads = 4,
            kv_num_heads = 2>(q, k, v, pk, pv, ends, total) }}""",
        **({"one": np.array(1), "axes": np.array([1])} if lengths else {}),
    )
    dims = {"N": 1, "S": 4, "P": 5, "U": 9}
    assert index_bounds(model, dims) == bounds
    for seed in range(3):
        run(make_session(model), random_feed(model, dims, seed))


def test_embeddings_of_the_contributed_operator() -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (11, 8), "p": (5, 8), "s": (2, 8), "g": (8,), "b": (8,)}
    model = parse(
        """m (int32[N, 4] i, int32[N, 4] k) => (o, mask) {
            o, mask = com.microsoft.EmbedLayerNormalization(i, k, w, p, s, g, b) }""",
        **{name: rng.random(shape, np.float32) for name, shape in shapes.items()},
    )
    assert index_bounds(model, {"N": 1}) == {"i": (0, 10), "k": (0, 1)}
    run(make_session(model), random_feed(model, {"N": 3}, 0))


# --- calibration files --------------------------------------------------------------------------


def two_inputs() -> onnx.ModelProto:
    return parse("g (float[N, 3] x, int64[N] i) => (float[N, 3] y) { y = Relu(x) }")


GOOD: dict[str, Array] = {"x": np.ones((10, 3), np.float32), "i": np.arange(10)}


def load(
    path: Path, model: onnx.ModelProto, arrays: dict[str, Array], **dims: int
) -> dict[str, Array]:
    np.savez_compressed(path / "data.npz", **arrays)  # type: ignore[arg-type]
    return load_calibration(path / "data.npz", model, dims)


def test_calibration_is_cut_into_batches(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((10, 3))  # float64 becomes float32
    arrays = load(tmp_path, two_inputs(), GOOD | {"x": x}, N=4)
    assert arrays["x"].dtype == np.float32
    feeds = calibration_feeds(arrays, two_inputs(), {"N": 4}, 64)
    assert [len(feed["x"]) for feed in feeds] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([feed["i"] for feed in feeds]), np.arange(10))
    np.testing.assert_array_equal(feeds[1]["x"], x[4:8].astype(np.float32))
    assert [len(f["x"]) for f in calibration_feeds(arrays, two_inputs(), {"N": 4}, 6)] == [4, 2]
    assert [len(f["x"]) for f in calibration_feeds(arrays, two_inputs(), {"N": 4}, 1)] == [4]
    assert [len(f["x"]) for f in calibration_feeds(arrays, two_inputs(), {"N": 64}, 64)] == [10]
    assert len(calibration_feeds(arrays, two_inputs(), {}, 64)) == 10


def test_a_static_batch_takes_whole_batches(tmp_path: Path) -> None:
    model = parse("g (float[4, 3] x, float s) => (float[4, 3] y) { y = Mul(x, s) }")
    scalar = np.array(2, np.float32)
    arrays = load(tmp_path, model, {"x": np.ones((10, 3), np.float32), "s": scalar})
    feeds = calibration_feeds(arrays, model, {}, 64)
    assert [feed["x"].shape for feed in feeds] == [(4, 3), (4, 3)]
    assert all(feed["s"] == 2 for feed in feeds)
    few = load(tmp_path, model, {"x": np.ones((3, 3), np.float32), "s": scalar})
    with pytest.raises(DataError, match="too few"):
        calibration_feeds(few, model, {}, 64)


def test_whole_feeds_have_one_axis_more(tmp_path: Path) -> None:
    model = parse("g (float[B, L] x, float[2, B, 5] h) => (float[B, L] y) { y = Relu(x) }")
    arrays = load(
        tmp_path, model, {"x": np.ones((6, 1, 9), np.float32), "h": zeros(6, 2, 1, 5)}, B=3
    )
    feeds = calibration_feeds(arrays, model, {"B": 3}, 4)
    assert [(f["x"].shape, f["h"].shape) for f in feeds] == [((1, 9), (2, 1, 5))] * 4
    with pytest.raises(DataError, match="axis 2 of 'h'"):
        load(tmp_path, model, {"x": np.ones((6, 1, 9), np.float32), "h": zeros(6, 2, 2, 5)})


WRONG: list[tuple[dict[str, Array], str]] = [
    ({"x": GOOD["x"]}, "no array for input 'i'"),
    (GOOD | {"extra": GOOD["i"]}, "'extra' is no input"),
    (GOOD | {"x": np.ones((10, 4), np.float32)}, "axis 1 of 'x' has size 4, not 3"),
    (GOOD | {"x": np.ones(10, np.float32)}, "ranks"),
    (GOOD | {"x": np.ones((10, 3), np.int32)}, "int32, not float32"),
    (GOOD | {"x": np.ones((10, 3), np.float16)}, "float16, not float32"),
    (GOOD | {"i": np.arange(10, dtype=np.int32)}, "int32, not int64"),
    (GOOD | {"i": np.arange(9)}, "sample counts"),
    ({"x": zeros(0, 3), "i": np.arange(0)}, "no samples"),
    (GOOD | {"x": np.full((10, 3), np.nan, np.float32)}, "NaN"),
    (GOOD | {"x": np.full((10, 3), np.inf, np.float32)}, "NaN or infinity"),
    (GOOD | {"x": np.full((10, 3), 1e300)}, "NaN or infinity"),
    (GOOD | {"x": np.full((10, 3), "a", dtype=object)}, "objects"),
]


@pytest.mark.parametrize(("arrays", "message"), WRONG)
def test_arrays_that_do_not_fit(arrays: dict[str, Array], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, two_inputs(), arrays)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x05\x06" + b"\0" * 18])
def test_files_that_are_no_npz(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError):
        load_calibration(path, two_inputs(), {})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", GOOD["x"])
    for path in (tmp_path, tmp_path / "missing.npz", tmp_path / "one.npy"):
        with pytest.raises(DataError):
            load_calibration(path, two_inputs(), {})


def test_damaged_and_oversized_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **GOOD)  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    content[content.index(b"\x00\x00\x80\x3f")] ^= 1  # a bit of the first number
    path.write_bytes(bytes(content))
    with pytest.raises(DataError):
        load_calibration(path, two_inputs(), {})

    header = np.lib.format.magic(1, 0) + b"\x46\x00"
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header + text[:-1].ljust(69) + b"\n")
        archive.writestr("i.npy", header + text[:-1].ljust(69) + b"\n")
    with pytest.raises(DataError):
        load_calibration(path, two_inputs(), {})

    monkeypatch.setattr(module, "CALIBRATION_LIMIT", 100)
    with pytest.raises(DataError, match="unpacked"):
        load(tmp_path, two_inputs(), GOOD)


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **GOOD)  # type: ignore[arg-type]
    with (
        zipfile.ZipFile(tmp_path / "data.npz", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("x.npy", b"")
    with pytest.raises(DataError, match="same name"):
        load_calibration(tmp_path / "data.npz", two_inputs(), {})
