"""Reshape and its kin: factored axes and carriers.

Input and output dimensions are matched into minimal blocks of equal product, and every block is
cut at all cumulative products of either side: (C, H, W) -> (G, C/G*H*W) has the factors
[G, C/G, H, W]. Each axis is a run of consecutive factors. Units form along one factor of a block,
the carrier; axes that do not contain it are pinned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from .base import Operand, Run, Site, choose_factor, digits, positive_axes, rule

if TYPE_CHECKING:
    from ..restated import Restated

_UNIT = "an axis of size 1 in a reshape"
_UNCUT = "reshaped into sizes that share no factors"
_OTHER = "reshaped together with another axis"
_MOVES = "reshaped differently when a dynamic size changes"


def _restate_reshape(node: Restated) -> None:
    """New sizes in place of the old; entries 0 (copy) and -1 (infer) stay where they hold."""
    targets, shape = node.values(1), node.new_shape(0)
    if targets is not None:
        for index, entries in enumerate(targets.T):
            copied = (entries == 0).all() and (
                index < node.input_rank(0) and node.new_size(0, index) == shape[0, index]
            )
            if (entries == -1).all() or copied:
                shape[:, index] = entries
    node.want(1, shape)


@rule("Reshape", family="reshape", restate=_restate_reshape)
def reshape(site: Site) -> None:
    """The same elements in order, in other axes."""
    target = site.input(1)
    if target is not None:
        site.pin_all("a list of sizes", [target])
    couple_blocks(site, site.x, site.y)


@rule("Flatten", family="reshape")
def flatten(site: Site) -> None:
    """A reshape to two axes that restates itself."""
    couple_blocks(site, site.x, site.y)


def couple_blocks(site: Site, x: Operand, y: Operand) -> None:
    """Couples two operands that hold the same elements in the same order."""
    if 0 in x.shape or 0 in y.shape:
        site.pin_all("an empty tensor is reshaped")
        return
    for operand in (x, y):
        for axis, size in zip(operand.axes, operand.shape, strict=True):
            if size == 1:
                site.pin(axis, _UNIT)
    moves = x.shape != x.later or y.shape != y.later
    later = _pairings(x, y) if moves else None
    for left, right in _blocks(_long_axes(x, x.shape), _long_axes(y, y.shape)):
        sizes, runs = factorise(left, right)
        if not runs:
            for axis, _ in (*left, *right):
                site.pin(axis, _UNCUT)
            continue
        holds = [f for f in range(len(sizes)) if later is None or _pairing(runs, f, sizes) in later]
        if len(left) == len(right) == 1 and holds:
            site.link(left[0][0], right[0][0])
        else:
            choose_factor(site, runs, sizes, _OTHER if holds else _MOVES, holds)


Pairing = frozenset[tuple[int, bytes]]
"""What a factor ties together: axes, and for each coordinate its position along the factor."""


def _pairing(runs: Sequence[Run], factor: int, sizes: Sequence[int]) -> Pairing:
    return frozenset((axis, digit.tobytes()) for axis, digit in digits(runs, factor, sizes))


def _pairings(x: Operand, y: Operand) -> set[Pairing]:
    """All pairings under the second binding; a carrier must tie the same coordinates there."""
    found: set[Pairing] = set()
    for left, right in _blocks(_long_axes(x, x.later), _long_axes(y, y.later)):
        sizes, runs = factorise(left, right)
        found.update(_pairing(runs, f, sizes) for f in range(len(sizes)))
    return found


Axes = list[tuple[int, int]]
"""(axis, size) pairs."""


def _long_axes(operand: Operand, shape: Sequence[int]) -> Axes:
    """The axes that are longer than 1."""
    return [(axis, size) for axis, size in zip(operand.axes, shape, strict=True) if size > 1]


def _blocks(inputs: Axes, outputs: Axes) -> Iterator[tuple[Axes, Axes]]:
    """Minimal runs of axes of equal product on both sides."""
    left: Axes = []
    right: Axes = []
    a, b = iter(inputs), iter(outputs)
    product_left = product_right = 1
    while True:
        if product_left == product_right and left:
            yield left, right
            left, right, product_left, product_right = [], [], 1, 1
        side, source = (left, a) if product_left <= product_right else (right, b)
        item = next(source, None)
        if item is None:
            return
        side.append(item)
        if side is left:
            product_left *= item[1]
        else:
            product_right *= item[1]


def factorise(left: Axes, right: Axes) -> tuple[list[int], list[Run]]:
    """Common factors of a block and each axis as a run of them; no runs if the cuts clash."""
    sides = (left, right)
    ends = [[size for _, size in side[: k + 1]] for side in sides for k in range(len(side))]
    cuts = sorted({math.prod(sizes) for sizes in ends})
    if any(b % a for a, b in pairwise(cuts)):
        return [], []
    sizes = [b // a for a, b in zip([1, *cuts], cuts, strict=False)]
    runs = []
    for side in (left, right):
        at = 0
        for axis, size in side:
            factors: list[int] = []
            while math.prod(sizes[f] for f in factors) < size:
                factors.append(at)
                at += 1
            runs.append(Run(axis, tuple(factors)))
    return sizes, runs


def _restate_squeeze(node: Restated) -> None:
    """Without axes every size-1 axis goes: name them, since pruning may leave a size of 1."""
    if node.integers("axes") is None and not node.has_input(1):
        axes = [i for i in range(node.input_rank(0)) if node.old_size(0, i) == 1]
        if node.opset >= 13:
            node.want(1, np.array([axes, axes], np.int64))
        else:
            node.set_ints("axes", axes)


@rule("Unsqueeze", family="reshape")
@rule("Squeeze", family="reshape", restate=_restate_squeeze)
def insert_axes(site: Site) -> None:
    """Axes of size 1 come or go; all others pass through in order."""
    short, long = (site.y, site.x) if site.node.op_type == "Squeeze" else (site.x, site.y)
    site.pin_all("a list of axes", site.inputs[1:])
    axes = _inserted(site, long)
    if axes is None:
        site.pin_all("the axes are computed at run time")
        return
    if site.node.op_type == "Squeeze" and not axes and long.rank:
        # It cannot be told to squeeze nothing, and would squeeze what pruning leaves of size 1.
        site.pin_all("squeezed wherever the size is 1")
    rest = [index for index in range(long.rank) if index not in axes]
    for index in axes:
        site.pin(long.axis(index), _UNIT)
    for index, target in zip(rest, range(short.rank), strict=True):
        site.link(long.axis(index), short.axis(target))


def _inserted(site: Site, long: Operand) -> list[int] | None:
    known, axes = site.axes_parameter()
    if not known:
        return None
    if axes is None:
        return [i for i, size in enumerate(long.shape) if size == 1]
    return positive_axes(axes, long.rank)
