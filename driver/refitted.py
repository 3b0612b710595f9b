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

from ..ir.constants import constants, tensor_shape
from ..ir.errors import CertificateError, DataError
from ..ir.flatten import flatten, with_constants
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
    new = {str(v.name): t for v, t in constants(flatten(final).graph)}
    found: dict[str, oir.TensorProtocol] = {}
    for value, tensor in constants(flatten(after).graph):
        name = str(value.name)
        if name in names and name in new:
            found[name] = new[name]
            same = new[name].dtype == tensor.dtype
            if not same or tensor_shape(new[name]) != tensor_shape(tensor):
                raise CertificateError(f"refitted weight '{name}' has another type or shape")
    if digest(finish(with_constants(clone_model(after), found))) != digest(final):
        raise CertificateError(
            "the pruned model is not what the recorded pruning and refitting make of the original"
        )
    old = {str(v.name): t for v, t in constants(flatten(before).graph)}
    whole: dict[str, oir.TensorProtocol] = {}
    for name in names:
        if name not in old or name not in new:
            raise DataError(f"the report calls '{name}' refitted, which is no weight")
        array = old[name].numpy().copy()
        kept = [np.arange(size) for size in array.shape]
        for tensor_name, axis, indices in removal.slices:
            if tensor_name == name and 0 <= axis < array.ndim:
                kept[axis] = np.setdiff1d(kept[axis], indices)
        part = new[name].numpy()
        if tuple(map(len, kept)) != part.shape:
            raise DataError(f"the report does not say what was cut from '{name}'")
        array[np.ix_(*kept)] = part
        whole[name] = oir.Tensor(array, dtype=old[name].dtype, name=name)
    return with_constants(clone_model(before), whole)
