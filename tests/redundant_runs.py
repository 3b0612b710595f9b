"""Runs ``remove-redundant`` on a model and holds the result to the original in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from secateur.ir.io import load_model, to_proto
from secateur.ir.protos import model_nodes
from secateur.passes.base import PassContext, PassResult, clone_model
from secateur.passes.manager import PassManager
from secateur.passes.remove_redundant import RemoveRedundant
from secateur.runtime.session import make_session, run

from .graph_builder import feeds
from .pass_runs import Array, build, normal
from .pruning_checks import check_interface

SEEDS = 5


def reduced(
    model: onnx.ModelProto,
    *,
    dims: Mapping[str, int] | None = None,
    tolerance: float = 1e-6,
    verify: bool = True,
    **options: Any,
) -> tuple[onnx.ModelProto, PassResult]:
    """The model after the pass: valid, the same outputs for several inputs (``tolerance`` is
    relative to the largest element of an output), and nothing left to find."""
    one = RemoveRedundant(**options)
    context = PassContext(threads=1, dims=dims or {})
    mine = load_model(model)
    before = to_proto(mine).SerializeToString(deterministic=True)
    result = PassManager([one], verify=verify).run(mine, context).results[0]
    assert to_proto(mine).SerializeToString(deterministic=True) == before
    new = to_proto(result.model)
    onnx.checker.check_model(new, full_check=True)
    check_interface(model, new)
    assert result.statistics["units"] == sum(causes(result).values())
    assert result.statistics["units"] == sum(row["units"] for row in result.details["removed"])
    assert not one.run(clone_model(result.model), context).modified
    old_session, new_session = (make_session(m, threads=1, optimize=False) for m in (model, new))
    for seed in range(SEEDS):
        feed = feeds(model, seed, **(dims or {}))
        for size in (1.0, 30.0):
            scaled = {
                k: np.asarray(size * v, v.dtype) if v.dtype.kind == "f" else v
                for k, v in feed.items()
            }
            wanted, got = run(old_session, scaled), run(new_session, scaled)
            for name, a in wanted.items():
                b = got[name]
                assert a.dtype == b.dtype and a.shape == b.shape and np.isfinite(a).all()
                error = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)
                assert error <= tolerance * np.abs(a.astype(np.float64)).max(initial=0), name
    return new, result


def causes(result: PassResult) -> dict[str, int]:
    """How many units went, by cause, without the causes of none."""
    return {k: int(v) for k, v in result.statistics.items() if v and k != "units"}


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def array(model: onnx.ModelProto, name: str) -> Array:
    return onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


MLP = """g (float[3, 4] x) => (float[3, 2] y) {
    h = Gemm<transB = 1>(x, w1, b1)
    a = %s(h)
    y = Gemm<transB = 1>(a, w2, b2)
}"""


def mlp(activation: str = "Relu", **changed: Array) -> onnx.ModelProto:
    weights: dict[str, Any] = {
        "w1": normal(6, 4),
        "b1": normal(6, seed=1),
        "w2": normal(2, 6, seed=2),
    }
    weights |= {"b2": normal(2, seed=3)} | changed
    return build(MLP % activation, 20, **weights)


def edited(array: Array, row: int, value: Any) -> Array:
    copy = array.copy()
    copy[row] = value
    return copy


NOTHING_IN = edited(normal(6, 4), 2, 0)
"""The weights of a hidden layer whose unit 2 reads nothing."""


def spoil(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Makes some slices of about half of the float weights zero, equal, or lower by three, but for
    variances and scales, whose names are those inside functions, too."""
    whole = {n.input[4] for n in model_nodes(model) if n.op_type == "BatchNormalization"}
    for tensor in model.graph.initializer:
        weight = onnx.numpy_helper.to_array(tensor).copy()
        fits = weight.dtype in (np.float32, np.float16) and weight.size and weight.ndim
        if not fits or tensor.name in whole or "scale" in tensor.name or rng.random() < 0.5:
            continue
        rows = np.moveaxis(weight, rng.integers(weight.ndim), 0)
        for _ in range(2):
            one, other = rng.integers(0, len(rows), 2)
            rows[one] = [0 * rows[one], rows[other], rows[one] - 3][rng.integers(3)]
        tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
