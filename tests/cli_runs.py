"""Runs commands as a user types them, and reads what they wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from jsonschema import Draft202012Validator
from typer.testing import CliRunner, Result

from secateur.driver.cli import app

ROOT = Path(__file__).parent.parent
CALIBRATION = ROOT / "examples" / "digits_calibration.npz"
SCHEMA = Draft202012Validator(json.loads((ROOT / "docs" / "report.schema.json").read_text("utf-8")))
BLOCKS = "stage1 stage2a stage2b stage3".split()


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m secateur`` in another process."""
    return subprocess.run(
        [sys.executable, "-m", "secateur", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def prune(*options: str, output: str = "o.onnx") -> dict[str, Any]:
    """Prunes without timing; gives the report, which is valid."""
    text = invoke("prune", "m.onnx", "-o", output, "--no-bench", "--json", *options).stdout
    report: dict[str, Any] = json.loads(text)
    SCHEMA.validate(report)
    return report


def shapes(path: str) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer}


def widths(path: str) -> list[int]:
    """The inner channels of every residual block."""
    held = shapes(path)
    return [held[f"{block}.conv1.weight"][0] for block in BLOCKS]


def macs(path: str) -> int:
    """Multiply-accumulates of one image, counted from ONNX's own shape inference."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    sizes = {
        v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim]
        for v in [*model.graph.value_info, *model.graph.output]
    }
    held = shapes(path)
    total = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            total += int(np.prod(sizes[node.output[0]]) * np.prod(held[node.input[1]][1:]))
        elif node.op_type == "Gemm":
            total += int(np.prod(held[node.input[1]]))
    return total


def outputs(path: str, batch: int = 3) -> np.ndarray[Any, np.dtype[np.float32]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(7).random((batch, 1, 8, 8)).astype(np.float32)
    found: np.ndarray[Any, np.dtype[np.float32]] = session.run(None, {"image": image})[0]
    return found
