"""What a coupling rule sees of one node, and how rules are registered.

A rule has two halves. ``couple(site)`` states links, pins, sinks and choices between the axes of
the node's operands. ``restate(node)`` corrects what the node says about sizes (attributes and
size-bearing inputs) once some coordinates are gone; operators that state no size have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as oir

from ..columns import Column
from ..coupling import Alternative, Choice, Coupling, Indices, Layout
from ..shapes import Array
from .sums import Sum

if TYPE_CHECKING:
    from ..restated import Restated


@dataclass(frozen=True)
class Operand:
    """One input or output of a node: its value's name, concrete shape and axes.

    ``constant`` is true for initializers, Constant nodes and whatever follows from them alone.
    ``dynamic`` flags the axes whose size moves with the binding; ``later`` is the shape under
    the second binding (the same shape when nothing moves).
    """

    name: str
    shape: tuple[int, ...]
    axes: range
    constant: bool
    dynamic: tuple[bool, ...]
    later: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def axis(self, index: int) -> int:
        """The number of axis ``index`` (negative counts from the end)."""
        return self.axes[index]


@dataclass(frozen=True)
class Listed:
    """A sequence: the operands that it holds, in this order if ``exact`` (see `lists.Elements`).

    ``origins`` are those of the elements of which a Loop makes copies (None for all others).
    """

    operands: tuple[Operand, ...]
    exact: bool
    origins: tuple[Operand | None, ...]


@dataclass(frozen=True)
class Sink:
    """Where coordinates of ``axis`` end: input number ``input`` of node ``site`` contracts it."""

    site: int
    input: int
    index: int
    axis: int


@dataclass(frozen=True)
class Inexact:
    """The node ``site`` looks across ``axis``: removing coordinates changes what is left.

    ``inputs`` and ``outputs`` are the (operand number, axis index) pairs that shrink together,
    so that a reference can run the operator on the kept coordinates only.
    """

    site: int
    axis: int
    inputs: tuple[tuple[int, int], ...]
    outputs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Contraction:
    """Multiply-accumulates of one node: the product of the sizes of ``axes``."""

    site: int
    axes: tuple[int, ...]


@dataclass
class Statements:
    """Everything rules say apart from links and pins."""

    sinks: list[Sink] = field(default_factory=list)
    inexact: list[Inexact] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    producers: set[int] = field(default_factory=set)
    consumers: set[int] = field(default_factory=set)
    quantised: set[oir.Value] = field(default_factory=set)


@dataclass(frozen=True)
class Body:
    """A subgraph that may run: its inputs and outputs; None where the shape is not known."""

    inputs: Sequence[Operand | None]
    outputs: Sequence[Operand | None]
    lists_in: Sequence[Listed | None] = ()
    lists_out: Sequence[Listed | None] = ()


class Site:
    """One node with its operands' axes; the hand that a rule writes with."""

    def __init__(
        self,
        number: int,
        node: oir.Node,
        opset: int,
        inputs: Sequence[Operand | None],
        outputs: Sequence[Operand | None],
        value_of: Callable[[str], Array | None],
        values_of: Callable[[str], Sequence[Array] | None],
        columns_of: Callable[[str, Sequence[Sequence[int]]], list[Column]],
        coupling: Coupling,
        statements: Statements,
        bodies: Mapping[str, Body] | None = None,
        trips: tuple[int, ...] = (),
        lists: tuple[Sequence[Listed | None], Sequence[Listed | None]] = ((), ()),
    ) -> None:
        self.number = number
        self.node = node
        self.opset = opset
        self.inputs = inputs
        self.outputs = outputs
        self._value_of = value_of
        self._values_of = values_of
        self._columns_of = columns_of
        self._coupling = coupling
        self._statements = statements
        self.bodies = bodies or {}
        """The subgraphs that may run, by attribute name; only for rules that enter them."""
        self._trips = trips
        self.lists_in, self.lists_out = lists
        """For every input and output the sequence that it is; None if it is none, or unknown."""

    # -- reading ------------------------------------------------------------------------------

    def input(self, index: int) -> Operand | None:
        """Operand number ``index``, or None when it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def output(self, index: int) -> Operand | None:
        """Output number ``index``, or None when it is absent or nobody reads it."""
        return self.outputs[index] if index < len(self.outputs) else None

    def list_in(self, index: int) -> Listed | None:
        """The sequence that input ``index`` is, if it is one and known."""
        return self.lists_in[index] if index < len(self.lists_in) else None

    def list_out(self, index: int) -> Listed | None:
        """The sequence that output ``index`` is, if it is one and known."""
        return self.lists_out[index] if index < len(self.lists_out) else None

    @property
    def x(self) -> Operand:
        """The first input."""
        operand = self.inputs[0]
        assert operand is not None
        return operand

    @property
    def y(self) -> Operand:
        """The first output."""
        operand = self.outputs[0]
        assert operand is not None
        return operand

    def value(self, index: int) -> Array | None:
        """The value of an input when it is known before running the model; else None."""
        operand = self.input(index)
        return None if operand is None else self._value_of(operand.name)

    def values(self, index: int) -> Sequence[Array] | None:
        """The value of an input under every binding when all are known before the run."""
        operand = self.input(index)
        return None if operand is None else self._values_of(operand.name)

    def columns(self, index: int, first: int) -> list[Column]:
        """An input of indices into the axes of the first input from ``first`` on, by columns."""
        operand = self.inputs[index]
        assert operand is not None
        indexed = slice(first, first + operand.shape[-1])
        return self._columns_of(operand.name, [self.x.shape[indexed], self.x.later[indexed]])

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return attribute_int(self.node, name, default)

    def integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that is a list of integers, or None."""
        return attribute_ints(self.node, name)

    def axes_parameter(self) -> tuple[bool, tuple[int, ...] | None]:
        """The operator's ``axes``, an attribute or the second input by opset: whether they are
        known before the run, and the axes as written (None when left out)."""
        axes = self.integers("axes")
        if axes is None and self.input(1) is not None:
            value = self.value(1)
            if value is None:
                return False, None
            axes = tuple(value.astype(np.int64).reshape(-1).tolist())
        return True, axes

    def string(self, name: str, default: str) -> str:
        """A string attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    # -- stating ------------------------------------------------------------------------------

    def link(
        self, a: int, b: int, a_index: Indices | None = None, b_index: Indices | None = None
    ) -> None:
        """Links two axes, whole or by index arrays of equal length."""
        self._coupling.link(a, b, a_index, b_index, self.number)

    def pin(self, axis: int, reason: str, index: Indices | None = None) -> None:
        """Says that an axis, or its coordinates ``index``, must stay, and why."""
        self._coupling.pin(axis, index, reason, self.number)

    def pin_all(self, reason: str, operands: Sequence[Operand | None] | None = None) -> None:
        """Pins every axis of the given operands (default: all of the node's, and the elements of
        its sequences)."""
        if operands is None:
            operands = (*self.inputs, *self.outputs)
            self.pin_lists(reason, (*self.lists_in, *self.lists_out))
        for operand in operands:
            for axis in operand.axes if operand is not None else ():
                self.pin(axis, reason)

    def pin_lists(self, reason: str, lists: Sequence[Listed | None]) -> None:
        """Pins every axis of all elements of these sequences."""
        for listed in lists:
            self.pin_all(reason, () if listed is None else listed.operands)

    def link_axes(self, a: Operand, b: Operand, skip: Sequence[int] = ()) -> None:
        """Links equal-rank operands axis by axis, except the axes in ``skip``."""
        for index in range(a.rank):
            if index not in skip:
                self.link(a.axis(index), b.axis(index))

    def hub(self, size: int) -> int:
        """A virtual axis to which others are linked: the carrier of a factored axis."""
        return self._coupling.add_axes((size,))[0]

    def virtual(self, shape: tuple[int, ...], later: tuple[int, ...]) -> Operand:
        """A tensor that is not in the graph, for rules in several steps."""
        axes = self._coupling.add_axes(shape, later, self.number)
        dynamic = tuple(a != b for a, b in zip(shape, later, strict=True))
        return Operand("", shape, axes, False, dynamic, later)

    def declare(self, axis: int, hub: int, layout: Layout) -> None:
        """Links a moving axis with a static factor that it holds (see `Layout`)."""
        self._coupling.declare(axis, hub, layout, self.number)

    def choose(self, *alternatives: Alternative, otherwise: Callable[[], None]) -> None:
        """Leaves a decision to the end, when it is known which axes are pinned."""
        self._coupling.choices.append(Choice(self.number, alternatives, otherwise))

    def sink(self, input: int, index: int) -> None:
        """Axis ``index`` of an input is summed away here: exact to remove."""
        operand = self.inputs[input]
        assert operand is not None
        axis = operand.axis(index)
        self._stay_if_moving(axis, "a dynamic axis that is summed away")
        self._statements.sinks.append(Sink(self.number, input, index, axis))

    def inexact(
        self,
        inputs: Sequence[tuple[int, int]],
        outputs: Sequence[tuple[int, int]] = (),
    ) -> None:
        """The node looks across these linked axes: removal is inexact (see `Inexact`)."""
        number, index = inputs[0]
        operand = self.inputs[number]
        assert operand is not None
        axis = operand.axis(index)
        self._stay_if_moving(axis, "a dynamic axis that the node looks across")
        self._statements.inexact.append(Inexact(self.number, axis, tuple(inputs), tuple(outputs)))

    def _stay_if_moving(self, axis: int, reason: str) -> None:
        if axis in self._coupling.moving:
            self.pin(axis, reason)

    def contract(self, a: tuple[int, int], b: tuple[int, int]) -> None:
        """Two inputs' axes, given as (input number, axis index), are summed against each other."""
        left, right = self.inputs[a[0]], self.inputs[b[0]]
        assert left is not None and right is not None
        self.link(left.axis(a[1]), right.axis(b[1]))
        # One masked factor is enough: the other is then multiplied by zero.
        self.sink(*(a if not left.constant or right.constant else b))
        self._statements.consumers.update((left.axis(a[1]), right.axis(b[1])))

    def produce(self, weight_axis: int, output_axis: int) -> None:
        """A free axis of a weight that becomes an axis of the output."""
        self.link(weight_axis, output_axis)
        self._statements.producers.add(weight_axis)

    def role(self, role: str, axis: int) -> None:
        """Marks a weight axis as "producer" or "consumer" without linking it."""
        roles = self._statements
        (roles.producers if role == "producer" else roles.consumers).add(axis)

    def quantised(self, *inputs: int) -> None:
        """These inputs stand for real numbers: constants behind them are weights."""
        values = self.node.inputs
        self._statements.quantised.update(
            v for k in inputs if k < len(values) and (v := values[k]) is not None
        )

    def heads(self, axis: int) -> None:
        """Marks a batch axis of a matrix product, the preferred carrier of attention."""
        self._coupling.heads.add(axis)

    def macs(self, *axes: int) -> None:
        """The node's multiply-accumulates are the product of these axes' sizes; in the body of a
        loop they count for every iteration, where it is known how many there are."""
        self._statements.contractions.append(Contraction(self.number, (*axes, *self._trips)))


