"""Drawing one-node models: sizes, attributes and values of tensors, from Hypothesis."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from tests.probing_runs import Array, freeze, size_inputs

NEWEST = 28
NIGHTLY = int(os.environ.get("SECATEUR_NIGHTLY", "1"))
"""The nightly run has this many times as many cases."""
Case = tuple[onnx.ModelProto, dict[str, Array]]
INT_MAX = 2**31 - 1


class Unavailable(Exception):
    """The family has no such operator in the model's opset."""


class Draw:
    """What a family of cases draws from: sizes, attributes and values of tensors."""

    settled: int | None = None
    """The opset, where the model that the case is for has one already."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))

    def number(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))

    def flag(self) -> bool:
        return bool(self._draw(st.booleans()))

    def pick(self, items: Sequence[Any]) -> Any:
        return self._draw(st.sampled_from(list(items)))

    def order(self, items: Sequence[int]) -> list[int]:
        return list(self._draw(st.permutations(list(items))))

    def subset(self, items: Sequence[int]) -> list[int]:
        return [i for i in items if self.flag()]

    def shape(self, low: int, high: int, most: int = 4) -> list[int]:
        return [self.number(1, most) for _ in range(self.number(low, high))]

    def sign(self, axis: int, rank: int, allowed: bool = True) -> int:
        """The axis, perhaps counted from the end."""
        return axis - rank if allowed and self.flag() else axis

    def floats(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32)

    def of(self, dtype: Any, *shape: int) -> Array:
        dtype = np.dtype(dtype)
        if dtype.kind == "f":
            return self.floats(*shape).astype(dtype)
        if dtype == np.bool_:
            return self.rng.random(shape) < 0.5
        return self.rng.integers(1 if dtype.kind == "u" else -5, 6, shape).astype(dtype)

    def opset(self, low: int = 7, high: int = NEWEST) -> int:
        """An opset between these. Raises Unavailable when it is settled and none of them."""
        if self.settled is None:
            return self.number(low, high)
        if not low <= self.settled <= high:
            raise Unavailable
        return self.settled


class Seeded(Draw):
    """Draws from a generator of random numbers, seeded by name and number: every case is another,
    where Hypothesis varies a few that it likes."""

    def __init__(self, name: str, number: int) -> None:
        self.rng = np.random.default_rng([zlib.crc32(name.encode()), number])

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def flag(self) -> bool:
        return bool(self.rng.integers(2))

    def pick(self, items: Sequence[Any]) -> Any:
        return items[self.number(0, len(items) - 1)]

    def order(self, items: Sequence[int]) -> list[int]:
        return [items[k] for k in self.rng.permutation(len(items))]


def draws(name: str, count: int) -> Iterator[Draw]:
    """What that many cases draw from; more in the nightly run."""
    return (Seeded(name, number) for number in range(count * NIGHTLY))


def case(
    op: str,
    inputs: Sequence[Array | None],
    opset: int,
    outputs: int = 1,
    fixed: Sequence[int] | None = None,
    **attributes: Any,
) -> Case:
    """One node; inputs that hold sizes (or those numbered in ``fixed``) become initializers."""
    names = [f"x{k}" if a is not None else "" for k, a in enumerate(inputs)]
    while names and not names[-1]:
        names.pop()
    results = [f"y{k}" for k in range(outputs)]
    given_ = {n: np.asarray(a) for n, a in zip(names, inputs, strict=False) if a is not None}
    fixed = size_inputs(op) if fixed is None else fixed
    constant = {names[k] for k in fixed if k < len(names) and names[k]}
    node = helper.make_node(op, names, results, **attributes)
    return model([node], given_, results, opset, constant)


def model(
    nodes: Sequence[onnx.NodeProto],
    values: dict[str, Array],
    outputs: Sequence[str],
    opset: int,
    constant: set[str],
) -> Case:
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in values.items()
    ]
    graph = helper.make_graph(nodes, "g", infos, [onnx.ValueInfoProto(name=o) for o in outputs])
    opsets = [helper.make_opsetid("", opset)]
    for domain in sorted({node.domain for node in nodes if node.domain}):
        opsets.append(helper.make_opsetid(domain, {"ai.onnx.ml": 3}.get(domain, 1)))
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    made = freeze(made, {n: a for n, a in values.items() if n in constant})
    inferred = onnx.shape_inference.infer_shapes(made, data_prop=True)
    for info, found in zip(made.graph.output, inferred.graph.output, strict=True):
        if found.type.tensor_type.elem_type:
            info.CopyFrom(found)
    return made, {n: a for n, a in values.items() if n not in constant}


def maybe(flag: bool, **attributes: Any) -> dict[str, Any]:
    """The attributes, or none."""
    return attributes if flag else {}


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def since(op: str) -> int:
    """The oldest opset with this operator; 7 at least, where broadcasting became numpy's."""
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if s.name == op and not s.domain]
    return max(7, min(s.since_version for s in schemas))


def broadcastable(d: Draw, count: int, most: int = 4) -> list[list[int]]:
    full = d.shape(0, 4, most)
    return [full, *(shrunk(d, full) for _ in range(count - 1))]


def shrunk(d: Draw, full: Sequence[int]) -> list[int]:
    """A shape that broadcasts to ``full``."""
    return [1 if d.number(0, 3) == 0 else s for s in full][d.number(0, len(full)) :]


def factored(d: Draw, factors: Sequence[int]) -> list[int]:
    """The factors in order, multiplied together in runs, with some 1s between."""
    shape = [1]
    for factor in factors:
        if d.flag():
            shape[-1] *= factor
        else:
            shape.append(factor)
    if d.number(0, 3) == 0:
        shape.insert(d.number(0, len(shape)), 1)
    return shape


def with_axes(
    d: Draw,
    op: str,
    x: Array,
    axes: Sequence[int],
    rank: int,
    opset: int,
    may_omit: bool = False,
    input_from: int = 13,
    **attributes: Any,
) -> Case:
    """Axes as an attribute or, from opset ``input_from`` on, as an input."""
    axes = [d.sign(a, rank, opset >= 11) for a in axes]
    if may_omit and (not axes or d.number(0, 3) == 0):
        return case(op, [x], opset, **attributes)
    if opset < input_from:
        return case(op, [x], opset, axes=axes, **attributes)
    return case(op, [x, i64(*axes)], opset, **attributes)
