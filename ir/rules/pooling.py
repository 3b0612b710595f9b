"""Pooling and resizing: batch and channel axes pass through, spatial axes stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import Site, attribute_ints, positive_axes, rule

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
    if site.output(1) is not None and not _goes_back(site):
        for axis in x.axes[:2]:
            site.pin(axis, "the pooling's indices count positions over all channels")


def _goes_back(site: Site) -> bool:
    """Whether the indices lead only to MaxUnpool nodes that restore this very size: both then
    count over the channels that are left."""
    value = site.node.outputs[1]
    pooled = np.array(site.y.shape[2:])
    ends = value.uses()
    if any(site.x.dynamic[2:]) or value.is_graph_output():
        return False
    for user, position in ends:
        if user.op_type != "MaxUnpool" or position != 1 or user.graph is not site.node.graph:
            return False
        kernel, strides, pads = (
            np.array(attribute_ints(user, name) or default)
            for name, default in (
                ("kernel_shape", ()),
                ("strides", (1,) * pooled.size),
                ("pads", (0,) * (2 * pooled.size)),
            )
        )
        restored = (pooled - 1) * strides + kernel - pads.reshape(2, -1).sum(axis=0)
        if len(user.inputs) > 2 or not np.array_equal(restored, site.x.shape[2:]):
            return False
    return True


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
    changed = resampled(site)
    for index in range(x.rank):
        if index not in changed:
            site.link(x.axis(index), y.axis(index))
        else:
            for operand in (x, y):
                site.pin(operand.axis(index), _RESIZED)


def resampled(site: Site) -> set[int]:
    """Axes along which a result may lie between the elements or leave some out."""
    x, y = site.x, site.y
    other = {k for k in range(x.rank) if x.shape[k] != y.shape[k]}
    return other | _resized(site) | _cropped(site)


def _cropped(site: Site) -> set[int]:
    """Axes of which a region of interest may be only a part."""
    if site.string("coordinate_transformation_mode", "") != "tf_crop_and_resize":
        return set()
    axes = positive_axes(site.integers("axes") or range(site.x.rank), site.x.rank)
    region = site.value(1)
    if region is None:
        return set(axes)
    starts, ends = region.reshape(2, -1)
    return {a for a, s, e in zip(axes, starts, ends, strict=True) if (s, e) != (0, 1)}


def _resized(site: Site) -> set[int]:
    """Axes that may have another scale than 1 even if they keep their size."""
    rank = site.x.rank
    axes = positive_axes(site.integers("axes") or range(rank), rank)
    if site.input(3) is not None:
        together = site.string("keep_aspect_ratio_policy", "stretch") != "stretch"
        return set(axes) if together else set()
    attribute = site.node.attributes.get("scales")
    number = 1 if site.opset < 11 or site.node.op_type == "Upsample" else 2
    scales = site.values(number) if attribute is None else [np.array(attribute.as_floats())]
    if scales is None:
        return set(axes)
    return {
        axis
        for scale in scales
        for axis, factor in zip(axes, scale.reshape(-1), strict=True)
        if factor != 1
    }
