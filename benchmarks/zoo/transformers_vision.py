"""Vision architectures of transformers, small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .transformers_spec import BATCH, IMAGE, LOGITS, VISION, Spec

RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 48, 64],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
SWIN: dict[str, Any] = {
    "model_type": "swin",
    "image_size": 64,
    "embed_dim": 16,
    "depths": [1, 1, 2, 1],
    "num_heads": [2, 2, 4, 4],
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
SMALL_SWIN: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 32,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
DETECTOR: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "num_queries": 10,
    "num_labels": 5,
}
LARGE = {"pixel_values": (BATCH, 3, 64, 64)}


def detector(name: str, stem: str, options: Mapping[str, Any]) -> Spec:
    """An object detector whose classes begin with ``stem``."""
    outputs = ("logits", "pred_boxes")
    classes = (f"{stem}ForObjectDetection", f"{stem}Config")
    return Spec(name, *classes, options, IMAGE, outputs, shapes=LARGE, exporters="T")


IMAGES = [
    Spec("vit", "ViTModel", "ViTConfig", VISION, IMAGE),
    Spec("deit", "DeiTModel", "DeiTConfig", VISION, IMAGE),
    Spec("beit", "BeitModel", "BeitConfig", {**VISION, "use_relative_position_bias": True}, IMAGE),
    Spec(
        "swin",
        "SwinModel",
        "SwinConfig",
        SMALL_SWIN,
        IMAGE,
        shapes=LARGE,
    ),
    Spec(
        "swinv2",
        "Swinv2Model",
        "Swinv2Config",
        SMALL_SWIN,
        IMAGE,
        shapes=LARGE,
    ),
    Spec(
        "segformer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 40, 64], "decoder_hidden_size": 64},
        IMAGE,
        LOGITS,
        shapes=LARGE,
    ),
    Spec(
        "convnextv2",
        "ConvNextV2Model",
        "ConvNextV2Config",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
        IMAGE,
        shapes=LARGE,
    ),
    detector(
        "detr",
        "Detr",
        {**DETECTOR, "backbone_config": {**RESNET, "out_features": ["stage4"]}},
    ),
    detector(
        "conditional-detr",
        "ConditionalDetr",
        {**DETECTOR, "backbone_config": {**RESNET, "out_features": ["stage4"]}},
    ),
    detector(
        "deformable-detr",
        "DeformableDetr",
        {**DETECTOR, "backbone_config": RESNET, "num_feature_levels": 3},
    ),
    detector(
        "rt-detr",
        "RTDetr",
        {
            "d_model": 64,
            "encoder_hidden_dim": 64,
            "encoder_in_channels": [32, 48, 64],
            "decoder_in_channels": [64, 64, 64],
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "decoder_layers": 2,
            "num_queries": 10,
            "num_labels": 5,
            "num_denoising": 0,
            "backbone_config": {**RESNET, "model_type": "rt_detr_resnet"},
        },
    ),
    Spec(
        "dinov2",
        "Dinov2Model",
        "Dinov2Config",
        {**VISION, "patch_size": 8, "num_attention_heads": 4, "mlp_ratio": 2},
        IMAGE,
    ),
    Spec(
        "dinov2-swiglu",
        "Dinov2Model",
        "Dinov2Config",
        {**VISION, "mlp_ratio": 2, "use_swiglu_ffn": True},
        IMAGE,
    ),
    Spec(
        "mobilevit",
        "MobileViTModel",
        "MobileViTConfig",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "neck_hidden_sizes": [16, 16, 24, 32, 48, 64, 96],
        },
        IMAGE,
        shapes=LARGE,
    ),
    Spec(
        "yolos",
        "YolosForObjectDetection",
        "YolosConfig",
        {**VISION, "image_size": [32, 32], "num_detection_tokens": 6},
        IMAGE,
        ("logits", "pred_boxes"),
    ),
    Spec(
        "sam-image-encoder",
        "SamVisionModel",
        "SamVisionConfig",
        {
            **VISION,
            "mlp_dim": 128,
            "output_channels": 32,
            "num_pos_feats": 16,
            "window_size": 2,
            "global_attn_indexes": [1],
        },
        IMAGE,
    ),
    Spec(
        "dpt",
        "DPTForDepthEstimation",
        "DPTConfig",
        {
            **VISION,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 48, 64],
            "fusion_hidden_size": 32,
            "is_hybrid": False,
        },
        IMAGE,
        ("predicted_depth",),
    ),
    Spec(
        "depth-anything",
        "DepthAnythingForDepthEstimation",
        "DepthAnythingConfig",
        {
            "backbone_config": {
                "model_type": "dinov2",
                **VISION,
                "mlp_ratio": 2,
                "out_indices": [1, 2],
                "reshape_hidden_states": False,
                "apply_layernorm": True,
            },
            "reassemble_hidden_size": 64,
            "patch_size": 8,
            "reassemble_factors": [2, 1],
            "neck_hidden_sizes": [32, 48],
            "fusion_hidden_size": 32,
            "head_hidden_size": 16,
        },
        IMAGE,
        ("predicted_depth",),
    ),
    Spec(
        "mask2former",
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerConfig",
        {
            "feature_size": 64,
            "mask_feature_size": 64,
            "hidden_dim": 64,
            "encoder_feedforward_dim": 96,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "num_attention_heads": 4,
            "dim_feedforward": 96,
            "num_queries": 10,
            "num_labels": 5,
            "backbone_config": SWIN,
        },
        IMAGE,
        ("class_queries_logits", "masks_queries_logits"),
        shapes=LARGE,
    ),
    Spec(
        "maskformer",
        "MaskFormerForInstanceSegmentation",
        "MaskFormerConfig",
        {
            "fpn_feature_size": 64,
            "mask_feature_size": 64,
            "num_labels": 5,
            "backbone_config": SWIN,
            "decoder_config": {"model_type": "detr", **DETECTOR},
        },
        IMAGE,
        ("class_queries_logits", "masks_queries_logits"),
        shapes=LARGE,
    ),
    Spec(
        "upernet",
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        {
            "hidden_size": 32,
            "num_labels": 5,
            "pool_scales": [1, 2],
            "auxiliary_in_channels": 48,
            "auxiliary_channels": 16,
            "backbone_config": {
                "model_type": "convnext",
                "hidden_sizes": [16, 32, 48, 64],
                "depths": [1, 1, 1, 1],
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
        },
        IMAGE,
        LOGITS,
        shapes=LARGE,
    ),
    Spec("ijepa", "IJepaModel", "IJepaConfig", VISION, IMAGE),
    Spec(
        "perceiver",
        "PerceiverForImageClassificationLearned",
        "PerceiverConfig",
        {
            "num_latents": 8,
            "d_latents": 64,
            "d_model": 64,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
            "image_size": 16,
            "train_size": [16, 16],
        },
        ("inputs",),
        LOGITS,
        shapes={"inputs": (BATCH, 3, 16, 16)},
    ),
    Spec(
        "timesformer",
        "TimesformerModel",
        "TimesformerConfig",
        {**VISION, "num_frames": 2},
        IMAGE,
        shapes={"pixel_values": (BATCH, 2, 3, 32, 32)},
    ),
    Spec(
        "videomae",
        "VideoMAEModel",
        "VideoMAEConfig",
        {**VISION, "num_frames": 4, "tubelet_size": 2},
        IMAGE,
        shapes={"pixel_values": (BATCH, 4, 3, 32, 32)},
    ),
]
