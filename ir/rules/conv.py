"""Conv and ConvTranspose of any rank, with groups, over numbers of any type.

A grouped convolution factors its channels as (group, offset within the group). Units form
either along the group (whole groups go, ``group`` is restated) or along the offset (the same
offset goes in every group). Depthwise is the case of one input channel per group.

A spatial axis that keeps its size, at stride 1, links through: exactly where the kernel sees one
position at a time, and else as an axis that the node looks across, since without some positions
it runs on those left, which become neighbours. Models that convolve over their channels
(efficient channel attention) have units there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..coupling import Alternative
from .base import Operand, Site, rule
from .factors import Run, digits, link_factor

if TYPE_CHECKING:
    from ..restated import Restated

_SPATIAL = "a spatial axis of a convolution"
_GROUPS = "channels of a grouped convolution that cannot go one by one"


def restate_group(node: Restated) -> None:
    """Whole groups that are gone leave fewer of them; offsets that are gone leave as many."""
    if node.op_type == "ConvTranspose":
        group = node.new_output_size(0, 1) // node.new_size(1, 1)
    else:
        group = node.new_size(0, 1) // node.new_size(1, 1)
    set_group(node, group)


def set_group(node: Restated, group: int) -> None:
    """States the number of groups, unless it is what it was."""
    if node.integer("group", 1) != group:
        node.set_int("group", group)


@rule("Conv", family="contraction", restate=restate_group, exactness="depends")
def conv(site: Site) -> None:
    """X [N, C, …] * W [M, C/group, …] + B [M] -> Y [N, M, …]."""
    convolution(site, weight_in=1, weight_out=0, followers=[site.input(2)])
    site.macs(*site.y.axes, *weight_of(site).axes[1:])


@rule("ConvTranspose", family="contraction", restate=restate_group, exactness="depends")
def conv_transpose(site: Site) -> None:
    """X [N, C, …] * W [C, M/group, …] + B [M] -> Y [N, M, …]."""
    convolution(site, weight_in=0, weight_out=1, followers=[site.input(2)])
    site.macs(*site.x.axes, *weight_of(site).axes[1:])


def weight_of(site: Site, number: int = 1) -> Operand:
    """Input number ``number``, the weight."""
    weight = site.inputs[number]
    assert weight is not None
    return weight


def _taps(site: Site, number: int, size: int, count: int) -> range:
    """How far from its own position an output looks along spatial axis ``number`` of ``count``,
    for a kernel of ``size``; nothing where a stride moves the positions, or where the node states
    the sizes of its output."""
    if site.integers("output_shape") is not None:
        return range(0)
    stride = (site.integers("strides") or (1,) * count)[number]
    dilation = (site.integers("dilations") or (1,) * count)[number]
    reach = dilation * (size - 1)
    match site.string("auto_pad", "NOTSET"):
        case "NOTSET":
            before = (site.integers("pads") or (0,) * count)[number]
        case "VALID":
            before = 0
        case _ if reach % 2:  # which side the odd one goes to differs between operators
            return range(0)
        case _:
            before = reach // 2
    return range(-before, reach - before + 1, dilation) if stride == 1 else range(0)


def convolution(
    site: Site,
    weight_in: int,
    weight_out: int,
    followers: Sequence[Operand | None],
    weight: int = 1,
    channel: int = 1,
    pictures: Sequence[int] = (0,),
) -> None:
    """``weight_in`` and ``weight_out`` are axes of input number ``weight``, ``channel`` is the axis
    of X and Y; ``followers`` are vectors with one number for each output channel; ``pictures`` are
    the inputs that have the spatial axes of Y."""
    x, w, y = site.x, weight_of(site, weight), site.y
    vectors = [operand for operand in followers if operand is not None]
    site.link(x.axis(0), y.axis(0))
    spatial = [index for index in range(1, x.rank) if index != channel]
    kernel = [index for index in range(w.rank) if index not in (weight_in, weight_out)]
    for number, (index, tap) in enumerate(zip(spatial, kernel, strict=True)):
        site.pin(w.axis(tap), _SPATIAL)
        taps = _taps(site, number, w.shape[tap], len(spatial))
        if 0 in taps and x.shape[index] == y.shape[index] > 1:
            site.link(x.axis(index), y.axis(index))
            if any(0 < abs(distance) < x.shape[index] for distance in taps):
                site.inexact([(picture, index) for picture in pictures], [(0, index)])
        else:
            site.pin(x.axis(index), _SPATIAL)
            site.pin(y.axis(index), _SPATIAL)
    groups = site.integer("group", 1)
    if groups == 1:
        site.contract((0, channel), (weight, weight_in))
        site.produce(w.axis(weight_out), y.axis(channel))
        for vector in vectors:
            site.link(vector.axis(0), y.axis(channel))
        return

    site.role("producer", w.axis(weight_out))
    # Factors: 0 the group, 1 the input offset, 2 the output offset.
    sizes = (groups, x.shape[channel] // groups, y.shape[channel] // groups)
    inner = (weight_in, (1,)), (weight_out, (2,))
    runs_in = [Run(x.axis(channel), (0, 1))]
    runs_out = [Run(axis, (0, 2)) for axis in (y.axis(channel), *(v.axis(0) for v in vectors))]
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
        site.sink(0, channel)
        site.role("consumer", w.axis(weight_in))

    def never() -> None:
        for run in (*runs_in, *runs_out):
            site.pin(run.axis, _GROUPS)

    ends = (x.axis(channel), y.axis(channel))
    runs = [*runs_in, *runs_out]
    groupwise = digits(runs, 0, sizes)
    alternatives = [Alternative("groups", ends, groupwise, by_group, stops=(inside.axis,))]
    if max(sizes[1:]) > 1:
        start = {1: 0, 2: sizes[1]}  # offsets of inputs and outputs are different units
        by_offsets = tuple(
            (axis, start[f] + digit)
            for f in start
            if sizes[f] > 1
            for axis, digit in digits(runs, f, sizes)
        )
        alone = [side for f, side in ((1, runs_in), (2, runs_out)) if sizes[f] == 1]
        stops = tuple(run.axis for side in alone for run in side)
        alternatives.append(Alternative("offsets", (), by_offsets, by_offset, stops=stops))
    site.choose(*alternatives, otherwise=never)
