"""Shapes through control flow: If, Loop and Scan, their bodies included.

The values of a body have the shapes of one iteration. States of a loop are followed until their
shapes repeat; those of an axis that changes from one iteration to the next, or that depends on
the branch taken or on a number of iterations that only a run tells, are *split*: the first of two
`Facts` shows one possible size, the second another, exactly as for two sizes of a symbolic
dimension. Nothing that depends on an iteration ever has a known value, unless there is only one.

Sequences that a loop fills are followed by `loop_lists`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as oir

from .constants import constant_tensor, tensor_shape
from .graphs import subgraphs
from .lists import Elements, join_lists
from .loop_lists import follow_lists
from .protos import subgraph_protos

if TYPE_CHECKING:
    from .shapes import Array, Facts, Skeleton, Typed

    Types = list[Typed | None]

LIMIT = 10_000
"""Nodes that are inferred, at most, to follow states whose shapes change to the last iteration."""


def skeleton_node(node: oir.Node) -> onnx.NodeProto:
    """The node as a proto. Constants of its subgraphs are left out (their names are unique, so
    they can stand in the main graph), and so are declared shapes."""
    if not subgraphs(node):
        return oir.serde.serialize_node(node)
    proto = onnx.NodeProto(
        op_type=node.op_type,
        domain=node.domain,
        name=node.name or "",
        input=["" if v is None else str(v.name) for v in node.inputs],
        output=[v.name or "" for v in node.outputs],
    )
    for attribute in node.attributes.values():
        if attribute.type == oir.AttributeType.GRAPH:
            entry = proto.attribute.add(name=attribute.name, type=onnx.AttributeProto.GRAPH)
            _skeleton_graph(attribute.as_graph(), entry.g, 2 if node.op_type == "Loop" else 0)
        elif attribute.type == oir.AttributeType.GRAPHS:
            entry = proto.attribute.add(name=attribute.name, type=onnx.AttributeProto.GRAPHS)
            for graph in attribute.as_graphs():
                _skeleton_graph(graph, entry.graphs.add())
        else:
            proto.attribute.append(oir.serde.serialize_attribute(attribute))
    return proto


def _skeleton_graph(graph: oir.Graph, proto: onnx.GraphProto, counts: int = 0) -> None:
    """The first ``counts`` inputs are numbers, of which it matters whether they are scalars."""
    proto.name = graph.name or "body"
    for index, value in enumerate(graph.inputs):
        info = proto.input.add(name=str(value.name))
        if value.type is not None:
            info.type.CopyFrom(oir.serde.serialize_value(value).type)
            counted = index < counts and value.shape is not None and value.shape.is_static()
            if info.type.HasField("tensor_type") and len(value.shape or ()) > 0 and not counted:
                info.type.tensor_type.ClearField("shape")
    for value in graph.outputs:
        info = proto.output.add(name=str(value.name))
        tensor = constant_tensor(value)
        if tensor is not None:
            kind = onnx.helper.make_tensor_type_proto(int(tensor.dtype), tensor_shape(tensor))
            info.type.CopyFrom(kind)
    for node in graph:
        if constant_tensor(node.outputs[0] if node.outputs else oir.Value()) is None:
            proto.node.append(skeleton_node(node))


def bodies(proto: onnx.NodeProto) -> dict[str, onnx.GraphProto]:
    """The subgraphs of a node by attribute name."""
    return {a.name: a.g for a in proto.attribute if a.HasField("g")}


def all_protos(protos: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their subgraphs."""
    for proto in protos:
        yield proto
        for graph in subgraph_protos(proto):
            yield from all_protos(graph.node)


def follow(skeleton: Skeleton, proto: onnx.NodeProto, facts: Facts) -> None:
    """Infers the bodies of a node and from them its outputs; other operators with subgraphs keep
    theirs unknown."""
    if proto.domain in ("", "ai.onnx") and proto.op_type in _OPERATORS:
        _OPERATORS[proto.op_type](skeleton, proto, facts)


# -- If -----------------------------------------------------------------------------------------


