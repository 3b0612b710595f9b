"""Every tensor of a model, wherever it is held, and other tensors in its place for a while."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import onnx_ir as oir

from .errors import ModelError

Replace = Callable[[oir.TensorProtocol, "oir.Value | None"], oir.TensorProtocol]


def _graphs(model: oir.Model) -> Iterator[oir.Graph]:
    """Every graph: the main one, functions' bodies, and the subgraphs of both."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.subgraphs()


def all_tensors(model: oir.Model) -> list[oir.TensorProtocol]:
    """Every initializer and attribute tensor, in the order of the graphs."""
    tensors: list[oir.TensorProtocol] = []

    def note(tensor: oir.TensorProtocol, value: oir.Value | None) -> oir.TensorProtocol:
        tensors.append(tensor)
        return tensor

    replace_tensors(model, note)
    return tensors


def replace_tensors(model: oir.Model, replace: Replace) -> list[Callable[[], object]]:
    """Puts ``replace(tensor, initializer or None)`` in every place; returns what undoes it."""
    undo: list[Callable[[], object]] = []
    try:
        for graph in _graphs(model):
            for value in graph.initializers.values():
                if (tensor := value.const_value) is None:
                    raise ModelError(f"initializer {value.name!r} has no data; give it a tensor")
                if (new := replace(tensor, value)) is not tensor:
                    undo.append(functools.partial(setattr, value, "const_value", tensor))
                    value.const_value = new
            for node in graph:
                for name, attribute in list(node.attributes.items()):
                    changed = _replace_attribute(attribute, replace)
                    if changed is not attribute:
                        undo.append(functools.partial(node.attributes.__setitem__, name, attribute))
                        node.attributes[name] = changed
    except BaseException:
        for step in undo:
            step()
        raise
    return undo


def _replace_attribute(attribute: oir.Attr, replace: Replace) -> oir.Attr:
    if attribute.is_ref():
        return attribute
    if attribute.type == oir.AttributeType.TENSOR:
        old = attribute.as_tensor()
        new = replace(old, None)
        if new is not old:
            return oir.AttrTensor(attribute.name, new, doc_string=attribute.doc_string)
    elif attribute.type == oir.AttributeType.TENSORS:
        olds = list(attribute.as_tensors())
        news = [replace(tensor, None) for tensor in olds]
        if any(new is not old for new, old in zip(news, olds, strict=True)):
            return oir.AttrTensors(attribute.name, news, doc_string=attribute.doc_string)
    return attribute


@contextlib.contextmanager
def replaced_tensors(model: oir.Model, replace: Replace) -> Iterator[None]:
    """Within the block every tensor is ``replace(tensor, initializer)``; then all is as before.

    ``replace`` gets the tensor and the initializer that holds it, None for an attribute's tensor.
    """
    undo = replace_tensors(model, replace)
    try:
        yield
    finally:
        for step in undo:
            step()
