"""The walk of ``recover`` through both models, from layer to layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as oir

from ..ir.constants import constant_tensor, tensor_shape
from ..ir.linear import LinearLayer, linear_layers
from ..ir.refittable import refittable
from .aims import aim_of, wanted
from .kept import kept_coordinates
from .layers import start_weights, stored_weights
from .renormalise import normalisations, renormalised

if TYPE_CHECKING:
    from ..runtime.grams import LayerRows
    from ..runtime.least_squares import Gram, Matrix
    from ..runtime.session import Array, Feed
    from ..runtime.stepwise import Stepwise
    from .base import PassContext
    from .recover import Recover

RECTIFIED = 3
"""How often targets below zero are asked anew."""
UNTOUCHED = 1e-9
"""A layer whose error is at most this share of its target's variance is left as it is."""

TURNS = 2
"""How often layers that work on each other's results are fitted."""

Layers = tuple[LinearLayer, ...]
"""Layers with one weight and one bias; mostly a single one."""


@dataclass(frozen=True)
class Fit:
    """What refitting the layer that makes ``output`` brought: the error on held-out rows in shares
    of the targets' variance, before and after; the lambda that was chosen. Where there are too few
    rows to hold some out, only the bias changes: the error on these rows, and infinity. Layers that
    share their weight are one fit, and say the same."""

    output: str
    before: float
    after: float
    ridge: float


Solved = tuple["Matrix", float, float, float]
"""New weights, and the figures of a `Fit`."""


@dataclass
class Walk:
    """The original and the pruned model side by side, from stop to stop: flat ``models``, and the
    ``protos`` of them that run. ``found`` are the numbers that were fitted."""

    options: Recover
    models: tuple[oir.Model, oir.Model]
    context: PassContext
    protos: tuple[onnx.ModelProto, onnx.ModelProto]
    feeds: Sequence[Feed]
    found: dict[str, Array] = field(default_factory=dict)
    samples: int = 0

    def run(self) -> list[Fit]:
        """Refits all layers; the pruned model has run to its end then."""
        from ..runtime.adjacent import stand_together
        from ..runtime.deviation import compared
        from ..runtime.stepwise import Stepwise, fitting

        context, threads = self.context, self.context.threads
        (before, after), graph = self.protos, self.models[1].graph
        layers = refittable(linear_layers(graph))
        together = stand_together(after, [_makes(some) for some in layers])
        self.apart = {some for some, possible in zip(layers, together, strict=True) if not possible}
        self.aims = {id(layer): aim_of(layer) for some in layers for layer in some}
        nodes = normalisations(graph)
        needed = {str(node.inputs[0].name) for node in nodes if node.inputs[0] is not None}
        for aim in self.aims.values():
            needed |= aim.names
        limit, held = self.options.memory * 1e9, needed if self.apart else ()
        self.feeds = feeds = fitting(self.protos, self.feeds, limit, threads, held)
        self.samples = _count(feeds)
        shown = compared(before)
        self.original = Stepwise(before, feeds, keep={*needed, *shown}, threads=threads)
        self.pruned = Stepwise(after, feeds, keep=shown, threads=threads)
        self.shown = [name for name in shown if self.pruned.has(name)]
        stops: list[tuple[int, Layers | oir.Node]] = [
            (min(map(self.pruned.position_of, _makes(some))), some) for some in layers
        ]
        stops += [(self.pruned.position_of(str(node.outputs[0].name)), node) for node in nodes]
        stops.sort(key=lambda pair: pair[0])
        last: dict[str, int] = {}
        for number, (_, stop) in enumerate(stops):
            last.update(dict.fromkeys(self._names(stop), number))
        fits = []
        for number, (place, stop) in enumerate(stops):
            context.progress("recover", number / len(stops))
            self.pruned.run_to(place)
            if isinstance(stop, tuple):
                fits += self._fit(stop, place, number)
            else:
                self._set(renormalised(stop, self.original, self.pruned, context.history))
            for name in self._names(stop):
                if last[name] == number and name not in self.shown:
                    self.original.drop(name)
        return fits

    def drifts(self) -> tuple[float, float]:
        """How far the outputs are from the original's, before and after."""
        from ..runtime.deviation import deviation, showing
        from ..runtime.runnable import run_feeds

        wanted = {name: self.original.get(name) for name in self.shown}
        unfitted = showing(self.protos[1], self.shown)
        old = list(run_feeds(unfitted, self.feeds, threads=self.context.threads))
        before = {name: [found[name] for found in old] for name in self.shown}
        after = {name: self.pruned.get(name) for name in self.shown}
        return deviation(wanted, before), deviation(wanted, after)

    def _names(self, stop: Layers | oir.Node) -> set[str]:
        """The values of the original that a stop may need."""
        if isinstance(stop, tuple):
            return set[str]().union(*(self.aims[id(layer)].names for layer in stop))
        return {str(stop.inputs[0].name)} if stop.inputs[0] is not None else set()

    def _fit(self, layers: Layers, place: int, number: int) -> list[Fit]:
        """Refits layers before the first of which the pruned model stands."""
        from ..runtime.grams import one_blas_thread

        with one_blas_thread():
            fit = self._fit_apart if layers in self.apart else self._fit_together
            solved = fit(layers, place, number)
        if solved is None:
            return []
        weights, *figures = solved
        self._set(stored_weights(layers[0], weights))
        return [Fit(str(layer.output.name), *figures) for layer in layers]

    def _fit_together(self, layers: Layers, place: int, number: int) -> Solved | None:
        parts = [self._rows(layer, self.pruned, place, number) for layer in layers]
        return _solved(parts, start_weights(layers[0]), layers[0].has_own_bias)

    def _fit_apart(self, layers: Layers, _place: int, number: int) -> Solved | None:
        """Refits layers of which one reads what another with the same weight has made: to what
        they are given with the weights at hand, and again with the new ones. Those weights are
        taken with which the layers, as they then work on each other, are the least off."""
        weights, ridge = start_weights(layers[0]), float(np.inf)
        tried: list[tuple[float, Matrix, float]] = []
        for turn in range(TURNS + 1):
            ahead = self.pruned.fork()
            for name, array in stored_weights(layers[0], weights).items():
                ahead.set_weight(name, array)
            parts = []
            for layer in sorted(layers, key=lambda layer: ahead.position_of(layer.made)):
                place = ahead.position_of(layer.made)
                ahead.run_to(place)
                parts.append(self._rows(layer, ahead, place, number))
            tried.append((_share(parts, weights), weights, ridge))
            solved = _solved(parts, weights, layers[0].has_own_bias) if turn < TURNS else None
            if solved is None:
                break
            weights, _, _, ridge = solved
        before, (after, best, ridge) = tried[0][0], min(tried, key=lambda turn: turn[0])
        return (best, before, after, ridge) if after < before else None

    def _rows(
        self, layer: LinearLayer, pruned: Stepwise, place: int, number: int
    ) -> LayerRows | None:
        """What the layer is given and what it should give; None where nothing says so."""
        from ..runtime.grams import LayerRows

        if not pruned.has(str(layer.input.name)):  # it is made of constants
            return None
        history = self.context.history
        whole = self._whole(layer) if layer.is_recurrent else None
        aim = self.aims[id(layer)]
        aimed = wanted(layer, aim, self.original, pruned, place, history, whole)
        if aimed is None:
            return None
        return LayerRows(
            layer,
            pruned.get(str(layer.input.name)),
            aimed.targets,
            aimed.offsets,
            seed=(self.context.seed, number),
            rows=self.options.rows,
            threads=self.context.threads,
            again=aimed.rectified,
        )

    def _whole(self, layer: LinearLayer) -> tuple[Array, Array] | None:
        """The original's weights and biases of a recurrent layer, for the gates that are left."""
        for other in linear_layers(self.models[0].graph):
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


