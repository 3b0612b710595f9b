"""``fold-constants``: compute once what does not depend on any input.

A value is constant when it is an initializer that no caller can override, or when all inputs
of its producer are constant and the operator is deterministic. Constant nodes are evaluated
together in one ONNX Runtime session with all optimisation off; what the rest of the graph
still uses becomes an initializer under the same name, and the producers are removed.

Sizes are known before anything runs. Shape inference of the extracted constant subgraph says
how large each result is; a result larger than the weights that it replaces by more than
``max_bytes`` is not computed. Where a size is itself a constant still to be computed (the
target of Expand), what depends on it waits for a second session. Nothing is ever folded on a
guess: a node whose size or kernel is unknown stays as it is.

DequantizeLinear stays, or quantised weights would be stored in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as oir

from ..ir import constants
from ..ir.graphs import detach
from ..ir.inference import infer_shapes
from .base import Contract, Pass, PassContext, PassResult
from .computation import Computation, computable, extract, name_values, reads_inline
from .eliminate_dead import remove_initializers

# Their result has an unknown size, at most one index per input element and axis.
_BOUNDED = frozenset({"NonZero", "Compress", "Unique"})
_DTYPES = frozenset(int(d) for d in oir.DataType)
_UNSTORABLE = frozenset({oir.DataType.UNDEFINED, oir.DataType.STRING})


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace constant subgraphs by initializers.

    ``max_bytes``: by how much one result may exceed the weights it is computed from (counting
    only those that die with it).
    """

    name: ClassVar[str] = "fold-constants"
    contract: ClassVar[Contract] = Contract.PRESERVES
    summary: ClassVar[str] = "compute constant subgraphs once and store the results"

    max_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise ValueError(f"`max_bytes` must be 0 or more, not {self.max_bytes}")

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        plan = _plan(model)
        computable = len(plan.nodes) + len(plan.folded)
        _evaluate(plan, self.max_bytes)
        left = computable - len(plan.folded)
        folded, stored = _rewrite(model, plan)
        statistics = {
            "nodes-folded": folded,
            "nodes-left": left,
            "tensors-stored": len(stored),
            "bytes-stored": sum(t.nbytes for t in stored),
        }
        return PassResult(model, folded > 0, statistics)


def constant_tensor(value: oir.Value | None, ir_version: int) -> oir.TensorProtocol | None:
    """The tensor of a value that is the same in every run, else None.

    That is a Constant node's, or an initializer's unless it is a graph input as well: such
    an input may be overridden by the caller, except below IR version 4, where every
    initializer had to be listed as an input.
    """
    if value is None or (value.is_initializer() and value.is_graph_input() and ir_version >= 4):
        return None
    return constants.constant_tensor(value)


def store_constant(before: oir.Node, tensor: oir.TensorProtocol, as_node: bool) -> oir.Value:
    """A new value holding ``tensor``, with its name, in the graph of ``before``.

    An initializer, or ``as_node`` a Constant node in front of ``before``: that is needed below
    IR version 4, where an initializer would have to be a graph input as well.
    """
    graph = before.graph
    assert isinstance(graph, oir.Graph)
    return constants.add_constant(
        graph, tensor.name, tensor, as_node=as_node, before=before, node_name=before.name
    )


@dataclass
class _Plan:
    """The tensors known so far, and the nodes that might be computed from them, in order.

    ``roots`` holds for each known value the weights it was computed from that nothing else
    uses: their memory is given back when the value is stored instead.
    """

    model: oir.Model
    tensors: dict[oir.Value, oir.TensorProtocol]
    roots: dict[oir.Value, frozenset[oir.Value]]
    nodes: list[oir.Node]
    folded: list[oir.Node]


@dataclass
class _Stage:
    """The nodes that one session computes, the type of each result, and names for all values."""

    names: dict[oir.Value, str]
    types: dict[oir.Value, oir.DataType]
    nodes: list[oir.Node]


def _plan(model: oir.Model) -> _Plan:
    plan = _Plan(model, {}, {}, [], [])
    constant: set[oir.Value] = set()
    for graph in [model.graph, *model.graph.subgraphs()]:
        for value in graph.initializers.values():
            tensor = constant_tensor(value, model.ir_version)
            if tensor is not None and tensor.dtype != oir.DataType.STRING:
                plan.tensors[value] = tensor
    constant.update(plan.tensors)
    for node in model.graph.all_nodes():
        if not _foldable(node, model) or not all(v is None or v in constant for v in node.inputs):
            continue
        if node.op_type == "Constant":
            tensor = constant_tensor(node.outputs[0], model.ir_version)
            if tensor is None or tensor.dtype == oir.DataType.STRING:
                continue
            plan.folded.append(node)
            plan.tensors[node.outputs[0]] = tensor
        else:
            plan.nodes.append(node)
        constant.update(node.outputs)
    candidates = set(plan.nodes)
    for value in plan.tensors:
        dies = not value.is_graph_output() and all(u.node in candidates for u in value.uses())
        plan.roots[value] = frozenset([value]) if dies else frozenset()
    return plan


def _foldable(node: oir.Node, model: oir.Model) -> bool:
    return node.op_type != "DequantizeLinear" and computable(node, model)


