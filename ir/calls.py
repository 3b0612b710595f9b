"""Calls put back in place of the nodes that they became.

Where a function's body came through unchanged, its calls come back. Where it changed in all calls,
the function gets the body that most of them have, and these come back. Other calls stay inlined.
No weight is stored both in a function and beside it: then all calls stay inlined.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import onnx_ir as oir

from .bodies import Body, View, alike, pairs
from .constants import constant_tensor, constants, remove_constant
from .functions import replace_body
from .graphs import read_nothing
from .inlining import CALL, ORIGIN, RESULTS, Call, forget, take_over

SMALL = 256
"""Bytes of a constant that may be stored twice, in a function and for calls that stay inlined."""


def put_calls_back(model: oir.Model, values: Mapping[str, oir.Value]) -> list[str]:
    """Undoes what `Inliner` did, in a rewritten copy of a flat model; returns notes about the calls
    that stay inlined. ``values`` are the copy's values by the names of the flat model."""
    return _Calls(model, dict(values)).put_back()


class _Calls:
    """The calls that were inlined, and the nodes that stand for each: innermost calls first, each
    comes back, or its nodes become those of the call around it."""

    def __init__(self, model: oir.Model, values: dict[str, oir.Value]) -> None:
        self.model = model
        self.values = values
        self.position: dict[oir.Node, int] = {}
        self.nodes: dict[Call, list[oir.Node]] = {}
        self.results: dict[Call, dict[int, oir.Value]] = {}
        for number, node in enumerate(model.graph.all_nodes()):
            self.position[node] = number
            for value in node.outputs:
                self._found(value)
            if CALL in node.meta:
                for call in node.meta[CALL].chain():
                    self.nodes.setdefault(call, [])
                self.nodes[node.meta[CALL]].append(node)

    def _found(self, value: oir.Value) -> None:
        for call, number in value.meta.get(RESULTS, ()):
            self.results.setdefault(call, {})[number] = value

    def put_back(self) -> list[str]:
        functions: dict[oir.OperatorIdentifier, list[Call]] = {}
        for call in self.nodes:
            functions.setdefault(call.key, []).append(call)
        before = self._reached(functions)
        left = {node.op_identifier() for node in self.model.graph.all_nodes()}
        fixed = self._reached(left | (self.model.functions.keys() - before))
        notes: list[str] = []
        for calls in sorted(functions.values(), key=_depth, reverse=True):
            notes += self._decide(calls, calls[0].key in fixed)
        called = {node.op_identifier() for node in self.model.graph.all_nodes()}
        for key in before - self._reached(called | fixed):
            del self.model.functions[key]
        for value, _ in list(constants(self.model.graph)):
            if value.meta.pop(ORIGIN, None) is not None:
                _remove_unread(value)
        for node in self.model.graph.all_nodes():
            forget(node)
        return notes

    def _reached(self, called: Iterable[oir.OperatorIdentifier]) -> set[oir.OperatorIdentifier]:
        """The functions among ``called`` and those that they call."""
        reached: set[oir.OperatorIdentifier] = set()
        front = list(called)
        while front:
            key = front.pop()
            if key in self.model.functions and key not in reached:
                reached.add(key)
                front += [node.op_identifier() for node in self.model.functions[key].all_nodes()]
        return reached

    def _decide(self, calls: list[Call], fixed: bool) -> list[str]:
        """Puts back those calls of a function that one body serves: the function's own, which has
        to stay if it is ``fixed``, or that of most calls. Returns notes about the others."""
        variants: list[list[Body]] = []
        for call in calls:
            body = self._body(call)
            if body is not None:
                like = next((v for v in variants if alike(v[0], body)), None)
                if like is None:
                    variants.append([body])
                else:
                    like.append(body)
        written = View(calls[0].function)
        chosen = next((v for v in variants if alike(written, v[0])), [])
        changed = not chosen and not fixed
        if changed:
            chosen = max(variants, key=len, default=[])
        reason = "its body changes"
        if not fixed and _stored_twice(chosen):
            chosen, reason = [], "calls that share its weights change in other ways"
        back = {body.call for body in chosen}
        if chosen:
            self._put_back(chosen, changed)
        notes = []
        for call in (call for call in calls if call not in back):
            self._hand_on(call)
            name = ".".join(filter(None, call.key))
            notes.append(f"the call '{call.label}' of '{name}' is inlined: {reason}")
        return notes

    def _body(self, call: Call) -> Body | None:
        """What the call has become, or None if no call can stand for it: it would stand where its
        last node stands, and only its outputs may be read, and only later."""
        nodes = sorted(self.nodes[call], key=self.position.__getitem__)
        if not nodes:
            return None
        body = Body(call, nodes, self.results.get(call, {}), self.values)
        last, results = self.position[body.own[-1]], set(body.results.values())
        inside = {*body.own, *body.reads}
        for value in (v for node in body.own for v in node.outputs):
            readers = {use.node for use in value.uses()} - inside
            if value not in results and (readers or value.is_graph_output()):
                return None
            if any(self.position[reader] < last for reader in readers):
                return None
        return body if body.closed else None

    def _put_back(self, bodies: list[Body], changed: bool) -> None:
        function = self.model.functions[bodies[0].call.key]
        wrong = {
            old
            for body in bodies
            for old, new in (*body.actuals.items(), *body.pairs)
            if new is not None and old.shape is not None and old.shape != new.shape
        }
        gone = set[str]()
        if changed:
            gone = View(bodies[0].call.function).referred - bodies[0].referred
        for name in gone & function.attributes.keys():
            del function.attributes[name]
        moved: dict[oir.Value | None, oir.Value] = {}
        for body in bodies:
            self._replace(body, moved, gone)
        if changed:
            imports = self.model.graph.opset_imports
            now = replace_body(function, bodies[0], imports)
        else:
            now = _counterparts(bodies[0].call.function, function)
        for value in wrong & now.keys():
            now[value].shape = None
        for value in dict.fromkeys(value for body in bodies for value in body.constants):
            _remove_unread(value)

    def _replace(
        self, body: Body, moved: dict[oir.Value | None, oir.Value], gone: Collection[str]
    ) -> None:
        """The call in place of its nodes, without the attributes ``gone``. ``moved`` holds what
        stands for other calls' outputs."""
        old, graph = body.call.node, body.own[-1].graph
        assert graph is not None
        given = [body.actuals.get(formal) for formal in body.call.function.inputs]
        inputs = [moved.get(value, value) for value in given]
        while len(inputs) > len(body.call.inputs) and inputs[-1] is None:
            inputs.pop()
        node = oir.Node(
            old.domain,
            old.op_type,
            inputs,
            [a for name, a in old.attributes.items() if name not in gone],
            overload=old.overload,
            num_outputs=len(old.outputs),
            name=old.name,
            doc_string=old.doc_string,
            metadata_props=dict(old.metadata_props),
        )
        node.meta.update(old.meta)
        for number, value in enumerate(node.outputs):
            result = body.results.get(number)
            value.name = ""
            if result is not None:
                value.name, result.name = result.name, None
                take_over(result, value)
                self.values[str(value.name)] = moved[result] = value
                self._found(value)
        for inner in {*body.own, *body.reads}:
            read_nothing(inner)
        graph.insert_after(body.own[-1], node)
        graph.remove(body.own, safe=True)
        self.position[node] = self.position[body.own[-1]]
        if body.call.parent is not None:
            self.nodes[body.call.parent].append(node)

    def _hand_on(self, call: Call) -> None:
        """The nodes of a call that stays inlined belong to the call around it."""
        for node in self.nodes[call]:
            node.meta.pop(CALL)
            node.meta.pop(ORIGIN, None)
            if call.parent is not None:
                node.meta[CALL] = call.parent
        if call.parent is not None:
            self.nodes[call.parent] += self.nodes[call]


def _remove_unread(constant: oir.Value) -> None:
    if not constant.uses() and not constant.is_graph_output():
        remove_constant(constant)


def _depth(calls: list[Call]) -> int:
    return max(len(list(call.chain())) for call in calls)


def _stored_twice(bodies: list[Body]) -> bool:
    """Whether these bodies share a constant that is not small with nodes that are not theirs."""
    inside = {node for body in bodies for node in body.reads}
    return any(
        (tensor := constant_tensor(value)) is not None
        and tensor.nbytes > SMALL
        and any(use.node not in inside for use in value.uses())
        for body in bodies
        for value in body.constants
    )


def _counterparts(a: oir.Function, b: oir.Function) -> dict[oir.Value, oir.Value]:
    """The values of a function by those of its copy."""
    found = dict(zip(a.inputs, b.inputs, strict=True))
    for x, y in zip(a.all_nodes(), b.all_nodes(), strict=True):
        found |= dict(pairs(x, y))
    return found
