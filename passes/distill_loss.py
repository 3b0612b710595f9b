"""The loss of distillation: how far a student's values are from the teacher's.

For logits z of student and teacher at temperature T (Hinton et al. 2015, "Distilling the Knowledge
in a Neural Network")

    T^2 * KL(softmax(z_teacher / T) || softmax(z_student / T)),

summed over classes, mean over all else; for binary logits the same of every sigmoid, mean over all.
Values, and values inside, are compared by the mean squared difference divided by the variance of
the teacher's, so that 1 is the loss of a constant. With labels, the cross entropy of the first
logits at temperature 1 is added. The mean over outputs, plus ``hidden`` times the mean over values
inside, is the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .distill_targets import Target

Tensors = Mapping[str, Tensor]
_TINY = 1e-12


def logits(values: Tensors, target: Target) -> Tensor:
    """The logits of a target, classes on the last axis where there are classes."""
    z = values[target.value]
    if target.kind == "values":
        return z
    if target.transform == "log":
        z = z.clamp(min=_TINY).log()
    elif target.transform == "logit":
        z = torch.logit(z, _TINY if z.dtype == torch.float64 else 1e-7)
    if target.kind == "binary":
        return z
    return z.flatten(target.axis) if target.joint else z.movedim(target.axis, -1)


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p = F.log_softmax(teacher / temperature, -1)
    q = F.log_softmax(student / temperature, -1)
    each = F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    return each.mean() * temperature**2


def _binary_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    t, s = teacher / temperature, student / temperature
    p = torch.sigmoid(t)
    gap = p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return gap.mean() * temperature**2


@dataclass
class Loss:
    """The loss over ``targets`` and values ``inside``; `fit` measures the teacher's variances,
    ``scales``."""

    targets: Sequence[Target]
    inside: Sequence[str]
    temperature: float
    hidden: float
    scales: dict[str, float] = field(default_factory=dict)

    @property
    def wanted(self) -> list[str]:
        """The names of all values that take part."""
        return list(dict.fromkeys([*(t.value for t in self.targets), *self.inside]))

    def fit(self, values: Tensors) -> None:
        """Measures the variances on values of the teacher."""
        for name in self.wanted:
            variance = float(values[name].double().var(unbiased=False))
            self.scales[name] = variance if variance > 0 else 1.0

    def __call__(self, student: Tensors, teacher: Tensors, labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; ``labels`` are class numbers."""
        total = torch.stack([self._output(student, teacher, t) for t in self.targets]).mean()
        if self.inside:
            each = [self._values(student[name], teacher[name], name) for name in self.inside]
            total = total + self.hidden * torch.stack(each).mean()
        if labels is not None:
            first = next(t for t in self.targets if t.kind in ("logits", "either"))
            z = logits(student, first)
            total = total + F.cross_entropy(z.reshape(-1, z.shape[-1]), labels.reshape(-1))
        return total

    def _output(self, student: Tensors, teacher: Tensors, target: Target) -> Tensor:
        s, t = logits(student, target), logits(teacher, target)
        if target.kind == "binary":
            return _binary_divergence(s, t, self.temperature)
        if target.kind == "logits":
            return _divergence(s, t, self.temperature)
        values = self._values(s, t, target.value)
        if target.kind == "values":
            return values
        return values + _divergence(s, t, self.temperature)

    def _values(self, student: Tensor, teacher: Tensor, name: str) -> Tensor:
        return F.mse_loss(student, teacher) / self.scales[name]
