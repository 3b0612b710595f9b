"""A quantised model without the rounding of its activations.

QuantizeLinear followed by DequantizeLinear rounds an activation to steps; two models that differ
by nothing but the order of additions may then differ by a step here and there, and a tolerance
that allows for steps hides small errors. Without these pairs both models are smooth functions of
the same quantised weights, and can be compared as closely as floats.
"""

from __future__ import annotations

import onnx


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy in which every QuantizeLinear - DequantizeLinear pair is bypassed.

    None when the main graph has no such pair. Saturation goes with the rounding, so this is
    another function: it is only good for comparing two models treated alike.
    """
    sources = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.domain in ("", "ai.onnx")
    }
    pairs = [
        k
        for k, node in enumerate(model.graph.node)
        if node.op_type == "DequantizeLinear" and node.input[0] in sources
    ]
    if not pairs:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for k in pairs:
        node = copy.graph.node[k]
        bypass = onnx.helper.make_node("Identity", [sources[node.input[0]]], [node.output[0]])
        node.CopyFrom(bypass)
    read = {name for node in copy.graph.node for name in node.input}
    read.update(output.name for output in copy.graph.output)
    dead = [
        node
        for node in copy.graph.node
        if node.op_type == "QuantizeLinear" and not read.intersection(node.output)
    ]
    for node in dead:
        copy.graph.node.remove(node)
    return copy
