"""Pooling and resizing: batch and channel axes pass through, spatial axes stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Site, rule

if TYPE_CHECKING:
    from ..rewrite import Restated

_SPATIAL = "a spatial axis of a pooling"


POOLING = "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool".split()


@rule(*POOLING, family="pooling")
def pool(site: Site) -> None:
    """Every channel is pooled by itself."""
    x = site.x
    for output in site.outputs:
        if output is None:
            continue
        for index in (0, 1):
            site.link(x.axis(index), output.axis(index))
        for axis in output.axes[2:]:
            site.pin(axis, _SPATIAL)
    for axis in x.axes[2:]:
        site.pin(axis, _SPATIAL)
    if site.output(1) is not None:
        for axis in x.axes[:2]:
            site.pin(axis, "the pooling's indices count positions over all channels")


def _restate_sizes(node: Restated) -> None:
    if not node.has_input(3):
        return
    axes = node.ints("axes") or tuple(range(node.output_rank(0)))
    node.want(3, node.new_shape(0)[:, [a % node.output_rank(0) for a in axes]])


@rule("Resize", "Upsample", family="pooling", restate=_restate_sizes)
def resize(site: Site) -> None:
    """Axes that keep their size pass through; resized ones are pinned."""
    x, y = site.x, site.y
    site.pin_all("scales and sizes", site.inputs[1:])
    if site.string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        site.pin_all("crops a region of interest")
        return
    for index in range(x.rank):
        if x.shape[index] == y.shape[index]:
            site.link(x.axis(index), y.axis(index))
        else:
            for operand in (x, y):
                site.pin(operand.axis(index), "a resized axis")
