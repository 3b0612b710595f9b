"""Building proof graphs: how one is written, registered and fed.

A graph is a function that returns the signature, the body in `onnx.parser` text and its weights;
`@graph` turns it into a builder in `GRAPHS` and files what must be found there in `INFO`. Each
docstring names the groups that were counted by hand. The rules of counting:

- a group is a set of units (coupled coordinates) that touch the same axes, is pinned nowhere and
  owns coordinates of a weight; it counts from two units on; graph inputs and outputs are pinned;
- it is exact when no normalisation or mean looks across it; head counts of attention are taken
  along the heads, grouped convolutions along whichever factor gives fewer groups.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, parser

Array = npt.NDArray[Any]
Weight = int | float | tuple[int, ...] | list[int] | Array
"""A size or shape: random floats; a float: a scalar; a list: int64; an array: itself."""
Net = tuple[str, str, dict[str, Weight]]
Form = Literal["initializers", "constants", "inputs"]


@dataclass(frozen=True)
class Info:
    """What is known about one graph, worked out by hand.

    `dims`: symbolic dimensions of the inputs. `exact_groups`: the least number of prunable exact
    groups. `must_shrink`: weights that lose elements when every exact group keeps half of its
    units; `must_stay`: weights that no analysis may shrink. `runnable`: ONNX Runtime knows all
    operators. `deprecated`: ONNX Runtime runs it, but the checker refuses an operator deprecated
    in its opset. `form`: where the weights are (initializers, Constant nodes, or initializers that
    are graph inputs too).
    """

    opset: int
    dims: tuple[str, ...]
    exact_groups: int
    must_shrink: tuple[str, ...]
    must_stay: tuple[str, ...] = ()
    runnable: bool = True
    deprecated: bool = False
    form: Form = "initializers"


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {}
INFO: dict[str, Info] = {}


def graph(
    exact: int,
    shrink: str,
    *,
    stay: str = "",
    dims: str = "N",
    opset: int = 17,
    runnable: bool = True,
    deprecated: bool = False,
    form: Form = "initializers",
    inner: str = "",
    functions: str = "",
) -> Callable[[Callable[[], Net]], Callable[[], onnx.ModelProto]]:
    """Register the decorated function, under its own name, as a builder of the same model.

    Weights named in `inner` are initializers of the subgraph that uses them; `functions` are the
    model's local functions as text. Weights that only these read are Constant nodes in them.
    """

    def register(function: Callable[[], Net]) -> Callable[[], onnx.ModelProto]:
        name = function.__name__

        def make() -> onnx.ModelProto:
            return build(name, function(), opset, form, inner.split(), functions)

        make.__name__, make.__doc__ = name, function.__doc__
        GRAPHS[name] = make
        INFO[name] = Info(
            opset,
            tuple(dims.split()),
            exact,
            tuple(shrink.split()),
            tuple(stay.split()),
            runnable,
            deprecated,
            form,
        )
        return make

    return register


def net(signature: str, body: str, /, **weights: Weight) -> Net:
    """A graph's parts; in `body`, `Conv3(...)` is a 3x3 Conv that keeps the size."""
    return signature, body.replace("Conv3(", "Conv<pads=[1,1,1,1]>("), weights


