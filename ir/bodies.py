"""Bodies of functions: as they were written, and what calls of them have become.

A call's nodes read as a body again: values that the call was given are the function's inputs,
attributes that it was given refer to the function's attributes, and other constants from outside
are constants of the body.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as oir

from .constants import constant_tensor, tensor_shape
from .graphs import subgraphs
from .inlining import CALL, ORIGIN, Call
from .renaming import stored_tensor, written_name

Read = oir.Value | None


class View:
    """A function's body as it was written."""

    def __init__(self, function: oir.Function) -> None:
        inside = list(function.all_nodes())
        self.nodes = list(function)
        self.reads: dict[oir.Node, list[Read]] = {node: list(node.inputs) for node in inside}
        self.attributes = {node: dict(node.attributes) for node in inside}
        self.outputs: list[oir.Value] = list(function.outputs)

    @property
    def referred(self) -> set[str]:
        """The function's attributes that nodes refer to."""
        found = (a for attributes in self.attributes.values() for a in attributes.values())
        return {str(attribute.ref_attr_name) for attribute in found if attribute.is_ref()}

    def is_constant(self, node: oir.Node) -> bool:
        """Whether this is a Constant node of which no attribute of the call decides anything."""
        refers = any(attribute.is_ref() for attribute in self.attributes[node].values())
        return not refers and constant_tensor(node.outputs[0]) is not None


class Body(View):
    """What a call has become. ``tagged`` are its nodes in order, ``results`` its outputs by their
    numbers, ``values`` all values by the names of the flat model.

    ``actuals`` says what the function's inputs stand for, ``constants`` holds those constants
    outside that belong to the body, with the function's constant in whose place each is read,
    ``pairs`` values of the function with what they are now. ``closed`` says whether the nodes are
    a body: that they read nothing else and give all outputs.
    """

    def __init__(
        self,
        call: Call,
        tagged: Sequence[oir.Node],
        results: Mapping[int, oir.Value],
        values: Mapping[str, oir.Value],
    ) -> None:
        self.call = call
        self.results = {k: v for k, v in results.items() if call.node.outputs[k].name != ""}
        self.own = [node for node in tagged if node.graph is tagged[0].graph]
        glue = {n for v in self.results.values() if (n := v.producer()) and self._is_glue(n)}
        self.nodes = [node for node in self.own if node not in glue]
        inside = [inner for node in self.nodes for inner in with_inner(node)]
        written = {node: self._written(node) for node in inside}
        self._made = {value for node in inside for value in _defined(node)}
        self._given = {k: a for k, a in call.function.attributes.items() if a.value is not None}
        self._given |= call.node.attributes
        self.closed = True
        self.actuals: dict[oir.Value, Read] = {}
        self._bind_formals(written, values)
        self._formals = {v: f for f, v in self.actuals.items() if v is not None}
        self.constants: dict[oir.Value, oir.Value | None] = {}
        self.pairs: list[tuple[oir.Value, oir.Value]] = []
        self.reads, self.attributes = {}, {}
        for node, old in written.items():
            self.reads[node] = self._reads(node, old)
            self.attributes[node] = self._attributes(node, old)
            if old is not None:
                self.pairs += pairs(old, node)
        self.outputs = list(self._outputs({old: node for node, old in written.items()}))
        known = {None, *self._made, *call.function.inputs, *self.constants}
        returned = {v for node in inside for graph in subgraphs(node) for v in graph.outputs}
        self.closed &= all(map(known.issuperset, self.reads.values()))
        self.closed &= self._made.issuperset(returned)
        self.closed &= self._made.isdisjoint(self._formals)

    def _bind_formals(
        self,
        written: Mapping[oir.Node, oir.Node | None],
        values: Mapping[str, oir.Value],
    ) -> None:
        """Finds out what the function's inputs stand for: what is read where they were, else what
        the call was given."""
        function = self.call.function
        formals = set(function.inputs)
        read = [
            p
            for node, old in written.items()
            if old
            for p in zip(old.inputs, node.inputs, strict=False)
        ]
        for number, value in self.results.items():
            node = value.producer()
            if node is not None and self._is_glue(node):
                read.append((function.outputs[number], node.inputs[0]))
        for formal, actual in read:
            if formal in formals:
                self.closed &= self.actuals.setdefault(formal, actual) is actual
        for formal, given in zip(function.inputs, self.call.inputs, strict=False):
            self.actuals.setdefault(formal, given and values.get(str(given.name)))

    def _is_glue(self, node: oir.Node) -> bool:
        """Whether this is no node of the body, but gives an output a value of its own."""
        own = node.meta.get(CALL) is self.call and ORIGIN not in node.meta
        return own and node.op_type == "Identity"

    def _written(self, node: oir.Node) -> oir.Node | None:
        """The function's node that this one was."""
        found: oir.Node | None = node.meta.get(ORIGIN)
        return found if node.meta.get(CALL) is self.call else None

    def _reads(self, node: oir.Node, old: oir.Node | None) -> list[Read]:
        before = [*(old.inputs if old else ()), *[None] * len(node.inputs)]
        return [self._read(v, w) for v, w in zip(node.inputs, before, strict=False)]

    def _read(self, value: Read, written: Read) -> Read:
        if written is not None and written in self.actuals:
            return written
        if value is None or value in self._formals:
            return value and self._formals[value]
        if value not in self._made and constant_tensor(value) and not value.is_graph_input():
            if written is None or constant_tensor(written) is None:
                self.constants.setdefault(value, None)
            elif self.constants.get(value) is None:
                self.constants[value] = None if written in self.constants.values() else written
        return value

    def _attributes(self, node: oir.Node, old: oir.Node | None) -> dict[str, oir.Attr]:
        """The node's attributes, or references to the function's where these still say the same."""
        found = dict(node.attributes)
        for name, attribute in old.attributes.items() if old else ():
            if attribute.is_ref():
                now, before = found.get(name), self._given.get(str(attribute.ref_attr_name))
                if now is before is None or (now and before and _same_attribute(now, before)):
                    found[name] = attribute
        return found

    def _outputs(self, nodes: Mapping[oir.Node | None, oir.Node]) -> Iterator[oir.Value]:
        for number, written in enumerate(self.call.function.outputs):
            value, producer = self.results.get(number), written.producer()
            if producer is None:  # an input of the function
                yield written
                continue
            if value is None and producer in nodes:
                value = nodes[producer].outputs[written.index() or 0]
            elif value is not None and (node := value.producer()) and self._is_glue(node):
                value = node.inputs[0]
            if value is None or value not in self._made:
                self.closed = False
            else:
                yield value


