"""Random well-typed models: networks grown layer by layer, and single operators between layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.probing_draw import Case, Draw, Unavailable
from tests.probing_runs import Array

OPSETS = (13, 24)
"""Every operator that the models use has kernels in ONNX Runtime for these and all between."""


class Graph:
    """A growing model: nodes, weights, and the shapes of its float values."""

    def __init__(self, d: Draw, opset: int, *, nests: bool = False) -> None:
        self.d = d
        self.opset = opset
        self.nests = nests
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inside: set[str] = set()  # those that a function holds
        self.functions: list[onnx.FunctionProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def constant(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        scale = 1 / math.sqrt(max(math.prod(shape[1:]), 1))
        return self.constant(self.d.floats(*shape) * np.float32(scale))

    def sizes(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def add(
        self, op: str, inputs: Sequence[str], shape: Sequence[int] | None, **attributes: Any
    ) -> str:
        """One node; ``shape`` is that of its first output (None: whatever comes next says it)."""
        name = self.name()
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        if shape is not None:
            self.shapes[name] = tuple(shape)
        return name

    def several(self, op: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        names = [self.name() for _ in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], **attributes))
        return names

    def feed(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def renamed(self, node: onnx.NodeProto, rename: dict[str, str]) -> onnx.NodeProto:
        """A copy of the node with the names ``rename``, to which those that it makes are added;
        its subgraphs see them, and have names of their own."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [rename[name] for name in node.input]
        copy.output[:] = [rename.setdefault(name, self.name()) for name in node.output]
        for body in (a.g for a in copy.attribute if a.HasField("g")):
            inner = dict(rename)
            for value in (*body.input, *body.initializer):
                inner[value.name] = value.name = self.name()
            nodes = [self.renamed(part, inner) for part in body.node]
            del body.node[:]
            body.node.extend(nodes)
            for value in body.output:
                value.name = inner[value.name]
        return copy

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def model(self) -> onnx.ModelProto:
        weights = [tensor for tensor in self.weights if tensor.name not in self.inside]
        graph = helper.make_graph(
            self.nodes, "random", self.inputs, self.outputs, initializer=weights
        )
        opsets = [helper.make_opsetid("", self.opset)]
        domains = {node.domain for node in self.nodes} | {"com.microsoft"}
        for domain in sorted(domains - {""}):
            opsets.append(helper.make_opsetid(domain, 1))
        return helper.make_model(
            graph, opset_imports=opsets, functions=self.functions, ir_version=10
        )


# -- single operators between layers ---------------------------------------------------------------


def grafted(d: Draw, families: Sequence[Callable[[Draw], Case]], opset: int) -> onnx.ModelProto:
    """A model in which cases of the families stand between matrix products.

    Floats and 8-bit integers that a case is given come from the trunk or from the case before it,
    or are weights; all numeric outputs end in a matrix product again. Raises Unavailable when a
    family has nothing for the opset.
    """
    g = Graph(d, opset)
    trunk, last = g.feed("x", [1, 5]), ""
    ends = []
    for number, family in enumerate(families):
        made, feeds = family(d)
        rename: dict[str, str] = {"": ""}
        for tensor in made.graph.initializer:
            rename[tensor.name] = g.constant(numpy_helper.to_array(tensor))
        computed = False
        for name, array in feeds.items():
            if not array.size or array.dtype not in (np.float32, np.int8, np.uint8):
                kind = helper.np_dtype_to_tensor_dtype(array.dtype)
                rename[name] = (
                    g.constant(array)
                    if d.flag()
                    else g.feed(f"x{number}_{name}", array.shape, kind)
                )
            elif computed and d.number(0, 2) == 0:
                rename[name] = g.constant(array)
            else:
                computed = True
                rename[name] = _computed(g, trunk, last, array)
        for node in made.graph.node:
            g.nodes.append(g.renamed(node, rename))
            g.nodes[-1].name = f"case{number}_{node.op_type}"
        for value in made.graph.output:
            shape = _static(value)
            if shape is None or not math.prod(shape):
                continue
            found = rename[value.name]
            if value.type.tensor_type.elem_type != TensorProto.FLOAT:
                found = g.add("Cast", [found], shape, to=TensorProto.FLOAT)
            g.shapes[found] = shape
            last = g.add("Reshape", [found, g.sizes(1, -1)], [1, math.prod(shape)])
            ends.append(g.add("MatMul", [last, g.weight(math.prod(shape), 3)], [1, 3]))
    if not ends:
        raise Unavailable
    total = ends[0] if len(ends) == 1 else g.add("Sum", ends, [1, 3])
    g.output(total, [1, 3])
    return g.model()


def _computed(g: Graph, trunk: str, last: str, like: Array) -> str:
    """A value of this shape and type (float, or steps of 8 bits) that follows from ``last``, if
    that has as many elements, else from the trunk."""
    source = last if last and math.prod(g.shapes[last]) == like.size else ""
    if not source:
        weights = g.weight(5, like.size), g.weight(like.size)
        source = g.add("Gemm", [trunk, *weights], [1, like.size])
    if like.dtype != np.float32:
        zero = g.constant(np.array(128 if like.dtype == np.uint8 else 0, like.dtype))
        scale = g.constant(np.array(0.05, np.float32))
        source = g.add("QuantizeLinear", [source, scale, zero], [1, like.size])
    return g.add("Reshape", [source, g.sizes(*like.shape)], like.shape)


_NUMERIC = frozenset(
    getattr(TensorProto, name)
    for name in "FLOAT DOUBLE FLOAT16 INT8 UINT8 INT32 INT64 UINT32 UINT64 BOOL".split()
)


def _static(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    kind = value.type.tensor_type
    if kind.elem_type not in _NUMERIC or not kind.HasField("shape"):
        return None
    dims = kind.shape.dim
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None
