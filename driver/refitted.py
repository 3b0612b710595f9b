"""Verifying models whose weights were refitted after the pruning.

What was refitted are numbers, and which is in the report. So the pruned file must be, but for these
numbers, what the pruning (and passes behind it that preserve the outputs) makes of its input again;
and with these numbers put back into the input, at the places that the pruning kept, the masked
input must give what the file gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as oir

from ..ir.constants import constant_tensor, constants, set_constant, tensor_shape
from ..ir.errors import CertificateError, DataError
from ..ir.io import digest
from ..passes.base import clone_model
from ..passes.proof import Removal


def with_refitted(
    before: oir.Model,
    after: oir.Model,
    final: oir.Model,
    names: Sequence[str],
    removal: Removal,
    finish: Callable[[oir.Model], oir.Model],
) -> oir.Model:
    """``before``, the input of the last pruning, with the weights ``names`` of ``final``, the
    pruned file, where the pruning that made ``after`` of it kept them.

    Raises CertificateError when ``final`` differs from what ``finish`` makes of ``after`` with
    these numbers, DataError when the names are not those of weights.
    """
    new = {str(v.name): t for v, t in constants(final.graph)}
    same = clone_model(after)
    for value, tensor in list(constants(same.graph)):
        found = new.get(str(value.name))
        if value.name in names and found is not None:
            if found.dtype != tensor.dtype or tensor_shape(found) != tensor_shape(tensor):
                raise CertificateError(f"refitted weight '{value.name}' has another type or shape")
            set_constant(value, found)
    if digest(finish(same)) != digest(final):
        raise CertificateError(
            "the pruned model is not what the recorded pruning and refitting make of the original"
        )
    whole = clone_model(before)
    values = {str(v.name): v for v, _ in constants(whole.graph)}
    for name in names:
        if name not in values or name not in new:
            raise DataError(f"the report calls '{name}' refitted, which is no weight")
        old = constant_tensor(values[name])
        assert old is not None
        array = old.numpy().copy()
        kept = [np.arange(size) for size in array.shape]
        for tensor_name, axis, indices in removal.slices:
            if tensor_name == name and 0 <= axis < array.ndim:
                kept[axis] = np.setdiff1d(kept[axis], indices)
        part = new[name].numpy()
        if tuple(map(len, kept)) != part.shape:
            raise DataError(f"the report does not say what was cut from '{name}'")
        array[np.ix_(*kept)] = part
        set_constant(values[name], oir.Tensor(array, dtype=old.dtype, name=name))
    return whole
