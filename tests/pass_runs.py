"""Runs one pass on a small model, and both models in ONNX Runtime on the same feeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

from secateur.ir.io import load_model, to_proto
from secateur.passes.base import Pass, PassContext, PassResult, clone_model

Array = npt.NDArray[Any]


def build(
    text: str, opset: int = 18, ir_version: int = 10, header: str = "", **weights: Array
) -> onnx.ModelProto:
    model = parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}{header}]>\n{text}'
    )
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    if ir_version < 4:
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(
                n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape
            )
            for n, a in weights.items()
        )
    onnx.checker.check_model(model)
    return model


def apply(p: Pass, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, PassResult]:
    """Run a pass on a clone; the caller's model must not change, and a second run do nothing."""
    mine = load_model(proto)
    before = to_proto(mine).SerializeToString(deterministic=True)
    result = p.run(clone_model(mine), PassContext())
    assert to_proto(mine).SerializeToString(deterministic=True) == before
    new = to_proto(result.model)
    onnx.checker.check_model(new)
    changed = new.SerializeToString(deterministic=True) != before
    assert result.modified == changed
    assert not p.run(result.model, PassContext()).modified
    return new, result


def run(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    outputs: list[Array] = session.run(None, feed)
    return outputs


def compare(old: onnx.ModelProto, new: onnx.ModelProto, tolerance: float = 0.0, **x: Array) -> None:
    """Same interface, same outputs; ``tolerance`` is relative to the largest element."""
    for kind in ("input", "output"):
        assert list(getattr(old.graph, kind)) == list(getattr(new.graph, kind))
    for a, b in zip(run(old, x), run(new, x), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = a.astype(np.float64), b.astype(np.float64)
        assert np.isfinite(a).all() and a.size
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max()


def ops(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    return [node.op_type for node in nodes]


def stored(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
