"""Encoders, decoders and encoder-decoders of transformers, small."""

from __future__ import annotations

from .transformers_spec import (MOE, TEXT, BATCH, GROUPED, LENGTH, LOGITS, PAD, PAIR, SEQ2SEQ, SIZES, Spec, TOKENS, VOCABULARY)

ENCODERS = [
    Spec("bert", "BertModel", "BertConfig", SIZES),
    Spec("bert-mlm-tied", "BertForMaskedLM", "BertConfig", SIZES, outputs=LOGITS),
    Spec("roberta", "RobertaModel", "RobertaConfig", {**SIZES, "pad_token_id": 1}),
    Spec(
        "distilbert",
        "DistilBertModel",
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 128,
            "max_position_embeddings": 64,
        },
    ),
    Spec("albert", "AlbertModel", "AlbertConfig", {**SIZES, "embedding_size": 32}),
    Spec("electra", "ElectraModel", "ElectraConfig", {**SIZES, "embedding_size": 32}),
    Spec(
        "deberta-v2",
        "DebertaV2Model",
        "DebertaV2Config",
        {
            **SIZES,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "max_relative_positions": 32,
            "type_vocab_size": 0,
        },
    ),
    Spec("mpnet", "MPNetModel", "MPNetConfig", {**SIZES, "pad_token_id": 1}),
    Spec("camembert", "CamembertModel", "CamembertConfig", {**SIZES, "pad_token_id": 1}),
    Spec(
        "modernbert",
        "ModernBertModel",
        "ModernBertConfig",
        {**SIZES, **PAD, "cls_token_id": 1, "sep_token_id": 2, "num_hidden_layers": 3},
    ),
    Spec(
        "xlnet",
        "XLNetModel",
        "XLNetConfig",
        {"vocab_size": VOCABULARY, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
    ),
    Spec(
        "mobilebert",
        "MobileBertModel",
        "MobileBertConfig",
        {**SIZES, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    ),
    Spec(
        "squeezebert", "SqueezeBertModel", "SqueezeBertConfig", {**SIZES, "embedding_size": 64}
    ),
    Spec(
        "funnel",
        "FunnelModel",
        "FunnelConfig",
        {
            "vocab_size": VOCABULARY,
            "block_sizes": [2, 2],
            "d_model": 64,
            "n_head": 4,
            "d_head": 16,
            "d_inner": 128,
        },
        fixed=TEXT,
    ),
    Spec("nystromformer", "NystromformerModel", "NystromformerConfig", {
        **SIZES, "num_landmarks": 4, "segment_means_seq_len": LENGTH}, TOKENS, fixed=TOKENS),
    Spec("fnet", "FNetModel", "FNetConfig", SIZES, TOKENS, exporters="D"),
    Spec("convbert", "ConvBertModel", "ConvBertConfig", {**SIZES, "embedding_size": 64}),
    Spec("canine", "CanineModel", "CanineConfig", {**SIZES, "num_hash_buckets": 64,
        "downsampling_rate": 4, "local_transformer_stride": 8, "max_position_embeddings": 64},
        exporters="D", shapes={"input_ids": (BATCH, 16), "attention_mask": (BATCH, 16)}),
]  # fmt: skip

DECODERS = [
    Spec("gpt2", "GPT2LMHeadModel", "GPT2Config", {
        "vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4,
        **PAD}, outputs=LOGITS),
    Spec("gpt-neo", "GPTNeoForCausalLM", "GPTNeoConfig", {
        "vocab_size": VOCABULARY, "max_position_embeddings": 64, "hidden_size": 64,
        "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "window_size": 8, **PAD}, outputs=LOGITS),
    Spec("gpt-neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", {**SIZES, **PAD}, outputs=LOGITS),
    Spec("gptj", "GPTJForCausalLM", "GPTJConfig", {
        "vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4,
        "rotary_dim": 8, **PAD}, outputs=LOGITS),
    Spec("gpt-bigcode", "GPTBigCodeForCausalLM", "GPTBigCodeConfig", {
        "vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4,
        **PAD}, outputs=LOGITS),
    Spec("opt", "OPTForCausalLM", "OPTConfig", {
        **SIZES, "ffn_dim": 128, "word_embed_proj_dim": 32, **PAD}, outputs=LOGITS),
    Spec("bloom", "BloomForCausalLM", "BloomConfig", {
        "vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4, **PAD},
        outputs=LOGITS),
    Spec("llama-gqa", "LlamaForCausalLM", "LlamaConfig", {**GROUPED, **PAD}, outputs=LOGITS),
    Spec("mistral", "MistralForCausalLM", "MistralConfig", {
        **GROUPED, **PAD, "sliding_window": 8}, outputs=LOGITS),
    Spec("qwen2", "Qwen2ForCausalLM", "Qwen2Config", {
        **GROUPED, **PAD, "tie_word_embeddings": True}, outputs=LOGITS),
    Spec("qwen3", "Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, **PAD}, outputs=LOGITS),
    Spec("gemma2", "Gemma2ForCausalLM", "Gemma2Config", {
        **GROUPED, **PAD, "query_pre_attn_scalar": 16, "sliding_window": 8}, outputs=LOGITS),
    Spec("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", {
        **GROUPED, **PAD, "query_pre_attn_scalar": 16, "sliding_window": 8}, outputs=LOGITS),
    Spec("phi", "PhiForCausalLM", "PhiConfig", {**SIZES, **PAD}, outputs=LOGITS),
    Spec("phi3", "Phi3ForCausalLM", "Phi3Config", {
        **SIZES, **PAD, "num_key_value_heads": 2, "original_max_position_embeddings": 64},
        outputs=LOGITS),
    Spec("falcon-mqa", "FalconForCausalLM", "FalconConfig", {**SIZES, **PAD}, outputs=LOGITS),
    Spec("stablelm", "StableLmForCausalLM", "StableLmConfig", {
        **SIZES, **PAD, "num_key_value_heads": 2}, outputs=LOGITS),
    Spec("olmo2", "Olmo2ForCausalLM", "Olmo2Config", {
        **SIZES, **PAD, "num_key_value_heads": 2}, outputs=LOGITS),
    Spec("cohere", "CohereForCausalLM", "CohereConfig", {
        **SIZES, **PAD, "num_key_value_heads": 2}, outputs=LOGITS, exporters="D"),
    Spec("glm", "GlmForCausalLM", "GlmConfig", {**GROUPED, **PAD}, outputs=LOGITS, exporters="D"),
    Spec("smollm3", "SmolLM3ForCausalLM", "SmolLM3Config", {
        **SIZES, **PAD, "num_key_value_heads": 2}, outputs=LOGITS),
    Spec("mixtral", "MixtralForCausalLM", "MixtralConfig", {
        **GROUPED, **MOE, "num_local_experts": 4, "num_experts_per_tok": 2}, outputs=LOGITS),
    Spec("qwen3-moe", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", {
        **GROUPED, **MOE, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "decoder_sparse_step": 1}, outputs=LOGITS),
    Spec("gpt-oss", "GptOssForCausalLM", "GptOssConfig", {
        **GROUPED, **MOE, "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": 8}, outputs=LOGITS),
    Spec("granite-moe", "GraniteMoeForCausalLM", "GraniteMoeConfig", {
        **SIZES, **MOE, "num_key_value_heads": 2, "num_local_experts": 4,
        "num_experts_per_tok": 2}, outputs=LOGITS),
    Spec("deepseek-v3", "DeepseekV3ForCausalLM", "DeepseekV3Config", {
        **SIZES, **MOE, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 16, "moe_intermediate_size": 32}, outputs=LOGITS),
    Spec("mamba", "MambaForCausalLM", "MambaConfig", {
        "vocab_size": VOCABULARY, "hidden_size": 64, "state_size": 8, "num_hidden_layers": 2,
        **PAD}, TOKENS, LOGITS, fixed=TOKENS),
    Spec("rwkv", "RwkvForCausalLM", "RwkvConfig", {
        "vocab_size": VOCABULARY, "hidden_size": 64, "context_length": 64,
        "num_hidden_layers": 2, "intermediate_size": 128, **PAD}, TOKENS, LOGITS, fixed=TOKENS),
]  # fmt: skip

PAIRS = [
    Spec("t5", "T5ForConditionalGeneration", "T5Config", {
        "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2,
        "num_heads": 4, **PAD, "decoder_start_token_id": 0}, PAIR, LOGITS),
    Spec("t5-gated", "T5ForConditionalGeneration", "T5Config", {
        "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2,
        "num_heads": 4, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **PAD,
        "decoder_start_token_id": 0}, PAIR, LOGITS),
    Spec("bart", "BartForConditionalGeneration", "BartConfig", SEQ2SEQ, PAIR, LOGITS),
    Spec("pegasus", "PegasusForConditionalGeneration", "PegasusConfig", SEQ2SEQ, PAIR, LOGITS),
    Spec("marian", "MarianMTModel", "MarianConfig", SEQ2SEQ, PAIR, LOGITS),
    Spec("m2m100", "M2M100ForConditionalGeneration", "M2M100Config", SEQ2SEQ, PAIR, LOGITS),
    Spec("whisper", "WhisperForConditionalGeneration", "WhisperConfig", {
        **SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 24, "max_target_positions": 32},
        ("input_features", "decoder_input_ids"), LOGITS, exporters="D", fixed=("input_features",),
        shapes={"input_features": (BATCH, 16, 48)}),
    Spec("speech-to-text", "Speech2TextForConditionalGeneration", "Speech2TextConfig", {
        **SEQ2SEQ, "input_feat_per_channel": 16, "conv_channels": 64, "max_source_positions": 64,
        "max_target_positions": 32}, ("input_features", "decoder_input_ids"), LOGITS,
        fixed=("input_features",), shapes={"input_features": (BATCH, 48, 16)}),
]  # fmt: skip
