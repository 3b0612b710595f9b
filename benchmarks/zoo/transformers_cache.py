"""Decoders with a key-value cache as inputs and outputs, as they are deployed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from .case import Case, Peer
from .transformers_decoders import DECODERS
from .transformers_spec import BATCH, LENGTH, VOCABULARY, Spec

SEQUENCE, PAST, TOTAL = "sequence", "past", "past + sequence"
NEW = 3
CACHED: dict[str, int] = {"gpt2": 4, "llama-gqa": 2}  # heads in the cache, of size 16


def _adapter(spec: Spec) -> Any:
    """A module from tokens, mask, and keys and values of two layers to logits and new ones."""
    import torch
    import transformers

    config = getattr(transformers, spec.config)(**spec.options)
    config._attn_implementation = "eager"

    class Adapter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = getattr(transformers, spec.model)(config)

        def forward(
            self, tokens: Any, mask: Any, k0: Any, v0: Any, k1: Any, v1: Any
        ) -> tuple[Any, ...]:
            cache = transformers.DynamicCache()
            cache.update(k0, v0, 0)
            cache.update(k1, v1, 1)
            result = self.model(
                input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True
            )
            states = [state for layer in cache.layers for state in (layer.keys, layer.values)]
            return result.logits, *states

    return Adapter()


def _export(spec: Spec, heads: int, path: Path) -> Peer:
    import torch

    from .torch_export import export_torchscript, prepare

    torch.manual_seed(0)
    module = _adapter(spec)
    inputs = (
        torch.randint(4, VOCABULARY, (BATCH, NEW)),
        torch.ones((BATCH, LENGTH + NEW), dtype=torch.int64),
        *torch.randn((4, BATCH, heads, LENGTH, 16)),
    )
    prepare(module, inputs)
    states = [f"{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
    names = ["input_ids", "attention_mask", *(f"past.{state}" for state in states)]
    outputs = ["logits", *(f"present.{state}" for state in states)]
    dynamic = {
        "input_ids": {0: "batch", 1: SEQUENCE},
        "attention_mask": {0: "batch", 1: TOTAL},
        "logits": {0: "batch", 1: SEQUENCE},
        **{f"past.{state}": {0: "batch", 2: PAST} for state in states},
        **{f"present.{state}": {0: "batch", 2: TOTAL} for state in states},
    }
    export_torchscript(module, inputs, path, names, outputs, dynamic)
    return Peer(module, inputs)


def cached() -> list[Case]:
    """``transformers/…-cache``."""
    sizes = {SEQUENCE: NEW, PAST: LENGTH, TOTAL: LENGTH + NEW}
    return [
        Case(f"transformers/{spec.name}-cache", partial(_export, spec, CACHED[spec.name]), sizes)
        for spec in DECODERS
        if spec.name in CACHED
    ]
