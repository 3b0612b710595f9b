"""``recover``: refit the weights of a pruned model to the original's activations, in closed form.

The pruned model is gone through in order. Every linear layer (convolutions of any kind, matrix
products, the input weights of recurrent layers) gets the weights and the bias that best give, from
what the pruned network feeds it, what the original gave in its place (see `aims`): ridge least
squares, whose ridge is chosen layer by layer on held-out samples (see `least_squares`). Weights
that are stored as integers are fitted as the real numbers they stand for, and rounded to their
steps again. BatchNormalization gets new statistics. No labels, no gradients; the graph stays as it
is, and only numbers in it change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import onnx
import onnx_ir as oir

from ..ir.constants import constant_tensor, constants, set_constant, tensor_shape
from ..ir.errors import UsageError
from ..ir.linear import LinearLayer, linear_layers
from .aims import Aim, aim_of, wanted
from .base import Contract, Pass, PassContext, PassResult
from .kept import kept_coordinates
from .layers import batches, noise, start_weights, stored_weights
from .renormalise import normalisations, renormalised

if TYPE_CHECKING:
    from ..runtime.least_squares import Gram, Matrix
    from ..runtime.session import Array, Feed

RECTIFIED = 3
"""How often targets below zero are asked anew."""
FEW = 64
"""With fewer samples the report says that they are few."""
_NOISE = (
    "weights were refitted to noise, for want of calibration data: how far the outputs are off is"
    " measured on noise too, and real data would bring more"
)
_WORSE = (
    "weights stay as they were: refitted on {} samples, they brought the outputs no closer to the"
    " original's; more samples may"
)
UNTOUCHED = 1e-9
"""A layer whose error is at most this share of its target's variance is left as it is."""


@dataclass(frozen=True)
class Fit:
    """What refitting the layer that makes ``output`` brought: the error on held-out rows in shares
    of the targets' variance, before and after; the lambda that was chosen. Where there are too few
    rows to hold some out, only the bias changes: the error on these rows, and infinity."""

    output: str
    before: float
    after: float
    ridge: float


@dataclass(frozen=True)
class Recover(Pass):
    """Refits linear layers to what the original gives on ``samples`` of calibration data, at most
    ``rows`` rows for each (0: as many as its size asks for), or, with ``data`` noise, on random
    inputs. ``memory`` bounds the gigabytes of activations that are held; fewer samples are used
    where they would need more."""

    name: ClassVar[str] = "recover"
    contract: ClassVar[Contract] = Contract.APPROXIMATES
    summary: ClassVar[str] = "refit the weights to the original's activations, without labels"
    refits: ClassVar[bool] = True

    samples: int = 4096
    rows: int = 0
    data: Literal["calibration", "noise"] = "calibration"
    memory: float = 4.0

    def __post_init__(self) -> None:
        if self.samples < 5:
            raise ValueError(f"samples must be at least 5, not {self.samples}")
        if self.rows < 0:
            raise ValueError(f"rows must be at least 0, not {self.rows}")
        if self.memory <= 0:
            raise ValueError(f"memory must be more than 0, not {self.memory:g}")

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        """Raises UsageError without calibration data or without an original to go by."""
        from ..runtime.runnable import runnable
        from ..runtime.stepwise import steppable

        if context.original is None:
            raise UsageError("recover needs the original model: run it in a pipeline")
        if context.calibration is None and self.data == "calibration":
            raise UsageError(
                "recover fits to activations on data: give --calibration FILE, or data=noise"
            )
        with runnable(context.original, model) as (before, after):
            feeds = (noise if self.data == "noise" else batches)(before, context, self.samples)
            (before, after), feeds = steppable([before, after], feeds)
            walk = _Walk(self, model, context, before, after, feeds)
            fits = walk.run()
            drifts = walk.drifts()
        better = drifts[1] <= drifts[0]
        notes = [_NOISE] if self.data == "noise" else []
        if not notes and walk.samples < FEW:
            notes.append(
                f"weights were refitted to {walk.samples} samples only: what these do not show may"
                " be lost; some hundreds do better"
            )
        if walk.found and not better:
            notes.append(_WORSE.format(walk.samples))
        if better:
            for value, _ in list(constants(model.graph)):
                if value.name in walk.found:
                    array = walk.found[str(value.name)]
                    set_constant(value, oir.tensor(array, name=value.name))
        return PassResult(
            model,
            better and bool(walk.found),
            {
                "layers": len(fits) if better else 0,
                "samples": walk.samples,
                "drift-before": drifts[0],
                "drift": drifts[1] if better else drifts[0],
            },
            {
                "fits": fits,
                "refitted": sorted(walk.found) if better else [],
                "notes": notes,
            },
        )


