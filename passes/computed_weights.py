"""Dependency analysis with the computed weights stored that would hold channels otherwise.

The analysis runs first on the model as it is. If it finds constants that their own computation
holds (see `secateur.ir.computed`), it runs again on a copy in which these are stored, and once more
if storing some of them frees nothing. What is stored comes from ONNX Runtime; what it cannot
compute stays in the graph. Large models keep their weights on disk: there a stored constant is
computed anew whenever it is read.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Container, Mapping, Sequence
from typing import Literal

import onnx_ir as oir

from ..ir import analysis as plain
from ..ir.analysis import Analysis
from ..ir.computed import Held, ancestors, free_coordinates, held_constants
from ..ir.constants import tensor_shape
from ..ir.graphs import detach, own_values
from ..ir.inlining import CALL
from ..ir.shapes import Observer
from .computation import Computation, computable
from .eliminate_dead import remove_initializers
from .fold_constants import constant_tensor, store_instead

Carrier = Literal["heads", "head-dim"]

IN_MEMORY = 1 << 30
"""Computed weights of up to this many bytes are held; the rest are computed when they are read."""


def analyze(
    model: oir.Model,
    dims: Mapping[str, int] | None = None,
    *,
    protect: Sequence[str] = (),
    prefer: Carrier = "heads",
    observe: Observer | None = None,
) -> Analysis:
    """What `secateur.ir.analysis.analyze` finds once computed weights that hold channels are
    stored: ``stored`` of the result names them, ``source`` is still the model as it was given."""
    first = plain.analyze(model, dims, protect=protect, prefer=prefer, observe=observe)
    held = held_constants(first)
    tensors: dict[str, oir.TensorProtocol] = {}
    if held:
        tensors = _tensors(first, {name for item in held for name in item.store})
        held = [item for item in held if item.store <= tensors.keys()]
    if not held:
        return first

    def again(held: Sequence[Held]) -> Analysis:
        names = {name for item in held for name in item.store}
        copy = _with_stored(first.model, {n: t for n, t in tensors.items() if n in names})
        found = plain.analyze(
            copy, dims, protect=_present(protect, copy), prefer=prefer, observe=observe
        )
        found.written = first.source
        found.stored = tuple(n for n in tensors if n in names)
        return found

    second = again(held)
    useful = [item for item in held if _freed(item, second)]
    if not useful:
        return first
    needed = {name for item in useful for name in item.store}
    return second if needed == set(second.stored) else again(useful)


def _freed(item: Held, analysis: Analysis) -> bool:
    """Whether more of a held constant can go now that it is stored."""
    return any(
        free_coordinates(analysis, item.name, index) > before for index, before in item.axes.items()
    )


def _tensors(analysis: Analysis, names: set[str]) -> dict[str, oir.TensorProtocol]:
    """The values of these names, computed; those that ONNX Runtime cannot compute are left out."""
    found: dict[str, oir.TensorProtocol] = {}
    room = IN_MEMORY
    for value in _named(analysis.model, names):
        name = str(value.name)
        dtype, shape = analysis.facts[0].types[name]
        computation = _computation(value, oir.DataType(dtype), analysis.model)
        results = None if computation is None else computation.run()
        if computation is not None and results is not None:
            (tensor,) = results
            if tensor_shape(tensor) == shape:
                tensor.name = name
                room -= tensor.nbytes
                found[name] = tensor if room >= 0 else _lazy(computation, tensor)
    return found


def _named(model: oir.Model, names: Container[str]) -> list[oir.Value]:
    """The results of nodes that bear these names, in the order of the nodes."""
    nodes = list(model.graph.all_nodes())
    return [value for node in nodes for value in node.outputs if value.name in names]


def _computation(value: oir.Value, dtype: oir.DataType, model: oir.Model) -> Computation | None:
    nodes, roots = ancestors(value)
    tensors = {root: constant_tensor(root, model.ir_version) for root in roots}
    known = {root: tensor for root, tensor in tensors.items() if tensor is not None}
    if len(known) < len(roots) or not all(computable(node, model) for node in nodes):
        return None
    return Computation.of(nodes, known, {value: dtype}, model)


def _lazy(computation: Computation, tensor: oir.TensorProtocol) -> oir.TensorProtocol:
    def compute() -> oir.TensorProtocol:
        results = computation.run()
        assert results is not None
        return results[0]

    lazy = oir.LazyTensor(
        compute, tensor.dtype, oir.Shape(tensor_shape(tensor)), name=str(tensor.name)
    )
    lazy.meta["external_data"] = True
    return lazy


def _with_stored(model: oir.Model, tensors: Mapping[str, oir.TensorProtocol]) -> oir.Model:
    """A copy of a flat model with values stored and all gone that only these needed."""
    copy = model.clone()
    copy.meta.update(model.meta)
    cones = []
    for value in _named(copy, tensors):
        cones.append(ancestors(value))
        store_instead(value, tensors[str(value.name)], copy)
    roots = {root for _, found in cones for root in found}
    graphs = {root.graph for root in roots if root.is_initializer()}
    for nodes, _ in reversed(cones):
        for node in reversed(nodes):
            if node.graph is not None and not any(
                o.uses() or o.is_graph_output() for o in node.outputs
            ):
                detach(node)
    for root in roots:
        node_of = root.producer()
        if node_of is not None and node_of.graph is not None and not root.uses():
            detach(node_of)
    for graph in graphs:
        if isinstance(graph, oir.Graph):
            remove_initializers(graph, roots)
    needed = _called(copy)
    inside = {node.op_identifier() for key in needed for node in model.functions[key].all_nodes()}
    for key in _called(model) - needed - inside:
        del copy.functions[key]
    return copy


def _called(model: oir.Model) -> set[oir.OperatorIdentifier]:
    """The functions of which a flat model holds nodes or calls."""
    called = {node.op_identifier() for node in model.graph.all_nodes()} & model.functions.keys()
    for node in model.graph.all_nodes():
        if CALL in node.meta:
            called.update(call.key for call in node.meta[CALL].chain())
    return called


def _present(globs: Sequence[str], model: oir.Model) -> list[str]:
    """The globs that match something that is still there; what is gone needs no protection."""
    names = {node.name for node in model.graph.all_nodes() if node.name}
    names.update(
        str(value.name)
        for part in (model.graph, *model.graph.subgraphs())
        for value in own_values(part)
    )
    return [glob for glob in globs if fnmatch.filter(names, glob)]