def alike(a: View, b: View) -> bool:
    """Whether two bodies of a function are the same up to names and the places of constants."""
    return _Comparison(a, b).run()


class _Comparison:
    def __init__(self, a: View, b: View) -> None:
        self.a, self.b = a, b
        self.bound: dict[oir.Value, oir.Value] = {}

    def run(self) -> bool:
        outputs = len(self.a.outputs) == len(self.b.outputs)
        return (
            outputs
            and self._nodes(self.a.nodes, self.b.nodes)
            and all(map(self._value, self.a.outputs, self.b.outputs))
        )

    def _nodes(self, ours: Sequence[oir.Node], theirs: Sequence[oir.Node]) -> bool:
        ours = [node for node in ours if not self.a.is_constant(node)]
        theirs = [node for node in theirs if not self.b.is_constant(node)]
        return len(ours) == len(theirs) and all(map(self._node, ours, theirs))

    def _node(self, x: oir.Node, y: oir.Node) -> bool:
        if x.op_identifier() != y.op_identifier() or len(x.outputs) != len(y.outputs):
            return False
        ours, theirs = self.a.reads[x], self.b.reads[y]
        if len(ours) != len(theirs) or not all(map(self._value, ours, theirs)):
            return False
        self.bound.update(zip(x.outputs, y.outputs, strict=True))
        mine, other = self.a.attributes[x], self.b.attributes[y]
        return mine.keys() == other.keys() and all(
            self._attribute(mine[name], other[name]) for name in mine
        )

    def _value(self, x: Read, y: Read) -> bool:
        if x is None or y is None or x is y:
            return x is y
        if x in self.bound:
            return self.bound[x] is y
        ours, theirs = held_tensor(x), held_tensor(y)
        return ours is not None and theirs is not None and _same_tensor(ours, theirs)

    def _attribute(self, x: oir.Attr, y: oir.Attr) -> bool:
        if x.type != y.type or x.is_ref() or y.is_ref():
            return x.type == y.type and x.ref_attr_name == y.ref_attr_name
        if x.type == oir.AttributeType.GRAPH:
            return self._graph(x.as_graph(), y.as_graph())
        if x.type == oir.AttributeType.GRAPHS:
            ours, theirs = x.as_graphs(), y.as_graphs()
            return len(ours) == len(theirs) and all(map(self._graph, ours, theirs))
        return _same_attribute(x, y)

    def _graph(self, x: oir.Graph, y: oir.Graph) -> bool:
        if len(x.inputs) != len(y.inputs) or len(x.outputs) != len(y.outputs):
            return False
        self.bound.update(zip(x.inputs, y.inputs, strict=True))
        return self._nodes(list(x), list(y)) and all(map(self._value, x.outputs, y.outputs))


def held_tensor(value: oir.Value) -> oir.TensorProtocol | None:
    """The tensor of a constant, of one that is as it was in a function that one's very tensor."""
    written, held = value.meta.get(ORIGIN, (None, None))
    if written is not None and constant_tensor(value) is held:
        return constant_tensor(written)
    return stored_tensor(value) if value.is_initializer() else constant_tensor(value)


def _same_attribute(x: oir.Attr, y: oir.Attr) -> bool:
    if x.type == y.type == oir.AttributeType.TENSOR:
        return _same_tensor(x.as_tensor(), y.as_tensor())
    if x.type == y.type == oir.AttributeType.TENSORS:
        ours, theirs = x.as_tensors(), y.as_tensors()
        return len(ours) == len(theirs) and all(map(_same_tensor, ours, theirs))
    return x.type == y.type and (x.value is y.value or bool(x.value == y.value))


def _same_tensor(a: oir.TensorProtocol, b: oir.TensorProtocol) -> bool:
    if a is b or a.dtype != b.dtype or tensor_shape(a) != tensor_shape(b):
        return a is b
    if a.dtype == oir.DataType.STRING:
        return np.array_equal(a.numpy(), b.numpy())
    return a.tobytes() == b.tobytes()


def with_inner(node: oir.Node) -> Iterator[oir.Node]:
    """A node and those in its subgraphs."""
    yield node
    for graph in subgraphs(node):
        yield from graph.all_nodes()


def pairs(written: oir.Node, node: oir.Node) -> Iterator[tuple[oir.Value, oir.Value]]:
    """What a node of a function defines, what its subgraphs hold included, and what it is now."""
    yield from zip(written.outputs, node.outputs, strict=False)
    for old, new in zip(subgraphs(written), subgraphs(node), strict=False):
        yield from zip(old.inputs, new.inputs, strict=False)
        for value in new.initializers.values():
            if written_name(value) in old.initializers:
                yield old.initializers[written_name(value)], value


def _defined(node: oir.Node) -> Iterator[oir.Value]:
    yield from node.outputs
    for graph in subgraphs(node):
        yield from (*graph.inputs, *graph.initializers.values())
