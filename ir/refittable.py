"""Which weights of linear layers can be fitted anew: those that nothing else reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import onnx_ir as oir

from .linear import LinearLayer, is_alone, is_name


def refittable(layers: Iterable[LinearLayer]) -> list[tuple[LinearLayer, ...]]:
    """Those of these layers, all of a graph, whose weights can change without changing anything
    else: by themselves, or layers of one form together that nobody but they share a weight with.
    Layers together have the same bias, which is theirs alone, too, or else stays."""
    sharing: dict[oir.Value, list[LinearLayer]] = {}
    for layer in layers:
        sharing.setdefault(layer.read, []).append(layer)
    found: list[tuple[LinearLayer, ...]] = []
    for right, some in sharing.items():
        if len(some) == 1:
            found += [(some[0],)] if some[0].alone[0] else []
        elif _are_one(some) and _is_theirs(right, some):
            bias = some[0].bias
            own = bias is not None and _is_theirs(bias, some)
            found.append(tuple(replace(layer, alone=(True, own)) for layer in some))
    return found


def _are_one(layers: Sequence[LinearLayer]) -> bool:
    return len({layer.tie for layer in layers}) == 1 and not layers[0].is_recurrent


def _is_theirs(value: oir.Value, layers: Sequence[LinearLayer]) -> bool:
    """Whether a weight or a bias is read once for each of these layers, and by nobody else."""
    node = value.producer()
    made = node is None or node.op_type == "Constant" or is_alone(node.inputs[0])
    return made and _reads(value) == len(layers)


def _reads(value: oir.Value) -> int:
    """How often a value is read, under whatever name; by the caller of the graph, too."""
    under = (_reads(node.outputs[0]) if is_name(node) else 1 for node, _ in value.uses())
    return sum(under) + value.is_graph_output()
