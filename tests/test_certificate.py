from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from secateur.ir.errors import CertificateError
from secateur.ir.masks import Compaction, Mask
from secateur.runtime import certificate as module
from secateur.runtime.certificate import Certificate, certify, compare_models, is_quantised
from secateur.runtime.session import make_session, run

Array = np.ndarray[Any, np.dtype[Any]]


def parse(body: str, weights: Mapping[str, Array], opset: int = 17) -> onnx.ModelProto:
    ir_version = 8 if opset < 19 else 10
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> {body}')
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return model


# --- two convolutions with 8 channels between them, of which two go ------------------------------

REMOVED = (2, 5)
KEPT = [0, 1, 3, 4, 6, 7]
MASK = Mask("y", 0, 1, REMOVED)


def weights(dtype: Any = np.float32) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "b": (8,), "v": (4, 8, 3, 3)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def sliced(full: Mapping[str, Array], kept: list[int] = KEPT) -> dict[str, Array]:
    return {"w": full["w"][kept], "b": full["b"][kept], "v": full["v"][:, kept]}


def convolutions(tensors: Mapping[str, Array], kind: str = "float") -> onnx.ModelProto:
    body = f"""g ({kind}[N, 3, 6, 6] x) => ({kind}[N, 4, 2, 2] y) {{
        h = Conv(x, w, b)  r = Relu(h)  y = Conv(r, v) }}"""
    return parse(body, tensors)


def check(candidate: onnx.ModelProto, **options: Any) -> Certificate:
    options.setdefault("bindings", [{"N": 2}])
    return certify(convolutions(weights()), candidate, [MASK], **options)


