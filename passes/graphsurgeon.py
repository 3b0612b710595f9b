"""Passes written over ``onnx_graphsurgeon.Graph``, without what that library loses.

A subclass of `GraphSurgeonPass` edits a borrowed gs.Graph. The library's import and export
lose metadata, doc strings, unsupported attributes, unused weights and inputs with defaults,
copy captured weights into subgraphs, and mishandle packed and narrow types. Therefore three
versions of the model are compared: the *original*, the *baseline* (the original after an
import and export without an edit) and the *edited* one.

- What is equal in edited and baseline was not touched: the original is put back.
- What differs was edited: the edit stays, and gets back what gs.Graph cannot hold.
- What is in the original and not in the baseline was lost on the way: it is put back.
- What the edit lost by itself is refused, by name: an input, output, opset import, function
  that is still called, tensor type, or doc string of the graph.

Analysis results in ``meta`` do not survive; quantization annotations do.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as oir
from onnx import numpy_helper

from ..ir.errors import CertificateError, ModelError, SecateurError, UsageError
from ..ir.io import load_model, to_proto
from ..ir.protos import model_nodes
from ..ir.registry import one_line
from .base import Pass, PassContext, PassResult

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Scope = Mapping[str, "onnx.TensorProto | None"]
"""The values that a graph may capture, each with its tensor if it is a weight."""


@dataclass(frozen=True)
class GraphSurgeonPass(Pass):
    """Base of passes over gs.Graph; a subclass is a frozen dataclass like any pass."""

    @abstractmethod
    def edit(self, graph: gs.Graph) -> None:
        """Edit ``graph`` in place. Its inputs and outputs must stay as they are."""

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        """Lend a gs.Graph to `edit` and take it back.

        Raises `UsageError` if onnx-graphsurgeon is not installed, `CertificateError` if it
        cannot hold the model or if the edited graph lost something.
        """
        try:
            import onnx_graphsurgeon as gs
        except ImportError as error:
            raise UsageError(
                f"pass '{self.name}' needs onnx-graphsurgeon; "
                "run: pip install 'secateur[graphsurgeon]'"
            ) from error
        original = to_proto(model)  # the library writes into the protos that it is given
        with contextlib.redirect_stdout(sys.stderr):  # the library logs with print
            with _refused("onnx-graphsurgeon cannot hold this model"):
                baseline = _export(gs.import_onnx(to_proto(model)))
                graph = gs.import_onnx(to_proto(model))
            self.edit(graph)
            with _refused("the edited graph cannot be exported"):
                edited = _export(graph)
        with _refused("the model is too large for onnx-graphsurgeon"):
            unchanged = _same(edited, baseline)
        if unchanged:
            return PassResult(model, False)
        _restore_model(original, baseline, edited)
        try:
            result = load_model(edited)
        except ModelError as error:
            raise CertificateError(f"the edited graph is not a valid model: {error}") from error
        _reuse_weights(model, original, edited, result)
        return PassResult(result, True, {"nodes": len(result.graph)})


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:
        raise CertificateError(f"{what}: {type(error).__name__}: {one_line(error)}") from error


def _export(graph: gs.Graph) -> onnx.ModelProto:
    import onnx_graphsurgeon as gs

    _pack(graph)
    model: onnx.ModelProto = gs.export_onnx(graph)
    return model


def _pack(graph: gs.Graph) -> None:
    """Turn loaded numpy values back into tensors: the export would write int4 unpacked."""
    import onnx_graphsurgeon as gs
    from onnx_graphsurgeon.ir.tensor import LazyValues

    bodies = [graph, *graph.functions]
    for part in [*bodies, *(inner for body in bodies for inner in body.subgraphs(recursive=True))]:
        attributes = (value for node in part.nodes for value in node.attrs.values())
        for tensor in (*part.tensors().values(), *attributes):
            if not isinstance(tensor, gs.Constant) or tensor._export_dtype is not None:
                continue
            if isinstance(tensor._values, np.ndarray):
                proto = numpy_helper.from_array(np.asarray(tensor._values, order="C"), tensor.name)
                tensor._values = LazyValues(proto)
                tensor.data_location = None


def _same(a: Any, b: Any) -> bool:
    return bool(
        a.SerializePartialToString(deterministic=True)
        == b.SerializePartialToString(deterministic=True)
    )


def _restore_model(
    original: onnx.ModelProto, baseline: onnx.ModelProto, edited: onnx.ModelProto
) -> None:
    for name in ("domain", "model_version", "doc_string"):
        setattr(edited, name, getattr(original, name))
    for name in ("metadata_props", "training_info", "configuration"):
        if hasattr(original, name):
            _assign(getattr(edited, name), getattr(original, name))
    if edited.ir_version < original.ir_version:
        raise _lost(f"the IR version {original.ir_version}")
    _restore_imports(original.opset_import, edited.opset_import, "")
    for kind in ("input", "output"):
        _require_interface(getattr(baseline.graph, kind), getattr(edited.graph, kind), kind)
    _restore_functions(original, baseline, edited)
    _restore_graph(original.graph, baseline.graph, edited.graph, {})
    for kind in ("input", "output"):
        _assign(getattr(edited.graph, kind), getattr(original.graph, kind))


def _require_interface(before: Sequence[Any], after: Sequence[Any], kind: str) -> None:
    for old, new in itertools.zip_longest(before, after):
        if old is None:
            raise CertificateError(f"the edited graph has a new {kind} '{new.name}'; remove it")
        if new is None or not _same(old, new):
            raise _lost(f"the {kind} '{old.name}' as it was")


def _lost(what: str) -> CertificateError:
    return CertificateError(f"the edited graph lost {what}; keep it as the pass received it")


def _assign(target: Any, items: Iterable[Any]) -> None:
    """Replace the content of a repeated field."""
    copies = []
    for item in items:
        copy = type(item)()
        copy.CopyFrom(item)
        copies.append(copy)
    del target[:]
    target.extend(copies)


def _restore_imports(original: Sequence[Any], edited: Any, where: str) -> None:
    versions = {entry.domain: entry.version for entry in edited}
    for entry in original:
        if versions.get(entry.domain, entry.version) != entry.version:
            raise _lost(f"the opset import '{entry.domain}' {entry.version}{where}")
    known = {entry.domain for entry in original}
    _assign(edited, [*original, *(entry for entry in edited if entry.domain not in known)])


def _restore_functions(
    original: onnx.ModelProto, baseline: onnx.ModelProto, edited: onnx.ModelProto
) -> None:
    _require_parallel(original.functions, baseline.functions, "functions")
    waiting: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
    for old, base in zip(original.functions, baseline.functions, strict=True):
        waiting.setdefault((old.domain, old.name), []).append((old, base))
    for function in edited.functions:
        pairs = waiting.get((function.domain, function.name))
        if not pairs:
            continue
        old, base = pairs.pop(0)
        if _same(function, base):
            function.CopyFrom(old)
            continue
        where = f" of function '{old.name}'"
        _restore_imports(old.opset_import, function.opset_import, where)
        _fill(function, old, ("doc_string", "overload"))
        _assign(function.metadata_props, old.metadata_props)
        _restore_nodes(old.node, base.node, function.node, {})
        produced = {name for node in function.node for name in node.output} | {*function.input}
        _assign(function.value_info, [v for v in old.value_info if v.name in produced])
    called = {(node.domain, node.op_type) for node in model_nodes(edited)}
    for key, pairs in waiting.items():
        if pairs and key in called:
            raise _lost(f"the function '{key[1]}', which is still called")


def _require_parallel(original: Sequence[Any], baseline: Sequence[Any], what: str) -> None:
    if len(original) != len(baseline):
        raise CertificateError(f"onnx-graphsurgeon cannot hold this model: it drops {what}")


def _fill(edited: Any, original: Any, names: Iterable[str]) -> None:
    for name in names:
        if not getattr(edited, name) and getattr(original, name):
            setattr(edited, name, getattr(original, name))


def _restore_graph(original: Any, baseline: Any, edited: Any, outer: Scope) -> None:
    """Put back what the trip lost of one graph, and refuse what the edit lost."""
    for name in ("name", "doc_string"):
        if getattr(original, name) and not getattr(edited, name):
            raise _lost(f"the {name.replace('_', ' ')} of graph '{original.name}'")
    _assign(edited.metadata_props, original.metadata_props)
    for kind in ("input", "output"):
        _restore_infos(getattr(original, kind), getattr(baseline, kind), getattr(edited, kind))
    _restore_initializers(original, baseline, edited, outer)
    own = _own_values(edited)
    _restore_nodes(original.node, baseline.node, edited.node, {**outer, **own})
    _check_types(original, edited)
    _restore_infos(original.value_info, baseline.value_info, edited.value_info)
    present = {i.name: i for i in edited.value_info}
    for info in baseline.value_info:
        if info.name not in present and info.name in own and own[info.name] is None:
            raise _lost(f"the type of tensor '{info.name}'")
    lost = {i.name for i in original.value_info} - {i.name for i in baseline.value_info}
    order = [i for i in original.value_info if i.name in lost and i.name in own]
    order += [i for i in present.values() if i.name in own and i.name not in lost]
    places = {info.name: place for place, info in enumerate(original.value_info)}
    order.sort(key=lambda info: places.get(info.name, len(places)))
    _assign(edited.value_info, order)
    annotations = [a for a in original.quantization_annotation if a.tensor_name in own]
    _assign(edited.quantization_annotation, annotations)


def _own_values(graph: Any) -> dict[str, onnx.TensorProto | None]:
    values: dict[str, onnx.TensorProto | None] = {info.name: None for info in graph.input}
    values.update((name, None) for node in graph.node for name in node.output if name)
    values.update((tensor.name, tensor) for tensor in graph.initializer)
    return values


def _restore_infos(original: Iterable[Any], baseline: Iterable[Any], edited: Iterable[Any]) -> None:
    before, trip = ({info.name: info for info in infos} for infos in (original, baseline))
    for info in edited:
        if info.name in before and info.name in trip and _same(info, trip[info.name]):
            info.CopyFrom(before[info.name])


def _check_types(original: Any, edited: Any) -> None:
    """A tensor that kept its name must have kept its element type."""
    before, after = _element_types(original), _element_types(edited)
    names = _own_values(edited)
    for name, element in after.items():
        if name in before and before[name] != element and name in names:
            old, new = (onnx.TensorProto.DataType.Name(e) for e in (before[name], element))
            raise CertificateError(
                f"the edited graph changed tensor '{name}' from {old} to {new}; "
                "give the new tensor a name of its own"
            )


def _element_types(graph: Any) -> dict[str, int]:
    types = {
        info.name: info.type.tensor_type.elem_type
        for info in (*graph.value_info, *graph.input, *graph.output)
        if info.type.HasField("tensor_type") and info.type.tensor_type.elem_type
    }
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _restore_initializers(original: Any, baseline: Any, edited: Any, outer: Scope) -> None:
    before = {tensor.name: tensor for tensor in original.initializer}
    kept_by_trip = {tensor.name for tensor in baseline.initializer}
    after = {}
    for tensor in edited.initializer:
        captured = outer.get(tensor.name)
        if tensor.name in before or captured is None:
            after[tensor.name] = tensor
        else:  # a copy of a weight of the graph outside, which may only be edited through here
            captured.CopyFrom(_restored_tensor(captured, tensor))
    produced = {name for node in edited.node for name in node.output}
    inputs = {info.name for info in original.input}
    order = []
    for name, old in before.items():
        if name in after:
            order.append(_restored_tensor(old, after.pop(name)))
        elif name not in produced and (name not in kept_by_trip or name in inputs):
            order.append(old)
    _assign(edited.initializer, [*order, *after.values()])


def _restored_tensor(old: onnx.TensorProto, new: onnx.TensorProto) -> onnx.TensorProto:
    """The old tensor if the new one holds the same values, else the new one.

    Reading values through gs.Graph may change their type; that alone is not an edit.
    """
    if _same(old, new):
        return old
    if list(old.dims) == list(new.dims) and onnx.TensorProto.STRING not in (
        old.data_type,
        new.data_type,
    ):
        values, read = numpy_helper.to_array(old), numpy_helper.to_array(new)
        if values.astype(read.dtype).tobytes() == read.tobytes():
            return old
    return new


def _restore_nodes(
    original: Sequence[Any], baseline: Sequence[Any], edited: Iterable[Any], outer: Scope
) -> None:
    _require_parallel(original, baseline, "nodes")
    by_outputs, by_name = {}, {}
    for old, base in zip(original, baseline, strict=True):
        by_outputs[_key(old, *old.output)] = (old, base)
        if old.name:
            by_name[_key(old, old.name)] = (old, base)
    for node in edited:
        pair = by_outputs.get(_key(node, *node.output)) or by_name.get(_key(node, node.name))
        old, base = pair if pair is not None else (type(node)(), type(node)())
        if pair is not None and _same(node, base):
            node.CopyFrom(old)
            continue
        _fill(node, old, ("name", "doc_string", "overload"))
        for field in ("metadata_props", "device_configurations"):
            if hasattr(old, field):
                _assign(getattr(node, field), getattr(old, field))
        _restore_attributes(old, base, node, outer)


def _key(node: Any, *names: str) -> tuple[str, ...]:
    return (node.domain, node.op_type, *names)


def _restore_attributes(original: Any, baseline: Any, edited: Any, outer: Scope) -> None:
    before, trip = ({a.name: a for a in node.attribute} for node in (original, baseline))
    after = {a.name: a for a in edited.attribute}
    for name, attribute in after.items():
        old, base = before.get(name), trip.get(name)
        if old is not None and base is not None and _same(attribute, base):
            attribute.CopyFrom(old)
        elif attribute.type == onnx.AttributeProto.GRAPH:
            empty = onnx.GraphProto()
            known, trip_known = (empty, empty) if old is None or base is None else (old.g, base.g)
            _restore_graph(known, trip_known, attribute.g, outer)
        elif old is not None and attribute.type == old.type == onnx.AttributeProto.TENSOR:
            attribute.t.CopyFrom(_restored_tensor(old.t, attribute.t))
    edited.attribute.extend(a for name, a in before.items() if name not in {**trip, **after})


def _reuse_weights(
    model: oir.Model, original: onnx.ModelProto, edited: onnx.ModelProto, result: oir.Model
) -> None:
    """Let untouched weights be the caller's tensors again: mapped, external, uncopied."""
    before = {tensor.name: tensor for tensor in original.graph.initializer}
    for tensor in edited.graph.initializer:
        if tensor.name in before and _same(tensor, before[tensor.name]):
            old = model.graph.initializers[tensor.name].const_value
            result.graph.initializers[tensor.name].const_value = old
    result.meta.update(model.meta)
