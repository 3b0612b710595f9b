"""Operators that make values from nothing but sizes: they couple nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Site, rule

if TYPE_CHECKING:
    from ..restated import Restated


@rule("Constant", family="source", exactness="pinned")
@rule("Shape", "Size", family="source")
def source(site: Site) -> None:
    """No coordinate of the input reaches the output; sizes are corrected when rewriting."""
    for operand in site.outputs:
        for axis in operand.axes if operand is not None else ():
            site.pin(axis, "a list of sizes")


def _restate_shape(node: Restated) -> None:
    node.want(0, node.new_shape(0))


@rule("ConstantOfShape", family="source", restate=_restate_shape)
def constant_of_shape(site: Site) -> None:
    """All elements are alike, so any coordinate may go: the target shape is restated."""
    site.pin_all("a list of sizes", site.inputs)


@rule("Range", family="source", exactness="pinned")
def arange(site: Site) -> None:
    """The elements are their own positions."""
    site.pin_all("counts positions")


@rule(
    *("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"),
    family="source",
    exactness="pinned",
)
def table(site: Site) -> None:
    """A table that is computed from sizes."""
    site.pin_all("computed from its size")
