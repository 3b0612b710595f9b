"""Running small models: kernels or the reference implementation, values to feed, closeness."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir

from secateur.ir.shapes import Observer, Typed
from tests import numpy_contrib, numpy_experts

os.environ.setdefault("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Run = Callable[[Feeds], list[Array]]

EPSILON = {
    oir.DataType.FLOAT16: 2**-10,
    oir.DataType.BFLOAT16: 2**-7,
    oir.DataType.FLOAT8E4M3FN: 2**-3,
    oir.DataType.FLOAT8E4M3FNUZ: 2**-3,
    oir.DataType.FLOAT8E5M2: 2**-2,
    oir.DataType.FLOAT8E5M2FNUZ: 2**-2,
    oir.DataType.FLOAT8E8M0: 1.0,
    oir.DataType.FLOAT4E2M1: 2**-1,
}
"""The distance from 1 to the next number of a narrow type."""

STRINGS = ["", "a", "www.google.com", "account@gmail.com"]
"""Perturbed strings; the addresses match the expressions of the backend's cases."""

SIZE_INPUTS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "ArrayFeatureExtractor": (1,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "MaxUnpool": (1, 2),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "ReverseSequence": (1,),
    "RoiAlign": (2,),
    "STFT": (1, 3),
    "Scatter": (1,),
    "ScatterElements": (1,),
    "ScatterND": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "TensorScatter": (2,),
    "Tile": (1, 2),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""Inputs that hold sizes, axes or positions rather than data; Reduce* have theirs at 1."""


def size_inputs(op_type: str) -> tuple[int, ...]:
    return (1,) if op_type.startswith("Reduce") else SIZE_INPUTS.get(op_type, ())


def runtime(model: onnx.ModelProto) -> tuple[Run, bool]:
    """The model in ONNX Runtime as it is, or in onnx.reference (then True) without a kernel."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    narrow = {
        onnx.TensorProto.BFLOAT16,
        *(v for k, v in onnx.TensorProto.DataType.items() if k.startswith(("FLOAT8", "FLOAT4"))),
        *(v for k, v in onnx.TensorProto.DataType.items() if k.endswith(("INT4", "INT2"))),
    }
    ends = (*model.graph.input, *model.graph.output)
    if not any(v.type.tensor_type.elem_type in narrow for v in ends):
        try:
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:  # no kernel for this operator, type or opset
            return reference(model), True
        return lambda feeds: list(session.run(None, dict(feeds))), False
    return reference(model), True


