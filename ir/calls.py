"""Calls put back in place of the nodes that they became, where pruning left these unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as oir

from .inlining import CALL, Call, take_over
from .renaming import stored_tensor


def put_calls_back(model: oir.Model, values: Mapping[str, oir.Value]) -> list[str]:
    """Undoes what `Inliner` did, in a rewritten copy of a flat model; returns notes about the calls
    that stay inlined. ``values`` are the copy's values by the names of the flat model."""
    bodies: dict[Call, dict[int, oir.Node]] = {}
    position: dict[oir.Node, int] = {}
    for number, node in enumerate(model.graph.all_nodes()):
        position[node] = number
        if CALL in node.meta:
            call, place = node.meta[CALL]
            for around in call.chain():
                bodies.setdefault(around, {})
            bodies[call][place] = node
    notes = []
    for call in sorted(bodies, key=lambda c: -len(list(c.chain()))):
        match = _Match(call, model.functions[call.function])
        put_back = _put_back(match, bodies[call], position, values)
        if put_back is None:
            name = ".".join(filter(None, call.function))
            notes.append(f"the call '{call.label}' of '{name}' is inlined: its body changes")
        elif call.parent is not None:
            bodies[call.parent[0]][call.parent[1]] = put_back
    if bodies:
        _drop_unused(model, {call.function for call in bodies})
    for node in model.graph.all_nodes():
        node.meta.pop(CALL, None)
    return notes


def _drop_unused(model: oir.Model, called: set[oir.OperatorIdentifier]) -> None:
    """Removes what no call needs any more; a function that nothing called before stays."""
    before = _reached(model, called)
    kept = {node.op_identifier() for node in model.graph.all_nodes()}
    needed = _reached(model, kept | (model.functions.keys() - before))
    for key in model.functions.keys() - needed:
        del model.functions[key]


def _reached(model: oir.Model, called: set[oir.OperatorIdentifier]) -> set[oir.OperatorIdentifier]:
    """The functions among ``called`` and those that they call."""
    reached: set[oir.OperatorIdentifier] = set()
    front = list(called)
    while front:
        key = front.pop()
        if key in model.functions and key not in reached:
            reached.add(key)
            front += [node.op_identifier() for node in model.functions[key].all_nodes()]
    return reached


def _put_back(
    match: _Match,
    body: Mapping[int, oir.Node],
    position: dict[oir.Node, int],
    values: Mapping[str, oir.Value],
) -> oir.Node | None:
    """The call in place of its nodes, or None when these are no longer the function's."""
    nodes, call = [body[place] for place in sorted(body)], match.call
    results = match.run(nodes) if sorted(body) == list(range(len(body))) else None
    if results is None:
        return None
    # The call stands where its last node stood; only its outputs may be read, and only later.
    last, kept = position[nodes[-1]], {r for r in results if r is not None}
    for node in nodes:
        for value in node.outputs:
            readers = {use.node for use in value.uses()} - match.nodes
            if value not in kept and (readers or value.is_graph_output()):
                return None
            if any(position[reader] < last for reader in readers):
                return None
    graph, old = nodes[-1].graph, call.node
    assert graph is not None
    inputs = [
        match.bound.get(formal)
        if formal in match.bound or given is None
        else values.get(str(given.name))
        for formal, given in zip(match.function.inputs, call.inputs, strict=False)
    ]
    put_back = oir.Node(
        old.domain,
        old.op_type,
        inputs,
        old.attributes.values(),
        overload=old.overload,
        num_outputs=len(old.outputs),
        name=old.name,
        doc_string=old.doc_string,
        metadata_props=dict(old.metadata_props),
    )
    put_back.meta.update(old.meta)
    names = [None if result is None else result.name for result in results]
    for value, result, name in zip(put_back.outputs, results, names, strict=True):
        value.name = name or ""
        if result is not None:
            result.name = None
            take_over(result, value)
    for node in match.nodes:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
    graph.insert_after(nodes[-1], put_back)
    graph.remove(nodes, safe=True)
    position[put_back] = last
    match.forget_shapes()
    return put_back


