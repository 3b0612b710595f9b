"""Local functions in place of their calls.

A call becomes the function's nodes, named ``<call>/<name>``; every node remembers where it came
from, so that `calls` can put the call back. Constants of a body are one initializer,
``<function>/<name>``, for all calls: a weight stays one weight, however often its function is
called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as oir

from .constants import add_constant, constants, initializers_are_inputs, remove_constant
from .graphs import Names, subgraphs, value_names
from .naming import output_name
from .renaming import nameable
from .sparse import is_sparse

CALL = "secateur.call"
"""In the ``meta`` of a node of a body: the innermost `Call` that it stands in."""
ORIGIN = "secateur.origin"
"""In the ``meta`` of such a node: the function's node that it was. In that of a shared constant:
the function's, and the tensor that it has as long as it is not changed."""
RESULTS = "secateur.results"
"""In the ``meta`` of a value: the calls whose outputs it is, each with the output's number."""
_GRAPHS = (oir.AttributeType.GRAPH, oir.AttributeType.GRAPHS)


@dataclass(eq=False)
class Call:
    """A call that was inlined.

    ``node`` is the call itself, detached; its ``meta`` says in which other call's body it stood.
    ``inputs`` are the values of the flat model that it read, ``output`` is the name of the first
    that it wrote.
    """

    node: oir.Node
    function: oir.Function
    inputs: list[oir.Value | None]
    output: str

    @property
    def label(self) -> str:
        """A name for messages and for the nodes of the body."""
        return self.node.name or self.output or self.node.op_type

    @property
    def key(self) -> oir.OperatorIdentifier:
        """The function's identifier."""
        return self.function.identifier()

    @property
    def parent(self) -> Call | None:
        """The call whose body this one stands in."""
        found: Call | None = self.node.meta.get(CALL)
        return found

    def chain(self) -> Iterator[Call]:
        """This call and those around it, innermost first."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


def adopt(node: oir.Node, reader: oir.Node, inputs: Iterable[oir.Value]) -> None:
    """A new ``node`` in front of ``reader`` belongs to the innermost body around it in which one
    of the new node's inputs is computed."""
    makers = [p.meta[CALL] for v in inputs if (p := v.producer()) is not None and CALL in p.meta]
    around = {call for maker in makers for call in maker.chain()}
    for call in reader.meta[CALL].chain() if CALL in reader.meta else ():
        if call in around:
            node.meta[CALL] = call
            return


def forget(node: oir.Node) -> None:
    """Removes what a node and its results remember of calls."""
    for key in (CALL, ORIGIN):
        node.meta.pop(key, None)
    for value in node.outputs:
        value.meta.pop(RESULTS, None)
        value.meta.pop(ORIGIN, None)


class Inliner:
    """Inlines all calls of a model in place."""

    def __init__(self, model: oir.Model) -> None:
        self.model = model
        self.names = Names(value_names(model.graph))
        self.labels = Names(str(node.name) for node in model.graph.all_nodes())
        self.fits: dict[oir.OperatorIdentifier, bool] = {}
        self.constants: dict[oir.Value, oir.Value] = {}

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
        if around is not None and any(c.key == key for c in around.chain()):
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
        call = Call(node, function, [*node.inputs], output_name(node))
        body = function.graph.clone()
        for inner, written in zip(list(body.all_nodes()), function.all_nodes(), strict=True):
            inner.meta[CALL], inner.meta[ORIGIN] = call, written
        self._share_constants(body, function)
        nodes = list(body)
        given = {**{k: a for k, a in function.attributes.items() if a.value is not None}}
        given |= node.attributes
        for inner in list(body.all_nodes()):
            _resolve(inner, given)
        actual = dict(zip(body.inputs, node.inputs, strict=False))
        results: list[oir.Value] = []
        for formal in body.outputs[: len(node.outputs)]:
            if formal in actual or formal in body.inputs or formal in results:
                glue = oir.node("Identity", [formal])
                glue.meta[CALL] = call
                nodes.append(glue)
                formal = glue.outputs[0]
            results.append(formal)
        body.outputs.clear()
        for formal in body.inputs:
            for user, index in tuple(formal.uses()):
                user.replace_input_with(index, actual.get(formal))
        for inner in nodes:
            if inner.graph is not None:
                body.remove(inner)
            if inner.name:
                inner.name = self.labels.free(f"{call.label}/{inner.name}")
            for value in inner.outputs:
                if value.name or value in results:
                    value.name = self.names.free(f"{call.label}/{value.name or 'value'}")
        put_in_place(node, nodes, results)
        for number, result in enumerate(results):
            result.meta[RESULTS] = (*result.meta.get(RESULTS, ()), (call, number))
        graph.remove(node, safe=True)
        return nodes

    def _share_constants(self, body: oir.Graph, function: oir.Function) -> None:
        """Constants of the main graph in place of a body's that no attribute of the call decides,
        but those that a graph gives as a result."""
        pairs = zip(list(constants(body)), constants(function.graph), strict=True)
        for (value, tensor), (written, _) in pairs:
            if not value.uses() or value.is_graph_output() or is_sparse(tensor):
                continue
            if written not in self.constants:
                self.constants[written] = self._constant(function, written, tensor)
            value.replace_all_uses_with(self.constants[written])
            remove_constant(value)

    def _constant(
        self, function: oir.Function, written: oir.Value, tensor: oir.TensorProtocol
    ) -> oir.Value:
        held, name = nameable(tensor), self.names.free(f"{function.name}/{written.name}")
        as_node = initializers_are_inputs(self.model)
        value = add_constant(self.model.graph, name, held, as_node=as_node)
        value.meta[ORIGIN] = (written, held)
        return value


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


def put_in_place(node: oir.Node, nodes: Sequence[oir.Node], results: Sequence[oir.Value]) -> None:
    """Puts ``nodes`` in front of a node; ``results`` take the names and the readers of its
    outputs."""
    assert node.graph is not None
    node.graph.insert_before(node, nodes)
    for value, result in zip(node.outputs, results, strict=True):
        take_over(value, result)
        if value.name:
            name, value.name = value.name, None
            result.name = name


def take_over(old: oir.Value, new: oir.Value) -> None:
    """Lets ``new`` stand for ``old`` everywhere; what ``old`` declared holds."""
    new.type = old.type if old.type is not None else new.type
    new.shape = old.shape if old.shape is not None else new.shape
    new.doc_string = old.doc_string or new.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
