"""Pooling and resizing: batch and channel axes pass through, spatial axes stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import Site, positive_axes, rule

if TYPE_CHECKING:
    from ..restated import Restated

_SPATIAL = "a spatial axis of a pooling"
_RESIZED = "a resized axis"


POOLING = (
    *("AveragePool", "LpPool", "MaxPool"),
    *("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"),
)


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
    axes = node.integers("axes") or tuple(range(node.output_rank(0)))
    node.want(3, node.new_shape(0)[:, [a % node.output_rank(0) for a in axes]])


@rule("Resize", "Upsample", family="pooling", restate=_restate_sizes)
def resize(site: Site) -> None:
    """Axes with a scale of 1 pass through; resized ones are pinned."""
    x, y = site.x, site.y
    site.pin_all("scales and sizes", site.inputs[1:])
    if site.string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        site.pin_all("crops a region of interest")
        return
    resized = _resized(site)
    for index in range(x.rank):
        if index not in resized and x.shape[index] == y.shape[index]:
            site.link(x.axis(index), y.axis(index))
        else:
            for operand in (x, y):
                site.pin(operand.axis(index), _RESIZED)


def _resized(site: Site) -> set[int]:
    """Axes that may have another scale than 1 even if they keep their size."""
    rank = site.x.rank
    axes = positive_axes(site.integers("axes") or range(rank), rank)
    if site.input(3) is not None:
        together = site.string("keep_aspect_ratio_policy", "stretch") != "stretch"
        return set(axes) if together else set()
    attribute = site.node.attributes.get("scales")
    number = 1 if site.opset < 11 or site.node.op_type == "Upsample" else 2
    scales = site.value(number) if attribute is None else np.array(attribute.as_floats())
    if scales is None:
        return set(axes)
    return {axis for axis, scale in zip(axes, scales.reshape(-1), strict=True) if scale != 1}
