"""One name, one value: values of subgraphs renamed, and called as before in the end."""

from __future__ import annotations

import onnx_ir as oir

from .graphs import Names, own_values, subgraphs, value_names

_BEFORE = "secateur.name"


def shares_names(graph: oir.Graph) -> bool:
    """Whether two values of the graph and its subgraphs have one name."""
    names = list(value_names(graph))
    return len(set(names)) < len(names)


def separate_names(graph: oir.Graph) -> None:
    """Renames values of subgraphs until every name is used once; the main graph keeps its own."""
    names = Names(value_names(graph))
    seen = {str(value.name) for value in own_values(graph)}
    for part in graph.subgraphs():
        for value in list(own_values(part)):
            name, tensor = str(value.name), value.const_value
            if name in seen:
                if tensor is not None:  # shared with the original, where its name must stay
                    value.const_value = nameable(tensor)
                value.meta[_BEFORE] = (name, tensor, value.const_value)
                value.name = names.free(name)
            seen.add(str(value.name))


def restore_names(graph: oir.Graph) -> None:
    """Gives values their old names back, but where that would hide a value of a graph around."""
    _restore(graph, {str(value.name): 1 for value in own_values(graph)})


def _restore(graph: oir.Graph, visible: dict[str, int]) -> None:
    """``visible`` counts the names that the graph sees, its own included; it is kept up."""
    for part in [part for node in graph for part in subgraphs(node)]:
        values = list(own_values(part))
        for value in values:
            visible[str(value.name)] = visible.get(str(value.name), 0) + 1
        for value in values:
            name, tensor, renamed = value.meta.pop(_BEFORE, ("", None, None))
            if not name or visible.get(name):
                continue
            visible[str(value.name)] -= 1
            visible[name] = 1
            value.name = name
            if value.const_value is renamed:
                value.const_value = tensor
        _restore(part, visible)
        for value in values:
            visible[str(value.name)] -= 1


def stored_tensor(value: oir.Value) -> oir.TensorProtocol | None:
    """The tensor of an initializer as it was before it was renamed, if it is still the same."""
    _, tensor, renamed = value.meta.get(_BEFORE, ("", None, None))
    held: oir.TensorProtocol | None = value.const_value
    return tensor if renamed is not None and held is renamed else held


def written_name(value: oir.Value) -> str:
    """The name of a value before it was renamed."""
    return str(value.meta.get(_BEFORE, (value.name,))[0])


def rename(value: oir.Value, name: str) -> None:
    """Gives a value a name for good, and an initializer the tensor that it had before."""
    tensor = stored_tensor(value)
    value.meta.pop(_BEFORE, None)
    value.name = name
    if value.const_value is not tensor:
        value.const_value = tensor


def nameable(tensor: oir.TensorProtocol) -> oir.TensorProtocol:
    """The same data in a tensor whose name may be set."""
    if tensor.dtype == oir.DataType.STRING:
        return oir.tensor(tensor.numpy(), oir.DataType.STRING, name=tensor.name)
    lazy = oir.LazyTensor(
        lambda: tensor,
        tensor.dtype,
        tensor.shape,  # type: ignore[arg-type]
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )
    if isinstance(tensor, oir.ExternalTensor) or tensor.meta.get("external_data"):
        lazy.meta["external_data"] = True
    return lazy
