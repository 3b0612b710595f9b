"""Conv and ConvTranspose of any rank, with groups.

A grouped convolution factors its channels as (group, offset within the group). Units form
either along the group (whole groups go, ``group`` is restated) or along the offset (the same
offset goes in every group). Depthwise is the case of one input channel per group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..coupling import Alternative
from .base import Operand, Run, Site, digits, link_factor, rule

if TYPE_CHECKING:
    from ..restated import Restated

_SPATIAL = "a spatial axis of a convolution"
_GROUPS = "channels of a grouped convolution that cannot go one by one"


def _restate_group(node: Restated) -> None:
    """Whole groups that are gone leave fewer of them; offsets that are gone leave as many."""
    if node.op_type == "Conv":
        group = node.new_size(0, 1) // node.new_size(1, 1)
    else:
        group = node.new_output_size(0, 1) // node.new_size(1, 1)
    if node.integer("group", 1) != group:
        node.set_int("group", group)


@rule("Conv", family="contraction", restate=_restate_group)
def conv(site: Site) -> None:
    """X [N, C, …] * W [M, C/group, …] + B [M] -> Y [N, M, …]."""
    _convolution(site, weight_in=1, weight_out=0)
    site.macs(*site.y.axes, *_weight(site).axes[1:])


@rule("ConvTranspose", family="contraction", restate=_restate_group)
def conv_transpose(site: Site) -> None:
    """X [N, C, …] * W [C, M/group, …] + B [M] -> Y [N, M, …]."""
    _convolution(site, weight_in=0, weight_out=1)
    site.macs(*site.x.axes, *_weight(site).axes[1:])


def _weight(site: Site) -> Operand:
    weight = site.inputs[1]
    assert weight is not None
    return weight


def _convolution(site: Site, weight_in: int, weight_out: int) -> None:
    x, w, y, bias = site.x, _weight(site), site.y, site.input(2)
    site.link(x.axis(0), y.axis(0))
    for axis in (*x.axes[2:], *w.axes[2:], *y.axes[2:]):
        site.pin(axis, _SPATIAL)
    groups = site.integer("group", 1)
    if groups == 1:
        site.contract((0, 1), (1, weight_in))
        site.produce(w.axis(weight_out), y.axis(1))
        if bias is not None:
            site.link(bias.axis(0), y.axis(1))
        return

    # Factors: 0 the group, 1 the input offset, 2 the output offset.
    sizes = (groups, x.shape[1] // groups, y.shape[1] // groups)
    inner = (weight_in, (1,)), (weight_out, (2,))
    runs_in = [Run(x.axis(1), (0, 1))]
    runs_out = [Run(y.axis(1), (0, 2))]
    if bias is not None:
        runs_out.append(Run(bias.axis(0), (0, 2)))
    for (index, factors), runs in zip(inner, (runs_in, runs_out), strict=True):
        # Axis 0 of the weight spans all groups, axis 1 a single one.
        runs.append(Run(w.axis(index), (0, *factors) if index == 0 else factors))
    inside = runs_in[-1] if weight_in == 1 else runs_out[-1]

    def by_group() -> None:
        link_factor(site, [*runs_in, *runs_out], 0, sizes)
        site.pin(inside.axis, _GROUPS)
        site.role("producer", w.axis(0))

    def by_offset() -> None:
        for factor, runs in ((1, runs_in), (2, runs_out)):
            if sizes[factor] > 1:
                link_factor(site, runs, factor, sizes)
            else:
                for run in runs:
                    site.pin(run.axis, _GROUPS)
        site.sink(0, 1)
        site.role("consumer", w.axis(weight_in))
        site.role("producer", w.axis(weight_out))

    def never() -> None:
        for run in (*runs_in, *runs_out):
            site.pin(run.axis, _GROUPS)

    ends = (x.axis(1), y.axis(1))
    runs = [*runs_in, *runs_out]
    alternatives = [Alternative("groups", ends, digits(runs, 0, sizes), by_group)]
    if max(sizes[1:]) > 1:
        by_offsets = tuple(d for f in (1, 2) if sizes[f] > 1 for d in digits(runs, f, sizes))
        alternatives.append(Alternative("offsets", (), by_offsets, by_offset))
    site.choose(*alternatives, otherwise=never)
