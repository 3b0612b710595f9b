"""Commands, models and folders for what a user can get wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper, parser

ROOT = Path(__file__).parent.parent
PRUNE = ["prune", "m.onnx", "-o", "o.onnx", "--report", "r.json", "--no-bench"]
HALF = [*PRUNE, "--ratio", "0.5"]
Fails = Callable[..., str]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def tiny() -> onnx.ModelProto:
    """Two convolutions, few bytes of weights."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,2,5,5] x) => (float[N,2,5,5] y) {
          h = Conv(x, a)
          r = Relu(h)
          y = Conv(r, b)
        }"""
    )
    for name, shape in {"a": (4, 2, 1, 1), "b": (2, 4, 1, 1)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def external(path: str, location: str) -> None:
    """The model with its weights in another file."""
    model = tiny()
    external_data_helper.convert_model_to_external_data(
        model, location=location, size_threshold=0, convert_attribute=False
    )
    onnx.save(model, path)