def test_a_right_pruning_passes_at_two_sizes() -> None:
    removed = [("w", 0, REMOVED), ("b", 0, REMOVED), ("v", 1, REMOVED)]
    seen: list[tuple[int, int]] = []
    certificate = check(
        convolutions(sliced(weights())),
        bindings=[{"N": 1}, {"N": 5}],
        removed=removed,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert certificate.ok
    assert certificate.worst < 1e-6 < certificate.tolerance == 1e-5
    assert certificate.bindings == ({"N": 1}, {"N": 5})
    labels = {(entry.label, entry.optimisation) for entry in certificate.runs}
    expected = {(f"seed {s}, N={n}", o) for s in range(3) for n in (1, 5) for o in ("off", "on")}
    assert labels == expected
    assert certificate.replay is not None and certificate.replay["agrees"]
    assert certificate.notes == ()
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (24, 24)


def wrong_prunings() -> dict[str, dict[str, Array]]:
    right = sliced(weights())
    rolled = [KEPT[-1], *KEPT[:-1]]
    other = [0, 1, 2, 4, 6, 7]  # channel 2 kept, channel 3 removed
    return {
        "a channel too many": sliced(weights(), KEPT[1:]),
        "another channel": sliced(weights(), other),
        "nothing removed": weights(),
        "producer in another order": right | {"w": weights()["w"][rolled]},
        "bias in another order": right | {"b": weights()["b"][rolled]},
        "consumer in another order": right | {"v": weights()["v"][:, rolled]},
        "weights off by a thousandth": right | {"v": right["v"] * np.float32(1.001)},
        "one weight off by a thousandth": right
        | {
            "v": np.where(
                right["v"] == right["v"].max(), right["v"] * np.float32(1.001), right["v"]
            )
        },
    }


@pytest.mark.parametrize("name", list(wrong_prunings()))
def test_a_wrong_pruning_fails(name: str) -> None:
    certificate = check(convolutions(wrong_prunings()[name]))
    assert not certificate.ok
    assert certificate.worst > certificate.tolerance
    assert "DIFFERS" in certificate.describe()


def test_double_precision_is_held_to_more() -> None:
    rng = np.random.default_rng(3)
    u, v = rng.standard_normal((5, 8)), rng.standard_normal((8, 4))
    body = """g (double[N, 5] x) => (double[N, 4] y) {
        h = MatMul(x, u)  r = Relu(h)  y = MatMul(r, v) }"""
    original = parse(body, {"u": u, "v": v})
    right = {"u": u[:, KEPT], "v": v[KEPT]}
    options: dict[str, Any] = {"bindings": [{"N": 2}]}
    good = certify(original, parse(body, right), [MASK], **options)
    assert good.ok and good.tolerance <= 1e-11
    wrong = right | {"v": right["v"] * (1 + 1e-9)}
    assert not certify(original, parse(body, wrong), [MASK], **options).ok


def test_half_precision() -> None:
    full = weights(np.float16)
    original, right = convolutions(full, "float16"), sliced(full)
    options: dict[str, Any] = {"bindings": [{"N": 2}]}
    assert certify(original, convolutions(right, "float16"), [MASK], **options).ok
    wrong = right | {"w": right["w"][[1, 0, 2, 3, 4, 5]]}
    assert not certify(original, convolutions(wrong, "float16"), [MASK], **options).ok


def test_layer_normalisation_across_the_removed_coordinates() -> None:
    rng = np.random.default_rng(1)
    full = {"a": (5, 8), "s": (8,), "t": (8,), "v": (8, 3)}
    tensors: dict[str, Array] = {n: rng.random(shape, np.float32) for n, shape in full.items()}
    body = """g (float[N, 5] x) => (float[N, 3] y) {
        h = MatMul(x, a)  n = LayerNormalization <axis=-1> (h, s, t)  y = MatMul(n, v) }"""
    right = {
        "a": tensors["a"][:, KEPT],
        "s": tensors["s"][KEPT],
        "t": tensors["t"][KEPT],
        "v": tensors["v"][KEPT],
    }
    original, pruned = parse(body, tensors), parse(body, right)
    compaction = Compaction("n", ((0, -1), (1, 0), (2, 0)), ((0, -1),), REMOVED, 8)
    options: dict[str, Any] = {"bindings": [{"N": 1}, {"N": 4}]}
    assert certify(original, pruned, [MASK], [compaction], **options).ok
    # Masking alone is not enough: the mean still counts the removed coordinates.
    assert not certify(original, pruned, [MASK], **options).ok


# --- quantised models -----------------------------------------------------------------------------

QDQ = """g (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y) {
    q = QuantizeLinear(x, sx, zx)  d = DequantizeLinear(q, sx, zx)
    dw = DequantizeLinear <axis=0> (w, sw, zw)
    h = Conv(d, dw)  r = Relu(h)
    qr = QuantizeLinear(r, sr, zr)  dr = DequantizeLinear(qr, sr, zr)
    dv = DequantizeLinear <axis=0> (v, sv, zv)
    y = Conv(dr, dv) }"""


def quantised_weights(removed: tuple[int, ...] = ()) -> dict[str, Array]:
    rng = np.random.default_rng(2)
    kept = [c for c in range(8) if c not in removed]
    return {
        "sx": np.array(0.02, np.float32),
        "zx": np.array(128, np.uint8),
        "sr": np.array(0.07, np.float32),
        "zr": np.array(3, np.uint8),
        "w": rng.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8)[kept],
        "sw": rng.uniform(0.003, 0.01, 8).astype(np.float32)[kept],
        "zw": np.zeros(8, np.int8)[kept],
        "v": rng.integers(-127, 128, (4, 8, 1, 1)).astype(np.int8)[:, kept],
        "sv": np.full(4, 0.005, np.float32),
        "zv": np.zeros(4, np.int8),
    }


def test_a_quantised_model() -> None:
    original = parse(QDQ, quantised_weights())
    right = quantised_weights(REMOVED)
    options: dict[str, Any] = {"bindings": [{"N": 2}]}
    good = certify(original, parse(QDQ, right), [MASK], **options)
    assert good.ok and good.tolerance <= 0.1
    for name in ("w", "sw"):
        wrong = right | {name: np.roll(right[name], 1, axis=0)}
        assert not certify(original, parse(QDQ, wrong), [MASK], **options).ok
    missing = quantised_weights((*REMOVED, 7))
    assert not certify(original, parse(QDQ, missing), [MASK], **options).ok


