"""fold-batchnorm against ONNX Runtime on the same feeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from secateur.passes.fold_batchnorm import FoldBatchNorm

from .pass_runs import apply, build, compare, normal, ops, stored


def randoms(shapes: dict[str, Any]) -> dict[str, Any]:
    return {name: normal(*shape, seed=3) for name, shape in shapes.items()}


def norm_weights(channels: int, dtype: npt.DTypeLike = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    return {
        "gamma": rng.uniform(0.5, 2, channels).astype(dtype),
        "beta": rng.standard_normal(channels).astype(dtype),
        "mean": rng.standard_normal(channels).astype(dtype),
        "var": rng.uniform(0.1, 3, channels).astype(dtype),
    }


BN = "BatchNormalization <epsilon = 0.01> (c, gamma, beta, mean, var)"


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("Conv <pads = [1,1,1,1]> (x, w, b)", {"w": (6, 4, 3, 3), "b": (6,)}),
        ("Conv <group = 2> (x, w)", {"w": (6, 2, 1, 1)}),
        ("ConvTranspose <strides = [2,2]> (x, w, b)", {"w": (4, 6, 2, 2), "b": (6,)}),
        ("ConvTranspose <group = 2> (x, w)", {"w": (4, 3, 2, 2)}),
    ],
)
def test_batchnorm_folds_into_convolutions(text: str, weights: dict[str, Any]) -> None:
    old = build(
        f"g (float[N,4,5,5] x) => (float[N,6,H,W] y) {{ c = {text} y = {BN} }}",
        **randoms(weights),
        **norm_weights(6),
    )
    new, result = apply(FoldBatchNorm(), old)
    assert len(new.graph.node) == 1 and result.statistics["folded"] == 1
    compare(old, new, 2e-6, x=normal(2, 4, 5, 5))


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, 18])
@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("Gemm <alpha = 0.5, beta = 2.0> (x, w, b)", {"w": (4, 6), "b": (6,)}),
        ("Gemm <transB = 1, beta = 3.0> (x, w, b)", {"w": (6, 4), "b": (1, 6)}),
        ("Gemm <transB = 1> (x, w, b)", {"w": (6, 4), "b": ()}),
        ("Gemm <transA = 1> (x, w, b)", {"w": (2, 6), "b": (4, 1)}),
    ],
)
def test_batchnorm_folds_into_gemm(opset: int, text: str, weights: dict[str, Any]) -> None:
    old = build(
        f"g (float[2,4] x) => (float[R,6] y) {{ c = {text} y = {BN} }}",
        opset=opset,
        **randoms(weights),
        **norm_weights(6),
    )
    new, _ = apply(FoldBatchNorm(), old)
    assert ops(new.graph.node) == ["Gemm"]
    compare(old, new, 2e-6, x=normal(2, 4))


def test_gemm_without_a_bias_gets_one() -> None:
    old = build(
        f"g (float[2,4] x) => (float[2,6] y) {{ c = Gemm (x, w) y = {BN} }}",
        w=normal(4, 6),
        c_bias=normal(1),  # the name is taken
        **norm_weights(6),
    )
    new, _ = apply(FoldBatchNorm(), old)
    assert len(new.graph.node[0].input) == 3 and new.graph.node[0].input[2] != "c_bias"
    compare(old, new, 2e-6, x=normal(2, 4))


def test_the_folded_weights_are_computed_in_float64() -> None:
    weight, norm = normal(6, 4, 1, 1), norm_weights(6)
    old = build(
        f"g (float[N,4,5,5] x) => (float[N,6,5,5] y) {{ c = Conv (x, w) y = {BN} }}",
        w=weight,
        **norm,
    )
    new, _ = apply(FoldBatchNorm(), old)
    wide = {k: v.astype(np.float64) for k, v in norm.items()}
    scale = wide["gamma"] / np.sqrt(wide["var"] + np.float64(np.float32(0.01)))
    expected = (weight.astype(np.float64) * scale.reshape(6, 1, 1, 1)).astype(np.float32)
    np.testing.assert_array_equal(stored(new)["w"], expected)
    bias = stored(new)[new.graph.node[0].input[2]]
    np.testing.assert_array_equal(bias, (wide["beta"] - wide["mean"] * scale).astype(np.float32))


TWO = """
    g (float[N,4,5,5] x) => (float[N,6,5,5] y, float[N,6,5,5] z) {{
        {constants}
        c = Conv (x, w, b)
        y = {bn}
        z = Conv (x, w, b)
    }}
