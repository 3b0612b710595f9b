"""Running a model from one stop to the next, on all samples at once, and changing it on the way.

The nodes run in the order of the graph, some at a time, in ONNX Runtime. What is held between two
stops are the values that later nodes read, or that the caller has asked to keep: of a chain of
layers only one activation is ever in memory. Nodes over constants alone (dequantised weights) run
with whatever reads them, so that their constants may change until then.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from ..ir.errors import CertificateError
from .segments import Segment, node_reads, segment_model
from .session import Array, Feed, make_session, run
from .signature import constant_tensor


class Stepwise:
    """A model on its way through its nodes, with all feeds.

    ``values`` holds, for every feed, the values at hand. ``keep`` names values that are held until
    they are dropped. The weights of nodes that have not run yet may still be set.
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
        self.values: list[dict[str, Array]] = [dict(feed) for feed in feeds]
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
        self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)

    def get(self, name: str) -> list[Array]:
        """A value for every feed; runs up to the node that makes it, if that has not run."""
        self.run_to(self.position_of(name) + 1)
        return [values[name] for values in self.values]

    def drop(self, name: str) -> None:
        """Lets go of a value that was kept, unless it is an output or a later node reads it."""
        self.keep -= {name} - self.outputs
        self._release()

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
            session = make_session(
                segment_model(self.model, segment, self.values[0]), threads=self.threads
            )
            for values in self.values:
                found = run(session, {name: values[name] for name in segment.reads})
                if len(found) < len(makes):
                    raise CertificateError("a value that is no tensor cannot be held between nodes")
                values.update(found)
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


def fitting(
    models: Sequence[onnx.ModelProto], feeds: Sequence[Feed], limit: float, threads: int = 0
) -> list[Feed]:
    """So many of the feeds, from the front, that stepping through all models side by side holds
    about ``limit`` bytes at the most; at least one. Runs the models on the first."""
    most = sum(_most_bytes(model, feeds[0], threads) for model in models)
    return list(feeds[: max(1, int(limit // max(most, 1)))])


def _most_bytes(model: onnx.ModelProto, feed: Feed, threads: int) -> int:
    """The bytes of what a node gives and of all values that it or later nodes read, at the most."""
    steps = Stepwise(model, [feed], threads=threads)
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    there = {value.name for value in (*model.graph.output, *model.graph.input)}
    made = [name for node in steps.nodes for name in node.output if name and name not in there]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    found = run(make_session(whole, threads=threads), feed)
    change = np.zeros(len(steps.nodes) + 1, np.int64)
    for name, array in {**feed, **found}.items():
        begin = max(steps.position_of(name), 0)
        change[begin] += array.nbytes
        change[max(steps.last_use(name), begin) + 1] -= array.nbytes
    return int(np.cumsum(change).max(initial=0))