def _follow_if(skeleton: Skeleton, proto: onnx.NodeProto, facts: Facts) -> None:
    graphs = bodies(proto)
    for graph in graphs.values():
        skeleton.infer_nodes(graph.node, facts)
    condition = facts.values.get(proto.input[0])
    if condition is not None and condition.size:
        taken = graphs["then_branch" if condition.reshape(-1)[0] else "else_branch"]
        for name, inner in zip(proto.output, taken.output, strict=True):
            if inner.name in facts.types:
                facts.types[name] = facts.types[inner.name]
            if inner.name in facts.lists:
                facts.lists[name] = facts.lists[inner.name]
            if inner.name in facts.values:
                facts.values[name] = facts.values[inner.name]
        return
    both = zip(graphs["then_branch"].output, graphs["else_branch"].output, strict=True)
    for name, (yes, no) in zip(proto.output, both, strict=True):
        options = facts.types.get(yes.name), facts.types.get(no.name)
        if name:
            _set(facts, name, _either(facts, *options))
            join_lists(facts, name, (yes.name, no.name), _either)


def _set(facts: Facts, name: str, kind: Typed | None) -> None:
    if kind is not None:
        facts.types[name] = kind


def _either(facts: Facts, first: Typed | None, later: Typed | None) -> Typed | None:
    """What may be the one or the other: split if it is a matter of sizes, else unknown."""
    if first == later or first is None or later is None:
        return first if first == later else None
    if first[0] != later[0] or len(first[1]) != len(later[1]):
        return None
    facts.split = True
    return None if facts.look is None else (first, later)[facts.look]


# -- loops --------------------------------------------------------------------------------------


class Iterations:
    """A loop's body, inferred for one iteration after the other.

    ``given`` are the types of the body's inputs that are no states, ``true`` the name of the
    condition among them, ``states`` the names of the states going in and coming out, ``made`` the
    names of what every iteration adds to the scan outputs. ``rows[k]`` are the types of the
    states before iteration k, as far as they must be followed to tell which axes change.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        facts: Facts,
        graph: onnx.GraphProto,
        given: Mapping[str, Typed],
        true: str,
        states: tuple[Sequence[str], Sequence[str]],
        made: Sequence[str],
    ) -> None:
        self._skeleton, self._facts, self._nodes = skeleton, facts, graph.node
        self._given, self._true, (self._into, self._out) = given, true, states
        self._names = made
        self.inner = [o for proto in all_protos(graph.node) for o in proto.output if o]
        self.inner += [info.name for info in graph.input]
        self._rows: list[Types] = []
        self._shown = 0
        self._next: Types = []
        self._seen: list[Types] = []
        self.lists: Mapping[str, Elements] = {}
        """The sequences among the states, as the body is given them."""
        self.limit = LIMIT
        self.known: Mapping[str, Array] = {}
        """Values of the body's inputs in the iteration that is looked at, as far as known."""

    def run(self, first: Types) -> None:
        """Follows states that initially have the types ``first`` (None: unknown). Afterwards the
        values of the body have the types of the iteration that the facts show."""
        while (unknown := self._follow(first)) is not None:
            first = [None if k in unknown else kind for k, kind in enumerate(first)]

    def _follow(self, first: Types) -> set[int] | None:
        """None when all is well, else the states whose types cannot be known."""
        self._rows, self._seen, self._shown = [first], [], 0
        self._next = self._step(first)
        while self._next != self._rows[-1]:
            pairs = zip(first, self._next, strict=True)
            lost = {k for k, (a, b) in enumerate(pairs) if _rank(a) != _rank(b)}
            if lost:
                return lost
            if len(self._rows) > len(first) + 2:
                break
            self._rows.append(self._next)
            self._next = self._step(self._next)
        if len(self._rows) == 1:
            return None
        sizes = np.array([[d for kind in row if kind for d in kind[1]] for row in self._rows])
        moved = sizes != sizes[0]
        changing = moved.any(axis=0)
        clear = np.flatnonzero(moved[:, changing].all(axis=1))
        if self._facts.look is None or not clear.size:
            owners = [k for k, kind in enumerate(first) if kind for _ in kind[1]]
            return set(np.array(owners)[changing].tolist())
        self._facts.split = True
        self._shown = int(clear[0]) if self._facts.look else 0
        self._next = self._step(self._rows[self._shown])
        return None

    def _step(self, row: Types) -> Types:
        """The states after an iteration that begins with ``row``."""
        facts = self._facts
        for name in self.inner:
            facts.types.pop(name, None)
            facts.values.pop(name, None)
            facts.lists.pop(name, None)
        facts.lists.update(self.lists)
        for name, kind in (*self._given.items(), *zip(self._into, row, strict=True)):
            _set(facts, name, kind)
        if self._true:
            facts.values[self._true] = np.array(True)
        facts.values.update(self.known)
        self._skeleton.infer_nodes(self._nodes, facts)
        self._seen.append([facts.types.get(name) for name in self._names])
        return [
            None if before is None else facts.types.get(name)
            for before, name in zip(row, self._out, strict=True)
        ]

    def counted(
        self, number: str, first: Sequence[Array | None], again: str, most: float
    ) -> list[Mapping[str, Array]] | None:
        """What is known in each iteration of a Loop: its ``number`` and what follows from the
        values ``first`` of the states, to the one after which ``again`` is false, or to the last of
        ``most``. None when nobody knows which one that is, or there are too many to follow."""
        rounds: list[Mapping[str, Array]] = []
        values, before = first, (self.known, self.lists)
        goes_on: Array | None = np.array(True)
        self.lists = {}
        while goes_on is not None and goes_on.all() and len(rounds) < most:
            count = len(rounds)
            if (count + 1) * len(self.inner) > self.limit:
                goes_on = None
                break
            at = np.full(self._given[number][1], count, np.int64)
            states = {k: v for k, v in zip(self._into, values, strict=True) if v is not None}
            self.known = {number: at, **states}
            rounds.append(self.known)
            self.at(count)
            values = [self._facts.values.get(name) for name in self._out]
            goes_on = self._facts.values.get(again)
        self.known, self.lists = before
        self.show()
        return None if goes_on is None else rounds

    def after(self, trips: int | None) -> Types:
        """The types of the states after so many iterations (None: nobody knows how many)."""
        if len(self._rows) == 1:
            return self._rows[0]
        if trips is None:
            return self._next
        if trips * len(self.inner) > LIMIT:
            return [a if a == b else None for a, b in zip(*self._rows[:2], strict=True)]
        while len(self._rows) <= trips:
            self._rows.append(self._step(self._rows[-1]))
        self._step(self._rows[self._shown])
        return self._rows[trips]

    def show(self) -> None:
        """Gives the values of the body the types of the iteration that the facts show."""
        self._next = self._step(self._rows[self._shown])

    def at(self, iteration: int) -> None:
        """Gives the values of the body those of one iteration; `after` has been asked so far."""
        self._step(self._rows[min(iteration, len(self._rows) - 1)])

    def made(self) -> Types:
        """The types of what an iteration adds, None where iterations differ."""
        columns = zip(*self._seen, strict=True)
        return [kinds[0] if len(set(kinds)) == 1 else None for kinds in columns]


