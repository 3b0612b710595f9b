"""Linear layers: nodes that multiply rows of an activation by a constant matrix and add a bias.

Conv, ConvTranspose, Gemm, MatMul and the input weights of RNN, GRU and LSTM are one thing here.
With x unfolded into rows (one row for every output position, one column for every input channel
and kernel tap) and the weight as a matrix,

    y[r, g, :] = sum_k x[r, g, k] W[g, k, :] + b[g, :],

where g counts the groups of a convolution. Column k of a group is ``channel * taps + tap``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from .constants import constant_tensor, is_float, tensor_shape
from .rules.base import attribute_int

Numbers = npt.NDArray[np.float64]

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_RECURRENT = ("RNN", "GRU", "LSTM")


@dataclass(frozen=True)
class LinearLayer:
    """One linear layer of a graph.

    ``weight`` and ``bias`` are constants: of floats, or of the integers that a DequantizeLinear
    reads; ``bias`` is None where the node has none. ``alone`` says whether nobody else reads the
    weight, and the bias. ``input`` is the activation, ``output`` the
    value in which the bias is in: where the only reader of the node adds a constant to every
    channel, what that reader gives. What a recurrent node adds to its state is nobody's output: see
    `is_recurrent`.
    """

    node: oir.Node
    input: oir.Value
    output: oir.Value
    weight: oir.Value
    bias: oir.Value | None
    alone: tuple[bool, bool]

    @property
    def has_own_bias(self) -> bool:
        """Whether there is a bias that can change without changing anything else."""
        return self.bias is not None and self.alone[1]

    @cached_property
    def is_convolution(self) -> bool:
        """Whether rows are patches of a picture (of any rank)."""
        return self.node.op_type in _CONVOLUTIONS

    @cached_property
    def is_recurrent(self) -> bool:
        """Whether ``output`` is not the product itself but what a recurrent node makes of it."""
        return self.node.op_type in _RECURRENT

    @cached_property
    def kernel(self) -> tuple[int, ...]:
        """The sizes of the kernel along the spatial axes; () for a matrix product."""
        return self._shape[2:] if self.is_convolution else ()

    @cached_property
    def groups(self) -> int:
        """The number of groups; 1 for a matrix product."""
        return attribute_int(self.node, "group", 1) if self.is_convolution else 1

    @cached_property
    def taps(self) -> int:
        """Columns of one input channel."""
        return math.prod(self.kernel)

    @cached_property
    def columns(self) -> int:
        """Columns of one group."""
        return self.channels // self.groups * self.taps

    @cached_property
    def channels(self) -> int:
        """Input channels of all groups."""
        if self.node.op_type == "Conv":
            return self._shape[1] * self.groups
        if self.is_recurrent:
            return self._shape[2]
        return self._shape[1] if self._is_transposed else self._shape[0]

    @cached_property
    def outputs(self) -> int:
        """Output channels of all groups; for a recurrent node those of all gates and directions."""
        if self.node.op_type == "ConvTranspose":
            return self._shape[1] * self.groups
        if self.is_recurrent:
            return self._shape[0] * self._shape[1]
        return self._shape[0] if self._is_transposed or self.is_convolution else self._shape[1]

    @property
    def channel_axis(self) -> int:
        """The axis of input and output that has the channels."""
        return 1 if self.is_convolution else -1

    def matrix(self, weight: Numbers) -> Numbers:
        """[groups, columns, outputs / groups] from a weight as the node stores it."""
        if self.node.op_type == "Conv":
            return weight.reshape(self.groups, -1, self.columns).transpose(0, 2, 1)
        if self.node.op_type == "ConvTranspose":
            flipped = np.flip(weight, tuple(range(2, weight.ndim)))
            split = flipped.reshape(self.groups, -1, weight.shape[1], self.taps)
            return split.transpose(0, 1, 3, 2).reshape(self.groups, self.columns, -1)
        if self.is_recurrent:
            return weight.reshape(-1, self.channels).T[None]
        return (weight.T if self._is_transposed else weight)[None] * self._factor("alpha")

    def stored(self, matrix: Numbers) -> Numbers:
        """The inverse of `matrix`."""
        if self.node.op_type == "Conv":
            conv: Numbers = matrix.transpose(0, 2, 1).reshape(self._shape)
            return conv
        if self.node.op_type == "ConvTranspose":
            split = matrix.reshape(self.groups, -1, self.taps, self._shape[1])
            whole: Numbers = split.transpose(0, 1, 3, 2).reshape(self._shape)
            return np.flip(whole, tuple(range(2, whole.ndim)))
        if self.is_recurrent:
            rows: Numbers = matrix[0].T.reshape(self._shape)
            return rows
        plain: Numbers = matrix[0] / self._factor("alpha")
        return plain.T if self._is_transposed else plain

    def bias_row(self, bias: Numbers) -> Numbers:
        """[outputs]: what is added to the product, from a bias as the node stores it."""
        if self.is_recurrent:  # the other half is added to the product with the state
            return bias[:, : bias.shape[1] // 2].ravel()
        return bias.ravel() * self._factor("beta")

    def stored_bias(self, row: Numbers, bias: Numbers) -> Numbers:
        """``bias``, as the node stores it, with other numbers: the inverse of `bias_row`."""
        if self.is_recurrent:
            half = bias.shape[1] // 2
            return np.concatenate([row.reshape(-1, half), bias[:, half:]], axis=1)
        return (row / self._factor("beta")).reshape(bias.shape)

    @property
    def tie(self) -> Hashable:
        """Equal for layers that read one weight and one bias in the same way: they can be refitted
        as one."""
        form = self.node.op_type, self.groups, self._is_transposed
        return self.read, self.bias, form, self._factor("alpha"), self._factor("beta")

    @property
    def made(self) -> str:
        """The name of what the node gives, without a bias that is added behind it."""
        return str(self.node.outputs[0].name)

    @property
    def read(self) -> oir.Value:
        """What the node reads as its weight: the constant, or what dequantises it."""
        right = self.node.inputs[1]
        assert right is not None
        return unnamed(right)

    def _factor(self, name: str) -> float:
        attribute = self.node.attributes.get(name) if self.node.op_type == "Gemm" else None
        return 1.0 if attribute is None else attribute.as_float()

    @cached_property
    def _is_transposed(self) -> bool:
        return self.node.op_type == "Gemm" and attribute_int(self.node, "transB", 0) != 0

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        tensor = constant_tensor(self.weight)
        assert tensor is not None
        return tensor_shape(tensor)


def linear_layers(nodes: Iterable[oir.Node]) -> list[LinearLayer]:
    """The linear layers among these nodes, in their order."""
    found = (_layer(node) for node in nodes if node.domain in ("", "ai.onnx"))
    return [layer for layer in found if layer is not None]


def _layer(node: oir.Node) -> LinearLayer | None:
    if node.op_type not in (*_CONVOLUTIONS, *_RECURRENT, "Gemm", "MatMul"):
        return None
    x, right, added = node.inputs[0], _input(node, 1), _input(node, _bias_number(node))
    weight, bias = _constant(right), _constant(added)
    if x is None or weight is None or _constant(x) is not None or _is_odd(node):
        return None
    if node.op_type in ("Gemm", "MatMul") and len(_shape(weight)) != 2:
        return None
    if bias is None and added is not None:
        return None
    output = node.outputs[0]
    outputs = LinearLayer(node, x, output, weight, None, (True, True)).outputs
    if bias is not None and node.op_type not in _RECURRENT and not _is_vector(bias, outputs):
        return None
    if bias is None and node.op_type in ("MatMul", *_CONVOLUTIONS):
        output, added = _added(output, (outputs, *(1 for _ in _shape(weight)[2:])))
        bias = _constant(added)
    return LinearLayer(node, x, output, weight, bias, (is_alone(right), is_alone(added)))


def _bias_number(node: oir.Node) -> int:
    return 3 if node.op_type in _RECURRENT else 2


def _input(node: oir.Node, number: int) -> oir.Value | None:
    return node.inputs[number] if number < len(node.inputs) else None


def _is_odd(node: oir.Node) -> bool:
    """Attributes that make another function of it, or hide which row reads what."""
    factors = [node.attributes[n].as_float() for n in ("alpha", "beta") if n in node.attributes]
    if node.op_type == "Gemm":
        return attribute_int(node, "transA", 0) != 0 or 0 in factors
    return "output_shape" in node.attributes


def _added(output: oir.Value, shape: tuple[int, ...]) -> tuple[oir.Value, oir.Value | None]:
    """What a layer's output becomes when all that reads it adds one number to every channel, and
    the value that is added, of this shape (without axes of one element in front, of which there
    are no more than the output has axes)."""
    readers = tuple(output.uses())
    if len(readers) == 1 and not output.is_graph_output():
        node, maker = readers[0][0], output.producer()
        here = maker is not None and node.graph is maker.graph  # not in a branch
        if here and node.op_type == "Add" and node.domain in ("", "ai.onnx"):
            other = next((v for v in node.inputs if v is not output), None)
            constant = _constant(other)
            most = len(shape) + 1 if output.shape is None else output.shape.rank()
            added = () if constant is None else _shape(constant)
            if len(added) <= most and _without_ones(added) == shape:
                return node.outputs[0], other
    return output, None


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the axes of one element in front."""
    first = next((k for k, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]


def _is_vector(constant: oir.Value, size: int) -> bool:
    """Whether the last axis has ``size`` elements, and all others one."""
    *others, last = _shape(constant) or (0,)
    return last == size and all(axis == 1 for axis in others)


def _shape(constant: oir.Value) -> tuple[int, ...]:
    tensor = constant_tensor(constant)
    assert tensor is not None
    return tensor_shape(tensor)


def _constant(value: oir.Value | None) -> oir.Value | None:
    """The constant that a value is, is called by another name, or is dequantised from; None for
    anything else."""
    if value is None:
        return None
    tensor = constant_tensor(value)
    if tensor is not None:
        return value if is_float(tensor.dtype) else None
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if is_name(node):
        return _constant(node.inputs[0])
    if node.op_type != "DequantizeLinear":
        return None
    stored = node.inputs[0]
    tensor = None if stored is None else constant_tensor(stored)
    constants = all(v is None or constant_tensor(v) is not None for v in node.inputs)
    return stored if tensor is not None and tensor.dtype.is_integer() and constants else None


def unnamed(value: oir.Value) -> oir.Value:
    """The value that a value is under another name: Identity nodes only give names."""
    while (node := value.producer()) is not None and is_name(node):
        assert node.inputs[0] is not None
        value = node.inputs[0]
    return value


def is_name(node: oir.Node) -> bool:
    """Whether a node only gives a value another name."""
    return node.op_type == "Identity" and node.domain in ("", "ai.onnx")


def is_alone(value: oir.Value | None) -> bool:
    """Whether nobody else reads a value, or the constant that it comes from."""
    while value is not None:
        if len(value.uses()) != 1 or value.is_graph_output():
            return False
        node = value.producer()
        value = None if node is None or node.op_type == "Constant" else node.inputs[0]
    return True
