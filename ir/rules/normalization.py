"""Normalisations: per channel (exact), or across the axis (linked through, inexact)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..coupling import Alternative
from .base import Operand, Run, Site, digits, link_factor, positive_axes, rule

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


@rule("InstanceNormalization", family="normalisation")
def instance_normalization(site: Site) -> None:
    """Each channel is normalised over its own spatial extent."""
    x, y = site.x, site.y
    for index in (0, 1):
        site.link(x.axis(index), y.axis(index))
    for operand in site.inputs[1:]:
        if operand is not None:
            site.link(x.axis(1), operand.axis(0))
    for axis in (*x.axes[2:], *y.axes[2:]):
        site.pin(axis, _SPATIAL)


@rule("LayerNormalization", "RMSNormalization", family="normalisation")
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


def _restate_groups(node: Restated) -> None:
    # Whole groups gone: the group size stays. Offsets gone: the number of groups stays.
    if node.carrier == "groups":
        old = node.integer("num_groups", 1)
        node.set_int("num_groups", old * node.new_size(0, 1) // node.old_size(0, 1))


@rule("GroupNormalization", family="normalisation", restate=_restate_groups)
def group_normalization(site: Site) -> None:
    """Whole groups are exact; the same offset in every group is inexact."""
    x, y = site.x, site.y
    site.link(x.axis(0), y.axis(0))
    for axis in (*x.axes[2:], *y.axes[2:]):
        site.pin(axis, _SPATIAL)
    groups = site.integer("num_groups", 1)
    sizes = (groups, x.shape[1] // groups)
    parameters: list[tuple[int, Operand]] = [
        (number, operand)
        for number, operand in enumerate(site.inputs[1:], start=1)
        if operand is not None
    ]
    runs = [Run(operand.axis(1), (0, 1)) for operand in (x, y)]
    runs += [
        Run(operand.axis(0), (0,) if operand.shape[0] == groups else (0, 1))
        for _, operand in parameters
    ]

    def by_group() -> None:
        link_factor(site, runs, 0, sizes)

    def by_offset() -> None:
        link_factor(site, runs, 1, sizes)
        touched = [(n, 0) for n, operand in parameters if operand.shape[0] == x.shape[1]]
        site.inexact([(0, 1), *touched], [(0, 1)])
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
        ends = (x.axis(1), y.axis(1))
        options.append(Alternative("offsets", ends, digits(runs, 1, sizes), by_offset))
    site.choose(*options, otherwise=never)


@rule("LRN", family="normalisation")
def local_response_normalization(site: Site) -> None:
    """Each channel is divided by a sum over its neighbours."""
    site.link_axes(site.x, site.y)
    site.inexact([(0, 1)], [(0, 1)])


@rule("LpNormalization", family="normalisation")
def lp_normalization(site: Site) -> None:
    """Divides by the norm along ``axis``, to which zeros add nothing: exact."""
    site.link_axes(site.x, site.y)
    site.sink(0, positive_axes([site.integer("axis", -1)], site.x.rank)[0])


@rule("MeanVarianceNormalization", family="normalisation")
def mean_variance_normalization(site: Site) -> None:
    """Normalises over ``axes``."""
    site.link_axes(site.x, site.y)
    for axis in positive_axes(site.integers("axes") or (0, 2, 3), site.x.rank):
        site.inexact([(0, axis)], [(0, axis)])