def sizeless(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model for inputs of any size."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    del free.graph.value_info[:]
    for value in (*free.graph.input, *free.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return free


def reference(model: onnx.ModelProto) -> Run:
    """The model in numpy."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model, new_ops=_numpy_operators())

    def run(feeds: Feeds) -> list[Array]:
        with np.errstate(all="ignore"):
            return [np.asarray(v) for v in evaluator.run(None, dict(feeds))]

    return run


def _numpy_operators() -> list[type[Any]]:
    """LRN, MeanVarianceNormalization and Normalizer by the standard's formulas: in onnx.reference
    one skips channels, one cancels digits, and one takes absolute values for the maximum."""
    from onnx.reference.op_run import OpRun

    class LRN(OpRun):
        def _run(self, x: Array, alpha: float, beta: float, bias: float, size: int) -> Any:
            sums = [
                np.square(x[:, max(c - (size - 1) // 2, 0) : c + size // 2 + 1]).sum(axis=1)
                for c in range(x.shape[1])
            ]
            scale = bias + alpha / size * np.stack(sums, axis=1)
            return ((x / scale**beta).astype(x.dtype),)

    class MeanVarianceNormalization(OpRun):
        def _run(self, x: Array, axes: Sequence[int] | None = None) -> Any:
            over = tuple(axes or (0, 2, 3))
            wide = x.astype(np.float64)
            centred = wide - wide.mean(axis=over, keepdims=True)
            deviation = np.sqrt(np.square(centred).mean(axis=over, keepdims=True))
            return ((centred / (deviation + 1e-9)).astype(x.dtype),)

    class Normalizer(OpRun):
        op_domain = "ai.onnx.ml"

        def _run(self, x: Array, norm: str = "MAX") -> Any:
            sums = {
                "MAX": x.max(axis=-1, keepdims=True),
                "L1": np.abs(x).sum(axis=-1, keepdims=True),
                "L2": np.sqrt(np.square(x).sum(axis=-1, keepdims=True)),
            }
            return ((x / sums[norm]).astype(x.dtype),)

    others: list[type[Any]] = [*numpy_contrib.operators(), numpy_experts.MoE, numpy_experts.QMoE]
    return [LRN, MeanVarianceNormalization, Normalizer, *others]


def freeze(model: onnx.ModelProto, values: Feeds) -> onnx.ModelProto:
    """Graph inputs turned into initializers."""
    frozen = onnx.ModelProto()
    frozen.CopyFrom(model)
    kept = [v for v in frozen.graph.input if v.name not in values]
    del frozen.graph.input[:]
    frozen.graph.input.extend(kept)
    for name, array in values.items():
        frozen.graph.initializer.append(oir.serde.serialize_tensor(oir.tensor(array, name=name)))
    return frozen


def is_float(dtype: np.dtype[Any]) -> bool:
    if dtype.kind in "fbiuOUS":
        return dtype.kind == "f"
    return oir.DataType.from_numpy(dtype).is_floating_point()


def limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The least and the greatest number of an integer type."""
    kind = oir.DataType.from_numpy(dtype)
    bits = int(8 * kind.itemsize)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind.is_signed() else (0, 2**bits - 1)


def draw(rng: np.random.Generator, like: Array, scale: float, bounds: tuple[int, int]) -> Array:
    """Random values of the type and shape of ``like``; integers come from ``bounds``.

    With scale 1 they are small whole numbers, so that some are equal."""
    dtype = like.dtype
    if dtype == np.bool_:
        return np.asarray(rng.random(like.shape) < 0.5)
    if dtype.kind in "OUS":
        return np.asarray(rng.choice(STRINGS, like.shape)).astype(object)
    if is_float(dtype):
        values = np.asarray(scale * rng.standard_normal(like.shape))
        return (np.round(values) if scale == 1 else values).astype(dtype)
    low, high = bounds if scale != 1 else (max(bounds[0], -2), min(bounds[1], 2))
    least, most = limits(dtype)
    low, high = max(low, least), min(high, most)
    return np.asarray(rng.integers(low, high, like.shape, endpoint=True)).astype(dtype)


def runs(run: Run, feeds: Feeds) -> bool:
    """Whether the kernel takes these inputs."""
    try:
        run(feeds)
    except Exception:
        return False
    return True


def close(a: Array, b: Array, where: str, eps: float) -> None:
    """Equal, or for floats equal up to the reordering of a sum."""
    if not is_float(a.dtype):
        np.testing.assert_array_equal(a, b, err_msg=where)
        return
    narrow = a.dtype.itemsize <= 2
    eps = EPSILON[oir.DataType.from_numpy(a.dtype)] if narrow else eps
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    finite = np.abs(wide_b[np.isfinite(wide_b)])
    largest = float(finite.max()) if finite.size else 0.0
    tolerance = 2 * eps if narrow else eps
    np.testing.assert_allclose(
        wide_a, wide_b, rtol=tolerance, atol=tolerance * max(largest, 1e-3), err_msg=where
    )


def observer(model: onnx.ModelProto, feeds: Feeds) -> Observer:
    """Tells the types of outputs that inference does not know, as they are on these inputs."""

    def observe(binding: Mapping[str, int], names: Sequence[str]) -> dict[str, Typed]:
        outputs = [value.name for value in model.graph.output]
        run, on_reference = runtime(model)
        if not on_reference and not runs(run, feeds):
            run = reference(model)
        return {
            name: (onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(outputs, run(feeds), strict=True)
            if name in names
        }

    return observe
