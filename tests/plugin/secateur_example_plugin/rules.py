"""The coupling rule of ``example.plugin.ScaleBias``: Y = X * scale[c] + bias[c] on axis 1."""

from __future__ import annotations

from secateur.ir.rules.base import Rule, Site


def _scale_bias(site: Site) -> None:
    """Every axis of X is an axis of Y; the vectors run along the channels."""
    site.link_axes(site.x, site.y)
    for number in (1, 2):
        vector = site.input(number)
        if vector is not None:
            site.link(vector.axis(0), site.x.axis(1))


RULES = {("example.plugin", "ScaleBias"): Rule(_scale_bias, family="elementwise")}
