"""The smallest member of each timm family, at small image sizes, cut in depth where that is long.

Most leave by the TorchScript exporter, a tenth by the dynamo exporter as well (``timm-dynamo``);
all with a dynamic batch, but for those whose tracing fixes it (``STATIC``).

Needs torch, timm, onnx and onnxscript (tried with torch 2.14, timm 1.0.31).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from .case import Case, Peer

Model = tuple[str, int, dict[str, Any]]

VIT = {"embed_dim": 192, "depth": 3, "num_heads": 3}

MODELS: list[Model] = [
    ("resnet18", 64, {}),
    ("resnet26d", 64, {}),
    ("resnet50_gn", 64, {}),
    ("resnetblur18", 64, {}),
    ("resnetaa34d", 64, {}),
    ("resnext50_32x4d", 64, {}),
    ("seresnet18", 64, {}),
    ("ecaresnet26t", 64, {}),
    ("resnetrs50", 64, {}),
    ("resnetv2_18", 64, {}),
    ("resnetv2_50d_gn", 64, {}),
    ("resnetv2_50d_evos", 64, {}),
    ("resnetv2_50d_frn", 64, {}),
    ("resnetv2_50x1_bit", 64, {}),
    ("legacy_seresnext26_32x4d", 64, {}),
    ("res2net50_26w_4s", 64, {}),
    ("res2next50", 64, {}),
    ("resnest14d", 64, {}),
    ("skresnet18", 64, {}),
    ("skresnext50_32x4d", 64, {}),
    ("selecsls42", 64, {}),
    ("regnetx_002", 64, {}),
    ("regnety_002", 64, {}),
    ("regnetz_005", 64, {}),
    ("regnetv_040", 64, {}),
    ("efficientnet_b0", 64, {}),
    ("efficientnetv2_rw_t", 64, {}),
    ("efficientnet_es", 64, {}),
    ("efficientnet_cc_b0_4e", 64, {}),
    ("mixnet_s", 64, {}),
    ("mnasnet_small", 64, {}),
    ("mobilenetv1_100", 64, {}),
    ("mobilenetv2_035", 64, {}),
    ("mobilenetv3_small_050", 64, {}),
    ("lcnet_035", 64, {}),
    ("fbnetv3_b", 64, {}),
    ("mobilenetv4_conv_small_035", 64, {}),
    ("mobilenetv4_hybrid_medium_075", 128, {}),
    ("mobilenetv5_300m", 128, {}),
    ("hardcorenas_a", 64, {}),
    ("tinynet_e", 64, {}),
    ("spnasnet_100", 64, {}),
    ("semnasnet_075", 64, {}),
    ("rexnet_100", 64, {}),
    ("rexnetr_100", 64, {}),
    ("lcnetv2_small", 64, {}),
    ("hgnet_tiny", 64, {}),
    ("hgnetv2_b0", 64, {}),
    ("repvgg_a0", 64, {}),
    ("mobileone_s0", 64, {}),
    ("repghostnet_050", 64, {}),
    ("ghostnet_050", 64, {}),
    ("ghostnetv2_100", 64, {}),
    ("ghostnetv3_050", 64, {}),
    ("repvit_m0_9", 64, {}),
    ("starnet_s050", 64, {}),
    ("fasternet_t0", 64, {}),
    ("shvit_s1", 128, {}),
    ("swiftformer_xs", 128, {}),
    ("rdnet_tiny", 64, {}),
    ("mambaout_femto", 64, {}),
    ("convnext_atto", 64, {}),
    ("convnext_zepto_rms", 64, {}),
    ("convnextv2_atto", 64, {}),
    ("inception_next_atto", 64, {}),
    ("convmixer_768_32", 64, {}),
    ("densenet121", 64, {}),
    ("dla34", 64, {}),
    ("dla60_res2net", 64, {}),
    ("dpn48b", 64, {}),
    ("dpn68", 64, {}),
    ("ese_vovnet19b_slim_dw", 64, {}),
    ("eca_vovnet39b", 64, {}),
    ("cspresnet50", 64, {}),
    ("cspnext_tiny", 64, {}),
    ("cs3darknet_focus_s", 64, {}),
    ("darknet17", 64, {}),
    ("hrnet_w18_small", 64, {}),
    ("nf_regnet_b0", 64, {}),
    ("nf_resnet26", 64, {}),
    ("eca_nfnet_l0", 64, {}),
    ("dm_nfnet_f0", 64, {}),
    ("tresnet_m", 64, {}),
    ("legacy_xception", 128, {}),
    ("xception41p", 64, {}),
    ("inception_v3", 128, {}),
    ("inception_v4", 128, {}),
    ("inception_resnet_v2", 128, {}),
    ("nasnetalarge", 96, {}),
    ("pnasnet5large", 96, {}),
    ("gernet_s", 64, {}),
    ("gcresnext26ts", 64, {}),
    ("bat_resnext26ts", 256, {}),
    ("resnet50_clip", 64, {"img_size": 64}),
    ("botnet26t_256", 128, {"img_size": 128}),
    ("sebotnet33ts_256", 128, {"img_size": 128}),
    ("halonet26t", 256, {}),
    ("lambda_resnet26rpt_256", 128, {"img_size": 128}),
    ("lambda_resnet26t", 128, {}),
    ("vit_tiny_patch16_224", 64, {"img_size": 64, "depth": 3}),
    ("vit_base_patch16_clip_quickgelu_224", 64, {"img_size": 64, **VIT}),
    ("vit_base_patch16_siglip_224", 64, {"img_size": 64, **VIT}),
    ("vit_wee_patch16_reg1_gap_256", 64, {"img_size": 64, "depth": 3}),
    ("vit_small_patch14_dinov2", 56, {"img_size": 56, "depth": 3}),
    ("vit_base_patch16_xp_224", 64, {"img_size": 64, **VIT}),
    ("vit_base_patch16_18x2_224", 64, {"img_size": 64, **VIT}),
    ("aimv2_large_patch14_224", 56, {"img_size": 56, **VIT}),
    ("beit3_base_patch16_224", 64, {"img_size": 64, **VIT}),
    ("flexivit_small", 64, {"img_size": 64, "depth": 3}),
    ("vit_relpos_small_patch16_224", 64, {"img_size": 64, "depth": 3}),
    ("vit_srelpos_small_patch16_224", 64, {"img_size": 64, "depth": 3}),
    ("vit_small_r26_s32_224", 64, {"img_size": 64, "depth": 3}),
    ("samvit_base_patch16_224", 64, {"img_size": 64, "embed_dim": 192, "depth": 4, "num_heads": 3}),
    ("deit_tiny_distilled_patch16_224", 64, {"img_size": 64, "depth": 3}),
    ("deit3_small_patch16_224", 64, {"img_size": 64, "depth": 3}),
    ("beit_base_patch16_224", 64, {"img_size": 64, **VIT}),
    ("beitv2_base_patch16_224", 64, {"img_size": 64, **VIT}),
    ("eva02_tiny_patch14_224", 56, {"img_size": 56, "depth": 3}),
    ("eva_giant_patch14_224", 56, {"img_size": 56, **VIT}),
    ("vit_small_patch16_dinov3", 64, {"img_size": 64, "depth": 3}),
    ("vit_base_patch16_rope_mixed_224", 64, {"img_size": 64, **VIT}),
    ("naflexvit_base_patch16_gap", 64, {**VIT}),
    ("naflexvit_base_patch16_siglip", 64, {**VIT}),
    ("swin_tiny_patch4_window7_224", 128, {"img_size": 128, "depths": (2, 2, 2, 2)}),
    ("swin_s3_tiny_224", 128, {"img_size": 128, "depths": (2, 2, 2, 2)}),
    ("swinv2_tiny_window8_256", 128, {"img_size": 128, "depths": (2, 2, 2, 2)}),
    ("swinv2_cr_tiny_ns_224", 128, {"img_size": 128, "depths": (2, 2, 2, 2)}),
    ("maxvit_pico_rw_256", 128, {"img_size": 128}),
    ("maxvit_tiny_tf_224", 128, {"img_size": 128, "depths": (1, 1, 1, 1)}),
    ("coatnet_pico_rw_224", 128, {"img_size": 128}),
    ("coatnext_nano_rw_224", 128, {"img_size": 128}),
    ("levit_128s", 128, {"img_size": 128}),
    ("levit_conv_128s", 128, {"img_size": 128}),
    ("efficientformer_l1", 224, {}),
    ("efficientformerv2_s0", 128, {"img_size": 128}),
    ("efficientvit_b0", 64, {}),
    ("efficientvit_l1", 64, {}),
    ("efficientvit_m0", 128, {"img_size": 128}),
    ("efficientvim_m1", 64, {}),
    ("poolformer_s12", 64, {}),
    ("poolformerv2_s12", 64, {}),
    ("convformer_s18", 64, {}),
    ("caformer_s18", 64, {}),
    ("mixer_s32_224", 128, {"img_size": 128}),
    ("gmixer_12_224", 64, {"img_size": 64}),
    ("gmlp_ti16_224", 64, {"img_size": 64}),
    ("resmlp_12_224", 64, {"img_size": 64}),
    ("pvt_v2_b0", 64, {}),
    ("pvt_v2_b2_li", 224, {"depths": (2, 2, 2, 2)}),
    ("twins_pcpvt_small", 64, {"img_size": 64, "depths": (2, 2, 2, 2)}),
    ("twins_svt_small", 64, {"img_size": 64, "depths": (2, 2, 2, 2)}),
    ("pit_ti_224", 64, {"img_size": 64}),
    ("pit_ti_distilled_224", 64, {"img_size": 64}),
    ("cait_xxs24_224", 64, {"img_size": 64, "depth": 3}),
    ("xcit_nano_12_p16_224", 64, {"depth": 3}),
    ("crossvit_9_dagger_240", 240, {}),
    ("mvitv2_tiny", 64, {"img_size": 64}),
    ("davit_tiny", 128, {"depths": (1, 1, 2, 1)}),
    ("focalnet_tiny_srf", 128, {}),
    ("edgenext_xx_small", 64, {}),
    ("fastvit_t8", 64, {}),
    ("fastvit_sa12", 64, {}),
    ("mobilevit_xxs", 64, {}),
    ("mobilevitv2_050", 64, {}),
    ("tiny_vit_5m_224", 224, {}),
    ("volo_d1_224", 64, {"img_size": 64}),
    ("visformer_tiny", 64, {"img_size": 64}),
    ("convit_tiny", 64, {"img_size": 64, "depth": 12}),
    ("tnt_s_patch16_224", 64, {"img_size": 64, "depth": 3}),
    ("sequencer2d_s", 64, {"img_size": 64, "layers": (2, 2, 2, 2)}),
    ("hiera_tiny_224", 64, {"img_size": 64}),
    ("sam2_hiera_tiny", 128, {}),
    ("nest_tiny", 64, {"img_size": 64}),
    ("nextvit_small", 64, {}),
    ("gcvit_xxtiny", 224, {}),
    ("coat_tiny", 64, {"img_size": 64}),
    ("coat_lite_tiny", 64, {"img_size": 64}),
    ("vitamin_small_224", 64, {"img_size": 64}),
    ("csatv2", 128, {}),
    ("cpubone_nano", 64, {}),
    ("lowformer_b0", 64, {}),
    ("iformer_t", 128, {}),
    ("deepseek_vit_412m", 56, {}),
    ("qwen3_vit_88m", 64, {}),
]


DYNAMO = (
    "resnet18 regnety_002 mobilenetv3_small_050 densenet121 convnextv2_atto dla34 hrnet_w18_small "
    "vit_tiny_patch16_224 beit_base_patch16_224 swin_tiny_patch4_window7_224 "
    "swinv2_tiny_window8_256 maxvit_pico_rw_256 pvt_v2_b0 xcit_nano_12_p16_224 mixer_s32_224 "
    "gmlp_ti16_224 edgenext_xx_small mobilevit_xxs sequencer2d_s cait_xxs24_224 davit_tiny "
    "coat_lite_tiny volo_d1_224 levit_128s"
).split()

ONLY_DYNAMO = frozenset(
    "deepseek_vit_412m aimv2_large_patch14_224 eva_giant_patch14_224 "
    "vit_base_patch16_rope_mixed_224 naflexvit_base_patch16_gap naflexvit_base_patch16_siglip "
    "bat_resnext26ts vit_base_patch16_xp_224 eva02_tiny_patch14_224 vit_small_patch16_dinov3 "
    "pvt_v2_b2_li volo_d1_224 halonet26t csatv2".split()
)
STATIC = frozenset({"efficientnet_cc_b0_4e"})


def _export(model: Model, dynamo: bool, path: Path) -> Peer:
    """Builds the timm model ``name`` for images of ``size`` pixels and writes it to ``path``."""
    import timm
    import torch

    from .torch_export import export_dynamo, export_torchscript, prepare

    name, size, options = model
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, **options)
    inputs = (torch.randn(2, 3, size, size),)
    prepare(module, inputs)
    batch = {0: "batch"}
    if dynamo:
        export_dynamo(module, inputs, path, ["image"], dynamic={"image": batch})
    else:
        axes = None if name in STATIC else {"image": batch, "output": batch}
        export_torchscript(module, inputs, path, ["image"], dynamic=axes)
    return Peer(module, inputs)


def cases() -> list[Case]:
    """Every model by its exporter, then some of them by dynamo as well."""
    first = [
        Case(
            f"timm{'-dynamo' if model[0] in ONLY_DYNAMO else ''}/{model[0]}",
            partial(_export, model, model[0] in ONLY_DYNAMO),
        )
        for model in MODELS
    ]
    again = [
        Case(f"timm-dynamo/{model[0]}", partial(_export, model, True))
        for model in MODELS
        if model[0] in DYNAMO and model[0] not in ONLY_DYNAMO
    ]
    return first + again
