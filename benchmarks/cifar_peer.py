"""Torch-Pruning on the ResNets: every criterion of it, without training and with fine-tuning.

Its loop is that of its own examples: a global or local pruner in many small steps until few enough
MACs are left, gradients and activations taken anew before every step. Criteria that need a loss
get the cross entropy with the model's own predictions as labels. Channels are pruned ``all`` over
the network, or only ``inside`` the blocks, which leaves the residual streams whole.

The convolutions that stand for the shortcuts (see `cifar_torch`) are not counted while it prunes,
so that they cost it nothing; the ratio that a row states is counted on the exported ONNX file.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch.nn import functional

from benchmarks.cifar import Pictures
from benchmarks.cifar_torch import Array, Block, export, load_module, selections

STEPS = 100
"""Steps from the whole network to none; pruning stops where the target is met."""
SEEN = 64
"""Pictures for gradients and activations."""
WHERE = ("inside", "all")
SCOPES = ("global", "local")
BATCH = 128
CRITERIA = (
    "l1",
    "l1-first",
    "l2",
    "l2-unnormalised",
    "bn-scale",
    "lamp",
    "fpgm",
    "taylor",
    "hessian",
    "activation",
    "random",
)


def importance(name: str) -> Any:
    """The criterion of Torch-Pruning."""
    found = tp.importance
    made = {
        "l1": lambda: found.GroupMagnitudeImportance(p=1),
        "l1-first": lambda: found.MagnitudeImportance(
            p=1, normalizer=None, group_reduction="first"
        ),
        "l2": lambda: found.GroupMagnitudeImportance(p=2),
        "l2-unnormalised": lambda: found.GroupMagnitudeImportance(p=2, normalizer=None),
        "bn-scale": found.BNScaleImportance,
        "lamp": found.LAMPImportance,
        "fpgm": found.FPGMImportance,
        "taylor": found.GroupTaylorImportance,
        "hessian": found.GroupHessianImportance,
        "activation": found.ActivationImportance,
        "random": found.RandomImportance,
    }
    return made[name]()


def pruned(base: Any, name: str, scope: str, where: str, ratio: float, seen: Array) -> Any:
    """A copy of the module with at least ``ratio`` times fewer MACs. ``seen`` are pictures for
    criteria that need some."""
    torch.manual_seed(0)
    module = copy.deepcopy(base).eval()
    ignored = [module.linear]
    if where == "inside":
        blocks = [part for part in module.modules() if isinstance(part, Block)]
        ignored += [module.conv1, *(block.conv2 for block in blocks), *selections(module)]
    criterion, goal = importance(name), macs(module) / ratio
    pruner = tp.pruner.BasePruner(
        module,
        torch.zeros(1, 3, 32, 32),
        importance=criterion,
        global_pruning=scope == "global",
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=ignored,
    )
    for _ in range(STEPS):
        if macs(module) <= goal:
            break
        _prepare(module, criterion, name, torch.from_numpy(seen))
        pruner.step()
    module.zero_grad(set_to_none=True)
    return module


def _prepare(module: Any, criterion: Any, name: str, pictures: Any) -> None:
    """Gives a criterion the gradients or activations that it asks for."""
    if name == "activation":
        with criterion.compute_importance(module), torch.no_grad():
            module(pictures)
    if name not in ("taylor", "hessian"):
        return
    module.zero_grad()
    logits = module(pictures)
    losses = functional.cross_entropy(logits, logits.argmax(1), reduction="none")
    if name == "taylor":
        losses.mean().backward()
        return
    criterion.zero_grad()
    for loss in losses[:: len(losses) // 8]:
        module.zero_grad()
        loss.backward(retain_graph=True)
        criterion.accumulate_grad(module)


def macs(module: Any) -> int:
    """Multiply-accumulates of the convolutions for one picture, the shortcuts' left out."""
    found, skipped = [0], {id(part) for part in selections(module)}

    def count(part: Any, _: Any, output: Any) -> None:
        if id(part) not in skipped:
            found[0] += output[0].numel() * math.prod(part.weight.shape[1:])

    convs = [part for part in module.modules() if isinstance(part, torch.nn.Conv2d)]
    hooks = [part.register_forward_hook(count) for part in convs]
    with torch.no_grad():
        module(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return found[0]


def best(
    path: Path,
    ratio: float,
    seen: Array,
    test: Pictures,
    output: Path,
    criteria: Sequence[str],
    where: Sequence[str],
) -> dict[str, float]:
    """Writes the variant with the highest accuracy on the test pictures (which favours the peer)
    to ``output``, its module beside it as ``.pt``, and gives the accuracy of every variant. What
    was found is kept beside as ``.json``: a run that was stopped goes on where it was."""
    from benchmarks.cifar import accuracy
    from secateur.driver.api import load

    base, record = load_module(path), output.with_suffix(".json")
    found: dict[str, float] = json.loads(record.read_text()) if record.exists() else {}
    trial = output.with_suffix(".trial.onnx")
    names = [(c, s, w) for c in criteria for s in SCOPES for w in where]
    for parts in names:
        name = " ".join(parts)
        if name in found:
            continue
        module = pruned(base, *parts, ratio, seen)
        export(module, trial)
        found[name] = accuracy(load(trial), test)
        print(f"  {name}: {found[name]:.1f}", file=sys.stderr, flush=True)
        if found[name] == max(found.values()):
            trial.replace(output)
            torch.save(module, output.with_suffix(".pt"))
        record.write_text(json.dumps(found))
    trial.unlink(missing_ok=True)
    return found


def finetune(
    module: Any, images: Array, labels: Array, minutes: float, *, rate: float = 0.01, seed: int = 0
) -> int:
    """Trains for so many minutes of CPU time and gives the number of epochs: cross entropy with
    labels, SGD with momentum 0.9 and weight decay 5e-4, the learning rate falling as a cosine of
    time; flips and shifts as `secateur`'s distillation makes them. The shortcuts' kernels stay."""
    from secateur.runtime.augmentation import augmented

    rng = np.random.default_rng(seed)
    fixed = {id(part.weight) for part in selections(module)}
    trained = [p for p in module.parameters() if id(p) not in fixed]
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    module.train()
    begin, epochs = time.process_time(), 0
    while time.process_time() - begin < 60 * minutes:
        order = rng.permutation(len(images))
        for at in range(0, len(order), BATCH):
            part = (time.process_time() - begin) / (60 * minutes)
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * min(part, 1.0))) / 2
            some = order[at : at + BATCH]
            moved = augmented({"input": images[some]}, True, rng)["input"]
            logits = module(torch.from_numpy(np.ascontiguousarray(moved)))
            optimizer.zero_grad()
            functional.cross_entropy(logits, torch.from_numpy(labels[some])).backward()
            optimizer.step()
        epochs += 1
    module.eval()
    return epochs
