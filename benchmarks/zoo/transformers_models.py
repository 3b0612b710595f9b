"""Transformers architectures from small configurations, by both exporters of PyTorch.

``transformers/…`` is TorchScript with attention written out (``eager``), ``transformers-dynamo/…``
the dynamo exporter with ``sdpa`` where the model has that, and ``transformers-attention/…`` the
same at an opset with the operator Attention. Batch, sequence and waveform are dynamic wherever the
model traces so.

Needs torch, transformers, onnx and onnxscript (tried with torch 2.14, transformers 5.23).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from .case import Case, Peer
from .transformers_cache import cached
from .transformers_decoders import DECODERS
from .transformers_media import MIXED, SOUNDS
from .transformers_spec import BATCH, LENGTH, VOCABULARY, Spec
from .transformers_text import ENCODERS, PAIRS
from .transformers_vision import IMAGES

SPECS = [*ENCODERS, *DECODERS, *PAIRS, *IMAGES, *SOUNDS, *MIXED]

LENGTHS = {"input_ids": "sequence", "attention_mask": "sequence", "decoder_input_ids": "decoded"}
SIZES = {"sequence": LENGTH, "decoded": LENGTH // 2, "samples": 1600}


SUFFIXES = {"T": "", "D": "-dynamo", "A": "-attention"}
OPERATOR = ("bert", "gpt2", "gpt-bigcode", "t5", "whisper", "vit", "clip")
ATTENTION_OPSET = 23


def _inputs(spec: Spec) -> tuple[Any, ...]:
    """Tensors in the order of ``spec.inputs``."""
    import torch

    shapes = {
        "decoder_input_ids": (BATCH, LENGTH // 2),
        "pixel_values": (BATCH, 3, 32, 32),
        "input_values": (BATCH, 1600),
        "bbox": (BATCH, LENGTH, 4),
        **spec.shapes,
    }

    def tensor(name: str) -> Any:
        shape = shapes.get(name, (BATCH, LENGTH))
        if name in spec.fill:
            return torch.tensor(spec.fill[name])
        if name == "attention_mask":
            return torch.ones(shape, dtype=torch.int64)
        if name == "bbox":
            return torch.randint(0, 20, shape).sort(-1).values[..., [0, 1, 2, 3]]
        if name.endswith("input_ids"):
            return torch.randint(4, VOCABULARY - 20, shape)
        return torch.randn(shape)

    return tuple(tensor(name) for name in spec.inputs)


def _adapter(spec: Spec, attention: str) -> Any:
    """A module that takes ``spec.inputs`` in order and returns ``spec.outputs`` in order."""
    import torch
    import transformers

    config = getattr(transformers, spec.config)(**spec.options)
    architecture = getattr(transformers, spec.model)
    config._attn_implementation = attention if architecture._supports_sdpa else "eager"
    cached = any(hasattr(part, "use_cache") for part in (config, config.get_text_config()))

    class Adapter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = architecture(config)

        def forward(self, a: Any, b: Any = None, c: Any = None, d: Any = None) -> tuple[Any, ...]:
            given = dict(zip(spec.inputs, (a, b, c, d), strict=False))
            extra = {"use_cache": False} if cached else {}
            result = self.model(**given, **extra)
            return tuple(result[name] for name in spec.outputs)

    return Adapter()


def _dynamic(spec: Spec, exporter: str) -> dict[str, dict[int, str]]:
    """The dynamic axes of inputs, by name."""
    if exporter in spec.static:
        return {}
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in spec.inputs}
    for name in set(spec.inputs) - set(spec.fixed):
        if name in LENGTHS:
            axes[name][1] = LENGTHS[name]
        elif name == "bbox":
            axes[name][1] = "sequence"
        elif name == "input_values":
            axes[name][1] = "samples"
    return axes


def _export(spec: Spec, exporter: str, path: Path) -> Peer:
    import torch

    from .torch_export import export_dynamo, export_torchscript, prepare

    torch.manual_seed(0)
    module = _adapter(spec, "eager" if exporter == "T" else "sdpa")
    inputs = _inputs(spec)
    prepare(module, inputs)
    dynamic = _dynamic(spec, exporter)
    if exporter == "T":
        batched = {name: {0: "batch"} for name in spec.outputs} if dynamic else {}
        export_torchscript(module, inputs, path, spec.inputs, spec.outputs, {**dynamic, **batched})
    else:
        opset = ATTENTION_OPSET if exporter == "A" else None
        export_dynamo(module, inputs, path, spec.inputs, spec.outputs, dynamic, opset)
    return Peer(module, inputs)


def _case(spec: Spec, exporter: str) -> Case:
    names = {name for axes in _dynamic(spec, exporter).values() for name in axes.values()}
    return Case(
        f"transformers{SUFFIXES[exporter]}/{spec.name}",
        partial(_export, spec, exporter),
        {name: size for name, size in SIZES.items() if name in names},
    )


def cases() -> list[Case]:
    """Every architecture by every exporter that takes it, some with the operator or a cache."""
    plain = [_case(spec, exporter) for spec in SPECS for exporter in spec.exporters]
    return plain + [_case(spec, "A") for spec in SPECS if spec.name in OPERATOR] + cached()
