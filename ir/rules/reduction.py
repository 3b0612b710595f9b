"""Reductions are sinks; operators that rank or normalise along an axis pin it."""

from __future__ import annotations

from .base import Site, positive_axes, rule

SUMS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSum", "ReduceSumSquare")
"""Functions of a sum to which a zero adds nothing: removing equals multiplying by zero."""

EXTREMES = ("ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")
"""Functions that a zero changes."""

REDUCTIONS = (*SUMS, *EXTREMES)


@rule(*SUMS, family="reduction")
@rule(*EXTREMES, family="reduction", exactness="inexact")
def reduce(site: Site) -> None:
    """Reduced axes end here: exact for sums, inexact otherwise; kept axes pass through."""
    x, y = site.x, site.y
    site.pin_all("a list of axes", site.inputs[1:])
    axes = reduced_axes(site)
    if axes is None:
        site.pin_all("the axes to reduce are computed at run time")
        return
    keep = site.integer("keepdims", 1) != 0
    at = 0
    for index in range(x.rank):
        if index in axes:
            if site.node.op_type in SUMS:
                site.sink(0, index)
            else:
                site.inexact([(0, index)])
            if keep:
                site.pin(y.axis(at), "a reduced axis")
        else:
            site.link(x.axis(index), y.axis(at))
        at += keep or index not in axes


def reduced_axes(site: Site) -> list[int] | None:
    """The axes that are reduced, None when they are computed at run time."""
    rank = site.x.rank
    known, axes = site.axes_parameter()
    if not known:
        return None
    if not axes:
        return [] if site.integer("noop_with_empty_axes", 0) else list(range(rank))
    return positive_axes(axes, rank)


@rule("Softmax", "LogSoftmax", "Hardmax", family="softmax")
def softmax(site: Site) -> None:
    """Before opset 13 everything from ``axis`` on is normalised together."""
    normalise(site, site.opset, -1 if site.opset >= 13 else 1)


def normalise(site: Site, opset: int, default: int) -> None:
    """A softmax as of ``opset`` along the node's ``axis``, which is ``default`` if left out."""
    x, y = site.x, site.y
    axis = positive_axes([site.integer("axis", default)], x.rank)[0]
    last = axis + 1 if opset >= 13 else x.rank
    site.link_axes(x, y)
    for index in range(axis, last):
        site.pin(x.axis(index), f"{site.node.op_type} along this axis")


@rule("ArgMax", "ArgMin", family="softmax")
def arg_extreme(site: Site) -> None:
    """The result is a position on the axis: it stays as it is."""
    x, y = site.x, site.y
    axis = positive_axes([site.integer("axis", 0)], x.rank)[0]
    keep = site.integer("keepdims", 1) != 0
    site.pin(x.axis(axis), f"{site.node.op_type} along this axis")
    if keep:
        site.pin(y.axis(axis), f"{site.node.op_type} along this axis")
    for index in range(x.rank):
        if index != axis:
            site.link(x.axis(index), y.axis(index if keep or index < axis else index - 1))


@rule("TopK", family="softmax")
def top_k(site: Site) -> None:
    """Ranked along the axis; the others pass through to values and indices."""
    x = site.x
    axis = positive_axes([site.integer("axis", -1)], x.rank)[0]
    site.pin_all("the number of results", site.inputs[1:])
    site.pin(x.axis(axis), "ranked along this axis")
    for output in site.outputs:
        if output is not None:
            site.pin(output.axis(axis), "ranked along this axis")
            site.link_axes(x, output, skip=[axis])


@rule("CumSum", "CumProd", family="softmax")
def cumulative(site: Site) -> None:
    """Accumulated along the axis, which stays; the others pass through."""
    value = site.value(1)
    site.pin_all("the number of an axis", site.inputs[1:])
    site.link_axes(site.x, site.y)
    for index in range(site.x.rank):
        if value is None or index == int(value.reshape(-1)[0]) % site.x.rank:
            site.pin(site.x.axis(index), "accumulated along this axis")
