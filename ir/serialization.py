"""Between ModelProto and onnx-ir's Model, so that what nobody touched leaves as it came.

onnx-ir holds all of a model but two orders, those of ``value_info`` and of
``quantization_annotation``, and on writing it adds a value info for every initializer. Every
graph therefore remembers the names it came with, in ``Graph.meta``, which clones take along.
Entries of values that still exist come first, in the old order; new ones follow, in graph order.
An initializer has an entry when it came with one, or when it has a doc string or metadata.

A proto that is read and written again is equal to the first up to these, which say nothing:

- outside tensors, empty strings, a ``model_version`` of 0 and types without content that are set
  explicitly come back unset, the domain of an opset import set;
- the default domain is spelled ``""``, never ``ai.onnx``;
- value infos that name no value of their graph are left out, and of several for one value all but
  the last; those of graph inputs and outputs repeat what ``input`` and ``output`` say; those of
  functions before IR version 10, which has no place for them, follow onnx-ir's convention;
- nodes that stand before what they read come back behind it (`ordering`);
- of equal quantization annotations, and of equal opset imports, one is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx_ir as oir

from .maps import give_maps, restore_maps, take_maps
from .protos import Body, model_bodies
from .sparse import dense_tensor, is_sparse, sparse_proto

_VALUES = "secateur.value_info"
_ANNOTATIONS = "secateur.quantization_annotation"


def deserialize(proto: onnx.ModelProto) -> oir.Model:
    """The model of a checked proto; it may change the proto and shares its weights."""
    sparse = [[dense_tensor(s) for s in _take_sparse(body)] for body in model_bodies(proto)]
    maps = [take_maps(body) for body in model_bodies(proto)]
    model = oir.serde.deserialize_model(proto)
    for (graph, _), types in zip(_bodies(model, proto), maps, strict=True):
        give_maps(graph, types)
    for (graph, _), tensors in zip(_bodies(model, proto), sparse, strict=True):
        for tensor in tensors:
            graph.initializers[str(tensor.name)].const_value = tensor
    if "ai.onnx" in model.opset_imports:  # the other spelling of "", which nodes lose too
        model.graph.opset_imports[""] = model.graph.opset_imports.pop("ai.onnx")
    for graph, body in _bodies(model, proto):
        graph.meta[_VALUES] = _positions(info.name for info in body.value_info)
        if isinstance(body, onnx.GraphProto):
            annotations = (entry.tensor_name for entry in body.quantization_annotation)
            graph.meta[_ANNOTATIONS] = _positions(annotations)
        else:  # onnx-ir passes these over
            inputs = {value.name: value for value in graph.inputs}
            for info in body.value_info:
                if info.name in inputs:
                    oir.serde.deserialize_value_info_proto(info, inputs[info.name])
    return model


def serialize(model: oir.Model, *, sparse: bool = True) -> onnx.ModelProto:
    """The proto of the model; with ``sparse`` False, sparse initializers are written densely.

    Raises:
        oir.serde.SerdeError: the model cannot be serialized.
    """
    proto = oir.serde.serialize_model(model)
    for graph, body in _bodies(model, proto):
        restore_maps(graph, body)
        _restore_values(graph, body)
        if isinstance(body, onnx.GraphProto):
            _restore_annotations(graph, body)
            if sparse:
                _restore_sparse(graph, body)
    return proto


def _take_sparse(body: Body) -> list[onnx.SparseTensorProto]:
    """The sparse initializers of a graph, with stand-ins of the same names left in their place."""
    if not isinstance(body, onnx.GraphProto):
        return []
    found = []
    for sparse in body.sparse_initializer:
        found.append(onnx.SparseTensorProto())
        found[-1].CopyFrom(sparse)
        body.initializer.add(
            name=sparse.values.name, data_type=sparse.values.data_type, dims=sparse.dims
        ).data_location = onnx.TensorProto.EXTERNAL
        body.initializer[-1].external_data.add(key="location", value="sparse")
    del body.sparse_initializer[:]
    return found


def _restore_sparse(graph: oir.Graph, proto: onnx.GraphProto) -> None:
    tensors = {
        str(name): value.const_value
        for name, value in graph.initializers.items()
        if is_sparse(value.const_value)
    }
    if tensors:
        dense = [tensor for tensor in proto.initializer if tensor.name not in tensors]
        del proto.initializer[:]
        proto.initializer.extend(dense)
        proto.sparse_initializer.extend(
            sparse_proto(name, tensor) for name, tensor in tensors.items() if tensor is not None
        )


def _positions(names: Iterable[str]) -> dict[str, int]:
    return {name: position for position, name in enumerate(dict.fromkeys(names))}


def _bodies(model: oir.Model, proto: onnx.ModelProto) -> Iterator[tuple[oir.Graph, Body]]:
    """Every graph and function body, subgraphs included, beside its proto."""
    yield from _body(model.graph, proto.graph)
    for function, written in zip(model.functions.values(), proto.functions, strict=True):
        yield from _body(function.graph, written)


def _body(graph: oir.Graph, proto: Body) -> Iterator[tuple[oir.Graph, Body]]:
    yield graph, proto
    for node, written in zip(graph, proto.node, strict=True):
        for attribute in written.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH and attribute.HasField("g"):
                yield from _body(node.attributes[attribute.name].as_graph(), attribute.g)
            elif attribute.graphs:
                graphs = node.attributes[attribute.name].as_graphs()
                for inner, part in zip(graphs, attribute.graphs, strict=True):
                    yield from _body(inner, part)


def _restore_values(graph: oir.Graph, proto: Body) -> None:
    order: Mapping[str, int] = graph.meta.get(_VALUES, {})
    infos = {info.name: info for info in proto.value_info}
    for value in graph.initializers.values():
        if value.name not in order and not value.doc_string and not value.metadata_props:
            infos.pop(value.name or "", None)
    if isinstance(proto, onnx.GraphProto):  # onnx-ir describes them in one place only
        for info in (*proto.input, *proto.output):
            if info.name in order:
                infos.setdefault(info.name, info)
    kept = sorted(infos.values(), key=lambda info: order.get(info.name, len(order)))
    del proto.value_info[:]
    proto.value_info.extend(kept)


def _restore_annotations(graph: oir.Graph, proto: onnx.GraphProto) -> None:
    order: Mapping[str, int] = graph.meta.get(_ANNOTATIONS, {})
    found = {entry.tensor_name: entry for entry in proto.quantization_annotation}
    kept = sorted(found.values(), key=lambda entry: order.get(entry.tensor_name, len(order)))
    del proto.quantization_annotation[:]
    proto.quantization_annotation.extend(kept)
