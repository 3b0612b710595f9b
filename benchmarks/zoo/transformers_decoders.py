"""Decoders of transformers, small: the forms of attention, mixtures of experts, state spaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .transformers_spec import GROUPED, LOGITS, MOE, PAD, SIZES, TOKENS, VOCABULARY, Spec

GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    **PAD,
}


def decoder(name: str, stem: str, options: Mapping[str, Any], **more: Any) -> Spec:
    """The causal language model of an architecture whose classes begin with ``stem``."""
    return Spec(name, f"{stem}ForCausalLM", f"{stem}Config", options, **more, outputs=LOGITS)


DECODERS = [
    Spec("gpt2", "GPT2LMHeadModel", "GPT2Config", GPT, outputs=LOGITS),
    decoder(
        "gpt-neo",
        "GPTNeo",
        {
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            **PAD,
        },
    ),
    decoder("gpt-neox", "GPTNeoX", {**SIZES, **PAD}),
    decoder("gptj", "GPTJ", {**GPT, "rotary_dim": 8}),
    decoder("gpt-bigcode", "GPTBigCode", GPT),
    decoder("opt", "OPT", {**SIZES, "ffn_dim": 128, "word_embed_proj_dim": 32, **PAD}),
    decoder(
        "bloom",
        "Bloom",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4, **PAD},
    ),
    decoder("llama-gqa", "Llama", {**GROUPED, **PAD}),
    decoder("mistral", "Mistral", {**GROUPED, **PAD, "sliding_window": 8}),
    decoder("qwen2", "Qwen2", {**GROUPED, **PAD, "tie_word_embeddings": True}),
    decoder("qwen3", "Qwen3", {**GROUPED, **PAD}),
    decoder(
        "gemma2", "Gemma2", {**GROUPED, **PAD, "query_pre_attn_scalar": 16, "sliding_window": 8}
    ),
    Spec(
        "gemma3",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**GROUPED, **PAD, "query_pre_attn_scalar": 16, "sliding_window": 8},
        outputs=LOGITS,
    ),
    decoder("phi", "Phi", {**SIZES, **PAD}),
    decoder(
        "phi3",
        "Phi3",
        {**SIZES, **PAD, "num_key_value_heads": 2, "original_max_position_embeddings": 64},
    ),
    decoder("falcon-mqa", "Falcon", {**SIZES, **PAD}),
    decoder("stablelm", "StableLm", {**SIZES, **PAD, "num_key_value_heads": 2}),
    decoder("olmo2", "Olmo2", {**SIZES, **PAD, "num_key_value_heads": 2}),
    decoder("cohere", "Cohere", {**SIZES, **PAD, "num_key_value_heads": 2}, exporters="D"),
    decoder("glm", "Glm", {**GROUPED, **PAD}, exporters="D"),
    decoder("smollm3", "SmolLM3", {**SIZES, **PAD, "num_key_value_heads": 2}),
    decoder(
        "mixtral",
        "Mixtral",
        {**GROUPED, **MOE, "num_local_experts": 4, "num_experts_per_tok": 2},
        exporters="T",
    ),
    decoder(
        "qwen3-moe",
        "Qwen3Moe",
        {
            **GROUPED,
            **MOE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 1,
        },
        exporters="T",
    ),
    decoder(
        "gpt-oss",
        "GptOss",
        {**GROUPED, **MOE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
        exporters="T",
    ),
    decoder(
        "granite-moe",
        "GraniteMoe",
        {
            **SIZES,
            **MOE,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        exporters="T",
    ),
    decoder(
        "deepseek-v3",
        "DeepseekV3",
        {
            **SIZES,
            **MOE,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "moe_intermediate_size": 32,
        },
        exporters="T",
    ),
    decoder(
        "mamba",
        "Mamba",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "state_size": 8,
            "num_hidden_layers": 2,
            **PAD,
        },
        inputs=TOKENS,
        fixed=TOKENS,
        exporters="T",
    ),
    decoder(
        "rwkv",
        "Rwkv",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "context_length": 64,
            "num_hidden_layers": 2,
            "intermediate_size": 128,
            **PAD,
        },
        inputs=TOKENS,
        fixed=TOKENS,
        exporters="T",
    ),
]
