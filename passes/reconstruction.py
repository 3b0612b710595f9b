"""The criterion ``reconstruction``: what the model loses when a unit goes and the rest is refitted.

Within a group, units go in the order in which their consumers miss them least (see `downdates`);
layers that share a weight are one consumer. The growth of the error in shares of the variance of
the consumers' outputs is what a unit scores at its turn. But an error counts for more in one layer
than in another. How much is measured: with a third of the group's units gone and its consumers
refitted, the model's outputs are off by a share of their variance, and the group's scores are
scaled so that those of this third add up to it (or those of two thirds, or all, if that cannot be
seen). Scores are thus comparable between groups as they are.

Units that some consumer contracts with more than constant weights, or that no linear layer reads,
are measured without refitting: the third of them with the least energy (see the criterion
``activation``) is removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx

from ..ir.analysis import Analysis
from ..ir.errors import ModelError, UsageError
from ..ir.linear import LinearLayer, linear_layers
from ..ir.rewrite import rewrite
from .downdates import Consumer, Indices, growth, unit_columns
from .layers import Matrix, batches, start_weights, stored_weights
from .scoring import Scores, Scoring, describe

if TYPE_CHECKING:
    from ..runtime.least_squares import Gram
    from ..runtime.session import Array, Feed
    from ..runtime.stepwise import Stepwise

RIDGE = 1e-4
"""Added to the diagonal of Gram matrices, in shares of its mean."""
SAMPLES = 1024
"""Of the calibration data, so many are looked at. To measure what counts, `MEASURED` are run for
every group, or as many, but no fewer than `LEAST`, as `WORK` multiply-accumulates allow."""
MEASURED, LEAST, WORK = 128, 16, 2e12
MEMORY = 4e9
"""Bytes of activations held at most."""

NOISE, VISIBLE = 1e-9, 1e-6
"""Shares of a variance far below the one are rounding; the other can be measured."""

Readers = dict[int, list[tuple[LinearLayer, Indices]]]


@describe(needs_calibration=True, normalize="none")
def reconstruction(analysis: Analysis, scoring: Scoring) -> Scores:
    """float64[unit_count]: shares of the variance of the model's outputs."""
    from ..runtime.grams import one_blas_thread
    from ..runtime.runnable import runnable
    from ..runtime.stepwise import Stepwise, fitting, steppable

    context = scoring.context
    scores = np.zeros(analysis.unit_count)
    with runnable(analysis.model) as (proto,), one_blas_thread():
        (stepped,), feeds = steppable([proto], batches(proto, context, SAMPLES))
        feeds = fitting([stepped], feeds, MEMORY, context.threads)
        few = batches(proto, context, _measured(analysis, feeds[0]))
        measure = _Measure(proto, few, context.threads)
        steps = Stepwise(stepped, feeds, threads=context.threads)
        readers = {
            group: pairs
            for group, pairs in _readers(analysis).items()
            if all(steps.has(str(layer.input.name)) for layer, _ in pairs)
        }
        layers = {layer.made: layer for pairs in readers.values() for layer, _ in pairs}
        uses = Counter(layer.tie for layer in layers.values())
        columns: dict[Hashable, dict[int, Indices]] = {tie: {} for tie in uses}
        for group, pairs in readers.items():
            for layer, places in pairs:
                columns[layer.tie][group] = places
        missing = Counter(group for own in columns.values() for group in own)
        consumers: dict[int, list[Consumer]] = {group: [] for group in readers}
        sums: dict[Hashable, Gram] = {}
        for number, name in enumerate(sorted(layers, key=steps.position_of)):
            context.progress("score", number / len(layers))
            layer, tie = layers[name], layers[name].tie
            rows = _rows(layer, steps, (context.seed, number), context.threads)
            sums[tie] = sums[tie] + rows if tie in sums else rows
            uses[tie] -= 1
            if uses[tie]:
                continue
            weights = start_weights(layer)
            inverse, variance = _inverse(layer, weights, sums.pop(tie))
            scale = 1.0 / max(variance, 1e-30)
            for group, places in columns[tie].items():
                own = inverse.copy() if len(columns[tie]) > 1 else inverse
                consumers[group].append(Consumer(layer, places, own, weights.copy(), scale))
                missing[group] -= 1
                if not missing[group]:
                    units = analysis.groups[group].units
                    scores[units] = _refitted(consumers.pop(group), len(units), measure)
        _unfitted(analysis, readers, scores, scoring, measure)
    return scores


