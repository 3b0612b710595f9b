"""DeformConv: a convolution whose taps move by offsets that are computed.

Channels are split twice, into ``group`` and into ``offset_group``; one number divides the other,
so that both are told apart by the first digits of one factoring (outer, middle, inner) of the
channels. Units form along one digit. If it tells groups apart, their outputs go too, else it is
summed away; if it tells offset groups apart, their offsets and masks go too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..coupling import Alternative
from .base import Site, rule
from .factors import Run, digits, link_factor

if TYPE_CHECKING:
    from ..restated import Restated

_SPATIAL = "a spatial axis of a convolution"
_GROUPS = "channels of a grouped convolution that cannot go one by one"
_INNER, _OUT, _OFFSETS, _MASKS = 2, 3, 4, 5


def _restate_groups(node: Restated) -> None:
    group = node.new_size(0, 1) // node.new_size(1, 1)
    offset_group = node.integer("offset_group", 1) * node.new_size(2, 1) // node.old_size(2, 1)
    for name, value in (("group", group), ("offset_group", offset_group)):
        if value != node.integer(name, 1):
            node.set_int(name, value)


@rule("DeformConv", family="contraction", restate=_restate_groups)
def deform_conv(site: Site) -> None:
    """X [N, C, H, W], W [M, C/group, kh, kw], offset [N, offset_group*2*kh*kw, h, w], B [M],
    mask [N, offset_group*kh*kw, h, w] -> Y [N, M, h, w]."""
    x, w, offset, y = site.x, site.inputs[1], site.inputs[2], site.y
    bias, mask = site.input(3), site.input(4)
    assert w is not None and offset is not None
    pictures = [operand for operand in (x, offset, mask) if operand is not None]
    for operand in pictures:
        site.link(operand.axis(0), y.axis(0))
    for operand in (*pictures, w, y):
        for axis in operand.axes[2:]:
            site.pin(axis, _SPATIAL)
    site.macs(*y.axes, *w.axes[1:])

    group, offset_group = site.integer("group", 1), site.integer("offset_group", 1)
    few, many = sorted((group, offset_group))
    if many % few:
        site.pin_all(_GROUPS)
        return
    taps = math.prod(w.shape[2:])
    sizes = (few, many // few, x.shape[1] // many, y.shape[1] // group, 2 * taps, taps)
    of_group, of_offsets = ((0,) if count == few else (0, 1) for count in (group, offset_group))
    data = Run(x.axis(1), (0, 1, _INNER))
    summed = Run(w.axis(1), tuple(f for f in data.factors if f not in of_group))
    results = [Run(axis, (*of_group, _OUT)) for axis in (w.axis(0), y.axis(1))]
    if bias is not None:
        results.append(Run(bias.axis(0), (*of_group, _OUT)))
    places = [Run(offset.axis(1), (*of_offsets, _OFFSETS))]
    if mask is not None:
        places.append(Run(mask.axis(1), (*of_offsets, _MASKS)))

    def link(factor: int, runs: list[Run]) -> None:
        if sizes[factor] > 1:
            link_factor(site, runs, factor, sizes)
        for run in runs:
            if sizes[factor] == 1 or factor not in run.factors:
                site.pin(run.axis, _GROUPS)

    def along(factor: int) -> Alternative:
        grouped = factor in of_group

        def apply() -> None:
            if grouped:
                link(factor, [data, summed, *places, *results])
                return
            link(factor, [data, summed, *places])
            link(_OUT, results)
            site.sink(0, 1)
            site.role("consumer", w.axis(1))

        needs = [data.axis, *(run.axis for run in places if factor in run.factors)]
        needs += [y.axis(1)] if grouped else []
        runs = [data, *results] if grouped else [data]
        tied = digits(runs, factor, sizes)
        if not grouped and sizes[_OUT] > 1:
            tied += digits(results, _OUT, sizes)
        # The last is always possible: whatever holds the inputs, outputs can go by themselves.
        last = factor == _INNER
        return Alternative(f"digit {factor}", () if last else tuple(needs), tied, apply)

    site.role("producer", w.axis(0))
    site.choose(*(along(f) for f in (0, 1) if sizes[f] > 1), along(_INNER), otherwise=lambda: None)