def measured(
    original: oir.Model,
    before: oir.Model,
    after: oir.Model,
    feeds: Sequence[Feed],
    threads: int,
) -> tuple[float, float]:
    """How far the outputs of two flat models are from the original's."""
    from ..runtime.deviation import compared, deviation, showing
    from ..runtime.runnable import run_feeds, runnable
    from ..runtime.stepwise import steppable

    with runnable(original, before, after) as protos:
        stepped, feeds = steppable(protos, feeds)
        shown = compared(stepped[0])
        wanted, *found = (
            [*run_feeds(showing(proto, shown), feeds, threads=threads)] for proto in stepped
        )
    outputs = [{n: [given[n] for given in run] for n in shown} for run in (wanted, *found)]
    return deviation(outputs[0], outputs[1]), deviation(outputs[0], outputs[2])


def _share(parts: Sequence[LayerRows | None], weights: Matrix) -> float:
    """The error of weights on the rows that are held out, or on all where none are."""
    sums = [rows.sums() for rows in parts if rows is not None]
    if len(sums) < len(parts):
        return np.inf
    train, held_out = _added(sums)
    seen = held_out if held_out.rows else train
    return seen.share(weights) if seen.rows and seen.is_finite else np.inf


def _solved(parts: Sequence[LayerRows | None], start: Matrix, has_bias: bool) -> Solved | None:
    """New weights for all these rows; None where the old ones stay, or rows are missing."""
    from ..runtime.least_squares import fit

    there = [rows for rows in parts if rows is not None]
    if len(there) < len(parts):
        return None
    asked = [rows for rows in there if rows.again]
    known = [rows.sums() for rows in there if not rows.again]
    train, held_out = _added([*known, *(rows.sums() for rows in asked)])
    if not (train.rows or held_out.rows) or not (train.is_finite and held_out.is_finite):
        return None
    if not (train.rows and held_out.rows):  # too few rows for more than the bias
        if not has_bias:
            return None
        whole = train + held_out
        weights = whole.compensated(start)
        return weights, whole.share(start), whole.share(weights), np.inf
    before = held_out.share(start)
    if before <= UNTOUCHED:
        return None
    weights, ridge, after = fit(train, held_out, start, bias=has_bias)
    if asked:
        for _ in range(RECTIFIED):
            train, held_out = _added([*known, *(rows.sums(weights) for rows in asked)])
            strength = 1.0 if ridge == np.inf else ridge
            weights = (train + held_out).solve(start, strength, has_bias)
    elif ridge == np.inf:
        return None
    return weights, before, after, ridge


def _added(sums: Sequence[tuple[Gram, Gram]]) -> tuple[Gram, Gram]:
    (train, held_out), *more = sums
    for other, further in more:
        train, held_out = train + other, held_out + further
    return train, held_out


def _makes(layers: Layers) -> Collection[str]:
    return [layer.made for layer in layers]


def _count(feeds: Sequence[Feed]) -> int:
    return sum(max((a.shape[0] for a in feed.values() if a.ndim), default=1) for feed in feeds)