def _readers(analysis: Analysis) -> Readers:
    """For every group whose units only linear layers contract: these, and the columns of its units
    (see `Consumer`)."""
    sites = {site.node: site for site in analysis.sites}
    sinks = {(s.site, s.input): s.axis for s in analysis.statements.sinks}
    found: Readers = {}
    for layer in linear_layers(analysis.model.graph):
        site = sites.get(layer.node)
        if site is None or (site.number, 0) not in sinks:
            continue
        units = analysis.units_of(site.x.axis(layer.channel_axis))
        for group in _groups_of(analysis, units):
            members = analysis.groups[group].units
            assert units is not None
            columns = unit_columns(layer, np.where(np.isin(units, members), units, -1), members)
            if columns is not None:
                found.setdefault(group, []).append((layer, columns))
    counts: dict[int, int] = {}
    for axis in sinks.values():
        for group in _groups_of(analysis, analysis.units_of(axis)):
            counts[group] = counts.get(group, 0) + 1
    return {group: pairs for group, pairs in found.items() if len(pairs) == counts.get(group)}


def _measured(analysis: Analysis, feed: Feed) -> int:
    """How many samples are run for every group."""
    from ..runtime.cost import CostModel

    binding = analysis.facts[0].types
    sizes = [binding[name][1][0] for name, a in feed.items() if a.ndim and name in binding]
    each = CostModel(analysis).costs().macs / max(sizes, default=1) * len(analysis.groups)
    return int(min(max(WORK / max(each, 1), LEAST), MEASURED))


def _groups_of(analysis: Analysis, units: npt.NDArray[np.int64] | None) -> list[int]:
    if units is None:
        return []
    return [int(g) for g in np.unique(analysis.group_of_unit[units[units >= 0]])]


def _rows(layer: LinearLayer, steps: Stepwise, seed: Sequence[int], threads: int) -> Gram:
    """The sums over the rows that the layer is given."""
    from ..runtime.grams import LayerRows

    steps.run_to(steps.position_of(layer.made))
    inputs = steps.get(str(layer.input.name))
    if layer.is_recurrent:
        outputs = [np.zeros((*x.shape[:-1], layer.outputs), x.dtype) for x in inputs]
    else:
        outputs = steps.get(layer.made)
    train, held_out = LayerRows(layer, inputs, outputs, seed=seed, threads=threads).sums()
    return train + held_out


def _inverse(layer: LinearLayer, weights: Matrix, whole: Gram) -> tuple[Matrix, float]:
    """The inverse of the layer's Gram matrix per row, and the variance of its output's rows."""
    whole.c = whole.g @ weights
    whole.t = np.einsum("gkm,gkm->gm", weights, whole.c)
    if not whole.is_finite:
        raise ModelError(
            f"'{layer.input.name}' is not finite on the calibration data, so units cannot be"
            " scored; check the data, or choose another criterion"
        )
    system = whole.g / max(whole.rows, 1)
    diagonal = np.einsum("gkk->gk", system)
    diagonal[:, :-1] += RIDGE * diagonal[:, :-1].mean(axis=1, keepdims=True) + 1e-30
    return np.stack([_inverted(matrix) for matrix in system]), whole.variance


