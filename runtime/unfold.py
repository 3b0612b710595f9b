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
    where: tuple[Any, ...] = (rows.samples, *rows.places)
    if layer.is_convolution:
        found: Array = output[(where[0], slice(None), *where[1:])]
    else:
        found = output.reshape(*row_sizes(layer, output), -1)[where]
    return found


class Unfolded:
    """A layer's input, of which rows can be taken: those that it reads for ``output``."""

    def __init__(self, layer: LinearLayer, x: Array, output: Array) -> None:
        self.layer = layer
        if not layer.is_convolution:
            self._lines = x.reshape(*row_sizes(layer, output), layer.channels)
            return
        padded, self._strides, dilations = _padded(layer, x, output.shape[2:])
        sizes = padded.shape[2:]
        # Channels last, so that a tap of a row is one stretch of memory.
        self._lines = np.ascontiguousarray(np.moveaxis(padded, 1, -1)).reshape(-1, x.shape[1])
        self._steps = [math.prod(sizes[axis:]) for axis in range(len(sizes) + 1)]
        taps = np.indices(layer.kernel).reshape(len(sizes), -1)
        self._taps = sum(
            tap * dilation * step
            for tap, dilation, step in zip(taps, dilations, self._steps[1:], strict=True)
        )

    def rows(self, rows: Rows) -> Array:
        """[rows, groups, channels of a group, taps]: what the layer reads for these rows."""
        layer = self.layer
        if not layer.is_convolution:
            plain: Array = self._lines[(rows.samples, *rows.places)]
            return plain[:, None, :, None]
        first = rows.samples * self._steps[0]
        for place, stride, step in zip(rows.places, self._strides, self._steps[1:], strict=True):
            first = first + place * (stride * step)
        found = self._lines.take(first[:, None] + self._taps, axis=0)
        split: Array = found.reshape(*found.shape[:2], layer.groups, -1).transpose(0, 2, 3, 1)
        return split


def _padded(
    layer: LinearLayer, x: Array, sizes: tuple[int, ...]
) -> tuple[Array, tuple[int, ...], tuple[int, ...]]:
    """[samples, channels, positions…], padded to what outputs of these ``sizes`` read and no more;
    strides and dilations with which it is read."""
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
    needed = [s * (n - 1) + r for s, n, r in zip(strides, sizes, reach, strict=True)]
    cuts, widths = [slice(None)] * 2, [(0, 0)] * 2
    for pad, size, given in zip(before, needed, x.shape[2:], strict=True):
        after = size - pad - given
        cuts.append(slice(max(-pad, 0), max(given + min(after, 0), 0)))
        widths.append((max(pad, 0), max(after, 0)))
    return np.pad(x[tuple(cuts)], widths), strides, dilations


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
