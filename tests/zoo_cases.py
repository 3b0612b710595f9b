"""Cases for the tests of the zoo's framework: a network small enough to count by hand, and exports
that go wrong."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.zoo.case import Case

UP, DOWN = (8, 32), (32, 4)


def mlp(path: Path) -> None:
    """x [batch, 8] through 32 hidden channels: 8 * 32 + 32 + 32 * 4 parameters, one exact group."""
    rng = np.random.default_rng(0)
    weights = {"up": UP, "bias": UP[1:], "down": DOWN}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "up"], ["wide"]),
            helper.make_node("Add", ["wide", "bias"], ["shifted"]),
            helper.make_node("Relu", ["shifted"], ["active"]),
            helper.make_node("MatMul", ["active", "down"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)


def refuse(path: Path) -> None:
    """As an exporter that lacks an operator, and names a file by its whole path."""
    raise ValueError(f"operator 'fold' is not supported ({path})")


def crash(path: Path) -> None:
    """As a library that dies in native code."""
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(path: Path) -> None:
    """Never ends."""
    time.sleep(600)


def devour(path: Path) -> None:
    """Takes a gigabyte and sits on it."""
    held = np.ones(2**27)
    time.sleep(600 * held[0])


def cases() -> list[Case]:
    """What an environment lists."""
    return [
        Case("tiny/mlp", mlp),
        Case("tiny/refuse", refuse),
        Case("broken/crash", crash),
        Case("broken/hang", hang),
        Case("broken/devour", devour),
        Case("elsewhere/mlp", mlp, environment="tensorflow"),
    ]
