"""The criterion ``taylor``: how much the outputs change when a unit goes, by gradients, without
labels.

Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", score a filter by
``(sum of w * dL/dw)^2``, the squared first-order change of the loss L when its weights w go. With
labels L is the task's loss. Without, the natural loss is the divergence of the model's outputs from
its own, KL(p(theta) || p(theta + delta)), whose gradient is zero at delta = 0; its expansion begins
with the second order (Amari 1998, "Natural Gradient Works Efficiently in Learning"; Theis et al.
2018, "Faster gaze prediction with dense networks and Fisher pruning"):

    KL = 1/2 delta' F delta + ...,    F = E[g g'],    g = the gradient of log p(y),  y drawn from p.

For delta = -w on a unit's gate, the weights that contract it, this is

    score = 1/2 E[(sum of w * g)^2],

Molchanov's score with labels drawn from the model itself. Any vector v at the logits whose
covariance is that of the label's gradient gives the same mean; with signs r = +-1 the vector
``sqrt(p) r - p (sqrt(p) . r)`` has covariance diag(p) - p p' and varies less than drawn labels. A
sigmoid has the variance p (1 - p). Values count as normal variables with their own variance, so
v = r / sqrt(variance * number of values). Since v has mean zero and is independent between samples,
the square of a sum over a batch has the mean of the sum of squares: no gradient of single samples
is needed.

Zeroing the weights that contract a unit is removing it, exactly where its group is. Units without
such weights are scored by all floating-point weights that they own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..ir.analysis import Analysis
from ..ir.coupling import Indices
from ..ir.errors import UsageError
from ..ir.trainable import FLOATS
from ..runtime.items import Samples
from ..runtime.torch_support import choose_device, require_torch
from .distill_targets import Target, blocking_node, output_targets

if TYPE_CHECKING:
    from torch import Tensor

    from .base import PassContext

SAMPLES = 512
"""At most so many calibration samples are looked at."""
BATCH = 8
DRAWS = 4
"""Random vectors for each batch."""

Scores = npt.NDArray[np.float64]


class Scoring(Protocol):
    """What a criterion may use besides the analysis."""

    @property
    def context(self) -> PassContext:
        """The context of the pass that scores."""
        ...


@dataclass(frozen=True)
class _Gate:
    """Axis ``index`` of the constant operand called ``name``: the unit of every coordinate."""

    name: str
    index: int
    units: Indices


def taylor(analysis: Analysis, scoring: Scoring) -> Scores:
    """float64[unit_count]: the expected divergence of the outputs, in nats for each sample, when a
    unit goes, to leading order. How scores of members combine does not matter here: their changes
    add up before they are squared.

    Raises UsageError without PyTorch or calibration data, and for an operator that the
    differentiable executor does not know.
    """
    torch = require_torch("the criterion taylor")
    from ..runtime.torch_executor import TorchExecutor
    from ..runtime.torch_ops import known_operators
    from ..runtime.torch_program import CONTROL, unsupported

    context = scoring.context
    if context.calibration is None:
        raise UsageError("the criterion taylor looks at data: give --calibration FILE")
    gates = _gates(analysis)
    if not gates:
        return np.zeros(analysis.unit_count)
    known = known_operators().keys() | {("", name) for name in CONTROL}
    weights = list(dict.fromkeys(gate.name for gate in gates))
    if blocking := blocking_node(analysis.model.graph, known, weights):
        raise unsupported(blocking)
    targets = output_targets(analysis.model, known)
    executor = TorchExecutor(
        analysis.model,
        trained=weights,
        wanted=list(dict.fromkeys([*(t.value for t in targets), *weights])),
        device=choose_device("auto"),
    )
    samples = Samples(context.calibration, analysis.model, context.dims)
    rng = np.random.default_rng(context.seed)
    order = rng.permutation(samples.count)[: max(1, SAMPLES // samples.size)]
    feeds = list(_batches(samples, order))
    squares, total = np.zeros(analysis.unit_count), 0
    for number, (feed, count) in enumerate(feeds):
        context.progress("gradients", number / len(feeds))
        values = executor(executor.feed_tensors(feed))
        learning = {name: values[name] for name in weights if values[name].requires_grad}
        total += count * DRAWS
        for draw in range(DRAWS):
            roots, vectors = zip(*_vectors(values, targets, count, rng), strict=True)
            gradients = torch.autograd.grad(
                roots,
                list(learning.values()),
                vectors,
                retain_graph=draw + 1 < DRAWS,
                allow_unused=True,
            )
            named = dict(zip(learning, gradients, strict=True))
            squares += np.square(_changes(analysis, gates, learning, named))
    return squares / (2 * max(total, 1))


vars(taylor).update(needs_calibration=True, normalize="none")


def _batches(samples: Samples, order: Indices) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Feeds and their numbers of samples."""
    if samples.loose:
        for start in range(0, len(order), BATCH):
            items = order[start : start + BATCH]
            yield samples.feeds(items)[0], len(items)
    else:
        for item in order:
            yield samples.feeds(np.array([item]))[0], samples.size


