"""PyTorch modules with random weights that matter, and the two exporters of PyTorch.

A freshly built network hides errors: BatchNorm statistics are 0 and 1, LayerScale is 1e-6,
position tables are zero, and a branch with weights of standard deviation 0.02 drowns in the
residual stream. :func:`prepare` gives every parameter a size that the outputs depend on, and takes
the BatchNorm statistics from random data.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Axes = Mapping[str, Mapping[int, str]]


def prepare(module: Any, inputs: tuple[Any, ...], seed: int = 0) -> Any:
    """``module`` in eval mode with parameters and running statistics that all matter; in place."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    module.eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point() and parameter.numel():
                _enliven(parameter, generator)
        _running_statistics(module, inputs, generator)
    return module.requires_grad_(False)


def _enliven(parameter: Any, generator: Any) -> None:
    """Constant tensors become random ones, weak matrices get the size that keeps variances."""
    import torch

    noise = torch.randn(parameter.shape, generator=generator)
    low, high = parameter.min(), parameter.max()
    if low == high and high > 0.5:
        parameter.copy_(high * (1 + 0.2 * noise).clamp(0.4, 1.6))
    elif high.abs() < 1e-3 and low.abs() < 1e-3 and parameter.ndim < 2:
        parameter.copy_(0.2 * noise)
    elif parameter.ndim >= 2:
        wanted = parameter[0].numel() ** -0.5
        if low == high:
            parameter.copy_(wanted * noise)
        elif parameter.std() < 0.7 * wanted:
            parameter.mul_(wanted / parameter.std())


def _running_statistics(module: Any, inputs: tuple[Any, ...], generator: Any) -> None:
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    module(*(_batch_of_noise(tensor, generator) for tensor in inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_var.add_(0.01)
        for statistic in (norm.running_mean, norm.running_var):
            statistic.mul_(1 + 0.2 * torch.rand(statistic.shape, generator=generator))
    module.eval()


def _batch_of_noise(tensor: Any, generator: Any) -> Any:
    import torch

    if not tensor.is_floating_point():
        return tensor
    return torch.randn((8, *tensor.shape[1:]), generator=generator)


def export_torchscript(
    module: Any,
    inputs: tuple[Any, ...],
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str] = ("output",),
    dynamic: Axes | None = None,
    opset: int = 17,
) -> None:
    """One self-contained ONNX file by the TorchScript exporter."""
    axes = dict(dynamic or {})
    _export(
        *(module, inputs, path, input_names, output_names, opset), dynamo=False, dynamic_axes=axes
    )


def export_dynamo(
    module: Any,
    inputs: tuple[Any, ...],
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str] = ("output",),
    dynamic: Axes | None = None,
    opset: int | None = None,
) -> None:
    """One self-contained ONNX file by the dynamo exporter, at its own opset unless told."""
    shapes = tuple(dict((dynamic or {}).get(name, {})) or None for name in input_names)
    _export(
        *(module, inputs, path, input_names, output_names, opset),
        dynamo=True,
        dynamic_shapes=shapes if dynamic else None,
        external_data=False,
        verbose=False,
    )


def _export(
    module: Any,
    inputs: tuple[Any, ...],
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int | None,
    **options: Any,
) -> None:
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            str(path),
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=opset,
            **options,
        )
