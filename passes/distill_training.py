"""The training loop of distillation: batches, schedule, early stopping, checkpoints.

The learning rate rises linearly over the first 3 % of the training and falls as a cosine to zero at
its end (Loshchilov and Hutter 2017, "SGDR"). What part is over is counted in steps when the number
of epochs is given, and in time otherwise. Every so often the loss on the held-out items is
measured; the weights where it was lowest are the result, and the untrained ones compete. When it
exceeds that of the untrained ones by more than a quarter, or has not fallen for so many looks as
``patience`` says, the rate is too high (weights that were refitted in closed form bear small ones
only): training goes on from the best weights at a third of it, and ends when that has come to
nothing, too. The first looks are early, so that little time is lost in finding that rate.

Order of items and augmentation follow from the seed and the step alone, so that a resumed training
goes on as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..runtime.augmentation import augmented
from ..runtime.items import Items, Samples
from ..runtime.session import Array
from ..runtime.torch_executor import TorchExecutor
from .distill_checkpoint import Checkpoint, State
from .distill_loss import Loss, Tensors

if TYPE_CHECKING:
    from .base import PassContext
    from .distill import Distill

_WARM_UP = 0.03
_DIVERGED, _DAMPED = 1.25, 3.0
_LEAST = _DAMPED**-7
"""Training ends when less of the rate would be left."""
_EARLY = 20
"""Steps between two evaluations at the beginning."""
_LONGEST = 200
"""At most so many steps lie between two evaluations, unless these would cost more than a tenth."""
_CACHE = 2**30
"""Bytes of the teacher's values that are kept."""
_NORM = 5.0
"""Gradients are scaled down to this Euclidean norm."""


