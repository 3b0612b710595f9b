"""``fold-batchnorm``: absorb an inference BatchNormalization into the weights before it.

With s = gamma / sqrt(var + eps), per output channel,

    s * (W x + b - mean) + beta  =  (s W) x + (s (b - mean) + beta)

for Conv and ConvTranspose; for Gemm, ``alpha A B + beta C``, the columns of B are scaled by s
and ``C' = s (beta C - mean) + beta_bn`` is added with beta = 1. The arithmetic is float64,
rounded once to the type of the weights.

A pair is left alone when anything in it is computed at run time, when the intermediate is
used elsewhere, or when the new weights would not be finite. Weights that others use as well
are cloned, never edited. The result keeps the name of the normalisation's output.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from ..ir.graphs import detach
from .base import Contract, Pass, PassContext, PassResult
from .fold_constants import constant_tensor, store_constant

Array = npt.NDArray[np.float64]

_FLOATS = frozenset(
    {oir.DataType.FLOAT, oir.DataType.DOUBLE, oir.DataType.FLOAT16, oir.DataType.BFLOAT16}
)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization into a preceding Conv, ConvTranspose or Gemm."""

    name: ClassVar[str] = "fold-batchnorm"
    contract: ClassVar[Contract] = Contract.PRESERVES
    summary: ClassVar[str] = "absorb batch normalisation into the convolution or Gemm before it"

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        folded = left = 0
        if model.graph.opset_imports.get("", 0) >= 7:
            norms = [n for n in model.graph.all_nodes() if n.op_type == "BatchNormalization"]
            taken = _value_names(model) if norms else set()
            for norm in norms:
                done = norm.domain == "" and _fold(model, norm, taken)
                folded, left = folded + done, left + (not done)
        return PassResult(model, folded > 0, {"folded": folded, "left": left})


@dataclass(frozen=True)
class _Affine:
    """The normalisation as ``scale * (x - mean) + shift``; each has shape (channels,)."""

    scale: Array
    mean: Array
    shift: Array


def _fold(model: oir.Model, norm: oir.Node, taken: set[str | None]) -> bool:
    source = norm.inputs[0] if len(norm.inputs) == 5 else None
    node = source.producer() if source is not None else None
    if (
        source is None
        or node is None
        or node.graph is not norm.graph
        or node.domain != ""
        or node.op_type not in ("Conv", "ConvTranspose", "Gemm")
        or len(source.uses()) != 1
        or source.is_graph_output()
        or len(node.inputs) < 2
    ):
        return False
    affine = _affine(norm, model.ir_version)
    weight = constant_tensor(node.inputs[1], model.ir_version)
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant_tensor(bias_value, model.ir_version)
    if affine is None or weight is None or weight.dtype not in _FLOATS:
        return False
    if bias_value is not None and (bias is None or bias.dtype != weight.dtype):
        return False
    old_bias = np.zeros(()) if bias is None else bias.numpy().astype(np.float64)
    new = _scaled(node, weight.numpy().astype(np.float64), old_bias, affine)
    if new is None:
        return False
    with np.errstate(over="ignore"):
        arrays = [array.astype(weight.numpy().dtype) for array in new]
    if not all(np.isfinite(array.astype(np.float64)).all() for array in arrays):
        return False
    if node.op_type == "Gemm" and "beta" in node.attributes:
        node.attributes["beta"] = oir.AttrFloat32("beta", 1.0)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    for index, array in zip((1, 2), arrays, strict=True):
        tensor = oir.Tensor(array, dtype=weight.dtype)
        _set_constant(node, index, tensor, model.ir_version, taken)
    _take_output(node, norm)
    return True


