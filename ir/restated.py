"""What a rule's ``restate`` half sees of a touched node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from .columns import Column
from .coupling import Flags
from .rules.base import Operand, Site, attribute_int, attribute_ints
from .shapes import Array

if TYPE_CHECKING:
    from .rewrite import _Rewriter

Sizes = npt.NDArray[np.int64]


class Restated:
    """A touched node as its rule's ``restate`` half sees it: old and new sizes, and what to edit.

    Arrays of sizes have one row per binding of the symbolic dimensions.
    """

    def __init__(self, rewriter: _Rewriter, site: Site, node: oir.Node) -> None:
        self._rewriter = rewriter
        self._site = site
        self._node = node
        self.wanted: dict[int, Array] = {}
        self.op_type = node.op_type
        self.domain = node.domain
        self.opset = site.opset
        self.inputs = len(site.inputs)
        self.outputs = len(site.outputs)
        self.carrier = rewriter.analysis.coupling.carriers.get(site.number, "")

    def _operand(self, side: Sequence[Operand | None], index: int) -> Operand:
        operand = side[index]
        assert operand is not None
        return operand

    def has_input(self, index: int) -> bool:
        """Whether the node has this input."""
        return self._site.input(index) is not None

    def input_rank(self, index: int) -> int:
        """The number of axes of an input."""
        return self._operand(self._site.inputs, index).rank

    def output_rank(self, index: int) -> int:
        """The number of axes of an output."""
        return self._operand(self._site.outputs, index).rank

    def old_size(self, index: int, axis: int) -> int:
        """The original size of an input's axis."""
        return self._operand(self._site.inputs, index).shape[axis]

    def new_size(self, index: int, axis: int) -> int:
        """The size of an input's axis after pruning."""
        return int(self.keep(index, axis).sum())

    def new_output_size(self, index: int, axis: int) -> int:
        """The size of an output's axis after pruning."""
        return int(self.output_keep(index, axis).sum())

    def new_shape(self, output: int) -> Sizes:
        """int64[bindings, rank]: the output's shape after pruning, for every binding."""
        return self._rewriter.new_shape(self._operand(self._site.outputs, output))

    def list_sizes(self, output: int, axis: int) -> list[int]:
        """The sizes of an axis in all elements of a sequence that the node gives."""
        listed = self._site.list_out(output)
        operands = () if listed is None else listed.operands
        return [int(self._rewriter.keep(operand.axis(axis)).sum()) for operand in operands]

    def keep(self, index: int, axis: int) -> Flags:
        """bool[size]: which coordinates of an input's axis stay."""
        return self._rewriter.keep(self._operand(self._site.inputs, index).axis(axis))

    def output_keep(self, index: int, axis: int) -> Flags:
        """bool[size]: which coordinates of an output's axis stay."""
        return self._rewriter.keep(self._operand(self._site.outputs, index).axis(axis))

    def values(self, index: int) -> Array | None:
        """[bindings, …]: the original value of an input; None when it is not known, or when its
        length moves with the binding."""
        operand = self._site.input(index)
        found = None if operand is None else self._rewriter.before(operand.name)
        if found is None or len({v.shape for v in found}) > 1:
            return None
        return np.stack(found)

    def columns(self, index: int, first: int) -> list[Column]:
        """See `Site.columns`."""
        return self._site.columns(index, first)

    def period(self, index: int, axis: int) -> int:
        """After how many coordinates of an input's axis what stays repeats, under all bindings."""
        coupling = self._rewriter.analysis.coupling
        operand = self._operand(self._site.inputs, index)
        layouts = coupling.layouts.get(coupling.root(operand.axis(axis)))
        return layouts[0].size * layouts[0].inner[0] if layouts else operand.shape[axis]

    def source(self, index: int) -> oir.Value:
        """What an input reads now."""
        value = self._node.inputs[index]
        assert value is not None
        return value

    def value(self, name: str) -> oir.Value:
        """A value of the graph."""
        return self._rewriter.values[name]

    def rank(self, name: str) -> int:
        """The number of axes of a value of the graph."""
        return len(self._rewriter.analysis.facts[0].types[name][1])

    def insert(
        self, index: int, op: str, inputs: Sequence[Array | oir.Value | None], **attributes: int
    ) -> oir.Value:
        """Puts a new node in front of an input. It reads values, numbers (which get the element
        type of the input) and, for None, what the input has read so far."""
        old = self.source(index)
        given = [old if value is None else value for value in inputs]
        name = self._operand(self._site.inputs, index).name
        kind = oir.DataType(self._rewriter.analysis.facts[0].types[name][0]).numpy()
        numbers = [v if isinstance(v, oir.Value) else v.astype(kind) for v in given]
        new = self._rewriter.patcher.insert(self._node, op, name, numbers, attributes)
        self._node.replace_input_with(index, new)
        self._rewriter.patcher.abandon(old)
        self._rewriter.fronted.add((self._node, index))
        return new

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return attribute_int(self._node, name, default)

    def integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that is a list of integers, or None."""
        return attribute_ints(self._node, name)

    def number(self, name: str) -> float | None:
        """A floating-point attribute, or None."""
        attribute = self._node.attributes.get(name)
        return None if attribute is None else attribute.as_float()

    def set_float(self, name: str, value: float) -> None:
        """Sets a floating-point attribute."""
        self._node.attributes[name] = oir.AttrFloat32(name, value)

    def set_int(self, name: str, value: int) -> None:
        """Sets an integer attribute."""
        self._node.attributes[name] = oir.AttrInt64(name, int(value))

    def set_ints(self, name: str, values: Sequence[int]) -> None:
        """Sets an attribute that is a list of integers."""
        self._node.attributes[name] = oir.AttrInt64s(name, [int(v) for v in values])

    def numbers(self, name: str) -> list[float]:
        """An attribute that is a list of numbers; empty when it is not there."""
        attribute = self._node.attributes.get(name)
        return [] if attribute is None else list(attribute.value)

    def set_numbers(self, name: str, values: npt.NDArray[np.generic]) -> None:
        """Sets an attribute that is a list of numbers, of the type that it has."""
        old = self._node.attributes[name]
        self._node.attributes[name] = oir.Attr(name, old.type, values.tolist())

    def remove_attribute(self, name: str) -> None:
        """Removes an attribute, if it is there."""
        self._node.attributes.pop(name, None)

    def want(self, index: int, value: Array) -> None:
        """States what an input must be now: [bindings, …], one row per binding."""
        self.wanted[index] = value[: len(self._rewriter.analysis.facts)]
