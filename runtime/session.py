"""ONNX Runtime sessions: one way to build them and one way to run them.

CPU only, sequential, quiet. What ONNX Runtime throws leaves as a one-line `CertificateError`.
"""

from __future__ import annotations

import ctypes
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto

from ..ir.errors import CertificateError

if TYPE_CHECKING:
    import onnxruntime as ort

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Feed: TypeAlias = Mapping[str, Array]
Model: TypeAlias = "bytes | onnx.ModelProto | str | Path"

# A protobuf message cannot hold 2 GiB; the margin is for everything that is not a weight.
MESSAGE_LIMIT = 2**31 - 2**26
# Tensors smaller than this stay inside the message when the others move to a file beside it.
_INLINE_BYTES = 1024


def make_session(model: Model, *, threads: int = 0, optimize: bool = True) -> ort.InferenceSession:
    """A CPU session with ``threads`` intra-operator threads (0: ONNX Runtime's choice).

    ``optimize`` chooses between all graph optimisations and none. A `ModelProto` too large for
    one message is written to a temporary folder with its weights beside it and loaded from
    there. Raises CertificateError when ONNX Runtime refuses the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Fatal only: every error arrives as an exception, a second copy on stderr is noise.
    options.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL

    def build(source: bytes | str) -> ort.InferenceSession:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    try:
        if isinstance(model, bytes):
            return build(model)
        if not isinstance(model, onnx.ModelProto):
            return build(str(model))
        if _weight_bytes(model) < MESSAGE_LIMIT:
            return build(model.SerializeToString())
        with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
            return build(str(_spill(model, Path(folder))))
    except Exception as error:  # ONNX Runtime has no common base for its exceptions
        raise CertificateError(f"ONNX Runtime cannot load the model: {one_line(error)}") from None


def run(session: ort.InferenceSession, feed: Feed) -> dict[str, Array]:
    """Every output by name. Sequences and maps are flattened to ``name[index]`` entries with
    their length as ``name.length``; an empty optional is left out.

    Raises CertificateError when ONNX Runtime fails.
    """
    outputs = session.get_outputs()
    names = [output.name for output in outputs]
    bare = any(_is_bare(output.type) for output in outputs)
    try:
        if bare or any(_is_extension(array) for array in feed.values()):
            values = session.run_with_ort_values(
                names, {name: _ort_value(array) for name, array in feed.items()}
            )
            results: list[Any] = [_from_ort_value(value) for value in values]
        else:
            results = session.run(names, dict(feed))
    except Exception as error:  # ONNX Runtime has no common base for its exceptions
        raise CertificateError(f"ONNX Runtime cannot run the model: {one_line(error)}") from None
    flat: dict[str, Array] = {}
    for name, result in zip(names, results, strict=True):
        _flatten(name, result, flat)
    return flat


def one_line(error: BaseException) -> str:
    """The message of an exception on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _flatten(name: str, value: Any, into: dict[str, Array]) -> None:
    if value is None:
        return
    if isinstance(value, (list, Mapping)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        into[f"{name}.length"] = np.asarray(len(value))
        for key, item in items:
            _flatten(f"{name}[{key}]", item, into)
        return
    into[name] = np.asarray(value)


def _is_bare(kind: str) -> bool:
    """Whether ONNX Runtime knows no numpy type for this output type."""
    return kind.startswith(("tensor(bfloat16", "tensor(float8"))


def _is_extension(array: Array) -> bool:
    """Whether the element type is one that numpy itself does not have."""
    return array.dtype.type.__module__ == "ml_dtypes"


def _ort_value(array: Array) -> Any:
    import onnxruntime as ort

    if not _is_extension(array):
        return ort.OrtValue.ortvalue_from_numpy(array)
    element = int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
    storage = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(storage, element)


def _from_ort_value(value: Any) -> Any:
    if not value.is_tensor() or not _is_bare(value.data_type()):
        return value.numpy()
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.element_type())
    shape = tuple(value.shape())
    size = math.prod(shape) * dtype.itemsize
    memory = (ctypes.c_uint8 * size).from_address(value.data_ptr()) if size else b""
    return np.frombuffer(bytes(memory), dtype).reshape(shape)


def _tensor_bytes(tensor: TensorProto) -> int:
    """Size of a stored tensor from its shape: reading ``raw_data`` would copy it."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
        return 0
    return int(math.prod(tensor.dims)) * (8 if tensor.data_type in _WIDE else 4)


_WIDE = (TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT64, TensorProto.COMPLEX64)


def _weight_bytes(model: onnx.ModelProto) -> int:
    """An upper estimate of what the initializers take in the message."""
    return sum(_tensor_bytes(tensor) for tensor in model.graph.initializer)


def _spill(model: onnx.ModelProto, folder: Path) -> Path:
    """Write ``model`` to ``folder`` with its large initializers in a file beside it."""
    shell = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _assign(shell, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _assign(shell.graph, field.name, value)
    with (folder / "weights.bin").open("wb") as weights:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < _INLINE_BYTES:
                shell.graph.initializer.append(tensor)
                continue
            entry = shell.graph.initializer.add(
                name=tensor.name,
                data_type=tensor.data_type,
                dims=tensor.dims,
                data_location=TensorProto.EXTERNAL,
            )
            place = {"location": "weights.bin", "offset": weights.tell(), "length": len(raw)}
            for key, item in place.items():
                entry.external_data.add(key=key, value=str(item))
            weights.write(raw)
    path = folder / "model.onnx"
    path.write_bytes(shell.SerializeToString())
    return path


def _assign(message: Any, name: str, value: Any) -> None:
    if hasattr(value, "CopyFrom"):
        getattr(message, name).CopyFrom(value)
    elif isinstance(value, (str, bytes, int)):
        setattr(message, name, value)
    else:
        getattr(message, name).extend(value)
