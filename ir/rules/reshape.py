"""Reshape and its kin: factored axes and carriers.

Input and output dimensions are matched into minimal blocks of equal product, and every block is
cut at all cumulative products of either side: (C, H, W) -> (G, C/G*H*W) has the factors
[G, C/G, H, W]. Each axis is a run of consecutive factors. Units form along one factor of a block,
the carrier; axes that do not contain it are pinned.

Sizes are pairs, one number per binding of the symbolic dimensions: (T, N, 16) -> (T, N*4, 4) has
the factors N, 4 and 4 even where N is 1 at first. A carrier is a factor that does not move, and
an axis such as N*4, which does, holds it as its inner digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..coupling import Alternative, Layout
from .base import Operand, Site, positive_axes, rule
from .factors import Run

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


Size = tuple[int, int]
"""The size of an axis or a factor under both bindings of the symbolic dimensions."""

Axes = list[tuple[int, Size]]
"""(axis, size) pairs."""

_ONE: Size = (1, 1)


def couple_blocks(site: Site, x: Operand, y: Operand) -> None:
    """Couples two operands that hold the same elements in the same order."""
    if 0 in x.shape or 0 in y.shape:
        site.pin_all("an empty tensor is reshaped")
        return
    if math.prod(x.shape) != math.prod(y.shape) or math.prod(x.later) != math.prod(y.later):
        site.pin_all("a reshape into another number of elements")
        return
    for operand in (x, y):
        for axis, size in _axes(operand):
            if size == _ONE:
                site.pin(axis, _UNIT)
    for left, right in blocks(_axes(x), _axes(y)):
        if len(left) == len(right) == 1:
            site.link(left[0][0], right[0][0])
            continue
        sizes, runs = factorise(left, right)
        for axis, _ in () if runs else (*left, *right):
            site.pin(axis, _UNCUT)
        if runs:
            _choose_factor(site, runs, sizes, dict((*left, *right)))


def _axes(operand: Operand) -> Axes:
    return list(zip(operand.axes, zip(operand.shape, operand.later, strict=True), strict=True))


def blocks(inputs: Axes, outputs: Axes) -> Iterator[tuple[Axes, Axes]]:
    """Minimal runs of axes of equal product on both sides, axes of size 1 left out."""
    sources = [(item for item in side if item[1] != _ONE) for side in (inputs, outputs)]
    block: tuple[Axes, Axes] = ([], [])
    products = [_ONE, _ONE]
    while True:
        if products[0] == products[1] and block[0]:
            yield block
            block, products = ([], []), [_ONE, _ONE]
        shorter = int(math.prod(products[0]) > math.prod(products[1]))
        item = next(sources[shorter], None)
        if item is None:
            return
        block[shorter].append(item)
        products[shorter] = _times(products[shorter], item[1])


def _times(a: Size, b: Size) -> Size:
    return a[0] * b[0], a[1] * b[1]


def factorise(left: Axes, right: Axes) -> tuple[list[Size], list[Run]]:
    """Common factors of a block and each axis as a run of them; no runs if the cuts clash."""
    ends = [list(accumulate((size for _, size in side), _times)) for side in (left, right)]
    cuts = sorted({*ends[0], *ends[1]}, key=math.prod)
    if any(b[k] % a[k] for a, b in pairwise(cuts) for k in (0, 1)):
        return [], []
    sizes = [(b[0] // a[0], b[1] // a[1]) for a, b in pairwise([_ONE, *cuts])]
    runs = []
    for side, stops in zip((left, right), ends, strict=True):
        at = 0
        for (axis, _), stop in zip(side, stops, strict=True):
            end = cuts.index(stop) + 1
            runs.append(Run(axis, tuple(range(at, end))))
            at = end
    return sizes, runs


def _choose_factor(
    site: Site, runs: Sequence[Run], sizes: Sequence[Size], totals: Mapping[int, Size]
) -> None:
    """Lets units form along one of the static factors, the carrier; axes without it are pinned.

    In an axis of fixed size the carrier's digit must be the same under both bindings.
    """
    static = [factor for factor, (first, second) in enumerate(sizes) if first == second]
    inner = {
        (run.axis, f): reduce(_times, (sizes[g] for g in run.factors if g > f), _ONE)
        for run in runs
        for f in run.factors
    }

    def fits(run: Run, factor: int) -> bool:
        first, second = inner[run.axis, factor]
        return first == second or _moves(totals[run.axis])

    def alternative(factor: int) -> Alternative:
        bearers = [run.axis for run in runs if factor in run.factors]
        layouts = {axis: Layout(sizes[factor][0], inner[axis, factor]) for axis in bearers}

        def apply() -> None:
            hub = site.hub(sizes[factor][0])
            for run in sorted(runs, key=lambda run: _moves(totals[run.axis])):
                if factor not in run.factors:
                    site.pin(run.axis, reason)
                elif _moves(totals[run.axis]):
                    site.declare(run.axis, hub, layouts[run.axis])
                elif run.factors == (factor,):
                    site.link(run.axis, hub)
                else:
                    size = totals[run.axis][0]
                    digit = layouts[run.axis].digit(size)
                    site.link(run.axis, hub, np.arange(size, dtype=np.int64), digit)

        digits = tuple((axis, layouts[axis].digit(totals[axis][0])) for axis in bearers)
        whole = tuple(
            run.axis for run in runs if [f for f in run.factors if f in static] == [factor]
        )
        stops = tuple(run.axis for run in runs if factor not in run.factors)
        name = f"factor {factor} of {[size for size, _ in sizes]}"
        return Alternative(name, tuple(bearers), digits, apply, whole, stops=stops)

    def otherwise() -> None:
        for run in runs:
            site.pin(run.axis, reason)

    carriers = [f for f in static if all(fits(run, f) for run in runs if f in run.factors)]
    reason = _OTHER if carriers else _MOVES
    site.choose(*(alternative(factor) for factor in carriers), otherwise=otherwise)


def _moves(size: Size) -> bool:
    return size[0] != size[1]


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
