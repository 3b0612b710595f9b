"""Holds what is claimed of values to what ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from secateur.ir.analysis import Analysis, analyze
from secateur.ir.bounds import Bounds, Knowledge, propagate
from secateur.ir.io import load_model, to_proto
from secateur.ir.rules.base import Operand
from tests.pass_runs import Array
from tests.probing_draw import Draw
from tests.pruning_checks import run


def known(model: onnx.ModelProto, **dims: int) -> tuple[Analysis, Knowledge]:
    found = analyze(load_model(model), dims or None)
    return found, propagate(found)


def bounds_of(model: onnx.ModelProto, name: str) -> Bounds:
    """What is known of one value."""
    found, knowledge = known(model)
    return knowledge.of(found.operands[name])


def check_bounds(
    model: onnx.ModelProto, feeds: Iterable[Mapping[str, Array]], **dims: int
) -> tuple[int, int, int]:
    """Compares all float values of the main graph, and of functions that it calls, with their
    bounds, points and numbers; how many finite bounds, points and equal slices there were."""
    found, knowledge = known(model, **dims)
    wide = to_proto(found.model)  # calls are inlined
    types = found.facts[0].types
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
    named = {name for node in wide.graph.node for name in node.output}
    operands = {
        o.name: o
        for site in found.sites
        for o in site.outputs
        if o is not None
        and o.name in named
        and types[o.name][0] in floats
        and o.shape
        and 0 not in o.shape
    }
    present = {o.name for o in wide.graph.output}
    wide.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in operands if name not in present
    )
    counts = np.zeros(3, np.int64)
    for feed in feeds:
        results = run(wide, feed)
        if not all(np.isfinite(results[name]).all() for name in operands):
            continue  # nothing is claimed of such runs
        for name, operand in operands.items():
            bounds = knowledge.of(operand)
            if not results[name].size:
                continue
            counts += _check(results[name].astype(np.float64), bounds, operand)
    return int(counts[0]), int(counts[1]), int(counts[2])


def _check(value: Array, bounds: Bounds, operand: Operand) -> Array:
    name = operand.name
    assert (value >= bounds.low).all(), f"{name}: {value.min()} is below {bounds.low.min()}"
    assert (value <= bounds.high).all(), f"{name}: {value.max()} is above {bounds.high.max()}"
    scale = max(float(np.abs(value).max()), 1.0)
    points = ~np.isnan(bounds.point)
    error = np.abs(value - np.where(points, bounds.point, value)).max()
    assert error <= 1e-4 * scale, f"{name}: a point is wrong by {error}"
    equal = 0
    for axis, size in enumerate(operand.shape):
        if operand.dynamic[axis]:
            assert bounds.shape[axis] == 1
            continue
        numbers = bounds.along(axis, size).number
        _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        twin = first[inverse]
        error = np.abs(value - np.take(value, twin, axis)).max()
        assert error <= 1e-4 * scale, f"{name}: slices called equal differ by {error}"
        equal += int((twin != np.arange(size)).sum())
    finite = np.isfinite(bounds.low).sum() + np.isfinite(bounds.high).sum()
    return np.array([finite, points.sum(), equal])


def fenced(model: onnx.ModelProto, feed: Mapping[str, Array], d: Draw) -> onnx.ModelProto:
    """The model with every float input between random limits, some of them equal, and with some of
    its slices the same."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    before = []
    broadcasts = all(o.domain or o.version >= 8 for o in model.opset_import)
    held = {t.name for t in model.graph.initializer}
    for value in model.graph.input:
        name = value.name
        array = feed.get(name)
        if name in held or array is None or array.dtype != np.float32 or not array.size:
            continue
        for node in result.graph.node:
            node.input[:] = [f"{name}_fenced" if i == name else i for i in node.input]
        shape = [1 if broadcasts and d.flag() else size for size in array.shape]
        low = d.floats(*shape)
        high = low + np.maximum(d.floats(*shape), 0)
        axis = d.number(0, array.ndim - 1) if array.ndim else 0
        index = d.rng.integers(0, array.shape[axis], array.shape[axis]) if array.ndim else 0
        for part, limit in (("low", low), ("high", high), ("index", np.array(index, np.int64))):
            result.graph.initializer.append(numpy_helper.from_array(limit, f"{name}_{part}"))
        chain = [f"{name}_raised", f"{name}_fenced"] if not array.ndim else [
            f"{name}_raised", f"{name}_lowered", f"{name}_fenced"
        ]  # fmt: skip
        before.append(helper.make_node("Max", [name, f"{name}_low"], [chain[0]]))
        before.append(helper.make_node("Min", [chain[0], f"{name}_high"], [chain[1]]))
        if array.ndim:
            gathered = [chain[1], f"{name}_index"]
            before.append(helper.make_node("Gather", gathered, [chain[2]], axis=axis))
    nodes = [*before, *result.graph.node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result
