"""Skips what an older ONNX Runtime cannot show.

The tests are written against ONNX Runtime 1.32; for Python 3.10 there is none after 1.23.
"""

from __future__ import annotations

import re

import onnxruntime
import pytest

WRITTEN_FOR = (1, 32)

NEEDS_IT = {
    r"test_certificate\.py::test_a_pruned_model_that_does_not_run": "runs a Conv with a short bias",
    r"test_certificates\.py::test_inexact_with_one_unit_left": "refuses norms of one element",
    r"test_masked\.py::.*-24\]": "does not know opset 24",
    r"test_probing_generated\.py::test_generated\[(conv_transpose|layer_norm|pad|unary)": "has "
    "no kernels for the newest forms",
    r"test_round_trip\.py::test_backend_models": "runs fewer of the models",
    r"test_verifier\.py::test_sizes\[(Conv bias|ConvTranspose bias|LSTM)\]": "runs wrong sizes",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    major, minor = (int(part) for part in onnxruntime.__version__.split(".")[:2])
    if (major, minor) >= WRITTEN_FOR:
        return
    for item in items:
        for pattern, why in NEEDS_IT.items():
            if re.search(pattern, item.nodeid):
                reason = f"ONNX Runtime {onnxruntime.__version__} {why}"
                item.add_marker(pytest.mark.skip(reason=reason))
