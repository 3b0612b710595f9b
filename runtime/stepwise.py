"""Running a model from one stop to the next, on all samples at once, and changing it on the way.

The nodes run in the order of the graph, some at a time, in ONNX Runtime. What is held between two
stops are the values that later nodes read, or that the caller has asked to keep: of a chain of
layers only one activation is ever in memory. Nodes over constants alone (dequantised weights) run
with whatever reads them, so that their constants may change until then.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..ir.errors import CertificateError
from .runnable import lacks_kernels
from .seeded import draws, seeded
from .segments import Segment, node_reads, segment_model
from .session import Array, Feed, make_session, run
from .signature import constant_tensor, fed_inputs
from .widened import BFLOAT16, FLOATS, uses, widened, widened_feed

Value: TypeAlias = "Array | list[Array]"
"""A tensor, or the tensors of a sequence."""
STRETCH = 16
"""So many nodes are run at a time to see how much memory their values take."""


class Stepwise:
    """A model on its way through its nodes, with all feeds.

    ``values`` holds, for every feed, the values at hand. ``keep`` names values that are held until
    they are dropped. The weights of nodes that have not run yet may still be set. Model and feeds
    are such that `steppable` makes.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        feeds: Sequence[Feed],
        *,
        keep: Collection[str] = (),
        threads: int = 0,
    ) -> None:
        self.model = model
        self.threads = threads
        inputs = [value.name for value in fed_inputs(model)]
        self.values = [
            {name: value for name in inputs if (value := _value(feed, name)) is not None}
            for feed in feeds
        ]
        self.draws = draws(model)
        self.outputs = {value.name for value in model.graph.output}
        self.keep = {*keep, *self.outputs}
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.position = 0
        self.nodes: list[onnx.NodeProto] = []
        self._constant: dict[str, int] = {}
        for number, node in enumerate(model.graph.node):
            tensor = constant_tensor(node)
            if tensor is not None:
                stored = onnx.TensorProto()
                stored.CopyFrom(tensor)
                stored.name = node.output[0]
                self.weights[stored.name] = stored
            elif self._is_constant(node):
                self._constant.update(dict.fromkeys(node.output, number))
            else:
                self.nodes.append(node)
        self._reads = [node_reads(node) for node in self.nodes]
        self._last = {name: k for k, names in enumerate(self._reads) for name in names}
        self._made_at = {
            name: k for k, node in enumerate(self.nodes) for name in node.output if name
        }

    def position_of(self, name: str) -> int:
        """The number of the node that makes a value; -1 for what no node makes."""
        return self._made_at.get(name, -1)

    def last_use(self, name: str) -> int:
        """The number of the last node that reads a value; -1 when none does."""
        return self._last.get(name, -1)

    def has(self, name: str) -> bool:
        """Whether a node makes this value, or a feed holds it."""
        return name in self._made_at or name in self.values[0]

    def set_weight(self, name: str, array: Array) -> None:
        """Other numbers for a constant, for the nodes that are still to run."""
        if name in self.weights:
            kind = helper.tensor_dtype_to_np_dtype(self.weights[name].data_type)
            array = array.astype(kind, copy=False)
        self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)

    def get(self, name: str) -> list[Array]:
        """A tensor for every feed; runs up to the node that makes it, if that has not run.

        Raises CertificateError for a sequence.
        """
        self.run_to(self.position_of(name) + 1)
        if name in self.weights and name not in self.values[0]:
            return [numpy_helper.to_array(self.weights[name])] * len(self.values)
        return [_tensor(name, values[name]) for values in self.values]

    def drop(self, name: str) -> None:
        """Lets go of a value that was kept, unless it is an output or a later node reads it."""
        self.keep -= {name} - self.outputs
        self._release()

    def fork(self) -> Stepwise:
        """Another walk on from here, with weights of its own."""
        other = copy.copy(self)
        other.values = [dict(values) for values in self.values]
        other.keep, other.weights = set(self.keep), dict(self.weights)
        return other

    def run_to(self, stop: int) -> None:
        """Runs all nodes with numbers below ``stop`` that have not run yet.

        Raises CertificateError when they do not run.
        """
        if stop <= self.position:
            return
        nodes = self.nodes[self.position : stop]
        read = set[str]().union(*self._reads[self.position : stop])
        nodes = [*self._constants_of(read), *nodes]
        read = set[str]().union(*map(node_reads, nodes))
        made = [name for node in nodes for name in node.output if name]
        self.position = stop
        makes = [
            name
            for name in made
            if name not in self._constant
            and (name in self.keep or self._last.get(name, -1) >= stop)
        ]
        if makes:
            segment = Segment(
                tuple(nodes),
                tuple(self.weights[name] for name in sorted(read & self.weights.keys())),
                tuple(sorted(read - set(made) - self.weights.keys() - {""})),
                tuple(makes),
            )
            part = segment_model(self.model, segment, self.values[0])
            session = make_session(part, threads=self.threads)
            for number, values in enumerate(self.values):
                if self.draws and number:  # the same numbers for every feed
                    session = make_session(part, threads=self.threads)
                found = run(session, _flat({name: values[name] for name in segment.reads}))
                for name in makes:
                    value = _value(found, name)
                    if value is not None:
                        values[name] = value
                    elif self.last_use(name) >= stop:
                        raise CertificateError(f"{name!r} is no tensor and cannot be held")
        self._release()

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        """Whether a node reads constants alone, as DequantizeLinear may, and gives no output."""
        reads = node_reads(node) - {""}
        return (
            bool(reads)
            and all(name in self.weights or name in self._constant for name in reads)
            and not self.keep.intersection(node.output)
        )

    def _constants_of(self, read: set[str]) -> list[onnx.NodeProto]:
        """The nodes over constants that these values come from, in the order of the graph."""
        nodes, wanted, front = self.model.graph.node, set[int](), set(read)
        while found := {self._constant[n] for n in front if n in self._constant} - wanted:
            wanted |= found
            front = set[str]().union(*(node_reads(nodes[number]) for number in found))
        return [nodes[number] for number in sorted(wanted)]

    def _release(self) -> None:
        for values in self.values:
            for name in [
                name
                for name in values
                if name not in self.keep and self._last.get(name, -1) < self.position
            ]:
                del values[name]


