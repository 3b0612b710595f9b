"""Normalisations: per channel (exact), or across the axis (linked through, inexact)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..coupling import Alternative
from .base import Site, positive_axes, rule
from .factors import Run, digits, link_factor

if TYPE_CHECKING:
    from ..restated import Restated

_SPATIAL = "an axis that the normalisation averages over"


@rule("BatchNormalization", family="normalisation")
def batch_normalization(site: Site) -> None:
    """Scale, bias, mean and variance belong to the channel (before opset 9 perhaps to every
    position of it); running statistics too. Training averages over the batch."""
    x = site.x
    site.link_axes(x, site.y)
    for operand in (*site.inputs[1:], *site.outputs[1:]):
        for index, axis in enumerate(operand.axes if operand is not None else ()):
            site.link(x.axis(1 + index), axis)
    training = site.opset < 14 and len(site.node.outputs) > 1
    if site.integer("training_mode", 0) or training:
        for axis in (x.axis(0), *x.axes[2:]):
            site.pin(axis, _SPATIAL)


@rule("InstanceNormalization", family="normalisation", exactness="depends")
def instance_normalization(site: Site) -> None:
    """Each channel is normalised over its own spatial extent, which holds channels too where a
    normalisation of groups is written so."""
    x = site.x
    site.link_axes(x, site.y)
    for operand in site.inputs[1:]:
        if operand is not None:
            site.link(x.axis(1), operand.axis(0))
    for index in range(2, x.rank):
        site.inexact([(0, index)], [(0, index)])


@rule(
    *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    family="normalisation",
    exactness="inexact",
)
def layer_normalization(site: Site) -> None:
    """Normalises over ``axis`` and all that follow; scale and bias broadcast onto the input."""
    x, y = site.x, site.y
    site.link_axes(x, y)
    first = positive_axes([site.integer("axis", -1)], x.rank)[0]
    for index in range(x.rank):
        touched = [(0, index)]
        for number, operand in enumerate(site.inputs[1:], start=1):
            if operand is None:
                continue
            own = index - (x.rank - operand.rank)
            if own < 0:
                continue
            if operand.shape[own] == x.shape[index]:
                site.link(operand.axis(own), x.axis(index))
                touched.append((number, own))
            else:
                site.pin(operand.axis(own), "broadcast along this axis")
        if index >= first:
            site.inexact(touched, [(0, index)])
    for statistic in site.outputs[1:]:
        if statistic is None:
            continue
        for index in range(first):
            site.link(x.axis(index), statistic.axis(index))
        for axis in statistic.axes[first:]:
            site.pin(axis, _SPATIAL)


def restate_groups(node: Restated) -> None:
    """Whole groups gone: the group size stays. Offsets gone: the number of groups stays."""
    if node.carrier == "groups":
        name = "num_groups" if node.domain == "" else "groups"
        old = node.integer(name, 1)
        # One value for each channel, or, in the standard's first version, for each group.
        node.set_int(name, old * node.new_size(1, 0) // node.old_size(1, 0))


@rule("GroupNormalization", family="normalisation", restate=restate_groups, exactness="depends")
def group_normalization(site: Site) -> None:
    """Whole groups are exact; the same offset in every group is inexact."""
    parameters = [(k, 0) for k, operand in enumerate(site.inputs) if operand is not None and k]
    grouped(site, site.integer("num_groups", 1), 1, parameters)


def grouped(
    site: Site, groups: int, channel: int, others: Sequence[tuple[int, int]], outputs: int = 1
) -> None:
    """Normalises over groups of channels, axis ``channel`` of X and of the first ``outputs``
    outputs; ``others`` are the inputs, with their axes, that have a value for each channel or for
    each group."""
    x, y = site.x, site.y
    site.link(x.axis(0), y.axis(0))
    for operand in (x, y):
        for index in set(range(1, x.rank)) - {channel}:
            site.pin(operand.axis(index), _SPATIAL)
    sizes = (groups, x.shape[channel] // groups)
    found = [(number, index, site.inputs[number]) for number, index in others]
    given = [(number, index, operand) for number, index, operand in found if operand is not None]
    runs = [Run(operand.axis(channel), (0, 1)) for operand in (x, y)]
    runs += [
        Run(operand.axis(index), (0,) if operand.shape[index] == groups else (0, 1))
        for _, index, operand in given
    ]

    def by_group() -> None:
        link_factor(site, runs, 0, sizes)

    def by_offset() -> None:
        link_factor(site, runs, 1, sizes)
        touched = [(k, i) for k, i, operand in given if operand.shape[i] == x.shape[channel]]
        site.inexact([(0, channel), *touched], [(k, channel) for k in range(outputs)])
        for run in runs:
            if 1 not in run.factors:
                site.pin(run.axis, "one value per group of channels")

    def never() -> None:
        for run in runs:
            site.pin(run.axis, "channels of a group normalisation that cannot go one by one")

    needs = tuple(run.axis for run in runs)
    options = []
    if groups > 1:
        options.append(Alternative("groups", needs, digits(runs, 0, sizes), by_group, rank=1))
    if sizes[1] > 1:
        ends = (x.axis(channel), y.axis(channel))
        options.append(Alternative("offsets", ends, digits(runs, 1, sizes), by_offset))
    site.choose(*options, otherwise=never)


@rule("LRN", family="normalisation", exactness="inexact")
def local_response_normalization(site: Site) -> None:
    """Each channel is divided by a sum over its neighbours."""
    site.link_axes(site.x, site.y)
    site.inexact([(0, 1)], [(0, 1)])


@rule("LpNormalization", family="normalisation")
def lp_normalization(site: Site) -> None:
    """Divides by the norm along ``axis``, to which zeros add nothing: exact."""
    site.link_axes(site.x, site.y)
    site.sink(0, positive_axes([site.integer("axis", -1)], site.x.rank)[0])


@rule("MeanVarianceNormalization", family="normalisation", exactness="inexact")
def mean_variance_normalization(site: Site) -> None:
    """Normalises over ``axes``."""
    site.link_axes(site.x, site.y)
    for axis in positive_axes(site.integers("axes") or (0, 2, 3), site.x.rank):
        site.inexact([(0, axis)], [(0, axis)])
