"""Unfolding: the input of a linear layer as rows, one for each output position.

A convolution reads at output position o, along each spatial axis, the padded input at
``stride * o + dilation * t`` for the taps t. A transposed one reads the input with ``stride - 1``
zeros between its elements, padded by ``dilation * (kernel - 1) - pad``, at ``o + dilation * t``,
with its kernel turned round. Only the positions that are asked for are copied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ir.linear import LinearLayer
from ..ir.rules.base import attribute_ints
from .session import Array

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Which rows of a batch: ``samples`` numbers them along the first axis, ``places`` along each
    of the axes between (all of one length)."""

    samples: Indices
    places: tuple[Indices, ...]

    @classmethod
    def of(cls, flat: Indices, sizes: tuple[int, ...]) -> Rows:
        """Rows by their numbers in C order, of ``sizes`` (samples, positions…)."""
        first, *others = np.unravel_index(flat, sizes)
        return cls(first, tuple(others))


def row_sizes(layer: LinearLayer, output: Array) -> tuple[int, ...]:
    """(samples, positions…) of the rows that make ``output``."""
    if layer.is_convolution:
        return (output.shape[0], *output.shape[2:])
    return output.shape[:-1] or (1,)


def target_rows(layer: LinearLayer, output: Array, rows: Rows) -> Array:
    """[rows, outputs]: the chosen rows of the layer's output."""
    if layer.is_convolution:
        return _picked(output, rows)
    found: Array = output.reshape(*row_sizes(layer, output), -1)[(rows.samples, *rows.places)]
    return found


def input_rows(layer: LinearLayer, x: Array, output: Array, rows: Rows) -> Array:
    """[rows, groups, columns]: what the layer reads for the chosen rows of its output."""
    if not layer.is_convolution:
        return target_rows(layer, x, rows)[:, None, :]
    windows = _windows(layer, x, output.shape[2:])
    return _picked(windows, rows).reshape(len(rows.samples), layer.groups, layer.columns)


def _picked(array: Array, rows: Rows) -> Array:
    """The rows of an array with the channels behind the samples."""
    where: tuple[Any, ...] = (rows.samples, slice(None), *rows.places)
    found: Array = array[where]
    return found


def _windows(layer: LinearLayer, x: Array, sizes: tuple[int, ...]) -> Array:
    """[samples, channels, positions…, taps…], a view of the padded input."""
    kernel, count = layer.kernel, len(layer.kernel)
    strides = attribute_ints(layer.node, "strides") or (1,) * count
    dilations = attribute_ints(layer.node, "dilations") or (1,) * count
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    before = _pads_before(layer, x.shape[2:], sizes, strides, reach)
    if layer.node.op_type == "ConvTranspose":
        stuffed = np.zeros(
            (*x.shape[:2], *(s * (n - 1) + 1 for s, n in zip(strides, x.shape[2:], strict=True))),
            x.dtype,
        )
        stuffed[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
        x, before = stuffed, [r - 1 - p for r, p in zip(reach, before, strict=True)]
        strides = (1,) * count
    # Everything an output reads, and no more: cut or filled with zeros on either side.
    needed = [s * (n - 1) + r for s, n, r in zip(strides, sizes, reach, strict=True)]
    for axis, (pad, size) in enumerate(zip(before, needed, strict=True), start=2):
        after = size - pad - x.shape[axis]
        if pad < 0 or after < 0:
            x = x.take(range(max(-pad, 0), x.shape[axis] + min(after, 0)), axis)
        width = [(0, 0)] * x.ndim
        width[axis] = (max(pad, 0), max(after, 0))
        x = np.pad(x, width)
    axes = tuple(range(2, 2 + count))
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axes)
    steps = tuple(slice(None, None, s) for s in strides)
    taps = tuple(slice(None, None, d) for d in dilations)
    view: Array = windows[(slice(None), slice(None), *steps, *taps)]
    return view


def _pads_before(
    layer: LinearLayer,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    strides: tuple[int, ...],
    reach: list[int],
) -> list[int]:
    """How much is padded in front, along each spatial axis (of the output of a transposed one)."""
    attribute = layer.node.attributes.get("auto_pad")
    mode = "NOTSET" if attribute is None else attribute.as_string()
    if mode == "NOTSET":
        pads = attribute_ints(layer.node, "pads") or (0,) * (2 * len(inputs))
        return list(pads[: len(inputs)])
    if mode == "VALID":
        return [0] * len(inputs)
    small, large = inputs, outputs
    if layer.node.op_type == "Conv":
        small, large = outputs, inputs
    totals = [
        max(s * (n - 1) + r - m, 0) for s, n, m, r in zip(strides, small, large, reach, strict=True)
    ]
    return [total // 2 if mode == "SAME_UPPER" else math.ceil(total / 2) for total in totals]
