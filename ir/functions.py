"""New bodies for functions, made of what a call of them has become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as oir

from .bodies import Body, held_tensor, with_inner
from .constants import constant_tensor
from .graphs import Names, read_nothing, subgraphs, value_names
from .inlining import ORIGIN, forget
from .renaming import nameable, rename


def replace_body(
    function: oir.Function, body: Body, imports: Mapping[str, int]
) -> dict[oir.Value, oir.Value]:
    """Gives the nodes of a call, which stand in no graph any more, to the function as its body,
    under their old names. Returns the new values by those of the function as it was written."""
    written = body.call.function
    formals = dict(zip(written.inputs, function.inputs, strict=True))
    before = dict(zip(body.outputs, written.outputs, strict=True))
    before |= {new: old for old, new in body.pairs}
    names = Names(value_names(function.graph))
    _clear(function)
    for node in body.nodes:
        _rename(node, body, before, names)
    now = dict(formals)
    for item in _in_order(body):
        if isinstance(item, oir.Value):
            constant = _constant(item, body, names)
            now[item] = constant.outputs[0]
            function.graph.append(constant)
        else:
            function.graph.append(item)
    for node, reads in body.reads.items():
        for index, value in enumerate(reads):
            node.replace_input_with(index, None if value is None else now.get(value, value))
        node.attributes.clear()
        node.attributes.update(body.attributes[node])
        if node.domain in imports:
            function.opset_imports[node.domain] = imports[node.domain]
        forget(node)
    function.outputs.extend(now.get(value, value) for value in body.outputs)
    return {old: new for new, old in before.items()} | formals


def _clear(function: oir.Function) -> None:
    for node in list(function.all_nodes()):
        read_nothing(node)
    function.outputs.clear()
    function.graph.remove(list(function))


def _in_order(body: Body) -> Iterator[oir.Node | oir.Value]:
    """The nodes of a body, and its constants where the function has them, at the latest in front of
    what reads them."""
    places: dict[oir.Node | None, int] = {n: place for place, n in enumerate(body.call.function)}
    waiting = {
        places[node]: value
        for value, written in body.constants.items()
        if written is not None and (node := written.producer()) in places
    }
    due = sorted(waiting, reverse=True)
    given: set[oir.Value] = set()
    for node in body.nodes:
        place = places.get(node.meta.get(ORIGIN), -1)
        first: list[oir.Value | None] = []
        while due and due[-1] < place:
            first.append(waiting[due.pop()])
        for value in (*first, *(v for inner in with_inner(node) for v in body.reads[inner])):
            if value is not None and value in body.constants and value not in given:
                given.add(value)
                yield value
        yield node


def _rename(
    node: oir.Node, body: Body, before: Mapping[oir.Value, oir.Value], names: Names
) -> None:
    """Gives a node, and those in it, the names, types and descriptions that the function had; what
    is new gets names of its own and says nothing about shapes."""
    for inner in with_inner(node):
        written = inner.meta.get(ORIGIN)
        inner.name = written.name if written is not None else _short(inner.name, body)
        within = [v for g in subgraphs(inner) for v in (*g.inputs, *g.initializers.values())]
        for value in (*inner.outputs, *within):
            old = before.get(value)
            if old is not None:
                rename(value, str(old.name))
                value.type, value.shape, value.doc_string = old.type, old.shape, old.doc_string
                value.metadata_props.clear()
                value.metadata_props.update(old.metadata_props)
            elif value.name:
                rename(value, names.free(str(_short(value.name, body))))
                value.shape = None if value.producer() else value.shape


def _short(name: str | None, body: Body) -> str | None:
    """The name without the call's or the function's in front."""
    for prefix in (f"{body.call.label}/", f"{body.call.function.name}/"):
        if name and name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _constant(value: oir.Value, body: Body, names: Names) -> oir.Node:
    """A Constant node for a constant outside: the function's own, where it had one."""
    tensor, written = held_tensor(value), body.constants[value]
    assert tensor is not None
    old = None if written is None else written.producer()
    if written is None or old is None or old.graph is not body.call.function.graph:
        name = names.free(str(_short(value.name, body) if written is None else written.name))
        node, tensor = oir.Node("", "Constant", [], name=name), nameable(tensor)
        node.outputs[0].name = tensor.name = name
    else:
        node = oir.Node("", "Constant", [], name=old.name, doc_string=old.doc_string)
        node.metadata_props.update(old.metadata_props)
        node.outputs[0].name = written.name
        if value.meta.get(ORIGIN, (None, None))[1] is constant_tensor(value):
            node.attributes.update(old.attributes)
            return node
        before = old.attributes.get("value")
        tensor.name = written.name if before is None else before.as_tensor().name
    node.attributes.add(oir.AttrTensor("value", tensor))
    return node
