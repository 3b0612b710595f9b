"""Masks and zeroed slices of quantised weights: they become their zero points."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from secateur.ir.masks import Mask
from secateur.runtime.masked import masked_model
from secateur.runtime.session import make_session, run
from secateur.runtime.zeroed import zeroed_model

from .graphs import Array

# The node with its weight w, the number and shape of w, the shape of its zero points z and of its
# scales c. x and i are quantised activations with the zero point p.
Case = tuple[str, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]
CASES: dict[str, Case] = {
    "columns": ("MatMulInteger(x, w, p, z)", 1, (3, 4), (4,), ()),
    "left": ("MatMulInteger(w, v, z, p)", 0, (5, 3), (1,), ()),
    "stacked": ("MatMulInteger(x, w, p, z)", 1, (2, 3, 4), (2, 1, 4), ()),
    "no zero point": ("MatMulInteger(x, w, p)", 1, (3, 4), (), ()),
    "linear": ("QLinearMatMul(x, s, p, w, c, z, s, p)", 3, (3, 4), (4,), (4,)),
    "channels": ("QLinearConv(i, s, p, w, c, z, s, p)", 3, (4, 3, 1, 1), (4,), (4,)),
    "integer channels": ("ConvInteger(i, w, p, z)", 1, (4, 3, 1, 1), (), ()),
    "Gemm": ("com.microsoft.QGemm(x, s, p, w, c, z)", 3, (3, 4), (4,), (4,)),
    "transposed Gemm": (
        "com.microsoft.QGemm<transB = 1>(x, s, p, w, c, z)", 3, (4, 3), (4,), (4,)
    ),
    "to floats": ("com.microsoft.MatMulIntegerToFloat(x, w, s, c, p, z)", 1, (3, 4), (4,), (4,)),
    "dynamic": ("com.microsoft.DynamicQuantizeMatMul(f, w, c, z)", 1, (3, 4), (4,), (4,)),
    "directions": (
        "com.microsoft.DynamicQuantizeLSTM<hidden_size = 3, direction = \"bidirectional\">"
        "(t, w, r, , , , , , c, z, c, z)",
        1, (2, 3, 12), (2,), (2,),
    ),
    "columns of directions": (
        "com.microsoft.DynamicQuantizeLSTM<hidden_size = 3, direction = \"bidirectional\">"
        "(t, w, r, , , , , , c, z, c, z)",
        1, (2, 3, 12), (2, 12), (2, 12),
    ),
}  # fmt: skip


def built(name: str) -> tuple[onnx.ModelProto, dict[str, Array], Array]:
    """The model, its tensors, and the zero points as they meet the weight."""
    node, _, shape, points, scales = CASES[name]
    rng = np.random.default_rng(0)
    x = rng.integers(90, 150, (2, 3)).astype(np.uint8)
    z = rng.integers(1, 9, points)
    if name in ("channels", "columns of directions"):
        z[:] = 5  # ONNX Runtime wants them equal
    given: dict[str, Array] = {
        "w": rng.integers(0, 100, shape).astype(np.uint8),
        "z": z.astype(np.uint8),
        "c": rng.uniform(0.01, 0.02, scales).astype(np.float32),
        "p": np.array(120, np.uint8), "s": np.array(0.1, np.float32),
        "x": x, "v": x.T.copy(), "i": x.reshape(2, 3, 1, 1), "f": x.astype(np.float32),
        "t": rng.standard_normal((2, 1, 3)).astype(np.float32),
        "r": rng.integers(0, 9, (2, 3, 12)).astype(np.uint8),
    }  # fmt: skip
    used = {n.strip() for n in node[node.rindex("(") + 1 : -1].split(",")}
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> g () => (y) {{ y = {node} }}'
    )
    tensors = {key: array for key, array in given.items() if key in used}
    model.graph.initializer.extend(numpy_helper.from_array(a, k) for k, a in tensors.items())
    along = tensors.get("z", np.zeros((), np.uint8))
    if "LSTM" in node:
        along = along.reshape(2, 1, -1)
    elif along.ndim == 1 and ("channels" in name or name == "transposed Gemm"):
        along = along.reshape(-1, *[1] * (len(shape) - 1))
    return model, tensors, np.broadcast_to(along, shape)


def output(model: onnx.ModelProto, **tensors: Array) -> Array:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in tensors:
            tensor.CopyFrom(numpy_helper.from_array(tensors[tensor.name], tensor.name))
    return run(make_session(changed, optimize=False), {})["y"]


def written(weight: Array, zero: Array, axis: int) -> Array:
    """The weight with its zero points at two coordinates of an axis."""
    changed = weight.copy()
    gone = (slice(None),) * axis + ([0, 2],)
    changed[gone] = zero[gone]
    return changed


@pytest.mark.parametrize("name", CASES)
def test_a_masked_weight_is_its_zero_points(name: str) -> None:
    model, tensors, zero = built(name)
    number = CASES[name][1]
    for axis in range(zero.ndim):
        if zero.shape[axis] < 3:
            continue
        element = {np.dtype(np.uint8): 2, np.dtype(np.float32): 1}
        types = {k: (element[a.dtype], a.shape) for k, a in tensors.items()}
        masked = masked_model(model, [Mask("y", number, axis, (0, 2))], types=types)
        got, wanted = output(masked), output(model, w=written(tensors["w"], zero, axis))
        np.testing.assert_array_equal(got, wanted)
        assert not np.array_equal(got, output(model)), "the mask changes nothing"


@pytest.mark.parametrize("name", CASES)
def test_a_zeroed_weight_is_its_zero_points(name: str) -> None:
    """Also where the zero points along that axis are zeroed, too."""
    model, tensors, zero = built(name)
    for axis in range(zero.ndim):
        if zero.shape[axis] < 3:
            continue
        if "z" not in tensors or tensors["z"].ndim < 2:  # of more axes only the scales count
            got = output(zeroed_model(model, [("w", axis, (0, 2))]))
            np.testing.assert_array_equal(got, output(model, w=written(tensors["w"], zero, axis)))
    if "z" in tensors and tensors["z"].shape == (4,):
        axis = 0 if "channels" in name or "transposed" in name else 1
        zeroed = zeroed_model(model, [("w", axis, (0, 2)), ("z", 0, (0, 2))])
        stored = {t.name: numpy_helper.to_array(t) for t in zeroed.graph.initializer}
        assert not stored["z"][[0, 2]].any()
        assert not np.take(stored["w"], [0, 2], axis).any()


def test_a_quantised_number_without_axes() -> None:
    """It stands beside the others, and nothing of it is removed."""
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2,3] x) => (float[2,4] y)
        <float s = {0.1}, uint8 n = {7}, uint8 p = {3}, float[1] t = {0.1}, uint8[1] q = {3}> {
            a = DequantizeLinear(n, t, q) b = Mul(x, a)
            d = DequantizeLinear(w, s, p) y = MatMul(b, d)
        }"""
    )
    weight = np.random.default_rng(0).integers(0, 256, (3, 4)).astype(np.uint8)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    zeroed = zeroed_model(model, [("w", 0, (1,))])
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = run(make_session(zeroed, optimize=False), {"x": x})["y"]
    expected = (
        np.delete(x, 1, 1)
        * np.float32(0.4)
        @ ((np.delete(weight, 1, 0).astype(np.float32) - 3) * np.float32(0.1))
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)
