"""Sequences and optionals: their elements are tensors, and link as those do (see `lists`).

An operator that puts a tensor into a sequence links it with the element that it makes; one that
takes a tensor out links it with every element that this may be. What is not known about a
sequence holds all that may be in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import Listed, Operand, Site, positive_axes, rule
from .control import tie
from .movement import concatenate, link_stretch

if TYPE_CHECKING:
    from ..restated import Restated

_FAMILY = "sequence"
_OPEN = "in a sequence of which nobody knows what it holds"


@rule("Identity", "Optional", "OptionalGetElement", family=_FAMILY)
def pass_on(site: Site) -> None:
    """The same tensor, or the same sequence, whose elements are the same already."""
    given, result = site.input(0), site.output(0)
    if given is not None and result is not None:
        site.link_axes(given, result)


@rule("SequenceErase", "SequenceLength", "OptionalHasElement", family=_FAMILY)
def counted(site: Site) -> None:
    """Fewer elements, or how many: nothing is said about any of them."""
    site.pin_all("a position", site.inputs[1:])


@rule("SequenceEmpty", family=_FAMILY, exactness="pinned")
def sequence_empty(site: Site) -> None:
    """No elements."""


@rule("SequenceConstruct", family=_FAMILY)
def sequence_construct(site: Site) -> None:
    """Every input becomes an element."""
    for tensor, element in zip(site.inputs, _known(site.list_out(0)), strict=True):
        assert tensor is not None
        site.link_axes(tensor, element)


@rule("SequenceInsert", family=_FAMILY)
def sequence_insert(site: Site) -> None:
    """One more element among the others."""
    tensor, result = site.inputs[1], site.list_out(0)
    made = f"{site.node.outputs[0].name}[+]"
    for element in _known(result):
        if element.name == made and tensor is not None:
            site.link_axes(tensor, element)


@rule("SequenceAt", family=_FAMILY)
def sequence_at(site: Site) -> None:
    """The element at a position, or any if nobody knows which."""
    site.pin_all("a position", site.inputs[1:])
    given, position = site.list_in(0), site.value(1)
    elements = _known(given)
    if given is not None and given.exact and position is not None:
        at = int(position.reshape(-1)[0])
        elements = elements[at : at + 1 or None] if -len(elements) <= at < len(elements) else ()
    tie(site, "taken from elements of different sizes", [site.y, *elements])


def _known(listed: Listed | None) -> tuple[Operand, ...]:
    return () if listed is None else listed.operands


@rule("ConcatFromSequence", family=_FAMILY)
def concat_from_sequence(site: Site) -> None:
    """A Concat of all elements, or with ``new_axis`` one behind the other on an axis of its own."""
    given, y = site.list_in(0), site.y
    if given is None or not given.exact:
        site.pin_all(_OPEN)
        return
    if not site.integer("new_axis", 0):
        concatenate(site, given.operands)
        return
    axis = positive_axes([site.integer("axis", 0)], y.rank)[0]
    site.pin(y.axis(axis), "places in a sequence")
    rest = [number for index, number in enumerate(y.axes) if index != axis]
    for element in given.operands:
        for ours, theirs in zip(element.axes, rest, strict=True):
            site.link(ours, theirs)


def _restate_split(node: Restated) -> None:
    axis = node.integer("axis", 0) % node.input_rank(0)
    if not node.keep(0, axis).all():
        sizes = node.list_sizes(0, axis)
        node.want(1, np.array([sizes, sizes], np.int64))


@rule("SplitToSequence", family=_FAMILY, restate=_restate_split)
def split_to_sequence(site: Site) -> None:
    """The reverse of a concatenation; pieces of one coordinate each stay as many as they are."""
    x, pieces = site.x, _known(site.list_out(0))
    axis = positive_axes([site.integer("axis", 0)], x.rank)[0]
    site.pin_all("a list of sizes", site.inputs[1:])
    start = 0
    for piece in pieces:
        if piece.rank < x.rank:
            for index, number in enumerate(piece.axes):
                site.link(x.axis(index + (index >= axis)), number)
            continue
        site.link_axes(x, piece, skip=[axis])
        link_stretch(site, piece, x, axis, start)
        start += piece.shape[axis]
    if site.input(1) is None:
        site.pin(x.axis(axis), "taken apart into a sequence")
