"""Local functions in place of their calls.

A call becomes the function's nodes, named ``<call>/<name>``; every node remembers where it came
from, so that `calls` can put the call back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as oir

from .graphs import Names, subgraphs, value_names

CALL = "secateur.call"
_GRAPHS = (oir.AttributeType.GRAPH, oir.AttributeType.GRAPHS)


@dataclass(eq=False)
class Call:
    """A call that was inlined.

    ``node`` is the call itself, detached; ``inputs`` are the values of the flat model that it
    read, ``outputs`` the names of those that it wrote ("" where one was left out); nodes of its
    body carry ``(call, place)`` in their ``meta``, and so does ``node`` if it stood in another
    call's body.
    """

    node: oir.Node
    function: oir.OperatorIdentifier
    inputs: list[oir.Value | None]
    outputs: list[str]

    @property
    def label(self) -> str:
        """A name for messages and for the nodes of the body."""
        return self.node.name or next(filter(None, self.outputs), self.node.op_type)

    @property
    def parent(self) -> tuple[Call, int] | None:
        """The call whose body this one stands in, and its place there."""
        found: tuple[Call, int] | None = self.node.meta.get(CALL)
        return found

    def chain(self) -> Iterator[Call]:
        """This call and those around it, innermost first."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent[0] if call.parent else None


class Inliner:
    """Inlines all calls of a model in place."""

    def __init__(self, model: oir.Model) -> None:
        self.model = model
        self.names = Names(value_names(model.graph))
        self.labels = Names(str(node.name) for node in model.graph.all_nodes())
        self.fits: dict[oir.OperatorIdentifier, bool] = {}

    def run(self) -> None:
        """Outer calls first, so that attributes are numbers when a nested call needs them."""
        waiting = list(self.model.graph)[::-1]
        while waiting:
            node = waiting.pop()
            function = self.model.functions.get(node.op_identifier())
            if function is not None and self._inlinable(node, function):
                waiting += self._inline(node, function)[::-1]
            else:
                for graph in subgraphs(node):
                    waiting += list(graph)[::-1]

    def _inlinable(self, node: oir.Node, function: oir.Function) -> bool:
        key, around = function.identifier(), node.meta.get(CALL)
        if around is not None and any(c.function == key for c in around[0].chain()):
            return False
        if any(a.type in _GRAPHS or a.is_ref() for a in node.attributes.values()):
            return False
        if len(node.inputs) > len(function.inputs) or len(node.outputs) > len(function.outputs):
            return False
        if key not in self.fits:
            self.fits[key] = self._opsets_fit(function)
        return self.fits[key]

    def _opsets_fit(self, function: oir.Function) -> bool:
        """Whether the model's opsets mean the same by the function's operators; imports what is
        missing."""
        imports = self.model.graph.opset_imports
        for node in function.all_nodes():
            version = function.opset_imports.get(node.domain)
            if version is None or imports.get(node.domain, version) == version:
                continue
            if node.op_identifier() in self.model.functions:
                continue
            versions = (version, imports[node.domain])
            schemas = [_schema(node, v) for v in versions]
            if None in schemas or schemas[0] != schemas[1]:
                return False
        for domain, version in function.opset_imports.items():
            imports.setdefault(domain, version)
        return True

    def _inline(self, node: oir.Node, function: oir.Function) -> list[oir.Node]:
        graph = node.graph
        assert graph is not None
        outputs = [value.name or "" for value in node.outputs]
        call = Call(node, function.identifier(), [*node.inputs], outputs)
        body = function.graph.clone()
        nodes = list(body)
        given = {**{k: a for k, a in function.attributes.items() if a.value is not None}}
        given |= node.attributes
        for inner in list(body.all_nodes()):
            _resolve(inner, given)
        actual = dict(zip(body.inputs, node.inputs, strict=False))
        results: list[oir.Value | None] = []
        for formal in body.outputs[: len(node.outputs)]:
            if formal in actual or formal in body.inputs or formal in results:
                glue = oir.node("Identity", [formal])
                nodes.append(glue)
                formal = glue.outputs[0]
            results.append(formal)
        body.outputs.clear()
        for formal in body.inputs:
            for user, index in tuple(formal.uses()):
                user.replace_input_with(index, actual.get(formal))
        for place, inner in enumerate(nodes):
            if inner.graph is not None:
                body.remove(inner)
            inner.meta[CALL] = (call, place)
            if inner.name:
                inner.name = self.labels.free(f"{call.label}/{inner.name}")
            for value in inner.outputs:
                if value.name or value in results:
                    value.name = self.names.free(f"{call.label}/{value.name or 'value'}")
        graph.insert_before(node, nodes)
        for value, result in zip(node.outputs, results, strict=True):
            assert result is not None
            take_over(value, result)
            if value.name:
                name, value.name = value.name, None
                result.name = name
        graph.remove(node, safe=True)
        return nodes


def _schema(node: oir.Node, version: int) -> int | None:
    """Since which opset an operator has been as it is in ``version``."""
    try:
        found: int = onnx.defs.get_schema(node.op_type, version, node.domain).since_version
    except onnx.defs.SchemaError:
        return None
    return found


def _resolve(node: oir.Node, given: Mapping[str, oir.Attr]) -> None:
    """Puts the call's attributes (or the function's defaults) where the node refers to them."""
    for name, attribute in list(node.attributes.items()):
        if not attribute.is_ref():
            continue
        found = given.get(str(attribute.ref_attr_name))
        if found is None:
            del node.attributes[name]
        else:
            node.attributes[name] = oir.Attr(
                name, found.type, found.value, doc_string=attribute.doc_string
            )


def take_over(old: oir.Value, new: oir.Value) -> None:
    """Lets ``new`` stand for ``old`` everywhere; what ``old`` declared holds."""
    new.type = old.type if old.type is not None else new.type
    new.shape = old.shape if old.shape is not None else new.shape
    new.doc_string = old.doc_string or new.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
