"""The peer Torch-Pruning: its MagnitudePruner on the module that the file was exported from.

Everything is its default, with three things that its own examples do: ``ignored_layers`` (they name
the classifier; here it is what writes the model's outputs, found by walking back from them in
autograd's graph), ``num_heads`` of attention layers, and the head sizes that modules remember are
restated after pruning.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .catalog import case_of
from .onnxsim_step import macs
from .record import Record, Spec
from .shares import Shapes, elements, prunable_share

QUERIES = {"qkv": 3, "query": 1, "key": 1, "value": 1, "q_proj": 1, "k_proj": 1, "v_proj": 1}
"""Layers that write attention heads, and how many tensors of heads one writes."""
FEWER = ("k_proj", "v_proj")
"""Those of them that grouped-query attention gives fewer heads."""
SIZES = ("head_dim", "attention_head_size", "head_size")
WIDTHS = ("attn_dim", "all_head_size", "inner_dim")
"""What modules remember: the size of one head, and of all heads together."""
LARGE = 200e6
"""Modules of more parameters are not exported again after pruning."""


def run(spec: Spec, record: Record) -> None:
    """Prunes the module, counts with its own counter, runs it and counts on a new export."""
    import torch
    import torch_pruning as tp

    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)  # it has no ONNX form
    record.stage("load")
    module, inputs = _module(spec)
    module.eval().requires_grad_(True)
    record.stage("outputs")
    shapes, ignored = outputs_of(module, inputs)
    record.stage("count")
    macs_before, _ = tp.utils.count_ops_and_params(module, inputs)
    before = parameters(module)
    record.stage("prune")
    counts = heads(module)
    sizes = {layer: layer.out_features for layer in counts if hasattr(layer, "out_features")}
    begin = time.perf_counter()
    pruner = tp.pruner.MagnitudePruner(
        module,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=spec.ratio,
        ignored_layers=ignored,
        num_heads=dict(counts),
    )
    pruner.step()
    restate_heads(module, counts, sizes)
    after = parameters(module)
    record.add(
        seconds={"prune": time.perf_counter() - begin},
        ignored=len(ignored),
        prunable=prunable_share(before, after, spec.ratio),
        left={"parameters": elements(after) / max(elements(before), 1)},
    )
    record.stage("run")
    found, _ = outputs_of(module, inputs)
    record.add(runs=found == shapes)
    record.stage("count")
    macs_after, _ = tp.utils.count_ops_and_params(module, inputs)
    record.values["left"]["macs"] = record.values["left"]["own_macs"] = macs_after / macs_before
    if elements(before) < LARGE and spec.model.exists():
        record.stage("export")
        _count_export(spec, record, module, inputs)


def _module(spec: Spec) -> tuple[Any, Any]:
    import torch

    if spec.peer.exists():
        return torch.load(spec.peer, weights_only=False)  # type: ignore[no-any-return]
    again = spec.files / "again"
    again.mkdir(parents=True, exist_ok=True)
    peer = case_of(spec.module, spec.name).export(again / "model.onnx")
    assert peer is not None
    return peer.module, peer.inputs


def _count_export(spec: Spec, record: Record, module: Any, inputs: Any) -> None:
    """MACs left by Secateur's count on a new export by either exporter, which sees matrix products
    that modules do not show. Where that is not possible, Torch-Pruning's own count stays."""
    import torch

    path = spec.files / "torch-pruning.onnx"
    given = ((), inputs) if isinstance(inputs, dict) else (inputs, None)
    for dynamo in (False, True):
        try:
            with torch.no_grad():
                torch.onnx.export(module, given[0], path, kwargs=given[1], dynamo=dynamo)
            before = macs(spec.model, spec.dims | _dims(spec.model, inputs), whole=True)
            record.values["left"]["macs"] = macs(path, {}, whole=True) / max(before, 1)
            return
        except Exception as error:  # whatever an exporter raises
            note = f"own count: {type(error).__name__}: {error}"[:300]
    record.add(note=note)


