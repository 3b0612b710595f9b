"""Whether PyTorch is there, and on which device it computes."""

from __future__ import annotations

from typing import Any

from ..ir.errors import UsageError


def require_torch(who: str) -> Any:
    """The module ``torch``. Raises UsageError where it is not installed; ``who`` asks for it."""
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            f"{who} needs PyTorch: pip install 'secateur[finetune]'; everything else, recover "
            "included, works without"
        ) from error
    return torch


def choose_device(device: str) -> Any:
    """The ``torch.device`` for "auto", "cpu" or "cuda". Raises UsageError where there is none."""
    torch = require_torch("device")
    there = bool(torch.cuda.is_available())
    if device == "cuda" and not there:
        raise UsageError("PyTorch finds no CUDA device; say device=cpu or device=auto")
    return torch.device("cuda" if device != "cpu" and there else "cpu")
