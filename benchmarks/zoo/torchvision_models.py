"""Every model of torchvision that is not quantised, by the TorchScript exporter, and one of each
architecture by the dynamo exporter."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from .case import Case, Peer
from .torch_export import export_dynamo, export_torchscript, prepare

SIZES = {
    "alexnet": 224,
    "inception_v3": 75,
    "maxvit": 224,
    "vgg": 224,
    "swin": 112,
    "vit_h_14": 56,
    "vit": 64,
    "resne": 64,
    "wide_resnet": 64,
    "regnet": 64,
}
"""Height and width of a classifier's images, by the start of its name; all others take 96."""

ARCHITECTURES = (
    "alexnet",
    "convnext_tiny",
    "deeplabv3_mobilenet_v3_large",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "fcn_resnet50",
    "googlenet",
    "inception_v3",
    "lraspp_mobilenet_v3_large",
    "maxvit_t",
    "mc3_18",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mvit_v2_s",
    "r2plus1d_18",
    "raft_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "retinanet_resnet50_fpn",
    "s3d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin3d_t",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
)
"""One model of each architecture."""

NOT_BY_DYNAMO = {
    "raft_small": "the exporter's own optimiser fails",
    "retinanet_resnet50_fpn": "torch.export refuses sizes that depend on the data",
}
"""What PyTorch's newer exporter cannot export, and why."""


def cases() -> list[Case]:
    """All models, and those of `ARCHITECTURES` by the dynamo exporter."""
    from torchvision import models

    quantised = set(models.list_models(module=models.quantization))
    names = [name for name in models.list_models() if name not in quantised]
    return [
        *(Case(f"torchvision/{name}", partial(_export, name)) for name in names),
        *(
            Case(f"torchvision-dynamo/{name}", partial(_export, name, dynamo=True))
            for name in ARCHITECTURES
            if name not in NOT_BY_DYNAMO
        ),
    ]


def _export(name: str, path: Path, dynamo: bool = False) -> Peer:
    import torch

    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)  # it has no ONNX form
    module, inputs, batched = _build(name)
    prepare(module, inputs)
    names = ["input"] if len(inputs) == 1 else [f"input{i}" for i in range(len(inputs))]
    dynamic = {key: {0: "batch"} for key in names} if batched else None
    if dynamo:
        given = tuple(torch.cat([t, t]) for t in inputs) if batched else inputs
        export_dynamo(module, given, path, names, output_names=(), dynamic=dynamic)
    else:
        export_torchscript(module, inputs, path, names, output_names=(), dynamic=dynamic)
    return Peer(module, inputs)


def _build(name: str) -> tuple[Any, tuple[Any, ...], bool]:
    """The module with random weights, its inputs, and whether their first axis is a batch."""
    import torch
    from torchvision import models

    from .torchvision_wrappers import Flow, Images

    def among(module: Any) -> bool:
        return name in models.list_models(module=module)

    plain: dict[str, Any] = {"weights": None}
    if among(models.detection):
        options = plain | {"weights_backbone": None} | _detection(name)
        size = next((s for part, s in (("ssd300", 300), ("ssdlite320", 320)) if part in name), 128)
        return Images(models.get_model(name, **options)), (torch.randn(1, 3, size, size),), False
    if among(models.segmentation):
        module = models.get_model(name, **plain, weights_backbone=None)
        return module, (torch.randn(1, 3, 96, 96),), True
    if among(models.video):
        if name.startswith("mvit"):
            return _small_mvit(name), (torch.randn(1, 3, 8, 64, 64),), True
        size, frames = (224, 16) if name == "s3d" else (64, 8)
        return models.get_model(name, **plain), (torch.randn(1, 3, frames, size, size),), True
    if among(models.optical_flow):
        pictures = (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
        return Flow(models.get_model(name, **plain)), pictures, True
    size = next((size for start, size in SIZES.items() if name.startswith(start)), 96)
    if name.startswith("vit"):
        plain["image_size"] = size
    elif name in ("googlenet", "inception_v3"):
        plain |= {"aux_logits": False, "init_weights": False}
    return models.get_model(name, **plain), (torch.randn(1, 3, size, size),), True


def _small_mvit(name: str) -> Any:
    """An MViT for 8 pictures of 64 x 64; the builders insist on 16 of 224 x 224."""
    from unittest import mock

    from torchvision import models

    build = models.video.mvit._mvit

    def small(**options: Any) -> Any:
        return build(**options | {"spatial_size": (64, 64), "temporal_size": 8})

    with mock.patch.object(models.video.mvit, "_mvit", small):
        return models.get_model(name, weights=None)


def _detection(name: str) -> dict[str, Any]:
    """Small pictures and few boxes, all of which count: with random weights none is sure."""
    if "rcnn" in name:
        return {
            "min_size": 128,
            "max_size": 128,
            "rpn_post_nms_top_n_test": 20,
            "box_score_thresh": 0.0,
            "box_detections_per_img": 10,
        }
    options = {"score_thresh": 0.0, "detections_per_img": 10, "topk_candidates": 20}
    return options if "ssd" in name else options | {"min_size": 128, "max_size": 128}
