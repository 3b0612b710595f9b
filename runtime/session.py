"""ONNX Runtime sessions: one way to build them and one way to run them.

CPU only, sequential, quiet. What ONNX Runtime throws leaves as a one-line `CertificateError`.
"""

from __future__ import annotations

import ctypes
import math
import os
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


class KernelError(CertificateError):
    """ONNX Runtime has no kernel for an operator of the model in one of its element types."""


def make_session(
    model: Model,
    *,
    threads: int = 0,
    optimize: bool = True,
    prepack: bool = True,
    profile: Path | None = None,
) -> ort.InferenceSession:
    """A CPU session with ``threads`` intra-operator threads (0: ONNX Runtime's choice).

    ``optimize`` chooses between all graph optimisations and none. External data of a
    `ModelProto` lies at absolute paths; without ``prepack`` it is used where it is mapped, not
    copied. With ``profile``, the session writes a profile to a file whose name begins so.
    Raises CertificateError when ONNX Runtime refuses the model, KernelError for want of
    a kernel.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Fatal only: every error arrives as an exception, a second copy on stderr is noise.
    options.log_severity_level = 4
    # Else workers go on spinning for some 50 ms after a run, on the cores of whoever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL

    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")

    def build(source: bytes | str) -> ort.InferenceSession:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    try:
        if isinstance(model, bytes):
            return build(model)
        if not isinstance(model, onnx.ModelProto):
            return build(str(model))
        if any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
            model, folder = _beside_data(model)
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", folder
            )
        return build(model.SerializeToString())
    except Exception as error:  # ONNX Runtime has no common base for its exceptions
        raise _failure("load", error) from None


def run(session: ort.InferenceSession, feed: Feed) -> dict[str, Array]:
    """Every output by name. Sequences and maps are flattened to ``name[index]`` entries with
    their length as ``name.length``; an empty optional is left out. Sequences are fed like that.

    Raises CertificateError when ONNX Runtime fails, KernelError for want of a kernel.
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
            results = session.run(names, _unflattened(session, feed))
    except Exception as error:  # ONNX Runtime has no common base for its exceptions
        raise _failure("run", error) from None
    flat: dict[str, Array] = {}
    for name, result in zip(names, results, strict=True):
        _flatten(name, result, flat)
    return flat


def _failure(action: str, error: BaseException) -> CertificateError:
    # Most missing kernels are missed on loading, those of the RNN family when they run.
    missing = ("NOT_IMPLEMENTED", "does not support double")
    kind = KernelError if any(words in str(error) for words in missing) else CertificateError
    return kind(f"ONNX Runtime cannot {action} the model: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """The message of an exception on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _unflattened(session: ort.InferenceSession, feed: Feed) -> dict[str, Any]:
    """The feed with the elements of sequences in lists."""
    whole: dict[str, Any] = dict(feed)
    for value in session.get_inputs():
        if "seq(" in value.type and value.name not in whole:
            parts = [name for name in feed if name.startswith(f"{value.name}[")]
            whole[value.name] = [whole.pop(name) for name in parts]
    return whole


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


def _beside_data(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The model with its external data named as seen from one folder, and that folder."""
    placed = onnx.ModelProto()
    placed.CopyFrom(model)
    entries = [
        entry
        for tensor in placed.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    folder = os.path.commonpath([Path(entry.value).parent for entry in entries])
    for entry in entries:
        entry.value = os.path.relpath(entry.value, folder)
    return placed, folder
