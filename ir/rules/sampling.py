"""Operators that sample a picture at computed places: channels pass through, places stay apart.

Each sampled point and each region is a result of its own, so their axes link the places with
the output; only the picture's spatial axes and the coordinates of a place stay.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .base import Site, rule
from .factors import Run, link_factor

if TYPE_CHECKING:
    from ..restated import Restated

_SPATIAL = "a spatial axis that is sampled"
_PLACE = "the coordinates of a place"


@rule("GridSample", family="sampling")
def grid_sample(site: Site) -> None:
    """X [N, C, ...], grid [N, *out, rank] -> Y [N, C, *out]."""
    x, grid, y = site.x, site.inputs[1], site.y
    assert grid is not None
    for index in (0, 1):
        site.link(x.axis(index), y.axis(index))
    site.link(grid.axis(0), y.axis(0))
    for axis in x.axes[2:]:
        site.pin(axis, _SPATIAL)
    for index in range(1, grid.rank - 1):
        site.link(grid.axis(index), y.axis(index + 1))
    site.pin(grid.axis(-1), _PLACE)


def _restate_batch(node: Restated) -> None:
    sizes = node.values(1)
    if sizes is not None:
        node.want(1, np.concatenate([node.new_shape(0)[:, :1], sizes[:, 1:]], axis=1))


@rule("AffineGrid", family="sampling", restate=_restate_batch)
def affine_grid(site: Site) -> None:
    """A grid of places for every matrix of the batch."""
    site.link(site.x.axis(0), site.y.axis(0))
    for axis in (*site.x.axes[1:], *site.y.axes[1:]):
        site.pin(axis, _PLACE)
    site.pin_all("a list of sizes", site.inputs[1:])
    if site.value(1) is None:
        site.pin(site.x.axis(0), "the number of grids is computed at run time")


@rule("RoiAlign", "MaxRoiPool", family="sampling")
def regions(site: Site) -> None:
    """X [N, C, H, W], regions [R, 4 or 5] (and their pictures [R]) -> Y [R, C, h, w]."""
    x, y = site.x, site.y
    site.link(x.axis(1), y.axis(1))
    site.pin(x.axis(0), "pictures are looked up by number")
    for axis in (*x.axes[2:], *y.axes[2:]):
        site.pin(axis, _SPATIAL)
    for operand in site.inputs[1:]:
        if operand is not None:
            site.link(operand.axis(0), y.axis(0))
            for axis in operand.axes[1:]:
                site.pin(axis, _PLACE)


def _restate_shape(node: Restated) -> None:
    if node.has_input(2):
        node.want(2, node.new_shape(0))


@rule("MaxUnpool", family="sampling", restate=_restate_shape)
def max_unpool(site: Site) -> None:
    """Values go back where a MaxPool found them. Its indices count over all channels, and count
    right again once MaxPool itself has fewer; any others would keep counting the old ones."""
    x, y, indices = site.x, site.y, site.inputs[1]
    assert indices is not None
    site.link_axes(x, indices)
    site.pin_all("a list of sizes", site.inputs[2:])
    for index in (0, 1):
        site.link(x.axis(index), y.axis(index))
    for axis in (*x.axes[2:], *y.axes[2:]):
        site.pin(axis, _SPATIAL)
    given = site.node.inputs[1]
    source = given.producer() if given is not None else None
    if source is None or source.op_type != "MaxPool":
        site.pin_all("indices count positions over all channels")


@rule("Col2Im", family="sampling")
def col2im(site: Site) -> None:
    """Overlapping blocks are summed into a picture: (C * block) channels become C."""
    x, y = site.x, site.y
    site.pin_all("a list of sizes", site.inputs[1:])
    site.link(x.axis(0), y.axis(0))
    for axis in (x.axis(2), *y.axes[2:]):
        site.pin(axis, _SPATIAL)
    channels = y.shape[1]
    block = x.shape[1] // max(channels, 1)
    if math.prod(x.shape) and block > 0:
        runs = [Run(x.axis(1), (0, 1)), Run(y.axis(1), (0,))]
        link_factor(site, runs, 0, (channels, block))
    else:
        site.pin_all("an empty tensor")
