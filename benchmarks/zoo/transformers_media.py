"""Audio and multimodal architectures of transformers, small."""

from __future__ import annotations

from typing import Any

from .transformers_spec import (
    AUDIO,
    BATCH,
    GROUPED,
    IMAGE,
    LOGITS,
    PAD,
    SIZES,
    TEXT,
    VISION,
    WAVE,
    Spec,
)

TOWERS: dict[str, Any] = {
    "text_config": {**SIZES, **PAD, "projection_dim": 32},
    "vision_config": {**VISION, "projection_dim": 32},
}

SOUNDS = [
    Spec("wav2vec2", "Wav2Vec2Model", "Wav2Vec2Config", AUDIO, WAVE),
    Spec(
        "wav2vec2-stable",
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {
            **AUDIO,
            **PAD,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "conv_bias": True,
        },
        WAVE,
        LOGITS,
    ),
    Spec("hubert", "HubertModel", "HubertConfig", AUDIO, WAVE),
    Spec("wavlm", "WavLMModel", "WavLMConfig", AUDIO, WAVE),
    Spec("sew", "SEWModel", "SEWConfig", AUDIO, WAVE),
    Spec(
        "ast",
        "ASTModel",
        "ASTConfig",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "patch_size": 8,
            "max_length": 48,
            "num_mel_bins": 32,
            "frequency_stride": 8,
            "time_stride": 8,
        },
        WAVE,
        fixed=WAVE,
        shapes={"input_values": (BATCH, 48, 32)},
    ),
    Spec(
        "encodec",
        "EncodecModel",
        "EncodecConfig",
        {
            "num_filters": 8,
            "hidden_size": 32,
            "codebook_dim": 32,
            "codebook_size": 16,
            "upsampling_ratios": [4, 2],
            "num_lstm_layers": 1,
            "chunk_length_s": None,
        },
        WAVE,
        ("audio_values",),
        static="TD",
        shapes={"input_values": (1, 1, 640)},
        exporters="T",
    ),
]

MIXED = [
    Spec(
        "clip",
        "CLIPModel",
        "CLIPConfig",
        {**TOWERS, "projection_dim": 32},
        (*TEXT, "pixel_values"),
        ("logits_per_image", "text_embeds", "image_embeds"),
    ),
    Spec(
        "siglip",
        "SiglipModel",
        "SiglipConfig",
        TOWERS,
        ("input_ids", "pixel_values"),
        ("logits_per_image", "text_embeds", "image_embeds"),
    ),
    Spec(
        "blip",
        "BlipForImageTextRetrieval",
        "BlipConfig",
        {
            **TOWERS,
            "projection_dim": 32,
            "image_text_hidden_size": 32,
            "text_config": {**SIZES, **PAD, "encoder_hidden_size": 64, "projection_dim": 32},
        },
        (*TEXT, "pixel_values"),
        ("itm_score",),
    ),
    Spec(
        "llava",
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "image_token_id": 150,
            "image_seq_length": 16,
            "vision_feature_layer": -1,
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "text_config": {"model_type": "llama", **GROUPED, **PAD},
        },
        (*TEXT, "pixel_values"),
        LOGITS,
        fixed=TEXT,
        shapes={"attention_mask": (BATCH, 20)},
        fill={"input_ids": BATCH * [[4, *(16 * [150]), 5, 6, 7]]},
        exporters="T",
        static="T",
    ),
    Spec(
        "layoutlmv3",
        "LayoutLMv3Model",
        "LayoutLMv3Config",
        {
            **SIZES,
            "input_size": 32,
            "patch_size": 8,
            "coordinate_size": 8,
            "shape_size": 16,
            "max_2d_position_embeddings": 64,
            "rel_pos_bins": 8,
            "max_rel_pos": 16,
            "rel_2d_pos_bins": 8,
            "max_rel_2d_pos": 16,
            "pad_token_id": 1,
        },
        (*TEXT, "bbox", "pixel_values"),
    ),
    Spec("flava", "FlavaImageModel", "FlavaImageConfig", VISION, IMAGE),
    Spec(
        "owlvit",
        "OwlViTForObjectDetection",
        "OwlViTConfig",
        {**TOWERS, "projection_dim": 64},
        (*TEXT, "pixel_values"),
        ("logits", "pred_boxes"),
    ),
]
