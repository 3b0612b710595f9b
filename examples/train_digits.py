"""Train digits.onnx, a small residual CNN on handwritten digits, so that it prunes well.

Needs PyTorch, onnx and scikit-learn; nothing else in the project does. The data (1,797
images of 8x8 pixels) comes with scikit-learn, so nothing is downloaded.

Two things make the L2 norm of a channel say how much the channel matters:

- a group lasso. Channels that live and die together form a unit u: the inner channels of a
  residual block, or the channels of one residual stream. With every BatchNorm folded into its
  convolution, |u| is the norm of all weights and biases that write u or read u, and the loss
  grows by SPARSITY * sum |u|. (Yuan and Lin, "Model selection and estimation in regression
  with grouped variables", 2006.)
- training while pruned. Every other step runs without the weakest units of every group, a
  random share of up to half of them, so that the strong units learn to do without the weak.

The lasso rises over the first 30 % of the epochs and is off for the last 15 %, in which the
remaining units recover from its shrinkage.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SEED = 0
EPOCHS = 100
BATCH = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.05
SPARSITY = 1e-3
MAX_SHARE = 0.5
CALIBRATION_SAMPLES = 256


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.projected = inputs != outputs or stride != 1
        if self.projected:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        if keep is not None:
            inner = inner * keep
        return F.relu(
            self.bn2(self.conv2(inner)) + (self.bn(self.shortcut(x)) if self.projected else x)
        )


class Net(nn.Module):
    """image [batch, 1, 8, 8] in 0..1 -> logits [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stage1 = Block(16, 16, 1)
        self.stage2a = Block(16, 32, 2)
        self.stage2b = Block(32, 32, 1)
        self.stage3 = Block(32, 40, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(40, 10)

    def blocks(self) -> list[Block]:
        return [self.stage1, self.stage2a, self.stage2b, self.stage3]

    def forward(self, x: Tensor, keep: list[Tensor] | None = None) -> Tensor:
        """`keep` holds one 0/1 mask [channels, 1, 1] for every group, in the order of groups()."""
        x = F.relu(self.bn(self.stem(x)))
        if keep is not None:
            x = x * keep[4]
        for index, (block, stream) in enumerate(zip(self.blocks(), (4, 5, 5, 6), strict=True)):
            x = block(x, None if keep is None else keep[index])
            if keep is not None:
                x = x * keep[stream]
        return self.head(self.pool(x).flatten(1))


@dataclass(frozen=True)
class Group:
    """The layers that write a set of coupled channels, with their norms, and those that read it."""

    producers: list[tuple[nn.Conv2d, nn.BatchNorm2d]]
    consumers: list[nn.Module]


def groups(net: Net) -> list[Group]:
    """The inner channels of the four blocks, then the three residual streams."""
    s1, s2a, s2b, s3 = net.blocks()
    inner = [Group([(block.conv1, block.bn1)], [block.conv2]) for block in net.blocks()]
    return [
        *inner,
        Group(
            [(net.stem, net.bn), (s1.conv2, s1.bn2)],
            [s1.conv1, s2a.conv1, s2a.shortcut],
        ),
        Group(
            [(s2a.conv2, s2a.bn2), (s2a.shortcut, s2a.bn), (s2b.conv2, s2b.bn2)],
            [s2b.conv1, s3.conv1, s3.shortcut],
        ),
        Group([(s3.conv2, s3.bn2), (s3.shortcut, s3.bn)], [net.head]),
    ]


def unit_norms(net: Net) -> list[Tensor]:
    """L2 norm of every unit [channels], per group, with all BatchNorms folded."""
    parts = groups(net)
    weights: dict[nn.Module, Tensor] = {net.head: net.head.weight}
    biases: dict[nn.Module, Tensor] = {}
    for conv, bn in (pair for group in parts for pair in group.producers):
        gain = bn.weight / (bn.running_var + bn.eps).sqrt()
        weights[conv] = conv.weight * gain[:, None, None, None]
        # The running mean is updated in place before the backward pass needs it.
        biases[conv] = bn.bias - gain * bn.running_mean.clone()
    norms = []
    for group in parts:
        squares = torch.zeros(())
        for conv, _ in group.producers:
            squares = squares + weights[conv].square().flatten(1).sum(1) + biases[conv].square()
        for layer in group.consumers:
            squares = squares + weights[layer].square().transpose(0, 1).flatten(1).sum(1)
        norms.append((squares + 1e-12).sqrt())
    return norms


def strongest(norms: Tensor, share: float) -> Tensor:
    """A 0/1 mask [channels, 1, 1] that drops the weakest `share` of the units."""
    rank = norms.detach().argsort().argsort()
    return (rank >= round(share * len(norms))).float()[:, None, None]


def masks(norms: list[Tensor], inner: float, stream: float) -> list[Tensor]:
    """A mask for every group: `inner` and `stream` are the shares that blocks and streams drop."""
    return [strongest(n, inner if index < 4 else stream) for index, n in enumerate(norms)]


def shifted(image: Tensor) -> Tensor:
    """Every image [n, 1, 8, 8] moved by -1, 0 or 1 pixel in both directions."""
    n = len(image)
    step = torch.arange(8)
    rows = torch.randint(0, 3, (n, 1)) + step
    columns = torch.randint(0, 3, (n, 1)) + step
    padded = F.pad(image, (1, 1, 1, 1))[:, 0]
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]


def train(image: Tensor, label: Tensor) -> Net:
    torch.manual_seed(SEED)
    net = Net()
    steps = len(image) // BATCH
    optimizer = torch.optim.SGD(
        net.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=EPOCHS * steps, pct_start=0.1
    )
    for epoch in range(EPOCHS):
        progress = epoch / EPOCHS
        sparsity = SPARSITY * min(1.0, progress / 0.3) if progress < 0.85 else 0.0
        order = torch.randperm(len(image))
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            norms = unit_norms(net)
            keep = None
            if progress > 0.2 and torch.rand(()) < 0.5:
                keep = masks(norms, *(torch.rand(2) * MAX_SHARE).tolist())
            logits = net(shifted(image[batch]), keep)
            loss = F.cross_entropy(logits, label[batch], label_smoothing=LABEL_SMOOTHING)
            loss = loss + sparsity * torch.cat(norms).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def folded(net: Net) -> Net:
    """A copy with every BatchNorm folded into its convolution."""
    net = copy.deepcopy(net)
    for module in (net, *net.blocks()):
        for conv, bn in (("stem", "bn"), ("conv1", "bn1"), ("conv2", "bn2"), ("shortcut", "bn")):
            if hasattr(module, conv):
                fused = fuse_conv_bn_eval(getattr(module, conv), getattr(module, bn))
                setattr(module, conv, fused)
                setattr(module, bn, nn.Identity())
    return net


def export(net: Net, path: Path) -> None:
    # The TorchScript exporter: the newer one writes stack traces of this machine into the file.
    torch.onnx.export(
        folded(net),
        (torch.zeros(2, 1, 8, 8),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    model = onnx.load(path)
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


@torch.no_grad()
def report(net: Net, image: Tensor, label: Tensor) -> None:
    """Print top-1 accuracy after dropping the units of least norm, which is naive pruning."""
    norms = unit_norms(net)

    def accuracy(inner: float, stream: float) -> float:
        return (net(image, masks(norms, inner, stream)).argmax(1) == label).float().mean().item()

    print(f"{'dropped':>8} {'inner channels':>15} {'all channels':>13}")
    for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        print(f"{share:8.0%} {accuracy(share, 0.0):15.2%} {accuracy(share, share):13.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and export digits.onnx and its data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    parser.add_argument(
        "--validate",
        action="store_true",
        help="measure on a quarter of the training split instead of the test split; write nothing",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    digits = load_digits()
    image = (digits.images / 16).astype(np.float32)[:, None]
    label = digits.target.astype(np.int64)
    first = np.sort(np.unique(image.reshape(len(image), -1), axis=0, return_index=True)[1])
    image, label = image[first], label[first]
    fit, held_out = train_test_split(
        np.arange(len(label)), test_size=0.2, stratify=label, random_state=SEED
    )
    if arguments.validate:
        fit, held_out = train_test_split(
            fit, test_size=0.25, stratify=label[fit], random_state=SEED + 1
        )

    net = train(torch.from_numpy(image[fit]), torch.from_numpy(label[fit]))
    report(net, torch.from_numpy(image[held_out]), torch.from_numpy(label[held_out]))
    if arguments.validate:
        return
    calibration = np.sort(np.random.default_rng(SEED).choice(fit, CALIBRATION_SAMPLES, False))
    np.savez_compressed(arguments.out / "digits_calibration.npz", image=image[calibration])
    held_out = np.sort(held_out)
    np.savez_compressed(
        arguments.out / "digits_test.npz", image=image[held_out], label=label[held_out]
    )
    export(net, arguments.out / "digits.onnx")


if __name__ == "__main__":
    main()