def test_a_mean_error_within_the_maximum_is_still_too_much() -> None:
    """Every element off by half of what one flipped step may cost is not rounding."""
    original = parse(QDQ, quantised_weights())
    feeds = [
        ("f", {"x": np.random.default_rng(0).standard_normal((256, 3, 6, 6)).astype(np.float32)})
    ]
    other = parse(QDQ, {**quantised_weights(), "sv": np.full(4, 0.01, np.float32)})
    tolerance = compare_models(original, other, feeds).runs[0].tolerance
    assert compare_models(original, original, feeds).ok and tolerance > 1e-4
    scaled = quantised_weights()
    scaled["sv"] = scaled["sv"] * np.float32(1 + tolerance / 2)
    changed = compare_models(original, parse(QDQ, scaled), feeds)
    scale = changed.runs[0].scale
    mean = float(np.abs(run(make_session(original), feeds[0][1])["y"]).mean()) / scale
    assert mean * tolerance / 2 < tolerance / 5  # proportional errors follow the small values,
    assert changed.ok  # so this one is within both limits
    shifted = parse(
        QDQ.replace("y = Conv(dr, dv)", "c = Conv(dr, dv)  y = Add(c, o)"), quantised_weights()
    )
    offset = np.array(scale * tolerance / 2, np.float32)
    shifted.graph.initializer.append(numpy_helper.from_array(offset, "o"))
    moved = compare_models(original, shifted, feeds)
    assert all(entry.relative < entry.tolerance for entry in moved.runs)
    assert not moved.ok


def test_what_counts_as_quantised() -> None:
    def one(op: str) -> onnx.ModelProto:
        return parse(f"g (float[1] x) => (float[1] y) {{ y = {op}(x) }}", {})

    quantised = ("QuantizeLinear", "QLinearConv", "MatMulIntegerToFloat", "MatMulNBits")
    assert all(is_quantised(one(op)) for op in quantised)
    assert not any(is_quantised(one(op)) for op in ("DequantizeLinear", "Relu", "MatMul"))


# --- comparison -----------------------------------------------------------------------------------


def test_nan_and_infinity_count_where_they_are() -> None:
    body = "g (float[4] x) => (float[4] y) {{ y = {op} }}"
    x = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    feeds = [("f", {"x": x})]
    same = parse(body.format(op="Identity(x)"), {})
    assert compare_models(
        same, parse(body.format(op="Add(x, o)"), {"o": np.zeros(1, np.float32)}), feeds
    ).ok
    for factor in ([1, -1, 1, 1], [1, 1, 1, np.nan], [1, 1, 1, np.inf]):
        scale = np.array(factor, np.float32)
        other = parse(body.format(op="Mul(x, s)"), {"s": scale})
        result = compare_models(same, other, feeds)
        assert not result.ok
        assert result.worst is not None and result.worst.error == np.inf


def test_outputs_must_agree_in_name_shape_and_type() -> None:
    feeds = [("f", {"x": np.ones(4, np.float32)})]
    reference = parse("g (float[4] x) => (y) { y = Identity(x) }", {})
    for op in ("Unsqueeze(x, z)", "Cast <to = 11> (x)"):
        axes = {"z": np.array([0])} if "z" in op else {}
        assert not compare_models(
            reference, parse(f"g (float[4] x) => (y) {{ y = {op} }}", axes), feeds
        ).ok
    renamed = parse("g (float[4] x) => (z) { z = Identity(x) }", {})
    with pytest.raises(CertificateError, match="output 'y'"):
        compare_models(reference, renamed, feeds)


@pytest.mark.parametrize("op", ["ArgMax <axis = 0, keepdims = 1> (x)", "Greater(x, z)"])
def test_integers_and_bools_must_be_equal(op: str) -> None:
    tensors: dict[str, Array] = {"z": np.zeros(1, np.float32)} if "z" in op else {}
    reference = parse(f"g (float[6] x) => (y) {{ y = {op} }}", tensors)
    negated = op.replace("x", "n", 1) if op.startswith("Greater") else op.replace("(x", "(n")
    other = parse(f"g (float[6] x) => (y) {{ n = Neg(x)  y = {negated} }}", tensors)
    feeds = [("f", {"x": np.array([3, -1, 2, 5, -4, 1], np.float32)})]
    result = compare_models(reference, reference, feeds)
    assert result.ok and all(entry.tolerance == 0 for entry in result.runs)
    assert not compare_models(reference, other, feeds).ok


