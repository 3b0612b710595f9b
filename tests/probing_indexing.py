"""Families of generated nodes that read or write by index, or whose results are positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.probing_draw import Case, Draw, case, i64, maybe, since
from tests.probing_runs import Array

# -- indices -----------------------------------------------------------------------------------


def _elements(d: Draw, shape: Sequence[int], axis: int, count: int, low: int) -> Array:
    """Indices of ``axis``: the same for all other coordinates, or different everywhere."""
    full = [count if k == axis else d.number(1, s) for k, s in enumerate(shape)]
    if d.flag():
        row = d.rng.integers(low, shape[axis], count)
        return np.broadcast_to(
            row.reshape([-1 if k == axis else 1 for k in range(len(full))]), full
        ).copy()
    return d.rng.integers(low, shape[axis], full)


def gather_elements(d: Draw) -> Case:
    shape, opset = d.shape(1, 3, 4), d.opset(11)
    axis = d.number(0, len(shape) - 1)
    indices = _elements(d, shape, axis, d.number(1, 4), -shape[axis])
    known = (1,) if shape[axis] < 2 or d.number(0, 2) else ()
    shown = d.sign(axis, len(shape))
    return case("GatherElements", [d.floats(*shape), indices], opset, fixed=known, axis=shown)


def scatter_elements(d: Draw) -> Case:
    op, shape = d.pick(["Scatter", "ScatterElements"]), [d.number(2, 4) for _ in range(2)]
    opset = d.number(9, 10) if op == "Scatter" else d.opset(11)
    axis = d.number(0, len(shape) - 1)
    low = 0 if op == "Scatter" else -shape[axis]
    indices = _elements(d, shape, axis, d.number(1, shape[axis]), low)
    allowed = ["none", "add", "mul", "max", "min"][: 1 if opset < 16 else 3 if opset < 18 else 5]
    reduction = d.pick(allowed)
    if reduction in ("none", "mul"):  # duplicates are left open, and zero times NaN is no number
        row = d.rng.permutation(shape[axis])[: indices.shape[axis]]
        wanted = [-1 if k == axis else 1 for k in range(len(shape))]
        indices = np.broadcast_to(row.reshape(wanted), indices.shape).copy()
    known = (1,) if reduction in ("none", "mul") or d.number(0, 2) else ()
    inputs = [d.floats(*shape), indices, d.floats(*indices.shape)]
    extra = maybe(reduction != "none", reduction=reduction)
    return case(op, inputs, opset, fixed=known, axis=d.sign(axis, 2, opset >= 11), **extra)


def _places(d: Draw, size: int, count: int) -> Array:
    """Coordinates of an axis, each once: all of them in order, or some in any."""
    if count == size and d.flag():
        return np.arange(size)
    return d.rng.permutation(size)[:count]


def _tuples(d: Draw, sizes: Sequence[int], lists: Sequence[int]) -> Array:
    """Tuples of indices: a grid, in which each list axis counts one axis, or random ones."""
    if len(lists) == len(sizes) and d.flag():
        grid = np.meshgrid(
            *(_places(d, s, n) for s, n in zip(sizes, lists, strict=True)), indexing="ij"
        )
        return np.stack(grid, axis=-1).astype(np.int64)
    return np.stack([d.rng.integers(0, s, list(lists)) for s in sizes], axis=-1)


def gather_nd(d: Draw) -> Case:
    shape, opset = [d.number(2, 4) for _ in range(d.number(1, 4))], d.opset(12)
    first = d.number(0, min(1, len(shape) - 1))
    depth = d.number(1, min(2, len(shape) - first))
    sizes = shape[first : first + depth]
    lists = [d.number(1, s) for s in sizes] if d.flag() else [d.number(1, 4)]
    indices = _tuples(d, sizes, lists)
    indices = np.stack([indices] * shape[0]) if first else indices
    known = (1,) if d.number(0, 2) else ()
    return case("GatherND", [d.floats(*shape), indices], opset, fixed=known, batch_dims=first)


def scatter_nd(d: Draw) -> Case:
    shape, opset = [d.number(2, 4) for _ in range(d.number(1, 3))], d.opset(11)
    depth = d.number(1, min(2, len(shape)))
    sizes = shape[:depth]
    allowed = ["none", "add", "mul", "max", "min"][: 1 if opset < 16 else 3 if opset < 18 else 5]
    reduction = d.pick(allowed)
    if d.flag():
        chosen = (_places(d, s, s if d.flag() else d.number(1, s)) for s in sizes)
        grid: Sequence[Array] = np.meshgrid(*chosen, indexing="ij")
    else:
        places = d.rng.permutation(int(np.prod(sizes)))[: d.number(1, 4)]
        grid = np.unravel_index(places, sizes)
    indices = np.stack(grid, axis=-1).astype(np.int64)
    known = (1,) if reduction in ("none", "mul") or d.number(0, 2) else ()
    updates = d.floats(*indices.shape[:-1], *shape[depth:])
    extra = maybe(reduction != "none", reduction=reduction)
    return case("ScatterND", [d.floats(*shape), indices, updates], opset, fixed=known, **extra)


def tensor_scatter(d: Draw) -> Case:
    shape = [d.number(1, 3), d.number(1, 3), d.number(2, 5), d.number(1, 3)]
    axis = d.pick([1, 2])
    update = [d.number(1, s) if k == axis else s for k, s in enumerate(shape)]
    place = d.rng.integers(0, shape[axis] - update[axis] + 1, shape[0]) if d.flag() else None
    inputs = [d.floats(*shape), d.floats(*update), place]
    extra = maybe(d.flag(), mode=d.pick(["linear", "circular"]))
    return case("TensorScatter", inputs, d.opset(24), axis=d.sign(axis, 4), **extra)


def gather_tables(d: Draw) -> Case:
    """Indices with two axes: a grid that is cut up, or a table without order."""
    size, rows = d.pick([4, 6, 8]), 2
    table = d.rng.permutation(size).reshape(rows, -1)
    table = table if d.flag() else d.rng.integers(-size, size, (rows, d.number(1, 3)))
    return case("Gather", [d.floats(3, size), table], d.opset(11), axis=1)


def compress(d: Draw) -> Case:
    shape, opset = [d.number(2, 4) for _ in range(d.number(1, 3))], d.opset(9)
    axis = d.number(0, len(shape) - 1)
    flags = d.rng.random(d.number(1, shape[axis])) < 0.7
    flags[d.number(0, flags.size - 1)] = True
    whole = len(shape) == 1 and d.flag()
    extra = maybe(not whole, axis=d.sign(axis, len(shape), opset >= 11))
    return case("Compress", [d.floats(*shape), flags], opset, **extra)


def center_crop_pad(d: Draw) -> Case:
    shape = [d.number(2, 5) for _ in range(d.number(1, 3))]
    axes = d.order(range(len(shape)))[: d.number(1, len(shape))]
    target = [d.pick([shape[a], d.number(1, 7)]) for a in axes]
    extra: dict[str, Any] = maybe(len(axes) < len(shape) or axes != sorted(axes), axes=axes)
    return case("CenterCropPad", [d.floats(*shape), i64(*target)], d.opset(18), **extra)


# -- positions ---------------------------------------------------------------------------------


def trilu(d: Draw) -> Case:
    x = d.floats(*d.shape(2, 4))
    diagonal = np.array(d.number(-2, 2), np.int64) if d.flag() else None
    return case("Trilu", [x, diagonal], d.opset(14), upper=d.number(0, 1))


def one_hot(d: Draw) -> Case:
    shape, opset = d.shape(1, 3), d.opset(9)
    depth, values = i64(d.number(2, 5)), np.array([0, 1], np.float32)
    indices = d.rng.integers(0, 5, shape)
    axis = d.number(-1, len(shape))
    return case("OneHot", [indices, depth, values], opset, fixed=(1, 2), axis=axis)


def reverse_sequence(d: Draw) -> Case:
    x, batch = d.floats(*(d.number(2, 4) for _ in range(d.number(2, 3)))), d.number(0, 1)
    lengths = d.rng.integers(1, x.shape[1 - batch] + 1, x.shape[batch])
    inputs, opset = [x, lengths], d.opset(10)
    return case("ReverseSequence", inputs, opset, batch_axis=batch, time_axis=1 - batch)


def det(d: Draw) -> Case:
    size = d.number(1, 3)
    return case("Det", [d.floats(*d.shape(0, 2), size, size)], d.opset(11))


def dft(d: Draw) -> Case:
    opset, parts = d.opset(17), d.pick([1, 2])
    x = d.floats(*(d.number(1, 4) for _ in range(d.number(2, 3))), parts)
    axis, length = d.number(0, x.ndim - 2), i64(d.number(2, 5))[0] if d.flag() else None
    if opset < 20:
        return case("DFT", [x, length], opset, axis=axis)
    return case("DFT", [x, length, np.array(axis, np.int64)], opset)


def stft(d: Draw) -> Case:
    x = d.floats(d.number(1, 3), 12, d.pick([1]))
    window = d.floats(4) if d.flag() else None
    length = None if window is not None else np.array(4, np.int64)
    return case("STFT", [x, np.array(3, np.int64), window, length], d.opset(17), onesided=1)


# -- operators that hold everything ------------------------------------------------------------


def pinned(d: Draw) -> Case:
    """Random values, listed positions and tables: no coordinate may go."""
    op = d.pick(
        [
            *("NonZero", "EyeLike", "Bernoulli", "Multinomial"),
            *("RandomNormalLike", "RandomUniformLike"),
        ]
    )
    opset = d.opset(since(op))
    attributes: dict[str, Any] = maybe(op == "Multinomial", sample_size=3)
    x = np.abs(d.floats(d.number(2, 3), d.number(2, 4)))
    return case(op, [x], min(opset, 21), **attributes)


def drawn(d: Draw) -> Case:
    """Values made of nothing but a shape."""
    op = d.pick(["RandomNormal", "RandomUniform"])
    node, feeds = case(op, [], d.opset(since(op)), shape=[2, 3])
    return node, feeds