class _Match:
    """A function's body against the nodes that a call of it became."""

    def __init__(self, call: Call, function: oir.Function) -> None:
        self.call = call
        self.function = function
        self.bound: dict[oir.Value, oir.Value | None] = {}
        self.nodes: set[oir.Node] = set()
        self.formals = set(function.inputs)
        self.given = {k: a for k, a in function.attributes.items() if a.value is not None}
        self.given |= call.node.attributes

    def run(self, nodes: list[oir.Node]) -> list[oir.Value | None] | None:
        """What each output of the call is now (None: left out), or None for no match."""
        pattern = list(self.function)
        if not nodes or len(nodes) < len(pattern) or len({node.graph for node in nodes}) > 1:
            return None
        if not all(map(self._node, pattern, nodes)):
            return None
        glue = iter(nodes[len(pattern) :])
        results: list[oir.Value | None] = []
        for formal in self.function.outputs[: len(self.call.outputs)]:
            value = self.bound.get(formal)
            if formal in self.formals or value is None or value in results:
                identity = next(glue, None)
                if identity is None or not self._bind(formal, identity.inputs[0]):
                    return None
                self.nodes.add(identity)
                value = identity.outputs[0]
            results.append(value)
        if next(glue, None) is not None:
            return None
        return [r if name else None for r, name in zip(results, self.call.outputs, strict=True)]

    def _bind(self, formal: oir.Value | None, actual: oir.Value | None) -> bool:
        if formal is None:
            return actual is None
        if formal in self.bound:
            return self.bound[formal] is actual
        self.bound[formal] = actual
        return formal in self.formals

    def _node(self, pattern: oir.Node, node: oir.Node) -> bool:
        self.nodes.add(node)
        if pattern.op_identifier() != node.op_identifier():
            return False
        if len(pattern.inputs) != len(node.inputs) or len(pattern.outputs) != len(node.outputs):
            return False
        if not all(map(self._bind, pattern.inputs, node.inputs)):
            return False
        self.bound.update(zip(pattern.outputs, node.outputs, strict=True))
        wanted = {
            name: found
            for name, attribute in pattern.attributes.items()
            if (found := self._attribute(attribute)) is not None
        }
        return wanted.keys() == node.attributes.keys() and all(
            self._same(wanted[name], node.attributes[name]) for name in wanted
        )

    def _attribute(self, attribute: oir.Attr) -> oir.Attr | None:
        return self.given.get(str(attribute.ref_attr_name)) if attribute.is_ref() else attribute

    def _same(self, a: oir.Attr, b: oir.Attr) -> bool:
        if a.type != b.type:
            return False
        if a.type == oir.AttributeType.GRAPH:
            return self._graph(a.as_graph(), b.as_graph())
        if a.type == oir.AttributeType.GRAPHS:
            ours, theirs = a.as_graphs(), b.as_graphs()
            return len(ours) == len(theirs) and all(map(self._graph, ours, theirs))
        if a.type in (oir.AttributeType.TENSOR, oir.AttributeType.TENSORS):
            return a.value is b.value
        return a.value is b.value or bool(a.value == b.value)

    def _graph(self, pattern: oir.Graph, graph: oir.Graph) -> bool:
        pairs: list[tuple[Any, Any]] = [
            (pattern.inputs, graph.inputs),
            (pattern.initializers.values(), graph.initializers.values()),
            (list(pattern), list(graph)),
            (pattern.outputs, graph.outputs),
        ]
        if any(len(a) != len(b) for a, b in pairs):
            return False
        for ours, theirs in pairs[:2]:
            self.bound.update(zip(ours, theirs, strict=True))
        if any(a.const_value is not stored_tensor(b) for a, b in zip(*pairs[1], strict=True)):
            return False
        return all(map(self._node, *pairs[2])) and all(map(self._bind, *pairs[3]))

    def forget_shapes(self) -> None:
        """Drops what the function declares about sizes that this call no longer has."""
        for formal, actual in self.bound.items():
            if formal.shape is not None and actual is not None and formal.shape != actual.shape:
                formal.shape = None