def test_integers_that_rounding_decides_are_left_out() -> None:
    """x > 1 right at the border changes under the last place of x, x > 0.5 does not."""
    body = "g (float[64] x) => (y) {{ y = Greater(x, z) }}"
    reference = parse(body.format(), {"z": np.array([1], np.float32)})
    candidate = parse(body.format(), {"z": np.nextafter(np.float32(1), np.float32(0))[None]})
    border = np.ones(64, np.float32)  # the reference says no, the candidate yes, to all of them
    moved = module._perturbed({"x": border}, 0, False)["x"] > 1
    assert 0 < moved.sum() < 64
    clear = border.copy()
    clear[~moved] = 2  # only those that the noise run moves stay at the border
    assert compare_models(reference, candidate, [("f", {"x": clear})]).ok
    assert not compare_models(reference, candidate, [("f", {"x": border})]).ok


def ill_conditioned(constant: float = 3000, size: int = 4096) -> onnx.ModelProto:
    """y = (x + 3000) - 3000: rounding decides the last twelve bits of y."""
    body = f"g (float[{size}] x) => (float[{size}] y) {{ s = Add(x, c)  y = Sub(s, c) }}"
    return parse(body, {"c": np.array(constant, np.float32)})


def test_noise_widens_the_tolerance_up_to_the_cap() -> None:
    x = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    feeds = [("f", {"x": x})]
    exact = parse("g (float[4096] x) => (float[4096] y) { y = Identity(x) }", {})
    rounded = compare_models(ill_conditioned(), exact, feeds).runs[0]
    # One unit in the last place of 3000 is 2^-12.
    assert rounded.noise * rounded.scale == pytest.approx(2.0**-12)
    assert rounded.tolerance == pytest.approx(4 * rounded.noise)
    assert rounded.tolerance > 1e-5
    same = compare_models(ill_conditioned(), ill_conditioned(), feeds).runs[0]
    assert same.tolerance == 1e-5  # no difference: nothing asks how much noise there is
    assert compare_models(ill_conditioned(), exact, feeds).ok
    assert not compare_models(ill_conditioned(), exact, feeds, cap=1e-6).ok
    capped = compare_models(ill_conditioned(), exact, feeds, cap=2e-5).runs[0]
    assert capped.tolerance == 2e-5


def test_values_that_passed_near_one_keep_its_rounding() -> None:
    """y = (x + 1) - 1 on x of 1e-5, as a saturated Sigmoid has it: an error of 2^-24 in y."""
    x = np.arange(1, 512, 2, dtype=np.float32) * np.float32(2.0**-24)  # halfway between numbers
    feeds = [("f", {"x": x})]
    exact = "g (float[256] x) => (float[256] y) { y = Mul(x, f) }"
    one = parse(exact, {"f": np.array([1], np.float32)})
    rounded = compare_models(ill_conditioned(1, 256), one, feeds)
    assert rounded.ok
    assert all(entry.relative > 1e-3 for entry in rounded.runs)
    half = parse(exact, {"f": np.array([0.5], np.float32)})
    assert not compare_models(ill_conditioned(1, 256), half, feeds).ok
    close = parse(exact, {"f": np.array([1.001], np.float32)})
    assert not compare_models(one, close, feeds).ok  # nothing here passes near one


def test_sequences_are_compared_element_by_element() -> None:
    body = """g (float[4, 2] x) => (seq(float[2, 2]) y) {
        h = Mul(x, s)  y = SplitToSequence <axis=0> (h, n) }"""
    feeds = [("f", {"x": np.ones((4, 2), np.float32)})]
    tensors: dict[str, Array] = {"s": np.ones((4, 1), np.float32), "n": np.array([2, 2])}
    reference = parse(body, tensors)
    assert {entry.output for entry in compare_models(reference, reference, feeds).runs} == {
        "y.length",
        "y[0]",
        "y[1]",
    }
    scale = np.array([1, 1, 1, 1.001], np.float32)[:, None]
    result = compare_models(reference, parse(body, tensors | {"s": scale}), feeds)
    assert {entry.output for entry in result.runs if not entry.ok} == {"y[1]"}


