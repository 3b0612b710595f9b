"""ResNet-20 and ResNet-56 for CIFAR-10 as PyTorch modules, with the weights of an ONNX file.

For peers that prune modules. The shortcuts that halve the picture and pad the channels with zeros
are written as a convolution whose kernel picks the channels: the same function, and one that
Torch-Pruning can trace (it takes a Pad for element-wise, which links channel k to channel k).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

Array = npt.NDArray[Any]
WIDTHS = (16, 32, 64)
AGREES = 1e-4
"""The largest difference of logits from ONNX Runtime's, over their largest value."""


class Block(nn.Module):  # type: ignore[misc]
    """Two 3x3 convolutions beside a shortcut, which is given where the shapes differ."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Identity() if c_in == c_out else selection(c_in, c_out, stride)

    def forward(self, x: Any) -> Any:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):  # type: ignore[misc]
    """float[n, 3, 32, 32] to ten logits; ``depth`` blocks in each of three stages."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        c_in = WIDTHS[0]
        for stage, width in enumerate(WIDTHS, 1):
            blocks = [
                Block(c_in if k == 0 else width, width, 1 + (k == 0 < stage - 1))
                for k in range(depth)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            c_in = width
        self.linear = nn.Linear(c_in, 10)

    def forward(self, x: Any) -> Any:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def selection(c_in: int, c_out: int, stride: int) -> Any:
    """Every ``stride``-th pixel, with as many channels of zeros before as after."""
    conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
    first = (c_out - c_in) // 2
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[first : first + c_in, :, 0, 0] = torch.eye(c_in)
    return conv


def selections(module: Any) -> list[Any]:
    """The convolutions that stand for shortcuts."""
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    return [b.shortcut for b in blocks if not isinstance(b.shortcut, nn.Identity)]


def load_module(path: Path) -> Any:
    """The module of a file with its BatchNormalization nodes, in evaluation mode. Raises ValueError
    when its logits are not those of ONNX Runtime."""
    import onnx

    stored = onnx.load(path).graph.initializer
    weights = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in stored}
    depth = sum(name.startswith("layer1.") and name.endswith("conv1.weight") for name in weights)
    module = ResNet(depth)
    own = set(module.state_dict())
    named = {name: array for name, array in weights.items() if name in own}
    left, _ = module.load_state_dict(named, strict=False)
    unknown = [n for n in left if "shortcut" not in n and not n.endswith("num_batches_tracked")]
    if unknown:
        raise ValueError(f"{path} has no {', '.join(unknown)}")
    module.eval()
    error = disagreement(module, path)
    if error > AGREES:
        raise ValueError(f"{path}: the module's logits are off by {error:.1e}")
    return module


def disagreement(module: Any, path: Path) -> float:
    """The largest difference of logits on random pictures, over the largest logit."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    (wanted,) = session.run(None, {session.get_inputs()[0].name: x})
    with torch.no_grad():
        found = module(torch.from_numpy(x)).numpy()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def export(module: Any, path: Path) -> None:
    """Writes the module in evaluation mode as ONNX, with a free number of pictures."""
    import warnings

    module.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, 32, 32),),
            path,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
            opset_version=17,
            dynamo=False,
        )