def _rank(kind: Typed | None) -> tuple[int, int]:
    return (-1, -1) if kind is None else (kind[0], len(kind[1]))


def _stacked(facts: Facts, kind: Typed | None, axis: int, trips: int | None) -> Typed | None:
    """The type of a scan output; a number of iterations that nobody knows is split."""
    if kind is None:
        return None
    if trips is None:
        facts.split = True
        if facts.look is None:
            return None
        trips = 2 + facts.look
    shape = list(kind[1])
    shape.insert(axis % (len(shape) + 1), trips)
    return kind[0], tuple(shape)


def _follow_loop(skeleton: Skeleton, proto: onnx.NodeProto, facts: Facts) -> None:
    graph = bodies(proto)["body"]
    inputs, outputs = ([info.name for info in side] for side in (graph.input, graph.output))
    states = proto.input[2:]
    count = len(states)
    given = {
        info.name: (kind, tuple(d.dim_value for d in info.type.tensor_type.shape.dim))
        for info, kind in zip(
            graph.input[:2], (onnx.TensorProto.INT64, onnx.TensorProto.BOOL), strict=True
        )
    }
    # The body runs while its condition is true, so inside it is nothing else.
    loop = Iterations(
        skeleton,
        facts,
        graph,
        given,
        inputs[1],
        (inputs[2:], outputs[1 : 1 + count]),
        outputs[1 + count :],
    )
    first = [facts.types.get(name) for name in states]
    loop.run(first)
    trips = _trip_count(proto, facts, outputs[0])
    rounds = None
    if trips is None or any(name in facts.lists for name in states):
        rounds = _rounds(loop, facts, proto, inputs[0], outputs[0])
        trips = trips if rounds is None else len(rounds)
    if trips == 1:
        loop.known = {inputs[0]: np.zeros(given[inputs[0]][1], np.int64)}
        loop.run(first)
    follow_lists(loop, facts, proto, graph, rounds)
    results = loop.after(trips)
    results += [_stacked(facts, kind, 0, trips) for kind in loop.made()]
    _finish(proto, facts, results, trips)


