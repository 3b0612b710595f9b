"""Models whose inputs samples are packed for, and what was packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

import secateur
from secateur import Packed
from secateur.runtime.calibration import load_calibration

Array = npt.NDArray[Any]


def taking(**inputs: tuple[str, list[int | str]]) -> onnx.ModelProto:
    """A model with these inputs, by element type and shape, each handed on as it is."""
    values = {
        name: (onnx.TensorProto.DataType.Value(kind), shape)
        for name, (kind, shape) in inputs.items()
    }
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs],
        "g",
        [helper.make_tensor_value_info(name, *value) for name, value in values.items()],
        [helper.make_tensor_value_info(f"{n}_out", *value) for n, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


IMAGE = taking(x=("FLOAT", ["N", 3, 4, 6]))


def packed(
    source: Any, model: onnx.ModelProto = IMAGE, **options: Any
) -> tuple[dict[str, Array], Packed]:
    """Packs in the current folder and reads the file with numpy; it must be one that commands
    accept."""
    path = Path("packed.npz")
    result = secateur.pack_calibration(source, path, model, **options)
    with np.load(path, allow_pickle=False) as data:
        arrays = dict(data)
    checked = load_calibration(path, model, {})
    assert checked.keys() == arrays.keys()
    for entry in result.arrays:
        array = arrays[entry.name]
        assert (entry.dtype, entry.shape) == (array.dtype.name, array.shape)
        assert entry.low == array.min() and entry.high == array.max()
        np.testing.assert_allclose(entry.mean, array.mean(dtype=np.float64), rtol=1e-6)
        assert result.samples == len(array)
    return arrays, result
