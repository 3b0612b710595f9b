"""Models that draw random numbers: in every run the same, so that two models can be compared."""

from __future__ import annotations

import onnx
from onnx import helper

from ..ir.graphs import RANDOM
from ..ir.protos import model_nodes


def draws(model: onnx.ModelProto) -> bool:
    """Whether an operator of the model draws random numbers."""
    return any(map(_draws, model_nodes(model)))


def seeded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every operator that draws and has no seed gets one.

    It is the same for all of them: names and places of nodes may differ between models that are
    compared. A session goes on where its last run stopped, so every run needs a new one.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in model_nodes(copy):
        if _draws(node) and not any(a.name == "seed" for a in node.attribute):
            seed = 1 if node.op_type == "Dropout" else 1.0
            node.attribute.append(helper.make_attribute("seed", seed))
    return copy


def _draws(node: onnx.NodeProto) -> bool:
    """A Dropout with a third input may be in training mode."""
    if node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type in RANDOM or (node.op_type == "Dropout" and any(node.input[2:]))
