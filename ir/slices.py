"""Slices of constants: what is cut, and the tensor that is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as oir

from .coupling import Flags, Indices
from .external import release
from .shapes import Array
from .sparse import stay_sparse


@dataclass(frozen=True)
class Slice:
    """What was cut from one constant: ``indices`` of ``axis``, counted in the original tensor.

    ``role`` is "producer" (the axis makes the channels), "consumer" (it contracts them) or
    "coupled" (it merely follows: biases, scales, statistics).
    """

    tensor: str
    axis: int
    indices: tuple[int, ...]
    role: str


@dataclass(frozen=True)
class Copy:
    """What was cut from one copy of a constant that several nodes shared and that now keep
    different parts of it: ``indices`` of ``axis`` of ``tensor`` are not in ``stored_as``."""

    tensor: str
    stored_as: str
    axis: int
    indices: tuple[int, ...]


def cut(array: Array, masks: Sequence[Flags]) -> Array:
    """What the masks, one for each axis, leave of an array."""
    for axis, keep in enumerate(masks):
        if not keep.all():
            array = np.compress(keep, array, axis=axis)
    return array


def sliced(tensor: oir.TensorProtocol, masks: Sequence[Flags]) -> oir.TensorProtocol:
    """The kept part of a tensor; data on disk stays there until the result is written."""
    if all(m.all() for m in masks):
        return tensor
    shape = oir.Shape([int(m.sum()) for m in masks])

    def load() -> oir.TensorProtocol:
        array = tensor.numpy()
        kept: list[Indices] = [np.flatnonzero(m) for m in masks]
        partial = [axis for axis, m in enumerate(masks) if not m.all()]
        if len(partial) == 1:
            array = np.take(array, kept[partial[0]], axis=partial[0])
        else:
            array = array[np.ix_(*kept)]
        release(tensor)
        part: oir.TensorProtocol = (
            oir.StringTensor(array)
            if tensor.dtype == oir.DataType.STRING
            else oir.Tensor(array, dtype=tensor.dtype)
        )
        part.name, part.doc_string = tensor.name, tensor.doc_string
        part.metadata_props.update(tensor.metadata_props)
        stay_sparse(tensor, part)
        return part

    if isinstance(tensor, oir.ExternalTensor) or tensor.meta.get("external_data"):
        lazy = oir.LazyTensor(load, tensor.dtype, shape, name=tensor.name)
        lazy.meta["external_data"] = True
        return lazy
    return load()
