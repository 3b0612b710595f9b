"""A quantised model without the rounding of its activations.

Where activations are rounded to steps, two models that differ by nothing but the order of
additions may differ by a step here and there, and a tolerance that allows for steps hides small
errors. With every quantised activation q replaced by the real number that it stands for,

    (q - zero point) * scale,    saturated (that may be all there is of a Relu), but not rounded,

both models are continuous functions of the same quantised weights, and can be compared as closely
as floats. Operators on quantised numbers become those on floats (see `float_operators`); weights
are dequantised, as they are stored.
"""

from __future__ import annotations

import onnx

from .float_operators import OPERATORS, move
from .lift import MICROSOFT, Lift, Rounded
from .segments import living_nodes


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy whose activations are not rounded, as far as that can be done.

    None when there is nothing to take out.
    """
    lift = Lift(model)
    for node in model.graph.node:
        rewrite = OPERATORS.get(node.op_type, move)
        try:
            replaced = node.domain in ("", "ai.onnx", MICROSOFT) and rewrite(lift, node)
        except Rounded:
            replaced = False
        if not replaced:
            lift.nodes.append(node)
    if not lift.changed:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(living_nodes(lift.nodes, [value.name for value in model.graph.output]))
    if all(entry.domain != MICROSOFT for entry in copy.opset_import):
        copy.opset_import.add(domain=MICROSOFT, version=1)
    return copy
