"""Branches of which nothing is left.

Where all coordinates of an axis go, a part of a Concat or an output of a Split has size zero. If
all that touches the axis makes such a part, it is dropped: the Concat loses the input, the Split
the output, and the nodes behind it are dead. Where something else would have to compute with a
tensor without elements, a contraction say, one coordinate of the axis stays.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as oir

from ..ir.analysis import Analysis
from ..ir.constants import constant_tensor, initializers_are_inputs
from ..ir.coupling import Flags
from ..ir.graphs import detach
from ..ir.rules.base import Site
from ..ir.rules.elementwise import NARY, UNARY
from .eliminate_dead import remove_initializers
from .fold_constants import store_constant
from .redundant_units import Redundant, in_main_graph

_PASSING = frozenset(
    (
        *UNARY,
        *NARY,
        *("Identity", "Dropout", "BatchNormalization", "InstanceNormalization"),
        *("Conv", "Gemm", "MatMul", "Transpose", "Concat", "Split", "Slice"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    )
)
"""Operators that a dropped branch may hold; contractions that make its channels among them."""


def leave_some(analysis: Analysis, redundant: Redundant) -> None:
    """Keeps a unit of every axis that would be left without any and cannot be dropped."""
    droppable = _droppable(analysis)
    roots = {analysis.coupling.root(axis) for axis, (name, _) in enumerate(analysis.owners) if name}
    for root in sorted(roots - droppable):
        units = analysis.units_of(root)
        if units is not None and not analysis.keep(root, redundant.removed).any():
            redundant.spare(units[:1])


def _droppable(analysis: Analysis) -> set[int]:
    """Classes of axes that only branches touch which may be dropped whole."""
    root = analysis.coupling.root
    roots = {root(axis) for axis, (name, _) in enumerate(analysis.owners) if name}
    statements = analysis.statements
    ends = {root(end.axis) for end in statements.sinks}
    ends.update(root(end.axis) for end in statements.inexact)
    held: set[int] = set()
    for site in analysis.sites:
        if not _passes(analysis, site):
            for operand in (*site.inputs, *site.outputs):
                held.update(root(axis) for axis in (operand.axes if operand is not None else ()))
    return roots - ends - held


def _passes(analysis: Analysis, site: Site) -> bool:
    node = site.node
    return (
        not node.domain
        and node.op_type in _PASSING
        and in_main_graph(analysis, site)
        and site.integer("group", 1) == 1
    )


def drop_empty(model: oir.Model, analysis: Analysis, removed: Flags) -> None:
    """Drops all branches of size zero from a model that ``removed`` units have been cut from."""
    empty = {
        operand.name
        for operand in analysis.operands.values()
        if any(not analysis.keep(axis, removed).any() for axis in operand.axes)
    }
    if not empty:
        return
    weights: set[oir.Value] = set()
    for node in list(model.graph):
        if node.op_type == "Concat" and not node.domain:
            _shorten_concat(node, empty)
        elif node.op_type == "Split" and not node.domain:
            weights.update(value for value in node.inputs[1:] if value is not None)
            _shorten_split(model, node, empty)
    for node in reversed(model.graph):
        names = {value.name for value in node.outputs}
        if names & empty and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            weights.update(value for value in node.inputs if value is not None)
            detach(node)
    remove_initializers(model.graph, weights)


def _shorten_concat(node: oir.Node, empty: set[str]) -> None:
    kept = [value for value in node.inputs if value is not None and value.name not in empty]
    output = node.outputs[0]
    if len(kept) == len(node.inputs) or not kept or output.name in empty:
        return
    if len(kept) == 1 and not output.is_graph_output():
        output.replace_all_uses_with(kept[0])
        detach(node)
        return
    for index, value in enumerate(kept):
        node.replace_input_with(index, value)
    node.resize_inputs(len(kept))


def _shorten_split(model: oir.Model, node: oir.Node, empty: set[str]) -> None:
    kept = [value for value in node.outputs if value.name not in empty]
    source = node.inputs[0]
    assert source is not None
    if len(kept) == len(node.outputs) or not kept or source.name in empty:
        return
    if len(kept) == 1 and not kept[0].is_graph_output():
        kept[0].replace_all_uses_with(source)
    else:
        _rebuild_split(model, node, kept)
    for value in node.outputs:
        assert not value.uses(), "an empty part is read"
    detach(node)


def _rebuild_split(model: oir.Model, node: oir.Node, kept: list[oir.Value]) -> None:
    """A Split with fewer outputs in the place of another."""
    places = [k for k, value in enumerate(node.outputs) if value in kept]
    inputs = [node.inputs[0]]
    attributes = [a for name, a in node.attributes.items() if name == "axis"]
    stated = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = None if stated is None else constant_tensor(stated)
    if tensor is not None:
        sizes = oir.Tensor(np.asarray(tensor.numpy())[places], name=f"{node.outputs[0].name}_sizes")
        inputs.append(store_constant(node, sizes, initializers_are_inputs(model)))
    else:
        sizes_ = [node.attributes["split"].as_ints()[k] for k in places]
        attributes.append(oir.AttrInt64s("split", sizes_))
    shorter = oir.Node("", "Split", inputs, attributes, num_outputs=len(kept), name=node.name)
    assert node.graph is not None
    node.graph.insert_before(node, shorter)
    for old, new in zip(kept, shorter.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        new.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
