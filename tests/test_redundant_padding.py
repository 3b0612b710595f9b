"""Constants in front of padding: a bias stands for them only where every place sees the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from .pass_runs import build, normal
from .redundant_runs import array, causes, edited, reduced, shapes

IMAGE = """g (float[2, 3, 8, 8] x) => (float%s y) {
    c = Conv(x, w1, b1)
    r = Relu(c)
    %s
}"""


def image(last: str, bias: float, rank: int = 4, **weights: Any) -> onnx.ModelProto:
    """Channel 1 of five is a constant, the Relu of ``bias``, in front of ``last``."""
    first: dict[str, Any] = {
        "w1": edited(normal(5, 3, 1, 1), 1, 0),
        "b1": edited(normal(5, seed=1), 1, bias),
    }
    sizes = [f"d{k}" for k in range(rank)]
    model = build(IMAGE % (str(sizes).replace("'", ""), last), 18, **first, **weights)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    model.graph.output[0].CopyFrom(inferred.graph.output[0])
    return model


def convolution(attributes: str = "", kernel: int = 3, bias: bool = True) -> onnx.ModelProto:
    more: dict[str, Any] = {"w2": normal(4, 5, kernel, kernel, seed=2)}
    if bias:
        more["b2"] = normal(4, seed=3)
    return image(f"y = Conv{attributes}(r, w2{', b2' * bias})", 0.75, **more)


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_without_padding_takes_constants(bias: bool) -> None:
    new, result = reduced(convolution(bias=bias))
    assert causes(result) == {"constant": 1}
    wanted = 0.75 * normal(4, 5, 3, 3, seed=2)[:, 1].sum((1, 2)) + bias * normal(4, seed=3)
    np.testing.assert_allclose(array(new, "b2" if bias else "y_bias"), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "kernel"),
    [("<pads = [1, 1, 1, 1]>", 3), ("<pads = [0, 0, 0, 1]>", 3), ('<auto_pad = "SAME_UPPER">', 3),
     ('<auto_pad = "SAME_LOWER">', 2), ("<pads = [1, 0, 0, 0]>", 1)],
)  # fmt: skip
def test_no_bias_stands_for_a_constant_that_ends_at_the_border(
    attributes: str, kernel: int
) -> None:
    assert causes(reduced(convolution(attributes, kernel))[1]) == {}


@pytest.mark.parametrize(
    ("attributes", "kernel"),
    [('<auto_pad = "VALID">', 3), ('<auto_pad = "SAME_UPPER">', 1), ("<strides = [2, 2]>", 3),
     ("<dilations = [2, 2]>", 3)],
)  # fmt: skip
def test_nothing_is_padded(attributes: str, kernel: int) -> None:
    assert causes(reduced(convolution(attributes, kernel))[1]) == {"constant": 1}


def test_zeros_end_nowhere() -> None:
    model = image("y = Conv<pads = [1, 1, 1, 1]>(r, w2)", -0.5, w2=normal(4, 5, 3, 3))
    assert causes(reduced(model, tolerance=0)[1]) == {"zero": 1}


PAD: dict[str, Any] = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}


@pytest.mark.parametrize(("value", "found"), [(0.75, {"constant": 1}), (0.5, {}), (0.0, {})])
def test_padding_in_a_node_of_its_own(value: float, found: dict[str, int]) -> None:
    """It makes no difference where the picture is padded with the constant itself."""
    filled: dict[str, Any] = {"fill": np.array(value, np.float32), "w2": normal(4, 5, 3, 3)}
    model = image("p = Pad(r, pads, fill) y = Conv(p, w2)", 0.75, **PAD, **filled)
    assert causes(reduced(model)[1]) == found


def test_padding_that_repeats_the_border() -> None:
    model = image('p = Pad<mode = "edge">(r, pads) y = Conv(p, w2)', 0.75, **PAD,
                  w2=normal(4, 5, 3, 3))  # fmt: skip
    assert causes(reduced(model)[1]) == {"constant": 1}


@pytest.mark.parametrize(
    ("pooling", "found"),
    [("MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>", {"constant": 1}),
     ("AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>", {"constant": 1}),
     ("AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>", {}),
     ("AveragePool<kernel_shape = [3, 3], count_include_pad = 1>", {"constant": 1}),
     ("GlobalAveragePool", {"constant": 1}), ("GlobalMaxPool", {"constant": 1})],
)  # fmt: skip
def test_pooling_between(pooling: str, found: dict[str, int]) -> None:
    model = image(f"p = {pooling}(r) y = Conv(p, w2)", 0.75, w2=normal(4, 5, 1, 1))
    assert causes(reduced(model)[1]) == found


def test_transposed_convolutions() -> None:
    """With a kernel of one and a stride of one every place sees the constant once."""
    for attributes, kernel, found in (
        ("", 1, {"constant": 1}),
        ("<strides = [2, 2]>", 1, {}),
        ("", 2, {}),
        ("<strides = [2, 2]>", 2, {}),
    ):
        model = image(
            f"y = ConvTranspose{attributes}(r, w2)", 0.75, w2=normal(5, 4, kernel, kernel)
        )
        assert causes(reduced(model)[1]) == found


def test_constants_that_are_resized_and_flattened() -> None:
    model = image(
        """s = Resize<mode = "linear">(r, , scales)
           f = Flatten(s)
           y = Gemm(f, w2)""",
        0.75,
        2,
        scales=np.array([1, 1, 2, 2], np.float32),
        w2=0.1 * normal(5 * 16 * 16, 3),
    )
    new, result = reduced(model, tolerance=3e-6)
    assert causes(result) == {"constant": 1}
    assert shapes(new)["w2"] == (4 * 16 * 16, 3)
