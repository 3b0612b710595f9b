"""Tuples of indices, place by place: what GatherND and ScatterND are given as one tensor.

Exporters write an assignment to a slice, ``x[:, 1:] = u``, as ScatterND with the mesh of all
coordinates it concerns: indices[i, j] = (i, j + 1), a Concat of one short list for each axis,
spread by Expand. The mesh may be too large to be evaluated, and it moves with the batch, while the
lists say all there is to know. So the tensor is taken apart into its columns, ``indices[..., c]``,
and each is followed back to what it was spread from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from .shapes import Array, Facts, Shape

ValuesOf = Callable[[str], Sequence[Array] | None]


@dataclass(frozen=True)
class Column:
    """One place of the tuples. ``axes`` are the list axes, those before the last, along which its
    numbers may differ.

    ``fixed``: the numbers, of size 1 along all other list axes, if they are known and no moving
    size has a part in them. ``counts``: the list axis along which they are 0, 1, … to the end of
    what they index, under every binding; else -1. ``source``: the value that they are read from,
    at ``place`` of its last axis or, where that is -1, from all of it, spread over the list axes;
    "" if it is longer than one that counts needs to be.
    """

    axes: frozenset[int]
    fixed: Array | None
    counts: int
    source: str
    place: int

    @property
    def computed(self) -> bool:
        """Whether only a run tells which coordinates are named."""
        return self.fixed is None and self.counts < 0


def columns(
    name: str,
    sizes: Sequence[Sequence[int]],
    protos: Mapping[str, onnx.NodeProto],
    facts: Sequence[Facts],
    values_of: ValuesOf,
    is_fixed: Callable[[str], bool],
) -> list[Column]:
    """The columns of value ``name``. ``sizes[k][c]`` is the size of what column c indexes, under
    binding k. ``values_of`` gives a known value under every binding, ``is_fixed`` says whether it
    is the same under all others, too."""
    lists = [f.types[name][1][:-1] for f in facts]
    parts = _parts(name, protos, facts)
    found = [
        _column(source, place, lists, size, facts, values_of, is_fixed)
        for (source, place), *size in zip(parts, *sizes, strict=True)
    ]
    rank = len(lists[0])
    moving = {k for k in range(rank) if len({shape[k] for shape in lists}) > 1}
    if moving <= frozenset().union(*(column.axes for column in found)):
        return found
    every = frozenset(range(rank))  # no column says how long a moving axis is
    return [Column(every, None, -1, name, place) for place in range(len(parts))]


def _parts(
    name: str, protos: Mapping[str, onnx.NodeProto], facts: Sequence[Facts]
) -> list[tuple[str, int]]:
    """For each column the value that it is read from, and its place there (see `Column`)."""
    shape, proto = facts[0].types[name][1], protos.get(name)
    if proto is not None and proto.op_type == "Concat":
        axis = next(a.i for a in proto.attribute if a.name == "axis")
        if axis in (-1, len(shape) - 1):
            return [part for given in proto.input for part in _parts(given, protos, facts)]
    if shape[-1] != 1:
        return [(name, place) for place in range(shape[-1])]
    place, lists = 0, [f.types[name][1][:-1] for f in facts]
    if proto is not None and proto.op_type in ("Unsqueeze", "Reshape"):
        given = [f.types[proto.input[0]][1] for f in facts]
        name, place = (proto.input[0], -1) if given == lists else (name, 0)
    while (proto := protos.get(name)) is not None and proto.op_type == "Expand":
        name = proto.input[0]
    return [(name, place if facts[0].types[name][1] else -1)]


def _column(
    source: str,
    place: int,
    lists: Sequence[Shape],
    sizes: Sequence[int],
    facts: Sequence[Facts],
    values_of: ValuesOf,
    is_fixed: Callable[[str], bool],
) -> Column:
    shapes = [f.types[source][1] for f in facts]
    shapes = [shape if place < 0 else shape[:-1] for shape in shapes]
    shapes = [(1,) * (len(lists[0]) - len(shape)) + shape for shape in shapes]
    spread = frozenset(k for shape in shapes for k, size in enumerate(shape) if size > 1)
    known = values_of(source)
    if known is not None:
        numbers = [
            _once(np.reshape(v if place < 0 else v[..., place], shape))
            for v, shape in zip(known, shapes, strict=True)
        ]
        fixed = numbers[0] if is_fixed(source) else None
        counts = next((k for k in range(len(lists[0])) if _counts(numbers, k, lists, sizes)), -1)
        if counts >= 0 or fixed is not None:
            axes = frozenset(k for v in numbers for k, size in enumerate(v.shape) if size > 1)
            return Column(axes, fixed, counts, source if axes == spread else "", place)
    return Column(spread, None, -1, source, place)


def _once(values: Array) -> Array:
    """The values with size 1 along every axis on which they repeat."""
    for axis, size in enumerate(values.shape):
        first = values.take([0], axis) if size > 1 else values
        if size > 1 and (values == first).all():
            values = first
    return values


def _counts(
    numbers: Sequence[Array], axis: int, lists: Sequence[Shape], sizes: Sequence[int]
) -> bool:
    """Whether numbers are 0, 1, … along a list axis that is as long as what they index."""
    return max(sizes) > 1 and all(
        v.size == v.shape[axis] == shape[axis] == size
        and np.array_equal(v.reshape(-1), np.arange(size))
        for v, shape, size in zip(numbers, lists, sizes, strict=True)
    )