@dataclass
class _Walk:
    """Both models side by side, from stop to stop."""

    options: Recover
    model: oir.Model
    context: PassContext
    before: onnx.ModelProto
    after: onnx.ModelProto
    feeds: Sequence[Feed]
    found: dict[str, Array] = field(default_factory=dict)
    samples: int = 0

    def run(self) -> list[Fit]:
        from ..runtime.deviation import compared
        from ..runtime.stepwise import Stepwise, fitting

        context = self.context
        assert context.original is not None
        layers = fitted_layers(self.model)
        stops: list[tuple[int, LinearLayer | oir.Node]] = []
        threads = context.threads
        feeds = fitting([self.before, self.after], self.feeds, self.options.memory * 1e9, threads)
        self.feeds, self.samples = feeds, _count(feeds)
        aims = {id(layer): aim_of(layer) for layer in layers}
        nodes = normalisations(self.model)
        needed = {str(node.inputs[0].name) for node in nodes if node.inputs[0] is not None}
        for aim in aims.values():
            needed |= aim.names
        shown = compared(self.before)
        self.original = Stepwise(self.before, feeds, keep={*needed, *shown}, threads=threads)
        self.pruned = Stepwise(self.after, feeds, keep=shown, threads=threads)
        self.shown = [name for name in shown if self.pruned.has(name)]
        stops += [(self._place(layer.node), layer) for layer in layers]
        stops += [(self._place(node), node) for node in nodes]
        stops.sort(key=lambda pair: pair[0])
        last: dict[str, int] = {}
        for number, (_, stop) in enumerate(stops):
            last.update(dict.fromkeys(_names(stop, aims), number))
        fits = []
        for number, (place, stop) in enumerate(stops):
            context.progress("recover", number / len(stops))
            self.pruned.run_to(place)
            if isinstance(stop, LinearLayer):
                fit = self._fit(stop, aims[id(stop)], number)
                fits += [] if fit is None else [fit]
            else:
                arrays = renormalised(stop, self.original, self.pruned, context.history)
                self._set(arrays)
            for name in _names(stop, aims):
                if last[name] == number and name not in self.shown:
                    self.original.drop(name)
        return fits

    def _place(self, node: oir.Node) -> int:
        return self.pruned.position_of(str(node.outputs[0].name))

    def _fit(self, layer: LinearLayer, aim: Aim, number: int) -> Fit | None:
        from ..runtime.grams import LayerRows, one_blas_thread
        from ..runtime.least_squares import fit

        context, has_bias = self.context, layer.has_own_bias
        if not self.pruned.has(str(layer.input.name)):  # it is made of constants
            return None
        whole = self._whole(layer) if layer.is_recurrent else None
        aimed = wanted(layer, aim, self.original, self.pruned, context.history, whole)
        if aimed is None:
            return None
        rows = LayerRows(
            layer,
            self.pruned.get(str(layer.input.name)),
            aimed.targets,
            aimed.offsets,
            seed=(context.seed, number),
            rows=self.options.rows,
            threads=context.threads,
            again=aimed.rectified,
        )
        with one_blas_thread():
            train, held_out = rows.sums()
            if not (train.rows or held_out.rows) or not (train.is_finite and held_out.is_finite):
                return None
            start = start_weights(layer)
            if not (train.rows and held_out.rows):  # too few rows for more than the bias
                return self._compensated(layer, train + held_out, start)
            before = held_out.share(start)
            if before <= UNTOUCHED:
                return None
            weights, ridge, after = fit(train, held_out, start, bias=has_bias)
            if aimed.rectified:
                for _ in range(RECTIFIED):
                    train, held_out = rows.sums(weights)
                    strength = 1.0 if ridge == np.inf else ridge
                    weights = (train + held_out).solve(start, strength, has_bias)
            elif ridge == np.inf:
                return None
        self._set(stored_weights(layer, weights))
        return Fit(str(layer.output.name), before, after, ridge)

    def _compensated(self, layer: LinearLayer, rows: Gram, start: Matrix) -> Fit | None:
        if not layer.has_own_bias:
            return None
        weights = rows.compensated(start)
        self._set(stored_weights(layer, weights))
        return Fit(str(layer.output.name), rows.share(start), rows.share(weights), np.inf)

    def _whole(self, layer: LinearLayer) -> tuple[Array, Array] | None:
        """The original's weights and biases of a recurrent layer, for the gates that are left."""
        assert self.context.original is not None
        for other in linear_layers(self.context.original.graph):
            if other.output.name == layer.output.name and other.is_recurrent:
                matrix, tensor = start_weights(other)[0], constant_tensor(other.weight)
                assert tensor is not None
                directions, rows, _ = tensor_shape(tensor)
                kept = kept_coordinates(self.context.history, str(other.weight.name), 1, rows)
                columns = (np.arange(directions)[:, None] * rows + kept).ravel()
                if len(columns) == layer.outputs:
                    return matrix[:-1, columns], matrix[-1, columns]
        return None

    def _set(self, arrays: Mapping[str, Array]) -> None:
        self.found |= arrays
        for name, array in arrays.items():
            self.pruned.set_weight(name, array)

    def drifts(self) -> tuple[float, float]:
        """How far the outputs are from the original's, before and after."""
        from ..runtime.deviation import deviation, showing
        from ..runtime.runnable import run_feeds

        wanted = {name: self.original.get(name) for name in self.shown}
        unfitted = showing(self.after, self.shown)
        old = list(run_feeds(unfitted, self.feeds, threads=self.context.threads))
        before = {name: [found[name] for found in old] for name in self.shown}
        after = {name: self.pruned.get(name) for name in self.shown}
        return deviation(wanted, before), deviation(wanted, after)


def fitted_layers(model: oir.Model) -> list[LinearLayer]:
    """The linear layers of the main graph whose weights are theirs alone."""
    return [layer for layer in linear_layers(model.graph) if layer.alone[0]]


def _names(stop: LinearLayer | oir.Node, aims: Mapping[int, Aim]) -> set[str]:
    """The values of the original that a stop may need."""
    if isinstance(stop, LinearLayer):
        return aims[id(stop)].names
    return {str(stop.inputs[0].name)} if stop.inputs[0] is not None else set()


def _count(feeds: Sequence[Feed]) -> int:
    return sum(max((a.shape[0] for a in feed.values() if a.ndim), default=1) for feed in feeds)
