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
from .session import Array


def observer(
    model: oir.Model, calibration: Mapping[str, npt.NDArray[np.generic]] | None = None
) -> Observer:
    """An `Observer` that runs ``model`` in ONNX Runtime on random inputs, or the first calibration
    inputs repeated or cut to the sizes of the binding, and reports the types of the values asked
    for, by their names in the flat model (see `flatten`); nothing if the model does not run."""

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
                    else _sized(
                        next(iter(calibration_feeds(calibration, proto, binding, 1))),
                        proto,
                        binding,
                    )
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


def _sized(
    feed: Mapping[str, Array], proto: onnx.ModelProto, binding: Mapping[str, int]
) -> dict[str, Array]:
    """The feed with every symbolic dimension repeated or cut to the size it is bound to."""
    from .signature import fed_inputs, input_shape

    sized = dict(feed)
    for value in fed_inputs(proto):
        for axis, dim in enumerate(input_shape(value)[1]):
            array = sized[value.name]
            found = array.shape[axis]
            wanted = binding.get(dim, found) if isinstance(dim, str) else found
            if found and wanted != found:
                sized[value.name] = array.take(np.arange(wanted) % found, axis)
    return sized
