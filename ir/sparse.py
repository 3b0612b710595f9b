"""Sparse initializers: dense inside, sparse again when written.

A sparse initializer lists its values and, for each, the place: one number per value (counted in
the flat array) or one index per axis. Everything between reading and writing sees a dense tensor
that remembers the proto it came from, in ``meta``; if pruning cut it, what is left is listed anew
in the same form.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as oir
from onnx import TensorProto, numpy_helper

from .errors import ModelError

_PROTO = "secateur.sparse"
DENSE_LIMIT = 2**33
"""Bytes that a sparse initializer may take when it is dense."""


def dense_tensor(proto: onnx.SparseTensorProto) -> oir.TensorProtocol:
    """The dense tensor of a sparse initializer, under the name of its values.

    Raises ModelError, naming the tensor, when it is not a valid sparse tensor or too large.
    """
    name, dims = proto.values.name, tuple(proto.dims)
    what = f"sparse initializer {name!r}"
    for part in (proto.values, proto.indices):
        if part.data_location == TensorProto.EXTERNAL:
            raise ModelError(f"{what} is stored outside the model, which is not supported")
    if proto.values.data_type == TensorProto.STRING or min(dims, default=0) < 0:
        raise ModelError(f"{what} has an element type or a shape that is not supported")
    try:
        values = numpy_helper.to_array(proto.values)
        indices = numpy_helper.to_array(proto.indices).astype(np.int64, copy=False)
    except Exception:
        raise ModelError(f"{what} is damaged; export the model again") from None
    if math.prod(dims) * values.dtype.itemsize > DENSE_LIMIT:
        raise ModelError(f"{what} of shape {list(dims)} is too large to be held densely")
    if indices.ndim == 2 and indices.shape[1] == len(dims):
        sizes = np.array(dims, np.int64)
        inside = bool(((indices >= 0) & (indices < sizes)).all())
        flat = np.ravel_multi_index(tuple(indices.T), dims) if inside and dims else indices[:, :0]
    else:
        flat = indices
        inside = indices.ndim == 1 and bool(((flat >= 0) & (flat < math.prod(dims))).all())
    if values.ndim != 1 or not inside or np.shape(flat) != values.shape:
        raise ModelError(f"{what} has indices that do not fit its values and shape")
    array = np.zeros(math.prod(dims), values.dtype)
    array[flat] = values
    tensor = oir.Tensor(array.reshape(dims), dtype=oir.DataType(proto.values.data_type), name=name)
    tensor.meta[_PROTO] = proto
    return tensor


def is_sparse(tensor: oir.TensorProtocol | None) -> bool:
    """Whether the tensor is written as a sparse initializer."""
    return tensor is not None and _PROTO in tensor.meta


def stay_sparse(old: oir.TensorProtocol, new: oir.TensorProtocol) -> None:
    """Lets ``new``, a part of ``old``, be written sparsely if ``old`` was."""
    if is_sparse(old):
        new.meta[_PROTO] = old.meta[_PROTO]


def sparse_proto(name: str, tensor: oir.TensorProtocol) -> onnx.SparseTensorProto:
    """The tensor as a sparse initializer called ``name``, as it came if it is whole."""
    origin: onnx.SparseTensorProto = tensor.meta[_PROTO]
    proto = onnx.SparseTensorProto()
    proto.CopyFrom(origin)
    proto.values.name = name
    shape = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
    if shape == tuple(origin.dims):
        return proto
    array: Any = tensor.numpy()
    places: Any
    if len(origin.indices.dims) == 1:
        places = np.flatnonzero(array)
        values = array.reshape(-1)[places]
    else:
        places = np.argwhere(array)
        values = array[tuple(places.T)]
    for part, content in ((proto.values, values), (proto.indices, places.astype(np.int64))):
        fresh = numpy_helper.from_array(np.ascontiguousarray(content), part.name)
        fresh.doc_string = part.doc_string
        part.CopyFrom(fresh)
    del proto.dims[:]
    proto.dims.extend(shape)
    return proto
