"""Between numpy arrays and torch tensors, by ONNX element type.

float16 and bfloat16 become float32, in which they are trained; unsigned integers of 16 and more
bits, for which torch has few operators, become wider signed ones; 4 bit integers become int8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from .registry import Unsupported

_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BOOL: torch.bool,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT16: torch.int32,
    TensorProto.UINT32: torch.int64,
    TensorProto.UINT64: torch.int64,
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
}

WIDER = frozenset([TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64])
"""Held in a wider type."""
NARROWER = frozenset([TensorProto.UINT4, TensorProto.INT4])
"""Held in a wider type, too, and never made by Cast."""


def torch_type(element: int) -> torch.dtype:
    """The torch type in which an ONNX element type is computed. Raises Unsupported."""
    found = _TYPES.get(element)
    if found is None:
        raise Unsupported(f"element type {TensorProto.DataType.Name(element)}")
    return found


def to_torch(array: npt.NDArray[Any]) -> Tensor:
    """A copy of an array as a tensor on the CPU. Raises Unsupported for strings and float8."""
    kind = torch_type(int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype)))
    names = {torch.bool: "bool", torch.float32: "float32", torch.float64: "float64"}
    name = names.get(kind, str(kind).removeprefix("torch."))
    return torch.from_numpy(np.array(array).astype(name, order="C"))