def _affine(norm: oir.Node, ir_version: int) -> _Affine | None:
    """Read the normalisation; None unless it is in inference form with constant parameters."""
    attributes = norm.attributes
    if any(a.is_ref() for a in attributes.values()):
        return None
    # Up to opset 13, more outputs than one mean training; later, training_mode says so.
    if any(v.name or v.uses() for v in norm.outputs[1:]):
        return None
    if attributes.get_int("training_mode", 0) or attributes.get_int("spatial", 1) != 1:
        return None
    tensors = [constant_tensor(v, ir_version) for v in norm.inputs[1:]]
    arrays = [t.numpy().astype(np.float64) for t in tensors if t is not None]
    if len(arrays) != 4 or any(a.ndim != 1 or a.shape != arrays[0].shape for a in arrays):
        return None
    gamma, beta, mean, variance = arrays
    variance = variance + attributes.get_float("epsilon", 1e-5)
    if not (variance > 0).all():
        return None
    return _Affine(gamma / np.sqrt(variance), mean, beta)


def _scaled(
    node: oir.Node, weight: Array, bias: Array, affine: _Affine
) -> tuple[Array, Array] | None:
    """The new weight and bias in float64, or None if the shapes do not fit."""
    if any(a.is_ref() for a in node.attributes.values()):
        return None
    channels = len(affine.scale)
    scale = affine.scale
    if node.op_type == "Gemm":
        transposed = bool(node.attributes.get_int("transB", 0))
        if weight.ndim != 2 or weight.shape[0 if transposed else 1] != channels:
            return None
        if bias.ndim > 2 or (bias.ndim and bias.shape[-1] not in (1, channels)):
            return None
        bias = bias * node.attributes.get_float("beta", 1.0)
        new = weight * (scale[:, None] if transposed else scale)
        return new, (bias - affine.mean) * scale + affine.shift
    if weight.ndim < 3 or bias.shape not in ((), (channels,)):
        return None
    new_bias = (bias - affine.mean) * scale + affine.shift
    tail = (1,) * (weight.ndim - 2)
    if node.op_type == "Conv":
        if weight.shape[0] != channels:
            return None
        return weight * scale.reshape(-1, 1, *tail), new_bias
    groups = node.attributes.get_int("group", 1)
    inputs, per_group = weight.shape[:2]
    if groups < 1 or inputs % groups or per_group * groups != channels:
        return None
    grouped = weight.reshape(groups, inputs // groups, *weight.shape[1:])
    new = grouped * scale.reshape(groups, 1, per_group, *tail)
    return new.reshape(weight.shape), new_bias


def _set_constant(
    node: oir.Node,
    index: int,
    tensor: oir.TensorProtocol,
    ir_version: int,
    taken: set[str | None],
) -> None:
    """Make ``tensor`` an input of ``node``: under the old name if no other node reads it."""
    old = node.inputs[index]
    resized = old is not None and old.is_graph_input() and old.shape != tensor.shape
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output() and not resized:
        tensor.name = old.name
        if old.is_initializer():
            old.const_value = tensor
        else:
            producer = old.producer()
            assert producer is not None
            producer.attributes.clear()
            producer.attributes.add(oir.AttrTensor("value", tensor))
        if old.shape != tensor.shape:
            old.shape = oir.Shape(tensor.shape.numpy())
        return
    base = f"{node.outputs[0].name}_bias" if old is None else f"{old.name}_folded"
    names = itertools.chain([base], (f"{base}_{count}" for count in itertools.count(1)))
    tensor.name = next(name for name in names if name not in taken)
    taken.add(tensor.name)
    node.replace_input_with(index, store_constant(node, tensor, ir_version < 4))


def _value_names(model: oir.Model) -> set[str | None]:
    names: set[str | None] = set()
    for graph in [model.graph, *model.graph.subgraphs()]:
        names.update(v.name for v in (*graph.inputs, *graph.initializers.values()))
        names.update(v.name for node in graph for v in node.outputs)
    return names


def _take_output(node: oir.Node, norm: oir.Node) -> None:
    """Let ``node`` produce what ``norm`` produced, with its name, type and metadata."""
    old, new = norm.outputs[0], node.outputs[0]
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    detach(norm)
    new.name = old.name
    new.type = old.type if old.type is not None else new.type
    new.shape = old.shape if old.shape is not None else new.shape
    new.doc_string = old.doc_string
    new.metadata_props.clear()
    new.metadata_props.update(old.metadata_props)
    new.meta.clear()
    new.meta.update(old.meta)