def _dims(path: Path, inputs: Any) -> dict[str, int]:
    """The sizes that the module's inputs give to the symbolic dimensions of its file."""
    import onnx

    tensors = flatten(inputs)
    graph = onnx.load(path, load_external_data=False).graph
    return {
        dim.dim_param: size
        for value, tensor in zip(graph.input, tensors, strict=False)
        for dim, size in zip(value.type.tensor_type.shape.dim, tensor.shape, strict=True)
        if dim.dim_param
    }


def parameters(module: Any) -> Shapes:
    """Shapes of all parameters."""
    return {name: list(p.shape) for name, p in module.named_parameters()}


def heads(module: Any) -> dict[Any, int]:
    """Layers that hold attention heads, as Torch-Pruning's examples name them one by one."""
    import torch

    found: dict[Any, int] = {}
    for part in module.modules():
        if not (count := _head_count(part)):
            continue
        if isinstance(part, torch.nn.MultiheadAttention):
            found[part] = count
        for name, child in part.named_children():
            if name in QUERIES and isinstance(child, torch.nn.Linear):
                fewer = getattr(getattr(part, "config", None), "num_key_value_heads", None)
                found[child] = fewer if fewer and name in FEWER else count
    return found


def _head_count(part: Any) -> int:
    """The heads of an attention module, 0 if it does not say or is none."""
    names = ("num_heads", "num_attention_heads")
    places = [part, *([part.config] if hasattr(part, "q_proj") and hasattr(part, "config") else [])]
    found = (getattr(place, name, None) for place in places for name in names)
    return next((count for count in found if isinstance(count, int)), 0)


def restate_heads(module: Any, counts: Mapping[Any, int], before: Mapping[Any, int]) -> None:
    """Head sizes that modules remember follow what pruning left of their layers; ``before`` has the
    layers' widths before it."""
    for part in module.modules():
        layers = [(QUERIES[n], c) for n, c in part.named_children() if n in QUERIES and c in before]
        if not layers:
            continue
        tensors, layer = layers[0]
        count = counts[layer]
        old, new = (width // (tensors * count) for width in (before[layer], layer.out_features))
        restated = [(SIZES, old, new), (WIDTHS, count * old, count * new)]
        for names, was, now in restated:
            for name in names:
                if getattr(part, name, None) == was:
                    setattr(part, name, now)


def outputs_of(module: Any, inputs: Any) -> tuple[list[tuple[int, ...]], list[Any]]:
    """Shapes of the outputs, and the layers that write them."""
    import torch

    given = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    with torch.enable_grad():
        tensors = [t for t in flatten(module(*given[0], **given[1])) if torch.is_tensor(t)]
    with torch.no_grad():
        module(*given[0], **given[1])  # what modules remember must be copyable again
    return [tuple(t.shape) for t in tensors], _writers(module, tensors)


def flatten(value: Any) -> Iterable[Any]:
    """The leaves of tuples, lists and mappings."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if not isinstance(value, (list, tuple)):
        yield value
        return
    for item in value:
        yield from flatten(item)


def _writers(module: Any, tensors: Iterable[Any]) -> list[Any]:
    """The first layers with a matrix that a walk from the outputs towards the inputs meets."""
    import torch

    owners = {
        id(part.weight): part
        for part in module.modules()
        if isinstance(getattr(part, "weight", None), torch.Tensor) and part.weight.ndim > 1
    }
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen, found = set(), {}
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        layers = [owners[i] for i in map(_parameter, parents) if i in owners]
        found.update({id(layer): layer for layer in layers})
        if not layers:
            stack += parents
    return list(found.values())


def _parameter(node: Any) -> int:
    """The identity of the parameter behind transpositions and views; 0 if there is none."""
    while not hasattr(node, "variable"):
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if len(parents) != 1 or type(node).__name__ not in _VIEWS:
            return 0
        node = parents[0]
    return id(node.variable)


_VIEWS = {"TBackward0", "TransposeBackward0", "PermuteBackward0", "ViewBackward0"}
