"""Modules around those of torchvision whose arguments are no plain tensors."""

from __future__ import annotations

import torch


class Images(torch.nn.Module):
    """A detector that takes its pictures as one tensor [n, 3, height, width]."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all detections, picture after picture."""
        found = self.model(list(images))
        return [tensor for detections in found for tensor in detections.values()]


class Flow(torch.nn.Module):
    """RAFT with two updates, which returns the last."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The flow [n, 2, height, width]."""
        flow: torch.Tensor = self.model(first, second, num_flow_updates=2)[-1]
        return flow