def test_a_difference_seen_on_one_feed_only() -> None:
    reference = parse("g (float[1] x) => (float[1] y) { y = Abs(x) }", {})
    result = compare_models(
        reference,
        parse("g (float[1] x) => (float[1] y) { y = Relu(x) }", {}),
        [("positive", {"x": np.ones(1, np.float32)}), ("negative", {"x": -np.ones(1, np.float32)})],
    )
    assert {entry.label for entry in result.runs if not entry.ok} == {"negative"}
    assert result.worst is not None and result.worst.label == "negative"


# --- what cannot be proved ------------------------------------------------------------------------


def test_outputs_that_are_never_finite_prove_nothing() -> None:
    model = parse("g (float[3] x) => (float[3] y) { s = Mul(x, x)  n = Neg(s)  y = Log(n) }", {})
    certificate = certify(model, model, [])
    assert not certificate.ok
    assert "never held a finite number" in certificate.notes[0]


def test_outputs_that_never_change_are_noted() -> None:
    model = parse(
        "g (float[3] x) => (float[3] y) { s = Mul(x, z)  y = Abs(s) }",
        {"z": np.zeros(1, np.float32)},
    )
    certificate = certify(model, model, [])
    assert certificate.ok
    assert certificate.notes == ("output 'y' was the same on every feed",)


def fixed_batch() -> onnx.ModelProto:
    """Declares a free batch and runs at no other than 2."""
    target = {"t": np.array([2, 3])}
    return parse("g (float[N, 3] x) => (float[2, 3] y) { y = Reshape(x, t) }", target)


def test_a_size_at_which_the_original_does_not_run() -> None:
    certificate = certify(fixed_batch(), fixed_batch(), [], bindings=[{"N": 2}, {"N": 3}])
    assert certificate.ok
    assert certificate.bindings == ({"N": 2},)
    assert "N=3" in certificate.notes[0]
    with pytest.raises(CertificateError, match="--calibration"):
        certify(fixed_batch(), fixed_batch(), [], bindings=[{"N": 3}, {"N": 2}])


def test_calibration_data_count() -> None:
    x = np.random.default_rng(0).standard_normal((100, 3, 6, 6)).astype(np.float32)
    right = convolutions(sliced(weights()))
    certificate = check(right, bindings=[{"N": 16}], calibration={"x": x}, seeds=(7,))
    assert certificate.ok and certificate.calibrated and certificate.seeds == (7,)
    labels = sorted({entry.label for entry in certificate.runs})
    assert labels == [*(f"calibration {i}" for i in range(4)), "seed 7, N=16"]  # 64 samples
    # Random inputs are not needed when there are real ones.
    data = {"x": np.ones((4, 3), np.float32)}
    body = fixed_batch()
    body.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    certificate = certify(body, body, [], calibration=data)
    assert certificate.ok


def test_a_pruned_model_that_does_not_run() -> None:
    broken = sliced(weights()) | {"b": np.ones(5, np.float32)}
    with pytest.raises(CertificateError) as caught:
        check(convolutions(broken))
    assert "candidate" in str(caught.value) and "\n" not in str(caught.value)


def test_the_replay_reports_but_does_not_decide() -> None:
    right = convolutions(sliced(weights()))
    certificate = check(right, removed=[("w", 0, (0,))])
    assert certificate.ok and certificate.replay is not None
    assert certificate.replay["agrees"] is False and certificate.replay["worst"] > 1e-3
    certificate = check(right, removed=[("missing", 0, (0,))])
    assert certificate.ok and certificate.replay is not None
    assert "missing" in certificate.replay["error"]


def test_certificates_are_strict_json() -> None:
    body = "g (float[4] x) => (float[4] y) {{ y = {op}(x) }}"
    certificate = certify(parse(body.format(op="Abs"), {}), parse(body.format(op="Log"), {}), [])
    assert not certificate.ok and certificate.worst == np.inf
    text = json.dumps(certificate.to_json(), allow_nan=False)
    data = json.loads(text)
    assert data["ok"] is False and data["worst"] is None and data["kind"] == "masked"
    assert len(data["runs"]) == len(certificate.runs) == 6
    assert "\n" not in certificate.describe()
