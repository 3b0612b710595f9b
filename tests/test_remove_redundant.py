"""The pass ``remove-redundant``, cause by cause, with cases in which nothing may go."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from secateur.ir.analysis import Analysis
from secateur.ir.coupling import Flags
from secateur.ir.patch import RewriteError
from secateur.ir.rewrite import Rewritten, rewrite

from .pass_runs import build, normal, ops
from .redundant_runs import NOTHING_IN, array, causes, edited, mlp, reduced, shapes

# -- zero -----------------------------------------------------------------------------------------


def test_units_whose_producers_are_zero() -> None:
    model = mlp(w1=NOTHING_IN, b1=edited(normal(6), 2, 0))
    new, result = reduced(model, tolerance=0)
    assert causes(result) == {"zero": 1}
    assert shapes(new) == {"w1": (5, 4), "b1": (5,), "w2": (2, 5), "b2": (2,)}


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Gelu", "HardSwish", "LeakyRelu", "Elu"])
def test_activations_that_keep_zero(activation: str) -> None:
    model = mlp(activation, w1=NOTHING_IN, b1=edited(normal(6), 2, 0))
    assert causes(reduced(model)[1]) == {"zero": 1}


def test_units_that_are_never_active() -> None:
    new, result = reduced(mlp(w1=NOTHING_IN, b1=edited(normal(6), 2, -0.5)), tolerance=0)
    assert causes(result) == {"zero": 1}
    assert (array(new, "b2") == normal(2, seed=3)).all()


def test_every_unit_matters() -> None:
    _, result = reduced(mlp())
    assert causes(result) == {} and not result.modified


def test_a_weight_that_is_nearly_zero_matters() -> None:
    weight = edited(normal(6, 4), 2, 0)
    weight[2, 1] = 1e-6
    assert causes(reduced(mlp("Identity", w1=weight, b1=edited(normal(6), 2, 0)))[1]) == {}


def test_one_of_a_layer_stays() -> None:
    """All are zero, but there is no product over nothing."""
    new, result = reduced(mlp(w1=0 * normal(6, 4), b1=0 * normal(6)), tolerance=0)
    assert causes(result) == {"zero": 5}
    assert shapes(new)["w1"] == (1, 4)


# -- constant -------------------------------------------------------------------------------------


def test_constants_go_into_the_bias() -> None:
    new, result = reduced(mlp(w1=NOTHING_IN, b1=edited(normal(6), 2, 0.75)))
    assert causes(result) == {"constant": 1}
    wanted = normal(2, seed=3) + 0.75 * normal(2, 6, seed=2)[:, 2]
    np.testing.assert_allclose(array(new, "b2"), wanted, rtol=1e-6)
    assert shapes(new) == {"w1": (5, 4), "b1": (5,), "w2": (2, 5), "b2": (2,)}


@pytest.mark.parametrize("activation", ["Sigmoid", "Softplus", "Exp", "Gelu", "Mish", "Erf", "Abs"])
def test_constants_behind_activations(activation: str) -> None:
    scaled = edited(0.01 * normal(6, 4), 2, 0)
    model = mlp(activation, w1=scaled, b1=edited(0.1 * normal(6), 2, 0.75))
    assert causes(reduced(model)[1]) == {"constant": 1}


def test_constants_stay_if_asked() -> None:
    model = mlp(w1=NOTHING_IN, b1=edited(normal(6), 2, 0.75))
    assert causes(reduced(model, constants=False)[1]) == {}


def test_saturated_activations() -> None:
    """Bounds of a sigmoid: the sum of the weights cannot get past the bias."""
    first = edited(normal(6, 4), 1, [0.5, -1, 0.25, 0.25])
    body = """g (float[3, 4] x) => (float[3, 2] y) {
        s = Sigmoid(x)
        h = Gemm<transB = 1>(s, w1, b1)
        a = Clip(h, low, high)
        y = Gemm<transB = 1>(a, w2, b2)
    }"""
    limits: dict[str, Any] = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    others: dict[str, Any] = {"w1": first, "w2": normal(2, 6, seed=2), "b2": normal(2, seed=3)}

    def cut(bias: float) -> dict[str, int]:
        given = edited(np.zeros(6, np.float32), 1, bias)
        model = build(body, **limits, b1=given, **others)
        return causes(reduced(model)[1])

    assert cut(-1.01) == {"zero": 1}
    assert cut(-0.9) == {}  # 0.5 + 0.25 + 0.25 may be left
    assert cut(7.1) == {"constant": 1}
    assert cut(6.9) == {}


def test_a_layer_in_a_row_of_constants() -> None:
    """What only constants make is constant, too."""
    body = """g (float[3, 4] x) => (float[3, 2] y) {
        h = Gemm(x, w1, b1)
        a = Relu(h)
        i = Gemm(a, w2, b2)
        c = Tanh(i)
        y = Gemm(c, w3)
    }"""
    w1, w2 = normal(4, 5), normal(5, 6, seed=1)
    w1[:, 3] = 0
    w2[:, 4] = 0
    w2[3, 4] = 2.0
    model = build(body, w1=w1, b1=edited(normal(5), 3, 0.5), w2=w2, b2=normal(6, seed=4),
                  w3=normal(6, 2, seed=2))  # fmt: skip
    new, result = reduced(model)
    assert causes(result) == {"constant": 2}
    assert shapes(new)["w1"] == (4, 4) and shapes(new)["w2"] == (4, 5)
    assert len(new.graph.node[-1].input) == 3  # a bias where there was none


def test_gemm_with_alpha_and_beta() -> None:
    body = """g (float[3, 4] x) => (float[3, 2] y, float[3, 2] z) {
        h = MatMul(x, w1)
        a = Sigmoid(h)
        y = Gemm<alpha = 0.5, beta = 0.25>(a, w2, b2)
        z = Gemm<alpha = 2.0, beta = 3.0>(a, w3)
    }"""
    w1 = normal(4, 6)
    w1[:, 2] = 0
    model = build(body, w1=w1, w2=normal(6, 2), w3=normal(6, 2, seed=1), b2=normal(2))
    new, result = reduced(model)
    assert causes(result) == {"constant": 1}
    np.testing.assert_allclose(
        array(new, "b2"), normal(2) + 0.5 * 0.5 / 0.25 * normal(6, 2)[2], rtol=1e-6
    )


def test_products_without_a_bias_get_one() -> None:
    body = """g (float[3, 4] x) => (float[3, 2] y) {
        h = MatMul(x, w1)
        a = Sigmoid(h)
        y = MatMul(a, w2)
    }"""
    w1 = normal(4, 6)
    w1[:, 2] = 0
    new, result = reduced(build(body, w1=w1, w2=normal(6, 2)))
    assert causes(result) == {"constant": 1}
    assert ops(new.graph.node) == ["MatMul", "Sigmoid", "MatMul", "Add"]


def test_products_use_the_add_that_follows() -> None:
    body = """g (float[3, 4] x) => (float[3, 2] y, float[3, 2] z) {
        h = MatMul(x, w1)
        a = Sigmoid(h)
        p = MatMul(a, w2)
        y = Add(b, p)
        q = MatMul(a, w3)
        z = Add(q, b)
    }"""
    w1 = normal(4, 6)
    w1[:, 2] = 0
    model = build(body, w1=w1, w2=normal(6, 2), w3=normal(6, 2, seed=4), b=normal(2, seed=1))
    new, result = reduced(model)
    assert causes(result) == {"constant": 1}
    assert ops(new.graph.node) == ops(model.graph.node)
    wanted = {tuple(normal(2, seed=1) + 0.5 * w[2]) for w in (normal(6, 2), normal(6, 2, seed=4))}
    biases = [array(new, name) for name in shapes(new) if name.startswith("b")]
    assert {tuple(bias) for bias in biases} == wanted


def test_a_constant_weight_on_the_left() -> None:
    body = """g (float[4, 3] x) => (float[2, 3] y) {
        h = MatMul(w1, x)
        a = Sigmoid(h)
        y = MatMul(w2, a)
    }"""
    new, result = reduced(build(body, w1=edited(normal(6, 4), 2, 0), w2=normal(2, 6)))
    assert causes(result) == {"constant": 1}
    assert shapes(new)["y_bias"] == (2, 1)


def test_a_vector_has_no_place_for_a_bias_along_another_axis() -> None:
    body = """g (float[4] x) => (float[2] y) {
        h = MatMul(w1, x)
        a = Sigmoid(h)
        y = MatMul(w2, a)
    }"""
    assert causes(reduced(build(body, w1=edited(normal(6, 4), 2, 0), w2=normal(2, 6)))[1]) == {}


# -- duplicate ------------------------------------------------------------------------------------


def test_twins_become_one() -> None:
    first = normal(6, 4)
    model = mlp(w1=edited(first, 4, first[1]), b1=edited(normal(6), 4, normal(6)[1]))
    new, result = reduced(model)
    assert causes(result) == {"duplicate": 1}
    last = normal(2, 6, seed=2)
    last[:, 1] += last[:, 4]
    np.testing.assert_array_equal(array(new, "w2"), np.delete(last, 4, axis=1))


def test_three_of_a_kind() -> None:
    first = normal(6, 4)
    model = mlp(w1=first[[0, 1, 0, 1, 0, 2]], b1=normal(6)[[0, 1, 0, 1, 0, 2]])
    assert causes(reduced(model)[1]) == {"duplicate": 3}


def test_twins_stay_if_asked() -> None:
    first = normal(6, 4)
    model = mlp(w1=edited(first, 4, first[1]), b1=edited(normal(6), 4, normal(6)[1]))
    assert causes(reduced(model, duplicates=False)[1]) == {}


def test_twins_with_other_biases_are_none() -> None:
    first = normal(6, 4)
    assert causes(reduced(mlp(w1=edited(first, 4, first[1])))[1]) == {}


def test_twins_in_front_of_padding() -> None:
    w1 = normal(5, 3, 3, 3)
    body = """g (float[1, 3, 6, 6] x) => (float[1, 2, 6, 6] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w1)
        n = BatchNormalization(c, s, b, m, v)
        r = PRelu(n, p)
        y = Conv<pads = [1, 1, 1, 1]>(r, w2)
    }"""

    def found(**other: int) -> dict[str, int]:
        vectors: dict[str, Any] = {
            k: np.abs(normal(5, seed=k_)) + 1 for k_, k in enumerate("sbmvp")
        }
        vectors = {k: edited(v, 3, v[other.get(k, 0)]) for k, v in vectors.items()}
        p = vectors.pop("p").reshape(5, 1, 1)
        model = build(body, w1=edited(w1, 3, w1[0]), w2=normal(2, 5, 3, 3), p=p, **vectors)
        return causes(reduced(model)[1])

    assert found() == {"duplicate": 1}
    for name in "sbmvp":  # as unit 2 there
        assert found(**{name: 2}) == {}


def test_twins_whose_consumer_is_shared() -> None:
    """The columns of a weight that two nodes read cannot be added up for one of them."""
    body = """g (float[3, 4] x, float[3, 6] z) => (float[3, 2] y) {
        h = Gemm<transB = 1>(x, w1)
        a = MatMul(h, w2)
        b = MatMul(z, w2)
        y = Add(a, b)
    }"""
    first = normal(6, 4)
    assert causes(reduced(build(body, w1=edited(first, 4, first[1]), w2=normal(6, 2)))[1]) == {}


def test_twins_that_a_norm_looks_across() -> None:
    body = """g (float[3, 4] x) => (float[3, 2] y) {
        h = Gemm<transB = 1>(x, w1)
        n = LayerNormalization(h, s)
        y = MatMul(n, w2)
    }"""
    first = edited(normal(6, 4), 4, normal(6, 4)[1])
    first[2] = 0
    ones = np.ones(6, np.float32)
    assert causes(reduced(build(body, w1=first, s=ones, w2=normal(6, 2)))[1]) == {}


# -- unread ---------------------------------------------------------------------------------------


def test_units_whose_consumers_are_zero() -> None:
    last = normal(2, 6, seed=2)
    last[:, 3] = 0
    assert causes(reduced(mlp(w2=last))[1]) == {"unread": 1}


# -- options --------------------------------------------------------------------------------------


def test_protected_layers_stay() -> None:
    model = mlp(w1=NOTHING_IN, b1=edited(normal(6), 2, 0))
    assert causes(reduced(model, protect=("w1",))[1]) == {}


def test_weights_that_callers_may_override_stay() -> None:
    model = mlp(w1=NOTHING_IN, b1=edited(normal(6), 2, 0))
    model.graph.input.append(onnx.helper.make_tensor_value_info("w1", 1, [6, 4]))
    assert causes(reduced(model)[1]) == {}


def test_groups_whose_sizes_cannot_be_restated_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    body = """g (float[3, 4] x) => (float[3, 2] y) {
        h = MatMul(x, w1)
        i = MatMul(h, w2)
        y = MatMul(i, w3)
    }"""
    w1, w2 = normal(4, 5), normal(5, 6, seed=1)
    w1[:, 3] = 0
    w2[:, 4] = 0
    model = build(body, w1=w1, w2=w2, w3=normal(6, 2, seed=2))

    def refuse(analysis: Analysis, removed: Flags) -> Rewritten:
        first = next(group for group in analysis.groups if group.name.startswith("w1"))
        if removed[first.units].any():
            raise RewriteError("a size that moves")
        return rewrite(analysis, removed)

    monkeypatch.setattr("secateur.passes.remove_redundant.rewrite", refuse)
    new, result = reduced(model)
    assert causes(result) == {"zero": 1}
    assert shapes(new)["w1"] == (4, 5) and shapes(new)["w2"] == (5, 5)