def build(
    name: str,
    parts: Net,
    opset: int,
    form: Form,
    inner: Sequence[str] = (),
    functions: str = "",
) -> onnx.ModelProto:
    """The model: weights drawn from a generator seeded with the name, so always the same."""
    signature, body, weights = parts
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    dtype = np.float16 if "float16" in signature else np.float32
    model: onnx.ModelProto = onnx.ModelProto()
    model.graph.CopyFrom(parser.parse_graph(f"{name} {signature} {{ {body} }}"))
    model.opset_import.append(helper.make_opsetid("", opset))
    model.functions.extend(map(parser.parse_function, filter(None, functions.split("\n\n"))))
    inside = {f.name: free(f) & weights.keys() for f in model.functions}
    for domain in sorted({n.domain for n in all_nodes(model) if n.domain}):
        model.opset_import.append(helper.make_opsetid(domain, 1))
    least = helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.ir_version = 3 if form == "inputs" else max(4, least)
    tensors = [numpy_helper.from_array(draw(rng, k, w, dtype), k) for k, w in weights.items()]
    for function in model.functions:
        own = [t for t in tensors if t.name in inside[function.name]]
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in own]
        nodes.extend(function.node)
        del function.node[:]
        function.node.extend(nodes)
    tensors = [t for t in tensors if t.name not in set(inner).union(*inside.values())]
    for graph in subgraphs(model.graph):
        used = {name for node in graph.node for name in node.input}
        found = {k: w for k, w in weights.items() if k in inner and k in used}
        graph.initializer.extend(
            numpy_helper.from_array(draw(rng, k, w, dtype), k) for k, w in found.items()
        )
    if form == "constants":
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
        nodes.extend(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        return model
    model.graph.initializer.extend(tensors)
    if form == "inputs":
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors
        )
    return model


def subgraphs(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto]:
    """All graphs inside the nodes of a graph or function, at any depth."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
                yield from subgraphs(attribute.g)


def free(function: onnx.FunctionProto) -> set[str]:
    """What a function reads and does not define."""
    nodes = [*function.node, *(node for graph in subgraphs(function) for node in graph.node)]
    read = {name for node in nodes for name in node.input}
    return read - {*function.input} - {name for node in nodes for name in node.output}


def is_nested(model: onnx.ModelProto) -> bool:
    """Whether there are subgraphs, functions, or values that are no tensors."""
    other = any("Sequence" in n.op_type or "Optional" in n.op_type for n in model.graph.node)
    return bool(model.functions) or other or any(True for _ in subgraphs(model.graph))


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of the main graph, of the functions, and of the subgraphs of both."""
    for body in (model.graph, *model.functions):
        for graph in (body, *subgraphs(body)):
            yield from graph.node


def draw(rng: np.random.Generator, name: str, weight: Weight, dtype: npt.DTypeLike) -> Array:
    """The values of one weight; scales (`_s`) and variances (`_v`) lie in [0.5, 1.5)."""
    if isinstance(weight, np.ndarray):
        return weight
    if isinstance(weight, list):
        return np.array(weight, np.int64)
    if isinstance(weight, float):
        return np.array(weight, dtype)
    shape = (weight,) if isinstance(weight, int) else weight
    if name.endswith(("_s", "_v")):
        return rng.uniform(0.5, 1.5, shape).astype(dtype)
    fan_in = math.prod(shape) / max(shape) if len(shape) > 1 else 10.0
    values: Array = rng.standard_normal(shape) / math.sqrt(fan_in)
    return values.astype(dtype)


def feeds(model: onnx.ModelProto, seed: int = 0, size: int = 2, **dims: int) -> dict[str, Array]:
    """Random inputs; a symbolic dimension missing in `dims` is `size`. Integers are below 8."""
    rng = np.random.default_rng(seed)
    weights = {t.name for t in model.graph.initializer}
    result: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        shape = [
            dims.get(d.dim_param, size) if d.dim_param else d.dim_value for d in tensor.shape.dim
        ]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype.kind == "f":
            result[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            result[value.name] = rng.integers(0, 2 if dtype.kind == "b" else 8, shape).astype(dtype)
    return result


def norm(name: str, channels: int) -> dict[str, Weight]:
    """Scale, bias, mean and variance of a batch normalisation, to be passed to `bn`."""
    return {f"{name}_{k}": channels for k in "sbmv"}


def bn(x: str, y: str, name: str) -> str:
    return f"{y} = BatchNormalization({x}, {name}_s, {name}_b, {name}_m, {name}_v)\n"


def head(x: str) -> str:
    """Global pooling and a classifier `wy` (10 x channels) that writes the output y."""
    return f"{x}_p = GlobalAveragePool({x}) {x}_f = Flatten({x}_p) y = Gemm<transB=1>({x}_f, wy)\n"


def scalar(value: int) -> Array:
    return np.array(value, np.int64)


IMAGE = "(float[N,3,8,8] x) => (float[N,10] y)"