def attribute_int(node: oir.Node, name: str, default: int) -> int:
    """An integer attribute of a node."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def attribute_ints(node: oir.Node, name: str) -> tuple[int, ...] | None:
    """An attribute of a node that is a list of integers, or None."""
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())


def positive_axes(axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from the front; ValueError when one is out of range."""
    if any(not -rank <= a < rank for a in axes):
        raise ValueError(f"axes {list(axes)} do not fit rank {rank}")
    return [int(a) % rank for a in axes]


Exactness = Literal["exact", "inexact", "depends", "pinned"]
Couple = Callable[[Site], None]
Restate = Callable[["Restated"], None]
Sums = Callable[[oir.Node], Sum | None]


@dataclass(frozen=True)
class Rule:
    """A coupling rule of one operator and how it is described in reports.

    ``family`` is its group of operators; ``all_outputs`` says that outputs count even if nothing
    reads them (they are None for the rule otherwise); ``exactness`` is what removing units at this
    operator is: "exact", "inexact" (it looks across an axis that shrinks), "depends" (on attributes
    or shapes), "pinned" (nothing goes); ``enters`` says that rules hold inside its subgraphs, too;
    ``sums`` finds the sum that a node computes, None where it computes none.
    """

    couple: Couple
    restate: Restate | None = None
    family: str = ""
    provider: str = "secateur"
    all_outputs: bool = False
    exactness: Exactness = "exact"
    enters: bool = False
    sums: Sums | None = None


RULES: dict[tuple[str, str], Rule] = {}
"""The built-in rules by (domain, operator type); filled when `secateur.ir.rules` is imported."""


def rule(
    *ops: str,
    family: str,
    restate: Restate | None = None,
    domain: str = "",
    all_outputs: bool = False,
    exactness: Exactness = "exact",
    enters: bool = False,
    sums: Sums | None = None,
) -> Callable[[Couple], Couple]:
    """Registers the decorated function as the coupling rule of these operators."""

    def register(couple: Couple) -> Couple:
        made = Rule(
            couple,
            restate,
            family,
            all_outputs=all_outputs,
            exactness=exactness,
            enters=enters,
            sums=sums,
        )
        RULES.update({(domain, op): made for op in ops})
        return couple

    return register