"""


@pytest.mark.parametrize("ir_version", [3, 10])
def test_shared_weights_are_cloned(ir_version: int) -> None:
    weights = randoms({"w": (6, 4, 1, 1), "b": (6,)})
    opset = 8 if ir_version == 3 else 18
    text = TWO.format(constants="", bn=BN)
    old = build(text, opset, ir_version, **weights, **norm_weights(6))
    new, _ = apply(FoldBatchNorm(), old)
    np.testing.assert_array_equal(stored(new)["w"], weights["w"])
    assert new.graph.node[-1].input[1] == "w" and "BatchNormalization" not in ops(new.graph.node)
    compare(old, new, 2e-6, x=normal(2, 4, 5, 5))


def test_weights_in_constant_nodes() -> None:
    numbers = ", ".join(str(v) for v in normal(24).tolist())
    constants = f"w = Constant <value = float[6,4,1,1] {{{numbers}}}> ()"
    for text in (TWO, TWO.replace("z = Conv (x, w, b)", "z = Neg (y)")):
        old = build(text.format(constants=constants, bn=BN), b=normal(6), **norm_weights(6))
        new, _ = apply(FoldBatchNorm(), old)
        assert "BatchNormalization" not in ops(new.graph.node)
        compare(old, new, 2e-6, x=normal(2, 4, 5, 5))


@pytest.mark.parametrize(
    ("dtype", "text", "tolerance"),
    [("float16", "Conv (x, w)", 4e-3), ("double", "Gemm (x, w)", 1e-14)],
)
def test_other_float_types(dtype: str, text: str, tolerance: float) -> None:
    numpy_type = np.float16 if dtype == "float16" else np.float64
    shape = "N,4,5,5" if dtype == "float16" else "N,4"
    old = build(
        f"g ({dtype}[{shape}] x) => ({dtype}[{shape.replace('4', '6')}] y)"
        f"{{ c = {text} y = {BN} }}",
        w=normal(*((6, 4, 1, 1) if dtype == "float16" else (4, 6))).astype(numpy_type),
        **norm_weights(6, numpy_type),
    )
    new, _ = apply(FoldBatchNorm(), old)
    assert len(new.graph.node) == 1 and stored(new)["w"].dtype == numpy_type
    x = normal(*((2, 4, 5, 5) if dtype == "float16" else (2, 4))).astype(numpy_type)
    compare(old, new, tolerance, x=x)


def test_two_norms_in_a_row_and_metadata() -> None:
    old = build(
        f"""
        g (float[N,4,5,5] x) => (float[N,6,5,5] y) {{
            c = Conv (x, w)
            d = {BN}
            y = {BN.replace("(c", "(d")}
        }}
        """,
        w=normal(6, 4, 1, 1),
        **norm_weights(6),
    )
    new, result = apply(FoldBatchNorm(), old)
    assert ops(new.graph.node) == ["Conv"] and result.statistics["folded"] == 2
    compare(old, new, 4e-6, x=normal(2, 4, 5, 5))


CONV = "g (float[N,4,5,5] x{inputs}) => (float[N,6,5,5] y{outputs}) {{ {body} }}"
CASES = {
    "training": ("", "", f"c = Conv (x, w) y, m, v = {BN.replace('<', '<training_mode = 1, ')}"),
    "used twice": (
        "",
        "",
        f"c = Conv (x, w) n = {BN} y = Add (n, c)",
    ),
    "an output": ("", ", float[N,6,5,5] c", f"c = Conv (x, w) y = {BN}"),
    "weight may be overridden": (", float[6,4,1,1] w", "", f"c = Conv (x, w) y = {BN}"),
    "scale may be overridden": (", float[6] gamma", "", f"c = Conv (x, w) y = {BN}"),
    "bias at run time": (", float[6] b", "", f"c = Conv (x, w, b) y = {BN}"),
    "activation between": ("", "", f"d = Conv (x, w) c = Relu (d) y = {BN}"),
}


@pytest.mark.parametrize("name", CASES)
def test_pairs_that_must_be_left_alone(name: str) -> None:
    inputs, outputs, body = CASES[name]
    old = build(
        CONV.format(inputs=inputs, outputs=outputs, body=body),
        w=normal(6, 4, 1, 1),
        **norm_weights(6),
    )
    new, result = apply(FoldBatchNorm(), old)
    assert not result.modified and dict(result.statistics) == {"folded": 0, "left": 1}
    assert "BatchNormalization" in ops(new.graph.node)


def test_weights_that_would_overflow_are_left_alone() -> None:
    weights = norm_weights(6, np.float16)
    weights["var"][:] = 0
    old = build(
        "g (float16[N,4,5,5] x) => (float16[N,6,5,5] y) { c = Conv (x, w) "
        "y = BatchNormalization <epsilon = 1e-12> (c, gamma, beta, mean, var) }",
        w=normal(6, 4, 1, 1).astype(np.float16),
        **weights,
    )
    assert not apply(FoldBatchNorm(), old)[1].modified


def test_training_outputs_before_opset_14_mean_training() -> None:
    old = build(
        "g (float[N,4,5,5] x) => (float[N,6,5,5] y) { c = Conv (x, w) "
        "y, m, v, sm, sv = BatchNormalization (c, gamma, beta, mean, var) }",
        opset=9,
        w=normal(6, 4, 1, 1),
        **norm_weights(6),
    )
    assert not apply(FoldBatchNorm(), old)[1].modified


def test_a_norm_in_a_branch_does_not_change_the_convolution_outside() -> None:
    old = build(
        f"""
        g (float[N,4,5,5] x, bool k) => (float[N,6,5,5] y) {{
            c = Conv (x, w)
            y = If (k) <
                then_branch = t () => (float[N,6,5,5] t0) {{ t0 = {BN} }},
                else_branch = e () => (float[N,6,5,5] e0) {{ e0 = Conv (x, w) }}
            >
        }}
        """,
        w=normal(6, 4, 1, 1),
        **norm_weights(6),
    )
    assert not apply(FoldBatchNorm(), old)[1].modified


def test_a_pair_inside_a_branch_folds_there() -> None:
    old = build(
        f"""
        g (float[N,4,5,5] x, bool k) => (float[N,6,5,5] y) {{
            y = If (k) <
                then_branch = t () => (float[N,6,5,5] t0) {{ c = Conv (x, w) t0 = {BN} }},
                else_branch = e () => (float[N,6,5,5] e0) {{ e0 = Conv (x, w) }}
            >
        }}
        """,
        w=normal(6, 4, 1, 1),
        **norm_weights(6),
    )
    new, result = apply(FoldBatchNorm(), old)
    assert result.statistics["folded"] == 1
    for k in (True, False):
        compare(old, new, 2e-6, x=normal(2, 4, 5, 5), k=np.array(k))
