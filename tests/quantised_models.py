"""Models with quantised weights: in bytes, packed in blocks, and what they stand for."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .graphs import GRAPHS
from .pruning_checks import arrays, constants, run


def packed(block: int) -> onnx.ModelProto:
    """Weights of 4 bits: one per output channel, the other in blocks along what it contracts."""
    rng = np.random.default_rng(3)

    def nibbles(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.integers(-8, 8, shape).ravel().tolist()
        return helper.make_tensor(name, TensorProto.INT4, shape, values)

    scales = {"s1": (9,), "s2": (-(-9 // block), 6)}
    floats = [numpy_helper.from_array(rng.uniform(0.1, 0.2, shape).astype(np.float32), name)
              for name, shape in scales.items()]  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["q1", "s1"], ["k1"], axis=1),
        helper.make_node("MatMul", ["x", "k1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("DequantizeLinear", ["q2", "s2"], ["k2"], axis=0, block_size=block),
        helper.make_node("MatMul", ["r", "k2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "packed", [helper.make_tensor_value_info("x", 1, ["N", 5])],
        [helper.make_tensor_value_info("y", 1, ["N", 6])],
        [nibbles("q1", 5, 9), nibbles("q2", 9, 6), *floats],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def dequantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the results of DequantizeLinear on constants in their place."""
    held = arrays(model)
    left = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held:
            output = onnx.ValueInfoProto(name=node.output[0])
            weights = [t for t in model.graph.initializer if t.name in node.input]
            alone = helper.make_graph([node], "alone", [], [output], weights)
            opsets = model.opset_import
            real = run(helper.make_model(alone, opset_imports=opsets, ir_version=10), {})
            model.graph.initializer.append(
                numpy_helper.from_array(real[node.output[0]], node.output[0])
            )  # fmt: skip
        else:
            left.append(node)
    del model.graph.node[:]
    model.graph.node.extend(left)
    return model


def eight_bits(**zero: int) -> onnx.ModelProto:
    """dq_weights with uint8 weights and one zero point, or with scales that differ widely."""
    model = GRAPHS["dq_weights"]()
    held, rng = constants(model), np.random.default_rng(5)
    scales = rng.uniform(1e-4, 1e-1, 16).astype(np.float32)
    held["s1"].CopyFrom(numpy_helper.from_array(scales, "s1"))
    held["s2"].CopyFrom(numpy_helper.from_array(scales[::-1].copy(), "s2"))
    if zero:
        shifted = (numpy_helper.to_array(held["w1"]).astype(np.int16) + 128).astype(np.uint8)
        held["w1"].CopyFrom(numpy_helper.from_array(shifted, "w1"))
        points = np.full(16, zero["point"], np.uint8)
        held["z1"].CopyFrom(numpy_helper.from_array(points, "z1"))
    return model
