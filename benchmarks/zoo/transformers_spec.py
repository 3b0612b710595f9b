"""What the tables of transformers architectures are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BATCH, LENGTH, VOCABULARY = 2, 12, 160

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
PAD: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Experts as batched products over gathered weights: without sizes that depend on the routing.
MOE: dict[str, Any] = {**PAD, "experts_implementation": "batched_mm"}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
AUDIO: dict[str, Any] = {
    **SIZES,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
    **PAD,
    "decoder_start_token_id": 1,
}

TEXT = ("input_ids", "attention_mask")
TOKENS = ("input_ids",)
IMAGE = ("pixel_values",)
WAVE = ("input_values",)
PAIR = ("input_ids", "decoder_input_ids")
LOGITS = ("logits",)


@dataclass(frozen=True)
class Spec:
    """A model class with the configuration class ``config`` and its options.

    ``exporters`` holds what works: T for TorchScript, D for dynamo; ``static`` what is exported
    without dynamic sizes, ``fixed`` names inputs with a dynamic batch only. ``shapes`` are those
    of inputs that differ from the usual, ``fill`` the values of inputs that cannot be random.
    """

    name: str
    model: str
    config: str
    options: Mapping[str, Any]
    inputs: tuple[str, ...] = TEXT
    outputs: tuple[str, ...] = ("last_hidden_state",)
    exporters: str = "TD"
    static: str = ""
    fixed: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fill: Mapping[str, Any] = field(default_factory=dict)
