"""Comparing two models: what is noise, what is a difference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from secateur.ir.errors import CertificateError
from secateur.runtime import compare as module
from secateur.runtime.compare import (
    Comparison,
    LabelledFeed,
    compare_models,
    is_quantised,
    rounds,
)
from secateur.runtime.session import make_session, run

from .certified_models import QDQ, Array, parse, quantised_weights


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


def test_noise_that_only_other_feeds_show_counts() -> None:
    """y = (x + 1) - 1 on one number: only halfway between two multiples of 2^-23 does moving x by a
    few last places move y, and elsewhere y is off by up to 2^-24 all the same."""
    step = np.float32(2.0**-23)
    body = "g (float[1] x) => (float[1] y) { y = Mul(x, f) }"
    quiet, halfway = (("f", {"x": np.array([k], np.float32) * step}) for k in (25000.45, 40000.5))

    def verdict(feeds: list[LabelledFeed], factor: float = 1) -> Comparison:
        times = parse(body, {"f": np.array([factor], np.float32)})
        return compare_models(ill_conditioned(1, 1), times, feeds)

    alone = verdict([quiet])
    assert not alone.ok and all(entry.noise == 0 for entry in alone.runs)
    assert verdict([quiet, halfway]).ok
    assert not verdict([quiet, halfway], 1.0005).ok


@pytest.mark.parametrize("others", [[2e7], [1.5 * 2.0**-12], [2e7, 1.5 * 2.0**-12]])
def test_noise_of_another_scale_does_not_count(others: list[float]) -> None:
    """Of y = (x + 3000) - 3000 a large result has noise above 1, and one of 2^-12 consists of it.
    Neither, nor the two together, says anything about an error of 0.4 in a result of 16384."""
    x = np.linspace(2**13, 2**14, 4096, dtype=np.float32)
    feeds = [("usual", {"x": x})]
    feeds += [("other", {"x": np.full(4096, other, np.float32)}) for other in others]
    body = "g (float[4096] x) => (float[4096] y) { y = Mul(x, f) }"
    wrong = parse(body, {"f": np.array(1 + 2.5e-5, np.float32)})
    runs = compare_models(ill_conditioned(), wrong, feeds).runs
    assert any(r.noise * r.scale > 1 or r.noise > 0.1 for r in runs if r.label == "other")
    assert not any(r.ok for r in runs if r.label == "usual")


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


# --- quantised models -----------------------------------------------------------------------------


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
    assert all(is_quantised(one(op)) and rounds(one(op)) for op in quantised)
    assert not any(is_quantised(one(op)) for op in ("Relu", "MatMul"))
    assert is_quantised(one("DequantizeLinear")), "optimisation may round what it multiplies"
    assert not rounds(one("DequantizeLinear"))
    assert not rounds(one("MatMulNBits<accuracy_level = 1>"))


@pytest.mark.parametrize("output", ["q", "s"])
def test_what_a_branch_gives_is_read(output: str) -> None:
    body = "q, s, z = DynamicQuantizeLinear(x)"
    kind = "uint8" if output == "q" else "float"
    model = parse(
        f"""g (float[4] x, bool c) => ({kind}[N] y) {{
            y = If (c) <
                then_branch = a () => ({kind}[N] {output}) {{ {body} }},
                else_branch = b () => ({kind}[N] {output}) {{ {body} }}
            > }}""",
        {},
    )
    assert rounds(model) == (output == "q")
