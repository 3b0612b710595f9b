"""Symbolic dimensions that the model itself ties to one size.

A position table fixes the sequence length, a flattening with a constant fixes the image: such a
dimension cannot be doubled to see what moves, and counts as static, while others still move.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import secateur


def build(signature: str, body: str, **weights: tuple[int, ...] | list[int]) -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g {signature} {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        array = (
            np.array(shape, np.int64)
            if isinstance(shape, list)
            else rng.standard_normal(shape).astype(np.float32)
        )
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def test_a_position_table_fixes_the_sequence_but_not_the_batch() -> None:
    model = build(
        "(float[N,T,10] x) => (float[N,T,4] y)",
        "h = MatMul(x, w) p = Add(h, table) y = MatMul(p, w2)",
        w=(10, 12), table=(1, 6, 12), w2=(12, 4),
    )  # fmt: skip
    result = secateur.prune(model, ratio=0.5, dims={"T": 6}, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert list(result.certificate.bindings) == [{"N": 1, "T": 6}, {"N": 2, "T": 6}]


def test_a_batch_of_a_fixed_size() -> None:
    model = build(
        "(float[N,10] x) => (float[N,4] y)",
        "s = Add(x, table) h = MatMul(s, w) y = MatMul(h, w2)",
        table=(3, 10), w=(10, 8), w2=(8, 4),
    )  # fmt: skip
    result = secateur.prune(model, ratio=0.5, dims={"N": 3}, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert list(result.certificate.bindings) == [{"N": 3}]


def test_past_new_and_all_tokens_move_together_though_the_batch_does_not() -> None:
    model = build(
        "(float[N,S,8] x, float[N,P,8] past, float[N,1,U] mask) => (float[N,S,4] y)",
        """s = Add(x, table) q = MatMul(s, wq) k0 = MatMul(s, wk) k1 = MatMul(past, wk)
        k = Concat<axis=1>(k1, k0) t = Transpose<perm=[0,2,1]>(k) a = MatMul(q, t)
        b = Add(a, mask) p = Softmax(b) c = MatMul(p, k) y = MatMul(c, wo)""",
        table=(3, 1, 8), wq=(8, 12), wk=(8, 12), wo=(12, 4),
    )  # fmt: skip
    first = {"N": 3, "S": 2, "P": 4, "U": 6}
    result = secateur.prune(model, ratio=0.5, dims=first, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert list(result.certificate.bindings) == [first, {"N": 3, "S": 4, "P": 8, "U": 12}]


@pytest.mark.parametrize("size", [4, 8])
def test_a_flattening_that_means_something_else_at_another_size_is_pinned(size: int) -> None:
    columns = 8 * size * size
    model = build(
        "(float[N,3,H,W] x) => (float[M,4] y)",
        "h = Conv<pads=[1,1,1,1]>(x, w) r = Reshape(h, rows) y = MatMul(r, w2)",
        w=(8, 3, 3, 3), rows=[-1, columns], w2=(columns, 4),
    )  # fmt: skip
    with pytest.raises(secateur.TargetError):
        secateur.prune(model, ratio=0.5, dims={"H": size, "W": size}, bench=False)
    analysis = secateur.analyze(model, dims={"H": size, "W": size})
    reasons = {pin.reason for pin in analysis.coupling.pins}
    assert "reshaped differently when a dynamic size changes" in reasons
