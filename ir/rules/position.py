"""Operators whose results depend on where a coordinate stands: these axes stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Operand, Site, positive_axes, rule


def _pin_axes(site: Site, operands: Sequence[Operand], axes: Sequence[int], reason: str) -> None:
    for operand in operands:
        for index in axes:
            site.pin(operand.axis(index), reason)


@rule("Trilu", family="position")
def trilu(site: Site) -> None:
    """A triangle of every matrix: rows and columns are told by their distance."""
    site.pin_all("the number of a diagonal", site.inputs[1:])
    site.link_axes(site.x, site.y)
    _pin_axes(site, [site.x], (-2, -1), "a triangle of a matrix is taken along this axis")


@rule("Det", family="position")
def det(site: Site) -> None:
    """The determinant of every matrix."""
    for index in range(site.y.rank):
        site.link(site.x.axis(index), site.y.axis(index))
    _pin_axes(site, [site.x], (-2, -1), "a determinant is taken along this axis")


@rule("OneHot", family="position")
def one_hot(site: Site) -> None:
    """A new axis on which the index is a position; the axes of the indices pass through."""
    indices, y = site.x, site.y
    site.pin_all("depth and values", site.inputs[1:])
    axis = positive_axes([site.integer("axis", -1)], y.rank)[0]
    site.pin(y.axis(axis), "one-hot positions")
    for index in range(indices.rank):
        site.link(indices.axis(index), y.axis(index + (index >= axis)))


@rule("ReverseSequence", family="position")
def reverse_sequence(site: Site) -> None:
    """Each sequence of the batch is turned around up to its length."""
    x, lengths = site.x, site.inputs[1]
    assert lengths is not None
    site.link_axes(x, site.y)
    site.link(lengths.axis(0), x.axis(site.integer("batch_axis", 1)))
    site.pin(x.axis(site.integer("time_axis", 0)), "reversed along this axis")


@rule("DFT", family="position")
def dft(site: Site) -> None:
    """Transformed along one axis (opset 20: the third input); the last holds complex parts."""
    x, y = site.x, site.y
    site.pin_all("a length or an axis", site.inputs[1:])
    axis = site.integer("axis", 1) if site.opset < 20 else -2
    if site.input(2) is not None:
        value = site.value(2)
        if value is None:
            site.pin_all("the axis is computed at run time")
            return
        axis = int(value.reshape(-1)[0])
    ends = [positive_axes([axis], x.rank)[0], x.rank - 1]
    site.link_axes(x, y, skip=ends)
    _pin_axes(site, [x, y], ends, "a Fourier transform along this axis")


@rule("STFT", family="position")
def stft(site: Site) -> None:
    """Only the batch passes through."""
    site.link(site.x.axis(0), site.y.axis(0))
    site.pin_all("a window of a signal", site.inputs[1:])
    for operand in (site.x, site.y):
        _pin_axes(site, [operand], range(1, operand.rank), "cut into windows and transformed")


@rule(
    *("EyeLike", "NonMaxSuppression", "NonZero", "Unique"),
    family="position",
    exactness="pinned",
)
def positions(site: Site) -> None:
    """The results are positions, or as many as the data says."""
    reasons = {
        "EyeLike": "a diagonal is made along this axis",
        "NonMaxSuppression": "boxes and classes are told by their numbers",
        "NonZero": "positions on this axis are listed",
        "Unique": "compared with one another as a whole",
    }
    site.pin_all(reasons[site.node.op_type])
