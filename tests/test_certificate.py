from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from secateur.ir.errors import CertificateError
from secateur.ir.masks import Compaction, Mask
from secateur.runtime.certificate import Certificate, certify

from .certified_models import QDQ, Array, parse, quantised_weights

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


# --- what cannot be proved ------------------------------------------------------------------------


def test_outputs_that_are_never_finite_prove_nothing() -> None:
    model = parse("g (float[3] x) => (float[3] y) { s = Mul(x, x)  n = Neg(s)  y = Log(n) }", {})
    certificate = certify(model, model, [])
    assert not certificate.ok
    assert "never held a finite number" in certificate.notes[0]
    assert certificate.describe().startswith("no output ever held a finite number")


def test_numbers_that_overflow_on_some_feeds_are_no_proof_and_say_so() -> None:
    model, wide = (
        parse("g (float[3] x) => (float[3] y) { s = Mul(x, f)  y = Exp(s) }", {"f": factor})
        for factor in (np.full(1, 50, np.float32), np.full(1, 500, np.float32))
    )
    certificate = certify(model, wide, [])
    assert not certificate.ok
    text = certificate.describe()
    assert text.startswith("DIFFERS") and text.endswith(
        "where numbers overflow, give --calibration"
    )


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
    assert data["ok"] is False and data["worst"] is None and data["kind"] == "original"
    assert len(data["runs"]) == len(certificate.runs) == 6
    assert "\n" not in certificate.describe()