def _evaluate(plan: _Plan, max_bytes: int) -> None:
    """Compute what can be computed and move it from ``plan.nodes`` to ``plan.folded``."""
    while plan.nodes:
        stage = _next_stage(plan, max_bytes)
        done = set(stage.nodes)
        wanted = [
            v
            for node in stage.nodes
            for v in _outputs(node)
            if v.is_graph_output() or any(use.node not in done for use in v.uses())
        ]
        if not done:
            return
        plan.nodes = [node for node in plan.nodes if node not in done]
        results = _run(plan, stage, stage.nodes, wanted)
        if results is not None:
            plan.tensors.update(results)
        else:
            done = {node for node in stage.nodes if _run_alone(plan, stage, node)}
        plan.folded += [node for node in stage.nodes if node in done]


def _next_stage(plan: _Plan, max_bytes: int) -> _Stage:
    """Take every node whose results have a known and allowed size, given those taken before."""
    names = name_values(plan.nodes)
    stage = _Stage(names, {}, [])
    inferred = _infer(plan, stage)
    for node in plan.nodes:
        inputs = [v for v in node.inputs if v is not None]
        if not all(v in plan.tensors or v in stage.types for v in inputs):
            continue
        roots = _union(plan.roots[v] for v in inputs)
        limit = max_bytes + sum(plan.tensors[root].nbytes for root in roots)
        types = {}
        for value in _outputs(node):
            dtype, elements = inferred.get(names[value], (oir.DataType.UNDEFINED, None))
            if elements is None and node.op_type in _BOUNDED:
                elements = _bound([plan.tensors[v] for v in inputs if v in plan.tensors])
            if dtype in _UNSTORABLE or elements is None or elements * dtype.itemsize > limit:
                break
            types[value] = dtype
        else:
            stage.nodes.append(node)
            stage.types.update(types)
            plan.roots.update(dict.fromkeys(types, roots))
    return stage


def _outputs(node: oir.Node) -> list[oir.Value]:
    return [v for v in node.outputs if v.name or v.uses()]


def _union(sets: Iterable[frozenset[oir.Value]]) -> frozenset[oir.Value]:
    return frozenset[oir.Value]().union(*sets)


def _bound(tensors: Sequence[oir.TensorProtocol]) -> int | None:
    """The most elements that an operator of `_BOUNDED` can return, if its input is known."""
    return max((max(len(t.shape), 1) * t.size for t in tensors), default=None)


def _infer(plan: _Plan, stage: _Stage) -> dict[str, tuple[oir.DataType, int | None]]:
    """Type and number of elements (None: unknown) of every value that inference reaches."""
    model = extract(plan.nodes, plan.tensors, stage.names, plan.model, reads_inline, {})
    try:
        inferred = infer_shapes(model)
    except Exception:  # an invalid node: the verifier's business, here it is just not folded
        return {}
    found = {}
    for info in inferred.graph.value_info:
        tensor = info.type.tensor_type
        if info.type.HasField("tensor_type") and tensor.elem_type in _DTYPES:
            known = tensor.HasField("shape") and all(
                d.HasField("dim_value") and d.dim_value >= 0 for d in tensor.shape.dim
            )
            elements = math.prod(d.dim_value for d in tensor.shape.dim) if known else None
            found[info.name] = (oir.DataType(tensor.elem_type), elements)
    return found


def _run_alone(plan: _Plan, stage: _Stage, node: oir.Node) -> bool:
    if not all(v is None or v in plan.tensors for v in node.inputs):
        return False
    results = _run(plan, stage, [node], _outputs(node))
    plan.tensors.update(results or {})
    return results is not None


def _run(
    plan: _Plan, stage: _Stage, nodes: Sequence[oir.Node], wanted: Sequence[oir.Value]
) -> dict[oir.Value, oir.TensorProtocol] | None:
    """Compute ``wanted`` in one session. None if ONNX Runtime cannot."""
    if not wanted:
        return {}
    types = {v: stage.types[v] for v in wanted}
    computation = Computation.of(nodes, plan.tensors, types, plan.model)
    found = None if computation is None else computation.run()
    return None if found is None else dict(zip(wanted, found, strict=True))


def _rewrite(model: oir.Model, plan: _Plan) -> tuple[int, list[oir.TensorProtocol]]:
    """Store what is still used of the folded nodes; remove them and the weights that nothing uses
    any more. Returns (removed, stored)."""
    folded = set(plan.folded)
    stored: list[oir.TensorProtocol] = []
    removed = []
    for node in plan.folded:
        used = [
            v
            for v in node.outputs
            if v.is_graph_output() or any(use.node not in folded for use in v.uses())
        ]
        if used and node.op_type == "Constant" and _must_be_node(used[0], model):
            continue
        for value in used:
            tensor = plan.tensors[value]
            copy = oir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
            store_instead(value, copy, model)
            stored.append(tensor)
        removed.append(node)
    read = {value for node in removed for value in node.inputs if value is not None}
    graphs = {value.graph for value in read if value.is_initializer()}
    for node in reversed(removed):
        detach(node)
    for graph in graphs:
        if isinstance(graph, oir.Graph):
            remove_initializers(graph, read)
    return len(removed), stored


def _must_be_node(value: oir.Value, model: oir.Model) -> bool:
    return value.is_graph_output() or model.ir_version < 4


def store_instead(value: oir.Value, tensor: oir.TensorProtocol, model: oir.Model) -> None:
    """Store ``tensor``, which bears the name of ``value``, in its place, with its doc string and
    metadata. The node that computed it stays, unread."""
    node = value.producer()
    assert node is not None
    new = store_constant(node, tensor, _must_be_node(value, model))
    if value.is_graph_output():
        new.type, new.shape = value.type, value.shape
    new.doc_string = value.doc_string
    new.metadata_props.update(value.metadata_props)
    new.meta.update(value.meta)
    value.replace_all_uses_with(new, replace_graph_outputs=True)
