"""What is certified at two sizes of the symbolic dimensions must hold at a third.

The reference is the original with the consumers of what was removed zeroed, in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import secateur
from secateur.ir.errors import TargetError


def build(signature: str, constants: str, body: str, **weights: Sequence[int]) -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g {signature} <{constants}> {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def run(model: onnx.ModelProto, feed: Mapping[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]


def check(
    model: onnx.ModelProto, consumer: str, axis: int, dims: Mapping[str, int], shape: Sequence[int]
) -> None:
    """Prunes at ``dims`` and compares on an input of another ``shape``."""
    result = secateur.prune(model, ratio=0.5, dims=dims, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert result.pruning is not None
    (gone,) = (s.indices for s in result.pruning.slices if (s.tensor, s.axis) == (consumer, axis))
    zeroed = onnx.ModelProto()
    zeroed.CopyFrom(model)
    for tensor in zeroed.graph.initializer:
        if tensor.name == consumer:
            array = numpy_helper.to_array(tensor).copy()
            np.moveaxis(array, axis, 0)[list(gone)] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, consumer))
    feed = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    pruned = onnx_ir.to_proto(result.model)
    np.testing.assert_allclose(run(pruned, feed), run(zeroed, feed), rtol=1e-4, atol=1e-4)


def test_a_computed_size_that_is_the_same_at_both_bindings_stays_computed() -> None:
    """ceil(L / 32) is 1 at 8 and at 16, and 3 at 70: it must not become a constant."""
    model = build(
        "(float[2,L,16] x) => (float[2,K,16] y)",
        "int64[1] up = {31}, int64[1] by = {32}, int64[1] two = {2}, int64[1] at = {1},"
        " int64[1] width = {64}",
        "h = MatMul(x, w) s = Shape(x) l = Gather(s, at) a = Add(l, up) blocks = Div(a, by)"
        " t = Concat<axis=0>(two, blocks, width)"
        " ones = ConstantOfShape<value = float[1] {1.0}>(t)"
        " m = ReduceMax<axes=[1]>(h) r = Mul(m, ones) y = MatMul(r, w2)",
        w=(16, 64), w2=(64, 16),
    )  # fmt: skip
    check(model, "w2", 0, {"L": 8}, (2, 70, 16))


def test_scales_that_are_computed_from_a_size_that_moves() -> None:
    model = build(
        "(float[N,3,H,V] x) => (float[N,5,12,12] y)",
        "float[0] empty = {}, float[2] ones = {1.0, 1.0}, int64[2] size = {12, 12},"
        " int64[1] first = {2}, int64[1] last = {4}",
        "h = Conv(x, w) s = Shape(h) hw = Slice(s, first, last) a = Cast<to=1>(size)"
        " b = Cast<to=1>(hw) q = Div(a, b) scales = Concat<axis=0>(ones, q)"
        " r = Resize(h, empty, scales) y = Conv(r, w2)",
        w=(8, 3, 1, 1), w2=(5, 8, 1, 1),
    )  # fmt: skip
    check(model, "w2", 1, {"H": 6, "V": 4}, (5, 3, 3, 12))


_BOUNDS = "int64[1] zero = {0}, int64[1] axis = {1}, int64[1] many = {100}"


def test_slices_at_bounds_that_only_an_input_knows_keep_their_axis() -> None:
    """The bounds may take it whole in the runs that we see, and less of it in others."""
    model = build(
        "(float[N,16] x, int64[1] n) => (float[N,4] y)",
        _BOUNDS,
        "h = MatMul(x, w) end = Add(n, many) part = Slice(h, zero, end, axis)"
        " sum = ReduceSum(part, axis) z = MatMul(h, w2) y = Add(z, sum)",
        w=(16, 8), w2=(8, 4),
    )  # fmt: skip
    with pytest.raises(TargetError, match="nothing in this model can be pruned"):
        secateur.prune(model, ratio=0.5, bench=False)


def test_slices_at_bounds_that_only_an_input_knows_let_other_axes_pass() -> None:
    model = build(
        "(float[N,6,16] x, int64[1] n) => (float[N,K,4] y)",
        _BOUNDS,
        "h = MatMul(x, w) end = Add(n, many) part = Slice(h, zero, end, axis)"
        " y = MatMul(part, w2)",
        w=(16, 8), w2=(8, 4),
    )  # fmt: skip
    result = secateur.prune(model, ratio=0.5, bench=False)
    assert result.report["totals"]["parameters"]["after"] == 4 * (16 + 4)


def test_a_transposed_convolution_over_channels_that_states_its_output_keeps_them() -> None:
    model = build(
        "(float[N,16] x) => (float[N,4] y)",
        "int64[1] at = {1}",
        "h = MatMul(x, w) u = Unsqueeze(h, at)"
        " c = ConvTranspose<kernel_shape=[3], output_shape=[8]>(u, k) q = Squeeze(c, at)"
        " y = MatMul(q, w2)",
        w=(16, 8), k=(1, 1, 3), w2=(8, 4),
    )  # fmt: skip
    with pytest.raises(TargetError, match="nothing in this model can be pruned"):
        secateur.prune(model, ratio=0.5, bench=False, inexact=True)


def test_numbers_as_many_as_the_batch_keep_a_size_that_they_are_computed_from() -> None:
    """Rows times the number of channels, as it was."""
    model = build(
        "(float[N,16] x) => (float[N,4] y)",
        "int64 zero = {0}, int64 one = {1}, int64[2] column = {-1, 1}",
        "h = MatMul(x, w) s = Shape(h) n = Gather(s, zero) c = Gather(s, one)"
        " r = Range(zero, n, one) k = Mul(r, c) f = Cast<to=1>(k) kc = Reshape(f, column)"
        " z = MatMul(h, w2) y = Mul(z, kc)",
        w=(16, 8), w2=(8, 4),
    )  # fmt: skip
    check(model, "w2", 0, {"N": 2}, (5, 16))


def test_a_slice_that_is_written_as_far_as_a_moving_size_goes() -> None:
    """``a[:, : min(T, 4)] = b`` is as long at both sizes that we see, and shorter at others."""
    model = build(
        "(float[N,T,16] x) => (float[N,T,4] y)",
        "int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64 four = {4}, int64[1] i0 = {0},"
        " int64[1] i1 = {1}, int64[3] rows = {-1, 1, 1}, int64[2] places = {-1, 1},"
        " int64[1] last = {-1}",
        "a = MatMul(x, w) b = MatMul(x, w3) s = Shape(a) n = Gather(s, zero) t = Gather(s, one)"
        " c = Gather(s, two) m = Min(t, four) end = Reshape(m, last) u = Slice(b, i0, end, i1)"
        " rn = Range(zero, n, one) rm = Range(zero, m, one) rc = Range(zero, c, one)"
        " ln = Reshape(rn, rows) lm = Reshape(rm, places) nm = Add(ln, lm) all = Add(nm, rc)"
        " shape = Shape(all) en = Expand(ln, shape) em = Expand(lm, shape) ec = Expand(rc, shape)"
        " un = Unsqueeze(en, last) um = Unsqueeze(em, last) uc = Unsqueeze(ec, last)"
        " at = Concat<axis=-1>(un, um, uc) w4 = ScatterND(a, at, u) y = MatMul(w4, w2)",
        w=(16, 8), w3=(16, 8), w2=(8, 4),
    )  # fmt: skip
    check(model, "w2", 0, {"N": 2, "T": 6}, (3, 3, 16))
    check(model, "w2", 0, {"N": 2, "T": 6}, (1, 9, 16))