def _trip_count(proto: onnx.NodeProto, facts: Facts, again: str) -> int | None:
    """How often the body of a Loop runs, when the condition ``again`` never ends it."""
    most, begins = (facts.values.get(name) if name else None for name in proto.input[:2])
    if begins is not None and begins.size and not begins.reshape(-1)[0]:
        return 0
    goes_on = facts.values.get(again)
    if most is None or not most.size or (begins is None and proto.input[1]):
        return None
    if goes_on is None or not goes_on.size or not goes_on.reshape(-1)[0]:
        return None
    return max(int(most.reshape(-1)[0]), 0)


def _rounds(
    loop: Iterations, facts: Facts, proto: onnx.NodeProto, number: str, again: str
) -> list[Mapping[str, Array]] | None:
    """What is known in each iteration of a Loop; None when nobody knows how many there are."""
    most, begins = (facts.values.get(name) if name else None for name in proto.input[:2])
    if any(name and v is None for name, v in zip(proto.input[:2], (most, begins), strict=True)):
        return None
    if begins is not None and not begins.all():
        return []
    first = [facts.values.get(name) for name in proto.input[2:]]
    return loop.counted(number, first, again, np.inf if most is None else int(most.reshape(-1)[0]))


def _finish(proto: onnx.NodeProto, facts: Facts, results: Types, trips: int | None) -> None:
    for name, kind in zip(proto.output, results, strict=False):
        if name:
            _set(facts, name, kind)
    if trips is not None:
        facts.trips[next(filter(None, proto.output), "")] = trips


def _follow_scan(skeleton: Skeleton, proto: onnx.NodeProto, facts: Facts) -> None:
    graph = bodies(proto)["body"]
    form = ScanForm(
        len(proto.input),
        len(proto.output),
        {
            a.name: onnx.helper.get_attribute_value(a)
            for a in proto.attribute
            if not a.HasField("g")
        },
        skeleton.opset,
    )
    inputs, outputs = ([info.name for info in side] for side in (graph.input, graph.output))
    count, types = form.states, [facts.types.get(name) for name in proto.input[form.first :]]
    given, lengths = {}, set()
    for name, kind, axis in zip(inputs[count:], types[count:], form.input_axes, strict=True):
        if kind is not None:
            lengths.add(kind[1][axis + form.batch])
            shape = list(kind[1][form.batch :])
            del shape[axis]
            given[name] = kind[0], tuple(shape)
    batch = [kind[1][0] for kind in types if kind is not None and form.batch]
    loop = Iterations(
        skeleton, facts, graph, given, "", (inputs[:count], outputs[:count]), outputs[count:]
    )
    loop.run([kind and (kind[0], kind[1][form.batch :]) for kind in types[:count]])
    trips = lengths.pop() if len(lengths) == 1 else None
    results = loop.after(trips)
    results += [
        _stacked(facts, kind, axis, trips)
        for kind, axis in zip(loop.made(), form.output_axes, strict=True)
    ]
    if form.batch:
        results = [kind and (kind[0], (batch[0], *kind[1])) for kind in results if batch]
    _finish(proto, facts, results, trips)


class ScanForm:
    """How a Scan lays out its operands: ``states`` of them are states, after ``first`` others;
    ``batch`` counts the axes in front (1 before opset 9), and ``input_axes`` and ``output_axes``
    are the scan axes of the rest, counted without those."""

    def __init__(
        self, inputs: int, outputs: int, attributes: Mapping[str, object], opset: int
    ) -> None:
        scanned = attributes["num_scan_inputs"]
        assert isinstance(scanned, int)
        self.batch = self.first = int(opset < 9)
        self.states = inputs - self.first - scanned
        made = outputs - self.states
        self.input_axes: Sequence[int] = attributes.get("scan_input_axes", [0] * scanned)  # type: ignore[assignment]
        self.output_axes: Sequence[int] = attributes.get("scan_output_axes", [0] * made)  # type: ignore[assignment]


_OPERATORS = {"If": _follow_if, "Loop": _follow_loop, "Scan": _follow_scan}