def _inverted(matrix: Matrix) -> Matrix:
    """The inverse of a positive definite matrix."""
    from scipy.linalg.lapack import dpotrf, dpotri

    root, failed = dpotrf(matrix, lower=True)
    if failed:
        raise np.linalg.LinAlgError("not positive definite")
    lower, _ = dpotri(root, lower=True)
    inverse: Matrix = np.tril(lower) + np.tril(lower, -1).T
    return inverse


def _refitted(consumers: list[Consumer], count: int, measure: _Measure) -> Scores:
    """The scores of a group's units."""
    scores, gone, counted, lost = np.zeros(count), 0.0, 0.0, 0.0
    turns = {-(-count * third // 3) for third in (1, 2, 3)}
    for number, (unit, cost) in enumerate(growth(consumers, count), start=1):
        scores[unit] = cost
        gone += cost
        if number in turns and lost < VISIBLE:
            counted = gone
            arrays: dict[str, Array] = {}
            for consumer in consumers:
                arrays |= stored_weights(consumer.layer, consumer.weights)
            lost = measure.lost(measure.changed(arrays))
    return scores * _factor(lost, counted)


def _factor(lost: float, counted: float) -> float:
    """What scores must be multiplied by for those that add up to ``counted`` to add up to ``lost``,
    both shares of a variance. 1 where both are rounding; small, but not 0, where nothing is lost.
    """
    return (lost + NOISE) / (counted + NOISE)


def _unfitted(
    analysis: Analysis, readers: Readers, scores: Scores, scoring: Scoring, measure: _Measure
) -> None:
    """Fills in the scores of the groups that the layers say too little about."""
    from ..runtime.runnable import runnable
    from .activation_criterion import activation
    from .weight_criteria import l2

    left = [group for group in analysis.groups if group.number not in readers]
    if not left:
        return
    try:
        energy = activation(analysis, scoring)
    except UsageError:  # it sees none of them
        energy = np.square(l2(analysis))
    for group in left:
        shares = energy[group.units] / max(energy[group.units].sum(), 1e-30)
        order, lost, counted = np.argsort(shares, kind="stable"), 0.0, 0.0
        for cut in (-(-len(shares) // 3), -(-len(shares) * 2 // 3)):
            if lost < VISIBLE and cut < len(shares):
                removed = np.zeros(analysis.unit_count, np.bool_)
                removed[group.units[order[:cut]]] = True
                counted = float(shares[order[:cut]].sum())
                with runnable(rewrite(analysis, removed).model) as (smaller,):
                    lost = measure.lost(smaller)
        scores[group.units] = shares * _factor(lost, counted)


class _Measure:
    """How far a model's outputs move when the model changes."""

    def __init__(self, model: onnx.ModelProto, feeds: Sequence[Feed], threads: int) -> None:
        from ..runtime.deviation import compared

        self.model, self.feeds, self.threads = model, feeds, threads
        self.names = compared(model)
        self.wanted = self._outputs(model)

    def lost(self, model: onnx.ModelProto) -> float:
        """The squared error of its outputs in shares of their variance."""
        from ..runtime.deviation import deviation

        return deviation(self.wanted, self._outputs(model)) ** 2

    def changed(self, arrays: dict[str, Array]) -> onnx.ModelProto:
        """The model with these numbers in the place of those of its constants."""
        changed = onnx.ModelProto()
        changed.CopyFrom(self.model)
        for tensor in changed.graph.initializer:
            if tensor.name in arrays:
                tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
        for node in changed.graph.node:
            if node.op_type == "Constant" and node.output[0] in arrays:
                array = np.ascontiguousarray(arrays[node.output[0]])
                del node.attribute[:]
                value = onnx.numpy_helper.from_array(array)
                node.attribute.append(onnx.helper.make_attribute("value", value))
        return changed

    def _outputs(self, model: onnx.ModelProto) -> dict[str, list[Array]]:
        from ..runtime.deviation import showing
        from ..runtime.runnable import run_feeds

        shown = showing(model, self.names)
        found = list(run_feeds(shown, self.feeds, threads=self.threads))
        return {name: [outputs[name] for outputs in found] for name in self.names}
