"""Values of a quantised model as real numbers, and the nodes that compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as oir
from onnx import TensorProto, helper, numpy_helper

from .zero_points import zero_axis

MICROSOFT = "com.microsoft"

_INTEGERS = {t for t in oir.DataType if t.name.startswith(("INT", "UINT"))}


class Rounded(Exception):
    """This node cannot be taken to real numbers: it stays as it is."""


@dataclass(frozen=True)
class Real:
    """A value ``name`` that holds the real numbers of a quantised one with this scale and zero
    point. Without a scale it holds the integers of a sum, from unrounded operands."""

    name: str
    scale: str = ""
    zero: str = ""


class Lift:
    """The new nodes, and what is known about the values of the old ones."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.opset = max((e.version for e in model.opset_import if not e.domain), default=1)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.shaped: dict[str, str] = {}
        self.single = {""}
        for node in model.graph.node:
            if node.op_type == "Constant":
                self.constants.update(
                    (node.output[0], a.t) for a in node.attribute if a.HasField("t")
                )
            elif node.op_type == "DynamicQuantizeLinear":
                self.single.update(node.output[1:])
            elif node.op_type == "Reshape":
                self.shaped[node.output[0]] = node.input[0]
        self.nodes: list[onnx.NodeProto] = []
        self.real: dict[str, Real] = {}
        self.changed = False

    # -- emitting -----------------------------------------------------------------------------

    def add(
        self, op: str, inputs: Sequence[str], output: str = "", domain: str = "", **attributes: Any
    ) -> str:
        """A new node with one output, fresh unless it is named; returns its name."""
        output = output or f"secateur/real/{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, **attributes))
        self.changed = True
        return output

    def constant(self, value: float, element: int) -> str:
        """A number of an element type."""
        array = np.array(value, helper.tensor_dtype_to_np_dtype(element))
        return self.add("Constant", [], value=numpy_helper.from_array(array))

    def set_real(self, name: str, real: Real) -> None:
        """Says what a quantised value stands for."""
        self.real[name] = real
        self.changed = True

    def saturated(self, name: str, scale: str, zero: str) -> str:
        """Real numbers kept within what the type of the zero point can hold, as far as known."""
        step, point = (self.constants.get(parameter) for parameter in (scale, zero))
        if step is None or (zero and point is None) or not self.is_scalar(scale):
            return name
        kind = oir.DataType(point.data_type if point is not None else TensorProto.UINT8)
        if kind not in _INTEGERS:
            return name
        bits = kind.bitwidth
        least = -(2 ** (bits - 1)) if kind.is_signed() else 0
        offset = 0 if point is None else int(numpy_helper.to_array(point).astype(np.int64).item())
        factor = float(numpy_helper.to_array(step).item())
        low, high = (
            self.constant((limit - offset) * factor, step.data_type)
            for limit in (least, least + 2**bits - 1)
        )
        return self.add("Max", [self.add("Min", [name, high]), low])

    # -- reading ------------------------------------------------------------------------------

    def same(self, a: str, b: str) -> bool:
        """Whether two scales or zero points are equal, as far as is known; "" stands for zeros."""
        a, b = self.shaped.get(a, a), self.shaped.get(b, b)
        if a == b:
            return True
        if any(name and name not in self.constants for name in (a, b)):
            return False
        left, right = (
            numpy_helper.to_array(self.constants[name]) if name else np.zeros((), np.int8)
            for name in (a, b)
        )
        if a and b and left.size != right.size:
            return False
        return bool(np.all(left.ravel() == right.ravel()))

    def is_scalar(self, name: str) -> bool:
        """Whether a scale or zero point is known to be a single number."""
        tensor = self.constants.get(name)
        return name in self.single if tensor is None else all(size == 1 for size in tensor.dims)

    def value(self, node: onnx.NodeProto, number: int, scale: str, zero: str) -> str:
        """The real numbers of a quantised input: those known, or the stored ones."""
        name = node.input[number]
        known = self.real.get(name)
        if known and known.scale and self.same(known.scale, scale) and self.same(known.zero, zero):
            return known.name
        axis = 0
        if not self.is_scalar(scale) or not self.is_scalar(zero):
            axis = self._axis(node, number, scale)
        inputs = [name, scale, *([zero] if zero else [])]
        return self.add("DequantizeLinear", inputs, domain=MICROSOFT, axis=axis)

    def centred(self, node: onnx.NodeProto, number: int, zero: str) -> str:
        """An integer input less its zero point, as floats: unrounded where that is known."""
        name = node.input[number]
        known = self.real.get(name)
        if known and known.scale and self.same(known.zero, zero):
            return self.add("Div", [known.name, known.scale])
        wide = self.add("Cast", [name], to=TensorProto.FLOAT)
        if not zero:
            return wide
        point = self.add("Cast", [zero], to=TensorProto.FLOAT)
        if not self.is_scalar(zero):
            axis = self._axis(node, number, zero)
            trailing = len(self.constants[name].dims) - 1 - axis
            shape = numpy_helper.from_array(np.array([-1] + [1] * trailing, np.int64))
            point = self.add("Reshape", [point, self.add("Constant", [], value=shape)])
        return self.add("Sub", [wide, point])

    def _axis(self, node: onnx.NodeProto, number: int, parameter: str) -> int:
        """The axis of a constant along which a vector of scales or zero points runs."""
        tensor, vector = self.constants.get(node.input[number]), self.constants.get(parameter)
        if tensor is None or vector is None or len(vector.dims) != 1:
            raise Rounded
        return zero_axis(node, number, len(tensor.dims))

    def element(self, scale: str) -> int:
        """The element type of the real numbers with this scale."""
        tensor = self.constants.get(scale)
        return TensorProto.FLOAT if tensor is None else tensor.data_type
