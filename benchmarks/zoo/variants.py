"""The files of other cases after optimisers: onnxslim, and ONNX Runtime offline (basic, extended).

One torchvision model of each architecture, and transformers of all kinds, whose attention and
normalisations ONNX Runtime fuses into operators of its own domain.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from .case import Case

Change = Callable[[Path, Path], None]

TRANSFORMERS = (
    "albert",
    "bart",
    "bert",
    "clip",
    "convnextv2",
    "deberta-v2",
    "detr",
    "falcon-mqa",
    "gemma3",
    "gpt2",
    "llama-gqa",
    "mamba",
    "mixtral",
    "phi3",
    "qwen3",
    "segformer",
    "swin",
    "t5",
    "vit",
    "wav2vec2",
    "whisper",
    "xlnet",
)
"""Encoders, decoders, pictures, sound, grouped queries, experts, state spaces."""


def cases() -> list[Case]:
    """Every base case once for each optimiser; frameworks that are not installed have none."""
    return [
        replace(
            base,
            name=f"{family}/{base.name.replace('/', '.')}",
            export=partial(_export, base, change),
        )
        for base in _bases()
        for family, change in CHANGES.items()
    ]


def _bases() -> Iterator[Case]:
    for family in ("torchvision", "transformers"):
        try:
            module = importlib.import_module(f".{family}_models", __package__)
            found: list[Case] = module.cases()
        except ImportError:  # its own cases are missing too, and that is said
            continue
        named = {case.name: case for case in found}
        for model in module.ARCHITECTURES if family == "torchvision" else TRANSFORMERS:
            dynamo = f"{family}-dynamo/{model}"  # what the other exporter cannot write
            yield named.get(f"{family}/{model}") or named[dynamo]


def _export(base: Case, change: Change, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as folder:
        first = Path(folder, path.name)
        base.export(first)
        change(first, path)


def _slim(original: Path, path: Path) -> None:
    import onnx
    import onnxslim

    slim = onnxslim.slim(onnx.load(original))
    if slim is None:
        raise RuntimeError("onnxslim returned nothing")
    onnx.save(slim, path)


def _runtime(level: str, original: Path, path: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(original, options, providers=["CPUExecutionProvider"])


CHANGES: dict[str, Change] = {
    "onnxslim": _slim,
    "ort-basic": partial(_runtime, "BASIC"),
    "ort-extended": partial(_runtime, "EXTENDED"),
}
