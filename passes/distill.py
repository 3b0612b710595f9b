"""``distill``: train the pruned model's weights to give what the original gives.

The original is the teacher, unlabelled data the textbook: the student, the model as it has become
in the pipeline, learns the original's outputs and some values inside that both have (see
`distill_targets`, `distill_loss`). The weights that were best on held-out data go back into the
same graph, in their own element types; nothing else changes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx_ir as oir

from ..ir.constants import constants
from ..ir.errors import DataError, UsageError, reason
from ..ir.flatten import flatten, with_constants
from ..ir.trainable import Trainable, trainable
from ..runtime.items import Items, Samples
from ..runtime.output_drift import drift
from ..runtime.torch_support import choose_device, require_torch
from .base import Contract, Pass, PassContext, PassResult
from .distill_targets import Target, blocking_node, inner_values, output_targets, value_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..runtime.session import Array, Feed
    from ..runtime.torch_executor import TorchExecutor

MEASURED = 256
"""At most so many held-out samples serve to measure the drift."""
HELD = 2048
"""At most so many samples are held out."""
INSIDE = 8
"""At most so many values inside take part unless they are named."""


@dataclass(frozen=True)
class Distill(Pass):
    """Trains for ``minutes`` (or ``epochs``, whichever ends first) on calibration data. ``values``
    are globs of values inside to compare besides the outputs; ``hidden`` weighs them, 0 leaves
    them out. ``labels`` is a .npy file of class numbers, one for each sample. ``original`` is the
    model to learn from when it is not what the pipeline was given."""

    name: ClassVar[str] = "distill"
    contract: ClassVar[Contract] = Contract.APPROXIMATES
    summary: ClassVar[str] = "train the weights to give the original's outputs, without labels"
    refits: ClassVar[bool] = True

    minutes: float = 5.0
    epochs: int | None = None
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    temperature: float = 2.0
    hidden: float = 1.0
    values: tuple[str, ...] = ()
    hold_out: float = 0.1
    patience: int = 20
    batch_norm: Literal["keep", "renew", "insert"] = "keep"
    augment: Literal["none", "flip", "flip-shift"] = "none"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint: str = ""
    labels: str = ""
    original: str = ""

    def __post_init__(self) -> None:
        for name in ("minutes", "learning_rate", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be more than 0, not {getattr(self, name):g}")
        for name in ("weight_decay", "hidden"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be at least 0, not {getattr(self, name):g}")
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, not {value}")
        if not 0 < self.hold_out < 1:
            raise ValueError(f"`hold_out` must be between 0 and 1, not {self.hold_out:g}")

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        """Raises UsageError without PyTorch, data or a weight to train, and for an operator that
        the executor does not know; DataError for data that is too little or does not fit."""
        torch = require_torch("distill")
        if context.calibration is None:
            raise UsageError("distill learns from data: give --calibration FILE")
        original = self._teacher(model, context)
        samples = Samples(context.calibration, model, context.dims)
        train, held = self._split(samples, context.seed)
        labels = self._read_labels(samples)
        context.progress("prepare", None)
        with _threads(torch, context.threads):
            flat = flatten(model)
            weights = trainable(flat)
            pair = _Pair(flat, flatten(original), weights, self, self._batches(samples, train))
            feeds = samples.feeds(held[: max(1, MEASURED // samples.size)])
            before = drift(original, model, feeds, threads=context.threads)
            start = time.perf_counter()
            outcome = self._train(pair, samples, (train, held), labels, context)
            seconds = time.perf_counter() - start
        changed = trained_tensors(flat, outcome["weights"])
        model = with_constants(model, changed)
        context.progress("measure", None)
        state, batches = outcome["state"], outcome["batches"]
        steps = state.step
        statistics = {
            "weights": len(changed),
            "parameters": sum(tensor.size for tensor in changed.values()),
            "steps": steps,
            "epochs": round(steps / batches, 2),
            "loss-before": state.start,
            "loss": state.best,
            "drift-before": before,
            "drift": drift(original, model, feeds, threads=context.threads) if changed else before,
        }
        details = {
            "outputs": [{"value": t.value, "kind": t.kind} for t in pair.targets],
            "inside": outcome["inside"],
            "not-trained": dict(weights.left),
            "history": state.history,
            "samples-per-second": round(steps * len(train) / batches * samples.size / seconds, 1),
        }
        refitted = sorted(changed)
        return PassResult(
            model, bool(changed), statistics, {"distill": details, "refitted": refitted}
        )

    def _train(
        self,
        pair: _Pair,
        samples: Samples,
        split: tuple[Items, Items],
        labels: Array | None,
        context: PassContext,
    ) -> dict[str, Any]:
        from .distill_checkpoint import Checkpoint, fingerprint
        from .distill_loss import Loss
        from .distill_training import Teacher, Training

        train, held = split
        feed = samples.feeds(train[: 4 if samples.loose else 1])[0]
        inside = pair.choose_inside(feed, self) if self.hidden else []
        loss = Loss(pair.targets, inside, self.temperature, self.hidden)
        if labels is not None and not any(t.kind in ("logits", "either") for t in pair.targets):
            raise UsageError("labels need an output that looks like the logits of classes")
        student, teacher = pair.executors(loss.wanted)
        keeper = Teacher(teacher, samples)
        feed = samples.feeds(train[: max(1, self.batch_size // samples.size)])[0]
        loss.fit(keeper.on_feed(teacher.feed_tensors(feed)))
        checkpoint = None
        if self.checkpoint:
            initial = {n: p.detach().cpu().numpy() for n, p in student.parameters.items()}
            data = {f"data/{n}": np.asarray(a) for n, a in (context.calibration or {}).items()}
            skipped = ("minutes", "epochs", "patience", "checkpoint", "device", "original")
            options = {k: v for k, v in asdict(self).items() if k not in skipped}
            options |= {"seed": context.seed, "targets": str(pair.targets), "inside": inside}
            checkpoint = Checkpoint(self.checkpoint, fingerprint(initial | data, options))
        training = Training(
            student, keeper, loss, samples, train, held, labels, self, context, checkpoint
        )
        state = training.run()
        found = {**student.parameters, **student.buffers}
        arrays = {name: t.detach().cpu().contiguous().numpy() for name, t in found.items()}
        for norm in pair.norms:
            arrays |= norm.folded(arrays)
        return {
            "weights": arrays,
            "state": state,
            "batches": training.batches,
            "inside": inside,
        }

    def _teacher(self, model: oir.Model, context: PassContext) -> oir.Model:
        from ..ir.io import load_model

        original = load_model(self.original) if self.original else context.original
        if original is None:
            raise UsageError("distill has no original to learn from: name one with original=FILE")
        names = [[str(v.name) for v in m.graph.inputs] for m in (original, model)]
        outputs = [[str(v.name) for v in m.graph.outputs] for m in (original, model)]
        if set(names[1]) - set(names[0]) or outputs[0] != outputs[1]:
            raise UsageError("the original has other inputs or outputs than the model")
        return original

    def _split(self, samples: Samples, seed: int) -> tuple[Items, Items]:
        """The items to train on and those that are held out, drawn by the seed."""
        if samples.count < 2:
            raise DataError(
                f"distill needs samples to train on and others to hold out, not {samples.count} "
                f"feed of {samples.size}"
            )
        order = np.random.default_rng([seed, 0]).permutation(samples.count)
        most = max(1, HELD // samples.size)
        count = min(max(1, round(samples.count * self.hold_out)), samples.count - 1, most)
        return np.sort(order[count:]), np.sort(order[:count])

    def _batches(self, samples: Samples, train: Items) -> Sequence[Feed]:
        """The feeds that normalisations are made from.

        Raises UsageError where batches are too small for that."""
        if self.batch_norm != "insert":
            return []
        from .distill_norms import LEAST

        if not samples.loose or self.batch_size < LEAST or len(train) < LEAST:
            raise UsageError(f"batch-norm=insert needs batches of at least {LEAST} samples")
        return samples.feeds(train[:MEASURED])

    def _read_labels(self, samples: Samples) -> Array | None:
        if not self.labels:
            return None
        try:
            labels = np.load(Path(self.labels), allow_pickle=False)
        except Exception as error:  # whatever numpy says to a malformed file
            raise DataError(f"{self.labels}: not a readable .npy file: {reason(error)}") from error
        if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
            raise DataError(f"{self.labels}: must hold one array of class numbers")
        if labels.ndim == 0 or len(labels) < samples.count * samples.size:
            raise DataError(f"{self.labels}: fewer labels than samples")
        return labels


class _Pair:
    """Student and teacher as flat models, and what is compared."""

    def __init__(
        self,
        student: oir.Model,
        teacher: oir.Model,
        weights: Trainable,
        options: Distill,
        feeds: Sequence[Feed],
    ) -> None:
        from ..runtime.torch_ops import known_operators
        from ..runtime.torch_program import CONTROL, unsupported
        from .distill_norms import Norm, insert_norms

        if not weights.weights:
            raise UsageError("the model has no weight that distill could train")
        self.student, self.teacher = student, teacher
        self.trained = list(weights.weights)
        self.norms: list[Norm] = []
        self._device = choose_device(options.device)
        self._renew = options.batch_norm != "keep"
        self._shared = value_names(student.graph) & value_names(teacher.graph)
        known = known_operators().keys() | {("", name) for name in CONTROL}
        if blocking := blocking_node(student.graph, known, weights.weights.keys()):
            raise unsupported(blocking)
        self.targets: list[Target] = output_targets(teacher, known, self._shared)
        if options.batch_norm == "insert":
            self.student = student.clone()
            self.norms = insert_norms(self.student, self.trained, feeds, self._device)
            self.trained += [name for norm in self.norms for name in norm.names[:2]]

    def executors(self, wanted: Sequence[str]) -> tuple[TorchExecutor, TorchExecutor]:
        """The student, whose weights can be trained, and the teacher."""
        from ..runtime.torch_executor import TorchExecutor

        student = TorchExecutor(
            self.student,
            trained=self.trained,
            wanted=wanted,
            device=self._device,
            renew=self._renew,
        )
        return student, TorchExecutor(self.teacher, wanted=wanted, device=self._device)

    def choose_inside(self, feed: Mapping[str, Array], options: Distill) -> list[str]:
        """The values inside that take part: those of equal shape in both models on a feed; unless
        they are named, up to `INSIDE` spread over the graph."""
        taken = {t.value for t in self.targets}
        for names in inner_values(self.student, self._shared, self.trained, options.values):
            student, teacher = self.executors(sorted(taken.union(names)))
            ours, theirs = (e(e.feed_tensors(feed)) for e in (student, teacher))
            equal = [
                name
                for name in names
                if ours[name].shape == theirs[name].shape and ours[name].requires_grad
                if name not in taken
            ]
            if options.values or 0 < len(equal) <= INSIDE:
                return equal
            if equal:
                spread = np.linspace(0, len(equal) - 1, INSIDE).round().astype(int)
                return [equal[k] for k in spread]
        return []


def trained_tensors(flat: oir.Model, arrays: Mapping[str, Array]) -> dict[str, oir.TensorProtocol]:
    """Arrays in the place of the constants that have these names, rounded to their element types;
    those that this changes."""
    changed: dict[str, oir.TensorProtocol] = {}
    for value, tensor in constants(flat.graph):
        name = str(value.name)
        if name not in arrays:
            continue
        new = arrays[name].astype(tensor.dtype.numpy())
        if np.array_equal(new, tensor.numpy()):
            continue
        stored = oir.Tensor(new, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)
        stored.metadata_props.update(getattr(tensor, "metadata_props", {}))
        changed[name] = stored
    return changed


@contextmanager
def _threads(torch: Any, count: int) -> Iterator[None]:
    """Within the block PyTorch uses ``count`` threads, 0 for as many as it likes."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
