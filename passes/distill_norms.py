"""BatchNormalization for the time of the training, in a student whose exporter has folded it.

Convolutions whose normalisation was folded into them are hard to train: one rate is too high for
some of their channels and too low for others. So every convolution with a bias of its own gets a
BatchNormalization behind it that, with the mean m and the variance v of what the convolution gives,

    y = (x - m) / sqrt(v + eps) * sqrt(v + eps) + m = x,

changes nothing. In training it uses the statistics of the batch, as in any network with such nodes
(Ioffe and Szegedy 2015, "Batch Normalization"). Afterwards it is folded again:

    s = scale / sqrt(v + eps),    W' = s W,    b' = s (b - m) + shift.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from ..ir.graphs import Names, value_names
from ..ir.linear import LinearLayer, linear_layers
from ..ir.refittable import refittable
from ..runtime.torch_executor import TorchExecutor

if TYPE_CHECKING:
    from ..runtime.session import Array, Feed

EPSILON = 1e-5
LEAST = 8
"""Statistics of fewer samples are no statistics."""


@dataclass(frozen=True)
class Norm:
    """The normalisation behind ``layer``: the names of its scale, shift, mean and variance."""

    layer: LinearLayer
    names: tuple[str, str, str, str]

    def folded(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The layer's weight and bias that do what the trained ``arrays`` do."""
        layer, weight, bias = self.layer, str(self.layer.weight.name), self.layer.bias
        assert bias is not None
        scale, shift, mean, variance = (arrays[name].astype(np.float64) for name in self.names)
        factor = scale / np.sqrt(variance + EPSILON)
        matrix = layer.matrix(arrays[weight].astype(np.float64))
        row = layer.bias_row(arrays[str(bias.name)].astype(np.float64))
        stored = layer.stored(matrix * factor.reshape(layer.groups, 1, -1))
        added = layer.stored_bias(factor * (row - mean) + shift, arrays[str(bias.name)])
        return {weight: stored, str(bias.name): added}


def insert_norms(
    model: oir.Model, trained: Collection[str], feeds: Sequence[Feed], device: str
) -> list[Norm]:
    """Puts a normalisation behind every convolution of the flat ``model`` whose weight and bias are
    ``trained`` and its own. The statistics are those on ``feeds``."""
    layers = [
        layer
        for some in refittable(linear_layers(model.graph))
        for layer in some
        if len(some) == 1 and layer.is_convolution and layer.has_own_bias
        if {str(layer.weight.name), str(layer.bias and layer.bias.name)} <= set(trained)
        if "BatchNormalization" not in {node.op_type for node, _ in layer.output.uses()}
    ]
    if not layers:
        return []
    names = Names(value_names(model.graph))
    outputs = [str(layer.output.name) for layer in layers]
    moments = _moments(model, outputs, feeds, device)
    return [_insert(layer, *moments[n], names) for layer, n in zip(layers, outputs, strict=True)]


def _moments(
    model: oir.Model, outputs: Sequence[str], feeds: Sequence[Feed], device: str
) -> dict[str, tuple[Array, Array]]:
    """Mean and variance of every channel (axis 1) of these values."""
    executor = TorchExecutor(model, wanted=outputs, device=device)
    sums: dict[str, Array] = {}
    counts = dict.fromkeys(outputs, 0)
    for feed in feeds:
        for name, value in executor(executor.feed_tensors(feed)).items():
            rows = value.double().transpose(0, 1).flatten(1)
            found = np.stack([rows.sum(1).cpu().numpy(), rows.square().sum(1).cpu().numpy()])
            sums[name] = sums.get(name, 0) + found
            counts[name] += rows.shape[1]
    means = {name: sums[name] / counts[name] for name in outputs}
    return {n: (first, np.maximum(second - first**2, 0)) for n, (first, second) in means.items()}


def _insert(layer: LinearLayer, mean: Array, variance: Array, names: Names) -> Norm:
    old = layer.output
    node, name = old.producer(), str(old.name)
    assert node is not None and node.graph is not None
    kind = np.float64 if layer.weight.dtype == oir.DataType.DOUBLE else np.float32
    arrays = (np.sqrt(variance + EPSILON), mean, mean, variance)
    values = [
        oir.Value(name=names.free(f"{name}/{part}"), const_value=oir.tensor(array.astype(kind)))
        for part, array in zip(("scale", "shift", "mean", "variance"), arrays, strict=True)
    ]
    for value in values:
        node.graph.register_initializer(value)
    norm = oir.node("BatchNormalization", [old, *values], {"epsilon": EPSILON})
    new = norm.outputs[0]
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    norm.replace_input_with(0, old)
    old.name = names.free(f"{name}/plain")
    new.name, new.type, new.shape = name, old.type, old.shape
    node.graph.insert_after(node, norm)
    scale, shift, average, spread = (str(value.name) for value in values)
    return Norm(layer, (scale, shift, average, spread))
