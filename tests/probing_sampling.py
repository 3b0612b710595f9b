"""Families of generated nodes that sample pictures, deform them or measure losses."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from tests.probing_draw import Case, Draw, case, i64, maybe, model
from tests.probing_runs import Array


def grid_sample(d: Draw) -> Case:
    opset = d.opset(16)
    rank = 2 if opset < 20 else d.pick([2, 3])
    x = d.floats(d.number(1, 2), d.number(1, 3), *(d.number(2, 4) for _ in range(rank)))
    grid = (d.rng.random((x.shape[0], *(d.number(1, 3) for _ in range(rank)), rank)) * 1.6) - 0.8
    names = ["nearest", "bilinear"] if opset < 20 else ["nearest", "linear"]
    attributes = {
        "mode": d.pick(names),
        "padding_mode": d.pick(["zeros", "border", "reflection"]),
        "align_corners": d.number(0, 1),
    }
    return case("GridSample", [x, grid.astype(np.float32)], opset, **attributes)


def affine_grid(d: Draw) -> Case:
    batch, rank = d.number(1, 3), d.pick([2, 3])
    size = i64(batch, d.number(1, 3), *(d.number(2, 3) for _ in range(rank)))
    theta = d.floats(batch, rank, rank + 1)
    return case("AffineGrid", [theta, size], d.opset(20), align_corners=d.number(0, 1))


def _boxes(d: Draw, count: int, height: int, width: int) -> Array:
    corners = d.rng.random((count, 2)) * [width / 2, height / 2]
    return np.concatenate([corners, corners + 2], axis=1).astype(np.float32)


def roi_align(d: Draw) -> Case:
    opset, count = d.opset(10), d.number(1, 3)
    x = d.floats(d.number(1, 2), d.number(1, 3), 6, 6)
    pictures = d.rng.integers(0, x.shape[0], count)
    attributes: dict[str, Any] = {
        "output_height": 2,
        "output_width": d.number(1, 2),
        "mode": "avg",
    }
    inputs = [x, _boxes(d, count, 6, 6), pictures]
    return case("RoiAlign", inputs, opset, **attributes, sampling_ratio=2)


def max_roi_pool(d: Draw) -> Case:
    count, x = d.number(1, 3), d.floats(1, d.number(1, 3), 6, 6)
    rois = np.concatenate([np.zeros((count, 1), np.float32), _boxes(d, count, 6, 6)], axis=1)
    return case("MaxRoiPool", [x, rois], d.number(7, 21), fixed=(1,), pooled_shape=[2, 2])


def max_unpool(d: Draw) -> Case:
    """Indices of a pooling that goes back to where it came from."""
    x = d.floats(d.number(1, 2), d.number(1, 3), *d.pick([(4, 4), (4, 6)]))
    window: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("MaxPool", ["x"], ["pooled", "places"], **window),
        helper.make_node("Tanh", ["pooled"], ["h"]),
        helper.make_node("MaxUnpool", ["h", "places"], ["y"], **window),
    ]
    return model(nodes, {"x": x}, ["y"], d.number(11, 21), set())


def col2im(d: Draw) -> Case:
    block, channels = [d.number(1, 2), d.number(1, 2)], d.number(1, 3)
    image = [d.number(2, 3), d.number(2, 3)]
    places = (image[0] - block[0] + 1) * (image[1] - block[1] + 1)
    x = d.floats(d.number(1, 2), channels * block[0] * block[1], places)
    return case("Col2Im", [x, i64(*image), i64(*block)], d.opset(18))


def resize_crop(d: Draw) -> Case:
    """A region of interest on the last axes, or on all of them."""
    shape = [d.number(1, 2), d.number(2, 3), 4, 4]
    axes, whole = d.pick([([2, 3], False), ([0, 1, 2, 3], True)])
    starts, ends = ([0.0, 0.0], [1.0, 0.5])
    roi = [0.0, 0.0, *starts, 1.0, 1.0, *ends] if whole else [*starts, *ends]
    scales = [1.0, 1.0, 1.0, 0.5] if whole else [1.0, 0.5]
    return case(
        "Resize",
        [d.floats(*shape), np.array(roi, np.float32), np.array(scales, np.float32)],
        d.opset(18),
        coordinate_transformation_mode="tf_crop_and_resize",
        mode=d.pick(["nearest", "linear"]),
        **maybe(not whole, axes=axes),
    )


def resize_cubic(d: Draw) -> Case:
    mode = d.pick(["cubic", "linear"])
    scales = np.array([1.0, 1.0, 2.0, d.pick([0.5, 1.5])], np.float32)
    transformation = d.pick(["half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners"])
    attributes = {
        "coordinate_transformation_mode": transformation,
        "antialias": d.number(0, 1) if transformation != "align_corners" else 0,
    }
    x = d.floats(1, d.number(1, 3), 4, 4)
    return case("Resize", [x, None, scales], d.opset(19), mode=mode, **attributes)


def deform_conv(d: Draw) -> Case:
    group, offset_group = d.pick([(1, 1), (2, 1), (1, 2), (2, 2), (2, 4), (4, 2), (1, 4), (3, 2)])
    channels = int(np.lcm(group, offset_group)) * d.number(1, 2)
    kernel, size = d.number(1, 2), 4
    out = size - kernel + 1
    x, taps = d.floats(d.number(1, 2), channels, size, size), kernel * kernel
    weight = d.floats(group * d.number(1, 2), channels // group, kernel, kernel)
    offset = d.floats(x.shape[0], offset_group * 2 * taps, out, out) * np.float32(0.3)
    bias = d.floats(weight.shape[0]) if d.flag() else None
    mask = d.floats(x.shape[0], offset_group * taps, out, out) if d.flag() else None
    inputs = [x, weight, offset, bias, mask]
    attributes = {"group": group, "offset_group": offset_group, "kernel_shape": [kernel, kernel]}
    return case("DeformConv", inputs, d.opset(19), **attributes)


def loss(d: Draw) -> Case:
    op = d.pick(["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
    shape = [d.number(2, 3), d.number(2, 4), *d.shape(0, 2, 3)]
    labels = d.rng.integers(0, shape[1], [shape[0], *shape[2:]])
    weights = np.abs(d.floats(shape[1])) + np.float32(0.5) if d.flag() else None
    outputs = d.number(1, 2) if op.startswith("Soft") else 1
    reduction = d.pick(["none", "sum", "mean"])
    inputs = [d.floats(*shape), labels, weights]
    return case(op, inputs, d.opset(13), outputs=outputs, fixed=(), reduction=reduction)
