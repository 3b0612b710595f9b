"""Giving to consumers what removed units gave them.

Where a constant c_k of input k goes, the bias of output o grows by sum_k W_ok c_k; where input k is
a duplicate of input j, column j of the weight grows by column k. Both are computed in float64 from
the weights as they were, and rounded once. A product without a bias gets one: MatMul by the Add of
a constant that follows it, or by a new Add.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from ..ir.analysis import Analysis
from ..ir.bounds.base import Floats, unit_of
from ..ir.constants import initializers_are_inputs, set_constant, tensor_shape
from ..ir.coupling import Flags
from ..ir.graphs import Names, value_names
from ..ir.slices import cut
from .eliminate_dead import remove_initializers
from .fold_constants import constant_tensor, store_constant
from .redundant_units import Change, Finder, Redundant


def settle_changes(finder: Finder, redundant: Redundant) -> list[Change]:
    """What becomes of the consumers. Units stay after all where a new weight or bias would not be
    finite."""
    while True:
        changes = list(finder.changes(redundant))
        unfit = [change for change in changes if not _fits(finder, change)]
        if not unfit:
            return changes
        for change in unfit:
            redundant.spare(change.units)


def _fits(finder: Finder, change: Change) -> bool:
    """Whether the new numbers are finite, and, in types coarser than float32, exact."""
    site = change.consumer.site
    found = [array for array in (change.weight, change.added) if array is not None]
    bias = site.input(2)
    if change.added is not None and bias is not None:
        before = finder.knowledge.array(bias.name).astype(np.float64)
        found.append(before + change.added / site.node.attributes.get_float("beta", 1.0))
    return all(_holds(change.dtype, array) for array in found)


def _holds(dtype: oir.DataType, array: Floats) -> bool:
    with np.errstate(over="ignore"):
        stored = array.astype(dtype.numpy()).astype(np.float64)
    unit = unit_of(dtype)
    coarse = unit is None or unit > 2.0**-24
    return bool(np.isfinite(stored).all() and (not coarse or (stored == array).all()))


def apply_changes(
    model: oir.Model, analysis: Analysis, removed: Flags, changes: list[Change]
) -> None:
    """Changes weights and biases of a model from which ``removed`` units of ``analysis`` have been
    cut."""
    made = {str(o.name): node for node in model.graph for o in node.outputs if o.name}
    names = Names(value_names(model.graph))
    for change in changes:
        site, node = change.consumer.site, made[change.consumer.name]
        if change.weight is not None:
            keeps = [analysis.keep(axis, removed) for axis in change.consumer.operand.axes]
            value = node.inputs[change.consumer.weight]
            tensor = constant_tensor(value, model.ir_version)
            assert value is not None and tensor is not None
            weight = np.asarray(cut(change.weight, keeps), np.float64)
            set_constant(value, _like(tensor, weight))
        if change.added is not None:
            side = change.consumer.weight if site.node.op_type == "MatMul" else 1
            index = site.y.rank - 2 if side == 0 else site.y.rank - 1
            if site.node.op_type in ("Conv", "ConvTranspose"):
                index = 1
            added = change.added[analysis.keep(site.y.axis(index), removed)]
            if site.node.op_type == "MatMul":
                _add_after(model, node, added if side else added[:, None], change.dtype, names)
            else:
                _add_bias(model, node, added, change.dtype, names)


def _add_bias(
    model: oir.Model, node: oir.Node, added: Floats, dtype: oir.DataType, names: Names
) -> None:
    """Adds to the bias of a convolution or Gemm."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        node.resize_inputs(3)
        if "beta" in node.attributes:
            node.attributes["beta"] = oir.AttrFloat32("beta", 1.0)
        _store(model, node, 2, added, dtype, names)
    else:
        _grow(model, node, 2, added / node.attributes.get_float("beta", 1.0), names)


def _add_after(
    model: oir.Model, node: oir.Node, added: Floats, dtype: oir.DataType, names: Names
) -> None:
    """Adds to the result of a product, with the constant that is added next if there is one."""
    result = node.outputs[0]
    uses = tuple(result.uses())
    if len(uses) == 1 and not result.is_graph_output():
        follower, index = uses[0].node, 1 - uses[0].idx
        plain = follower.op_type == "Add" and not follower.domain and follower.graph is node.graph
        bias = constant_tensor(follower.inputs[index], model.ir_version) if plain else None
        if bias is not None and _holds(bias.dtype, bias.numpy().astype(np.float64) + added):
            _grow(model, follower, index, added, names)
            return
    total = oir.Node("", "Add", [None, None], num_outputs=1, name=names.free(f"{result.name}/bias"))
    output = total.outputs[0]
    output.name, output.type, output.shape = result.name, result.type, result.shape
    result.replace_all_uses_with(output, replace_graph_outputs=True)
    result.name = names.free(f"{output.name}/product")
    total.replace_input_with(0, result)
    assert node.graph is not None
    node.graph.insert_after(node, total)
    _store(model, total, 1, added, dtype, names)


def _grow(model: oir.Model, node: oir.Node, index: int, added: Floats, names: Names) -> None:
    """Adds to a constant input, which others may read too."""
    value = node.inputs[index]
    tensor = constant_tensor(value, model.ir_version)
    assert value is not None and tensor is not None
    grown = _like(tensor, tensor.numpy().astype(np.float64) + added)
    own = len(value.uses()) == 1 and not value.is_graph_output()
    if own and not (value.is_graph_input() and tensor_shape(tensor) != tensor_shape(grown)):
        set_constant(value, grown)
    else:
        _store(model, node, index, grown.numpy(), tensor.dtype, names, str(value.name))
        if isinstance(node.graph, oir.Graph):
            remove_initializers(node.graph, [value])


def _store(
    model: oir.Model,
    node: oir.Node,
    index: int,
    array: npt.NDArray[np.generic],
    dtype: oir.DataType,
    names: Names,
    base: str = "",
) -> None:
    """A new constant as an input of a node."""
    name = names.free(base or f"{node.outputs[0].name}_bias")
    tensor = oir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
    node.replace_input_with(index, store_constant(node, tensor, initializers_are_inputs(model)))


def _like(tensor: oir.TensorProtocol, array: Floats) -> oir.TensorProtocol:
    return oir.Tensor(array.astype(tensor.dtype.numpy()), dtype=tensor.dtype, name=tensor.name)