class Teacher:
    """The original's values; those of items that were seen before are kept where they fit."""

    def __init__(self, executor: TorchExecutor, samples: Samples) -> None:
        self._executor, self._samples = executor, samples
        self._kept: dict[str, Tensor] | None = None
        self._seen = np.zeros(samples.count, np.bool_)

    def on_feed(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values on one feed."""
        with torch.no_grad():
            return self._executor(feed)

    def on_items(self, items: Items, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values of items whose feed this is."""
        if not self._samples.loose:
            return self.on_feed(feed)
        if self._kept is None:
            self._kept = self._room(items)
        if not self._kept:
            return self.on_feed(feed)
        rows = torch.from_numpy(items)
        if not self._seen[items].all():
            for name, value in self.on_feed(feed).items():
                self._kept[name][rows] = value.cpu()
            self._seen[items] = True
        device = self._executor.device
        return {name: value[rows].to(device) for name, value in self._kept.items()}

    def _room(self, items: Items) -> dict[str, Tensor]:
        """Memory for the values of all items; none if there are too many, or if an item's values
        are not one row of the whole."""
        both, alone = (
            self.on_feed(self._executor.feed_tensors(self._samples.feeds(part)[0]))
            for part in (items[:2], items[1:2])
        )
        size = 0
        for name, value in both.items():
            row = alone[name]
            if len(items) < 2 or row.ndim == 0 or row.shape[0] != 1 or value.shape[0] != 2:
                return {}
            if not torch.allclose(row[0], value[1], rtol=1e-3, atol=1e-4 * float(row.abs().max())):
                return {}
            size += row.numel() * row.element_size() * self._samples.count
        if size > _CACHE:
            return {}
        count = self._samples.count
        return {n: torch.empty((count, *v.shape[1:]), dtype=v.dtype) for n, v in alone.items()}


@dataclass
class Training:
    """Trains ``student`` on the items in ``train`` and stops by those in ``held``. ``labels`` are
    class numbers by sample."""

    student: TorchExecutor
    teacher: Teacher
    loss: Loss
    samples: Samples
    train: Items
    held: Items
    labels: Array | None
    options: Distill
    context: PassContext
    checkpoint: Checkpoint | None

    def __post_init__(self) -> None:
        self._parameters = list(self.student.parameters.values())
        self._tensors = [*self._parameters, *self.student.buffers.values()]
        per = max(1, self.options.batch_size // self.samples.size)
        self._per = per
        self.batches = max(1, len(self.train) // per)
        """Batches in an epoch."""
        rounds = -(-len(self.held) // per)
        self._interval = max(min(self.batches, _LONGEST), math.ceil(rounds * 10 / 3))
        self._optimizer = self._make_optimizer()

    def run(self) -> State:
        """Trains; afterwards the student has its best weights. Raises what its executor and its
        checkpoint raise."""
        shapes = [tuple(t.shape) for t in self._tensors]
        found = self.checkpoint.read(shapes) if self.checkpoint else None
        state = State() if found is None else found
        if found is None:
            state.start = state.best = self.evaluate()
            state.history.append((0, state.best))
            self._save(state, "best")
        else:
            self._restore(state)
        clock, spoken, written, cost = time.perf_counter(), 0.0, 0.0, 0.0
        before, last = state.seconds, state.history[-1][1]
        while self._part(state) < 1 and state.damping > _LEAST:
            loss = self._step(state)
            state.step += 1
            now = time.perf_counter()
            state.seconds = before + now - clock
            early = state.step < self._interval
            due = state.step % (min(_EARLY, self._interval) if early else self._interval) == 0
            if due or self._part(state) >= 1:
                last = self._look(state)
                state.seconds = before + time.perf_counter() - clock
            if due and self.checkpoint is not None and now - written >= 20 * cost:
                self._write(state)
                written = time.perf_counter()
                cost = written - now
            if now - spoken > 0.5:
                spoken = now
                self.context.progress(
                    f"step {state.step}: loss {loss:.4g}, held out {last:.4g}, "
                    f"best {state.best:.4g} of {state.start:.4g}",
                    min(self._part(state), 1.0),
                )
        if self.checkpoint is not None:
            self._write(state)
        self._load(state, "best")
        return state

    def evaluate(self) -> float:
        """The loss on the held-out items, infinite where it is not finite."""
        total = 0.0
        for chunk in np.array_split(self.held, max(1, -(-len(self.held) // self._per))):
            feeds = self.samples.feeds(chunk)
            for feed in feeds:
                with torch.no_grad():
                    total += float(self._feed_loss(chunk, feed, held=True)) * (
                        len(chunk) / len(feeds)
                    )
        mean = total / len(self.held)
        return mean if math.isfinite(mean) else math.inf

    # -- one step ---------------------------------------------------------------------------------

    def _step(self, state: State) -> float:
        options = self.options
        epoch, number = divmod(state.step, self.batches)
        rng = np.random.default_rng([self.context.seed, 1, epoch])
        items = np.array_split(rng.permutation(self.train), self.batches)[number]
        rate = options.learning_rate * state.damping * self._schedule(self._part(state))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        feeds = self.samples.feeds(items)
        total = 0.0
        self.student.renewing = options.batch_norm == "renew"
        for k, feed in enumerate(feeds):
            own = items if self.samples.loose else items[k : k + 1]
            if options.augment != "none":
                draw = np.random.default_rng([self.context.seed, 2, state.step, k])
                feed = augmented(feed, options.augment == "flip-shift", draw)
            loss = self._feed_loss(own, feed, held=False) / len(feeds)
            loss.backward()
            total += float(loss.detach())
        self.student.renewing = False
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, _NORM)
        if math.isfinite(float(norm)):
            self._optimizer.step()
        return total

    def _feed_loss(self, items: Items, feed: Mapping[str, Array], held: bool) -> Tensor:
        tensors = self.student.feed_tensors(feed)
        fresh = not held and self.options.augment != "none"
        wanted: Tensors = (
            self.teacher.on_feed(tensors) if fresh else self.teacher.on_items(items, tensors)
        )
        labels = None
        if self.labels is not None:
            rows = torch.from_numpy(self.labels[self.samples.rows(items)].astype(np.int64))
            labels = rows.to(self.student.device)
        return self.loss(self.student(tensors), wanted, labels)

    def _part(self, state: State) -> float:
        """How much of the training is over."""
        by_time = state.seconds / (60 * self.options.minutes)
        if self.options.epochs is None or by_time >= 1:
            return by_time
        return state.step / (self.options.epochs * self.batches)

    def _schedule(self, part: float) -> float:
        if part < _WARM_UP:
            return (part + 1e-3) / (_WARM_UP + 1e-3)
        rest = (min(part, 1.0) - _WARM_UP) / (1 - _WARM_UP)
        return 0.5 * (1 + math.cos(math.pi * rest))

    def _look(self, state: State) -> float:
        """Evaluates, keeps the best, returns to it where the rate is too high."""
        loss = self.evaluate()
        state.history.append((state.step, loss))
        if loss < state.best:
            state.best, state.worse = loss, 0
            self._save(state, "best")
            return loss
        state.worse += 1
        if loss > _DIVERGED * state.start or state.worse >= self.options.patience:
            self._load(state, "best")
            self._optimizer = self._make_optimizer()
            state.damping /= _DAMPED
            state.worse = 0
        return loss

    # -- weights and checkpoints ------------------------------------------------------------------

    def _make_optimizer(self) -> Any:
        options = self.options
        if options.optimizer == "sgd":
            return torch.optim.SGD(
                self._parameters,
                options.learning_rate,
                momentum=0.9,
                nesterov=True,
                weight_decay=options.weight_decay,
            )
        return torch.optim.AdamW(
            self._parameters, options.learning_rate, weight_decay=options.weight_decay, fused=True
        )

    def _save(self, state: State, kind: str) -> None:
        for k, tensor in enumerate(self._tensors):
            state.arrays[f"{kind}/{k}"] = tensor.detach().cpu().numpy().copy()

    def _load(self, state: State, kind: str) -> None:
        with torch.no_grad():
            for k, tensor in enumerate(self._tensors):
                tensor.copy_(torch.from_numpy(state.arrays[f"{kind}/{k}"]))

    def _write(self, state: State) -> None:
        assert self.checkpoint is not None
        self._save(state, "now")
        for k, parameter in enumerate(self._parameters):
            for name, value in self._optimizer.state.get(parameter, {}).items():
                if value is not None:
                    state.arrays[f"{name}/{k}"] = torch.as_tensor(value).cpu().numpy().copy()
        self.checkpoint.write(state)

    def _restore(self, state: State) -> None:
        self._load(state, "now")
        for name, array in state.arrays.items():
            kind, _, number = name.partition("/")
            if kind not in ("now", "best"):
                parameter = self._parameters[int(number)]
                value = torch.from_numpy(array.copy()).to(parameter.device)
                self._optimizer.state[parameter][kind] = value