def _gates(analysis: Analysis) -> list[_Gate]:
    """The constant operands along whose axes units are contracted; all weights of other units."""
    consumers: dict[tuple[str, int, int], _Gate] = {}
    everything: dict[tuple[str, int, int], _Gate] = {}
    reached = np.zeros(analysis.unit_count, np.bool_)
    for operand in analysis.operands.values():
        if not operand.constant:
            continue
        for index, axis in enumerate(operand.axes):
            units = analysis.units_of(axis)
            if units is None:
                continue
            contracted = axis in analysis.statements.consumers
            key = operand.name, index, analysis.coupling.root(axis)
            (consumers if contracted else everything)[key] = _Gate(operand.name, index, units)
            if contracted:
                reached[units[units >= 0]] = True
    floats = {w.name for w in analysis.weights if w.dtype in FLOATS}
    rest = [
        _Gate(gate.name, gate.index, np.where(reached[gate.units], -1, gate.units))
        for gate in everything.values()
        if gate.name in floats
    ]
    return list(consumers.values()) + [gate for gate in rest if (gate.units >= 0).any()]


def _vectors(
    values: Mapping[str, Tensor], targets: Sequence[Target], count: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """For every target what the gradient starts from, and a random vector there."""
    from .distill_loss import logits

    for target in targets:
        z = logits(values, target)
        if not z.requires_grad:
            continue
        fixed = z.detach()
        vector = fixed.new_zeros(fixed.shape)
        if target.kind in ("logits", "either"):
            p = fixed.softmax(-1)
            signed = p.sqrt() * _signs(fixed, rng)
            vector += signed - p * signed.sum(-1, keepdim=True)
        if target.kind == "binary":
            p = fixed.sigmoid()
            vector += (p * (1 - p)).sqrt() * _signs(fixed, rng)
        if target.kind in ("values", "either"):
            variance = fixed.var(unbiased=False).clamp(min=1e-12)
            vector += _signs(fixed, rng) / (variance * fixed.numel() / count).sqrt()
        yield z, vector


def _signs(like: Tensor, rng: np.random.Generator) -> Tensor:
    import torch

    signs = rng.integers(0, 2, tuple(like.shape)) * 2 - 1
    return torch.from_numpy(signs).to(like.dtype).to(like.device)


def _changes(
    analysis: Analysis,
    gates: Sequence[_Gate],
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor | None],
) -> Scores:
    """For every unit the sum of weight times gradient over its gate."""
    sums = np.zeros(analysis.unit_count)
    products = {
        name: (weights[name].detach() * gradient).double()
        for name, gradient in gradients.items()
        if gradient is not None
    }
    for gate in gates:
        product = products.get(gate.name)
        if product is None:
            continue
        others = [k for k in range(product.ndim) if k != gate.index]
        along = (product.sum(others) if others else product).cpu().numpy()
        inside = gate.units >= 0
        np.add.at(sums, gate.units[inside], along[inside])
    return sums
