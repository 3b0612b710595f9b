"""Shapes that inference cannot find, seen in one real run of the model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir

from ..ir.errors import CertificateError, ModelError
from ..ir.flatten import flatten
from ..ir.shapes import Observer, Typed


def observer(
    model: oir.Model, calibration: Mapping[str, npt.NDArray[np.generic]] | None = None
) -> Observer:
    """An `Observer` that runs ``model`` in ONNX Runtime on random (or the first calibration)
    inputs and reports the types of the values asked for, by their names in the flat model (see
    `flatten`); nothing if the model does not run."""

    def observe(binding: Mapping[str, int], names: list[str]) -> Mapping[str, Typed]:
        from .calibration import calibration_feeds
        from .inputs import random_feed
        from .runnable import runnable, runner

        with runnable(flatten(model)) as (proto,):
            present = {info.name for info in proto.graph.output}
            proto.graph.output.extend(
                onnx.ValueInfoProto(name=name) for name in names if name not in present
            )
            try:
                feed = (
                    random_feed(proto, binding, 0)
                    if calibration is None
                    else next(iter(calibration_feeds(calibration, proto, binding, 1)))
                )
                outputs = runner(proto, optimize=False)(feed)
            except (CertificateError, ModelError, StopIteration):
                return {}
        return {
            name: (onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in outputs.items()
            if name in names and isinstance(array, np.ndarray)
        }

    return observe
