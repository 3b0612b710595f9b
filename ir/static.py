"""Which subgraphs may run, and in which of them rules hold.

A branch of an If never runs when the condition is known and no moving size has a part in it. A
condition that is known and equal under both bindings may still depend on a size that moves
(``N > 1000``). So its elements are followed back: they move where they come from a moving axis
through Shape. Operators that only move elements are followed element by element, all others as a
whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir

from .control import bodies
from .graphs import subgraphs
from .rules.registry import find_rule
from .shapes import Facts, Skeleton, evaluate

_DATA: Mapping[str, int | None] = {
    **dict.fromkeys(("Cast", "Identity", "Transpose", "Flatten"), 1),
    **dict.fromkeys(("Gather", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Expand"), 1),
    "Concat": None,
}
"""How many of an operator's inputs hold the elements that it moves (None: all)."""

Moves = npt.NDArray[np.int64]


class Branches:
    """Answers for the nodes of one model under the bindings of ``facts``."""

    def __init__(self, skeleton: Skeleton, facts: Sequence[Facts]) -> None:
        self._skeleton, self._facts = skeleton, facts
        self._moves: dict[str, Moves] = {}

    def taken(self, node: oir.Node) -> str:
        """The attribute with the branch that an If takes under every binding; "" if unknown."""
        condition = node.inputs[0] if node.op_type == "If" and node.inputs else None
        if condition is None:
            return ""
        values = [f.values.get(str(condition.name)) for f in self._facts]
        chosen = {bool(v.reshape(-1)[0]) for v in values if v is not None and v.size}
        known = all(v is not None and v.size for v in values) and len(chosen) == 1
        # The other branch must be replaceable by constants, so all results must be tensors.
        tensors = all(o.name in self._facts[0].types for o in node.outputs)
        if not known or not tensors or self.moves(str(condition.name)).any():
            return ""
        return "then_branch" if chosen.pop() else "else_branch"

    def live(self, node: oir.Node) -> dict[str, oir.Graph]:
        """The subgraphs in which rules hold: those that may run, of operators that we know."""
        rule = find_rule(node.domain, node.op_type)
        if rule is None or not rule.enters:
            return {}
        taken = self.taken(node)
        return {
            name: attribute.as_graph()
            for name, attribute in node.attributes.items()
            if attribute.type == oir.AttributeType.GRAPH and taken in ("", name)
        }

    def hidden(self, graph: oir.Graph) -> Iterator[oir.Node]:
        """The nodes of subgraphs in which no rule holds."""
        for node in graph:
            live = self.live(node).values()
            for part in subgraphs(node):
                yield from self.hidden(part) if part in live else part.all_nodes()

    def moves(self, name: str) -> Moves:
        """1 where an element of a known value moves, else 0."""
        waiting, found = [name], self._moves
        while waiting:
            proto = self._skeleton.protos.get(waiting[-1])
            inputs = [] if proto is None or proto.op_type in ("Shape", "Size") else proto.input
            missing = [i for i in inputs if i and i not in found]
            if missing:
                waiting += missing
                continue
            current = waiting.pop()
            found[current] = self._of(current, proto, found)
        return found[name]

    def _of(self, name: str, proto: onnx.NodeProto | None, found: Mapping[str, Moves]) -> Moves:
        value = self._facts[0].values.get(name)
        if value is None or (proto is not None and bodies(proto)):
            return np.ones(1, np.int64)  # not known: nobody can tell
        if proto is None:
            return np.zeros(value.shape, np.int64)
        if proto.op_type in ("Shape", "Size"):
            if any(proto.input[0] not in f.types for f in self._facts):
                return np.ones(value.shape, np.int64)
            shapes = [f.types[proto.input[0]][1] for f in self._facts]
            dims = np.array([len(set(sizes)) > 1 for sizes in zip(*shapes, strict=True)], np.int64)
            if proto.op_type == "Size":
                return np.array(dims.any(), np.int64)
            bounds = {a.name: a.i for a in proto.attribute}
            return dims[bounds.get("start", 0) : bounds.get("end")]
        given = [found[i] for i in proto.input if i]
        count = _DATA.get(proto.op_type, 0)
        count = len(given) if count is None else count
        if count and not any(moves.any() for moves in given[count:]):
            values = {i: self._facts[0].values[i] for i in proto.input if i}
            values.update(zip(proto.input[:count], given, strict=False))
            result = evaluate(proto, self._skeleton.opset, values, {}).get(name)
            if result is not None:
                return np.asarray(result != 0, np.int64)
        moved = any(moves.any() for moves in given) or not given
        return np.full(value.shape, int(moved), np.int64)
