"""The cost model against counts that know nothing of it: real shapes and textbook formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import secateur
from benchmarks import models
from secateur.ir.analysis import Analysis
from secateur.ir.io import to_proto
from secateur.ir.naming import node_label
from secateur.runtime.cost import CostModel, Costs

from .fused_macs import fused_macs
from .graph_builder import is_nested
from .graphs import GRAPHS, INFO, feeds
from .quantised_macs import quantised_macs, quantised_weights

BY_DATA = ("detector", "experts_hit", "regions_of_interest")
"""Nobody knows before the run how many boxes are left, or how many tokens choose an expert."""
PLAIN = [
    name
    for name, info in INFO.items()
    if info.runnable and name not in BY_DATA and not is_nested(GRAPHS[name]())
]


def real_shapes(model: onnx.ModelProto, dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of every value of the main graph, as ONNX Runtime computes it."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    present = {o.name for o in shown.graph.output}
    shown.graph.output.extend(
        onnx.ValueInfoProto(name=o)
        for node in model.graph.node
        for o in node.output
        if o and o not in present
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(shown.SerializeToString(), options)
    feed = feeds(model, **dims)
    names = [o.name for o in session.get_outputs()]
    shapes = {k: np.shape(v) for k, v in zip(names, session.run(names, feed), strict=True)}
    shapes |= {k: v.shape for k, v in feed.items()}
    return shapes | {t.name: tuple(t.dims) for t in model.graph.initializer}


def counted_macs(model: onnx.ModelProto, dims: Mapping[str, int]) -> int:
    """Outputs times the length of each dot product; of a ConvTranspose, inputs times kernel."""
    shapes, total = real_shapes(model, dims), 0
    for node in model.graph.node:
        inputs = [shapes.get(i, ()) for i in node.input]
        y = math.prod(shapes.get(node.output[0], ()))
        if node.op_type in ("Conv", "DeformConv"):  # of the latter, what it reads is interpolated
            total += y * math.prod(inputs[1][1:])
        elif node.op_type == "ConvTranspose":
            total += math.prod(inputs[0]) * math.prod(inputs[1][1:])
        elif node.op_type == "MatMul":
            total += y * inputs[0][-1]
        elif node.op_type == "Gemm":
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            total += y * inputs[0][0 if transposed else 1]
        elif node.op_type in ("LSTM", "GRU", "RNN"):  # W and R, in every step of every sequence
            total += math.prod(inputs[0][:2]) * (math.prod(inputs[1]) + math.prod(inputs[2]))
        else:
            total += fused_macs(node, inputs, y) + quantised_macs(node, inputs, y)
    return total


def counted_parameters(model: onnx.ModelProto) -> int:
    """Elements of all floating-point constants, and of the integers that stand for others."""
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = attribute.t
    quantised = quantised_weights(model)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return sum(
        math.prod(t.dims) for name, t in found.items() if t.data_type in floats or name in quantised
    )


def stored_bytes(model: onnx.ModelProto) -> int:
    held = list(model.graph.initializer)
    held += [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute]
    return sum(numpy_helper.to_array(t).nbytes for t in held)


def pruned_at_random(found: Analysis, seed: int) -> tuple[Costs, onnx.ModelProto]:
    rng = np.random.default_rng(seed)
    removed = np.zeros(found.unit_count, np.bool_)
    for group in found.groups:
        if len(group.units) > 1 and group.exact:
            count = int(rng.integers(1, len(group.units)))
            removed[rng.choice(group.units, count, replace=False)] = True
    rewritten = secateur.rewrite(secateur.Plan(found, removed))
    return CostModel(found).costs(removed), to_proto(rewritten.model)


@pytest.mark.parametrize("name", PLAIN)
def test_macs_and_parameters_before_and_after(name: str) -> None:
    model = GRAPHS[name]()
    dims = {d: 2 + i for i, d in enumerate(INFO[name].dims)}
    found = secateur.analyze(model, dims=dims)
    costs = CostModel(found).costs()
    assert costs.macs == counted_macs(model, dims) > 0
    assert costs.parameters == counted_parameters(model)
    assert costs.weight_bytes == stored_bytes(model)
    assert sum(layer.macs for layer in costs.layers) == costs.macs
    for seed in range(3):
        after, pruned = pruned_at_random(found, seed)
        assert after.macs == counted_macs(pruned, dims) < costs.macs
        # A number that was computed from a shape and must not change is a constant now.
        numbers = sum("_pruned" in t.name and t.data_type == 1
                      for t in pruned.graph.initializer)  # fmt: skip
        assert after.parameters == counted_parameters(pruned) - numbers < costs.parameters
        assert [layer.name for layer in after.layers] == [layer.name for layer in costs.layers]


def test_hand_formulas() -> None:
    """Written out once: 16 3x3 filters on 8x8, 24 on the same, a 24 x 10 matrix, batch of 2."""
    layers = 2 * 8 * 8 * 16 * 3 * 9, 2 * 8 * 8 * 24 * 16 * 9, 2 * 10 * 24
    found = secateur.analyze(GRAPHS["weights_in_constants"](), dims={"N": 2})
    costs = CostModel(found).costs()
    assert [layer.macs for layer in costs.layers] == list(layers)
    assert costs.macs == sum(layers)
    assert costs.parameters == 16 * 27 + 16 + 24 * 144 + 24 + 240
    assert costs.weight_bytes == 4 * costs.parameters
    assert [layer.op_type for layer in costs.layers] == ["Conv", "Conv", "MatMul"]
    assert [layer.parameters for layer in costs.layers] == [16 * 28, 24 * 145, 240]
    assert [layer.activation_bytes for layer in costs.layers] == [
        4 * 2 * 16 * 64, 4 * 2 * 24 * 64, 4 * 2 * 10
    ]  # fmt: skip


def test_grouped_and_depthwise_layers() -> None:
    found = secateur.analyze(GRAPHS["inverted_residual"](), dims={"N": 1})
    macs = [layer.macs for layer in CostModel(found).costs().layers if layer.macs]
    assert macs == [64 * 8 * 27, 64 * 32 * 8, 64 * 32 * 9, 64 * 8 * 32, 10 * 8]


# ---- activation memory --------------------------------------------------------------------------


def chain(wide: int) -> onnx.ModelProto:
    """x [N,4] -> wide -> relu -> 8 -> y [N,8], with a skip x -> 8 that is added at the end."""
    nodes = [
        helper.make_node("MatMul", ["x", "skip"], ["s"]),
        helper.make_node("MatMul", ["x", "up"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "down"], ["c"]),
        helper.make_node("Add", ["c", "s"], ["y"]),
    ]
    shapes = {"skip": (4, 8), "up": (4, wide), "down": (wide, 8)}
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n)
        for n, s in shapes.items()
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 8])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_peak_activation_memory() -> None:
    """Relu holds the most: s (8), a (32) and b (32) are alive, x is not; 72 floats per sample.

    With 30 of the 32 hidden units gone the peak is the first product or the last sum: x, s and a
    hold 4 + 8 + 2, c, s and y 8 + 8 + 8, that is 24.
    """
    for batch in (1, 3):
        found = secateur.analyze(chain(32), dims={"N": batch})
        costs = CostModel(found)
        assert costs.costs().peak_activation_bytes == 4 * batch * (8 + 32 + 32)
        removed = np.zeros(found.unit_count, np.bool_)
        removed[found.groups[0].units[:30]] = True
        assert costs.costs(removed).peak_activation_bytes == 4 * batch * 24


def test_peak_of_branches_that_stay_alive() -> None:
    """dense_concat in maps of 64 floats: at the second BatchNormalization a (16) and b (8) wait
    for the last Concat beside its input and output (24 each); that Concat holds 32 + 16 + 8 + 8.
    """
    found = secateur.analyze(GRAPHS["dense_concat"](), dims={"N": 1})
    assert CostModel(found).costs().peak_activation_bytes == 4 * 64 * (16 + 8 + 24 + 24)


def test_half_precision_halves_the_bytes() -> None:
    found = secateur.analyze(GRAPHS["fp16"](), dims={"N": 1})
    costs = CostModel(found).costs()
    assert costs.weight_bytes == stored_bytes(GRAPHS["fp16"]()) == 2 * costs.parameters
    assert costs.peak_activation_bytes == 2 * 64 * 2 * 16  # two maps of 16 channels


# ---- known networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [True, False])
def test_resnet50(batch_norm: bool) -> None:
    """He et al. 2016; torchvision states 25,557,032 parameters and 4.09 GFLOPs (MACs) at 224.

    Here BatchNormalization's 53,120 stored statistics count as well; folded, 53,120 scales and
    biases have become 26,560 biases.
    """
    found = secateur.analyze(models.resnet50(batch_norm=batch_norm))
    costs = CostModel(found).costs()
    assert costs.macs == 4_089_184_256
    assert round(costs.macs / 1e9, 2) == 4.09
    assert costs.parameters == 25_557_032 + (53_120 if batch_norm else -26_560)
    convolutions = [layer for layer in costs.layers if layer.op_type == "Conv"]
    assert len(convolutions) == 53
    assert convolutions[0].macs == 112 * 112 * 64 * 3 * 49


# ---- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual_identity", "dense_concat", "inception", "swin_block"])
def test_products_agree_with_costs_for_every_allocation(name: str) -> None:
    """Of units that own equally many coordinates, which ones go makes no difference."""
    found = secateur.analyze(GRAPHS[name](), dims=dict.fromkeys(INFO[name].dims, 2))
    model, rng = CostModel(found), np.random.default_rng(1)
    sizes = np.array([len(g.units) for g in found.groups])
    for _ in range(20):
        counts = np.array([rng.integers(0, len(g.units)) for g in found.groups])
        removed = np.zeros(found.unit_count, np.bool_)
        for group, count in zip(found.groups, counts, strict=True):
            removed[rng.choice(group.units, count, replace=False)] = True
        costs = model.costs(removed)
        assert model.macs.total(counts) == pytest.approx(costs.macs, rel=1e-12)
        assert model.parameters.total(counts) == pytest.approx(costs.parameters, rel=1e-12)
        assert model.weight_bytes.total(counts) == pytest.approx(costs.weight_bytes, rel=1e-12)
        live = model.live_bytes.each(counts[None])[0]
        assert live.max() == pytest.approx(costs.peak_activation_bytes, rel=1e-12)
        listed = {layer.name: layer.live_bytes for layer in costs.layers}
        sites = {node_label(site.node): n for site, n in zip(found.sites, live, strict=True)}
        assert all(sites[name] == pytest.approx(n, rel=1e-12) for name, n in listed.items())
        # Two units back in every group, then one unit more, each group alone.
        groups = np.tile(np.arange(len(counts)), 2)
        back = np.concatenate([np.minimum(counts, 2), np.where(counts + 1 < sizes, -1, 0)])
        fewer = counts[None] - back[:, None] * (groups[:, None] == np.arange(len(counts)))
        wanted = model.macs.totals(fewer) - model.macs.total(counts)
        for products in (model.macs, model.macs.merged):
            changes = products.changes(counts, groups, back)
            np.testing.assert_allclose(changes, wanted, rtol=1e-9, atol=1e-6)
        each = [model.macs.total(row) for row in fewer]
        np.testing.assert_allclose(model.macs.totals(fewer), each, rtol=1e-12)