def _value(flat: Feed, name: str) -> Value | None:
    """A value among those that `run` gives or takes; None for what is neither tensor nor sequence
    of tensors."""
    if name in flat:
        return flat[name]
    places = (f"{name}[{k}]" for k in itertools.count())
    parts = [flat[place] for place in itertools.takewhile(flat.__contains__, places)]
    return parts if parts or f"{name}.length" in flat else None


def _flat(values: dict[str, Value]) -> dict[str, Array]:
    """What `run` takes."""
    found: dict[str, Array] = {}
    for name, value in values.items():
        if isinstance(value, list):
            found |= {f"{name}[{k}]": part for k, part in enumerate(value)}
        else:
            found[name] = value
    return found


def _tensor(name: str, value: Value) -> Array:
    if isinstance(value, list):
        raise CertificateError(f"{name!r} is a sequence, not a tensor")
    return value


def steppable(
    models: Sequence[onnx.ModelProto], feeds: Sequence[Feed]
) -> tuple[list[onnx.ModelProto], list[Feed]]:
    """Models that give the same in every run, in float32 where ONNX Runtime lacks kernels for one
    of them, and feeds for them.

    Raises CertificateError when a model does not load or run.
    """
    found = [seeded(model) if draws(model) else model for model in models]
    kinds = FLOATS if any(lacks_kernels(model, feeds[0]) for model in found) else BFLOAT16
    found = [widened(model, kinds) if uses(model, kinds) else model for model in found]
    return found, [widened_feed(feed, kinds) for feed in feeds]


def fitting(
    models: Sequence[onnx.ModelProto],
    feeds: Sequence[Feed],
    limit: float,
    threads: int = 0,
    held: Collection[str] = (),
) -> list[Feed]:
    """So many of the feeds, from the front, that stepping through all models side by side holds
    about ``limit`` bytes at the most; at least one. Values of the first model in ``held`` are let
    go only at the end. Runs the models on the first feed."""
    most = sum(
        _most_bytes(model, feeds[0], threads, () if number else held)
        for number, model in enumerate(models)
    )
    return list(feeds[: max(1, int(limit // max(most, 1)))])


def _most_bytes(model: onnx.ModelProto, feed: Feed, threads: int, held: Collection[str]) -> int:
    """The bytes of what a node gives and of all values that it or later nodes read, at the most."""
    steps = Stepwise(model, [feed], threads=threads)
    count = len(steps.nodes)
    stops = [*range(STRETCH, count, STRETCH), count]
    change = np.zeros(count + 1, np.int64)
    for name, size in _sizes(steps, stops):
        begin = max(steps.position_of(name), 0)
        change[begin] += size
        end = count - 1 if name in held else steps.last_use(name)
        change[max(end, begin) + 1] -= size
    return int(np.cumsum(change).max(initial=0))


def _sizes(steps: Stepwise, stops: Sequence[int]) -> Iterator[tuple[str, int]]:
    """All values of the first feed, and their bytes."""
    held, seen, start = steps.values[0], set[str](), 0
    for stop in stops:
        made = {name for node in steps.nodes[start:stop] for name in node.output if name}
        steps.keep |= made
        steps.run_to(stop)
        for name in held.keys() - seen:
            value = held[name]
            yield name, sum(a.nbytes for a in (value if isinstance(value, list) else [value]))
        seen |= held.keys()
        for name in made:
            steps.keep -= {name} - steps.outputs
        start = stop
