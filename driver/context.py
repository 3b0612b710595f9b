"""The options that all passes share, checked, with the calibration data read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir

from ..ir.errors import UsageError
from ..passes.base import PassContext

MAX_THREADS = 1024
MAX_SIZE = 2**31 - 1

Calibration = str | os.PathLike[str] | Mapping[str, npt.NDArray[np.generic]]
Progress = Callable[[str, float | None], None]


def check_threads(threads: int) -> None:
    """Raises UsageError for an impossible number of threads."""
    if not 0 <= threads <= MAX_THREADS:
        raise UsageError(f"`threads` must be 0 to {MAX_THREADS}, not {threads}")


def pass_context(
    model: oir.Model,
    dims: Mapping[str, int] | None,
    calibration: Calibration | None,
    threads: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> PassContext:
    """Options shared by all passes; sizes that ``dims`` leaves open come from the calibration."""
    from ..ir.bindings import symbolic_dims

    check_threads(threads)
    if seed < 0:
        raise UsageError(f"`seed` must be at least 0, not {seed}")
    places = symbolic_dims(model)
    for name, size in (dims or {}).items():
        is_batch = any(axis == 0 for _, axis in places.get(name, ()))
        least = int(is_batch)  # a batch is not empty
        if not least <= size <= MAX_SIZE:
            raise UsageError(
                f"dimension '{name}' needs a size of {least} to {MAX_SIZE}, not {size}"
            )
    sizes = dict(dims or {})
    arrays: dict[str, npt.NDArray[np.generic]] | None = None
    if calibration is not None:
        from ..runtime.calibration import load_calibration

        if isinstance(calibration, (str, os.PathLike)):
            calibration = Path(calibration)
        arrays = load_calibration(calibration, interface(model), sizes)
        for name, where in places.items():
            for value, axis in where:
                if axis > 0 and name not in sizes and value in arrays:
                    shape = arrays[value].shape
                    sizes[name] = shape[axis + arrays[value].ndim - _rank(model, value)]
    options: dict[str, Any] = {} if progress is None else {"progress": progress}
    return PassContext(seed=seed, threads=threads, dims=sizes, calibration=arrays, **options)


def _rank(model: oir.Model, name: str) -> int:
    value = next(v for v in model.graph.inputs if v.name == name)
    return len(value.shape or ())


def interface(model: oir.Model) -> onnx.ModelProto:
    """The model's inputs without nodes and weights."""
    proto = onnx.ModelProto(ir_version=model.ir_version)
    proto.graph.input.extend(
        oir.serde.serialize_value(v) for v in model.graph.inputs if not v.is_initializer()
    )
    return proto
