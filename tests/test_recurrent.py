"""LSTM, GRU and RNN beyond what probing and the proof graphs show."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import secateur
from secateur.ir.io import to_proto
from secateur.ir.reference import reference_points
from secateur.runtime.cost import CostModel
from secateur.runtime.masked import masked_model

from .graph_builder import Array, build, net
from .graphs import GRAPHS, feeds
from .pruning_checks import analysis, at_random, constants


def bidirectional(attributes: str = "hidden_size = 4") -> onnx.ModelProto:
    """Seven steps of three sequences of 5 features, 4 units in two directions, a projection."""
    parts = net(
        "(float[7,3,5] x) => (float[7,3,6] y)",
        f"""a = LSTM<direction = "bidirectional", {attributes}>(x, w, r)
        t = Transpose<perm = [0, 2, 1, 3]>(a) j = Reshape(t, joined) y = MatMul(j, v)""",
        w=(2, 16, 5), r=(2, 16, 4), v=(8, 6), joined=[0, 0, -1],
    )  # fmt: skip
    return build("bidirectional", parts, 17, "initializers")


def reference(model: onnx.ModelProto, feed: dict[str, Array]) -> Array:
    """The first output in numpy."""
    outputs: Any = ReferenceEvaluator(model).run(None, feed)
    result: Array = outputs[0]
    return result


def test_batch_first_equals_the_masked_original_in_the_reference() -> None:
    """ONNX Runtime has no kernel for ``layout`` 1, onnx.reference has."""
    model, found = GRAPHS["batch_first"](), analysis("batch_first")
    feed = feeds(model, N=3, T=4)
    whole = reference(model, feed)
    for seed in range(3):
        removed = at_random(found, 0.5, seed)
        pruned = to_proto(secateur.rewrite(secateur.Plan(found, removed)).model)
        masks, compactions = reference_points(found, removed)
        types = {name: (kind, shape) for name, (kind, shape) in found.facts[0].types.items()}
        masked = masked_model(model, masks, compactions, types)
        wanted, got = reference(masked, feed), reference(pruned, feed)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
        assert np.abs(whole - wanted).max() > 1e-2
        assert constants(pruned)["aw"].dims == [2, 24, 6]


def test_macs_are_those_of_both_products_in_both_directions() -> None:
    found = secateur.analyze(bidirectional())
    removed = np.zeros(found.unit_count, np.bool_)
    for units in (4, 3, 2):
        recurrent = 7 * 3 * 2 * 4 * units * (5 + units)
        assert CostModel(found).costs(removed).macs == recurrent + 7 * 3 * 2 * units * 6
        removed[found.groups[0].units[units - 1]] = True


def test_hidden_size_is_restated_and_nothing_else() -> None:
    numbers = (
        'activations = ["HardSigmoid", "Affine", "Elu", "HardSigmoid", "Affine", "Elu"],'
        " activation_alpha = [0.2, 0.9, 1.0, 0.2, 0.9, 1.0], activation_beta = [0.5, 0.1, 0.5, 0.1]"
    )
    model = bidirectional(f"hidden_size = 4, {numbers}, clip = 5.0, input_forget = 1")
    found = secateur.analyze(model)
    removed = np.zeros(found.unit_count, np.bool_)
    removed[1] = True
    plan = secateur.Plan(found, removed)
    rewritten = secateur.rewrite(plan)
    before, after = (
        {a.name: helper.get_attribute_value(a) for a in m.graph.node[0].attribute}
        for m in (model, to_proto(rewritten.model))
    )
    assert after == before | {"hidden_size": 3}
    assert secateur.certify(plan, rewritten, threads=1).ok


def test_an_unknown_activation_pins_the_units() -> None:
    assert secateur.analyze(bidirectional('hidden_size = 4, activations = ["Tanh"]')).groups
    found = secateur.analyze(bidirectional('hidden_size = 4, activations = ["Softmax"]'))
    assert not found.groups
    reasons = {pin.reason for pin in found.coupling.pins}
    assert "not known to work on every unit alone: Softmax" in reasons


def test_a_bias_that_slices_take_apart_stays_one() -> None:
    found = analysis("weights_of_pytorch")
    rewritten = secateur.rewrite(secateur.Plan(found, at_random(found, 0.5, 0)))
    after = constants(to_proto(rewritten.model))
    assert rewritten.copies == []
    shapes = {name: list(after[name].dims) for name in ("wi", "wh", "bi", "bh")}
    assert shapes == {"wi": [24, 6], "wh": [24, 6], "bi": [24], "bh": [24]}


@pytest.mark.parametrize("name", ["gru_bidirectional", "lstm_stacked_without_states"])
def test_by_norm(name: str) -> None:
    """The rows and columns that are kept are those of the units with the largest weights."""
    model = GRAPHS[name]()
    arrays = {k: onnx.numpy_helper.to_array(t) for k, t in constants(model).items()}
    result = secateur.prune(
        model, ratio=0.5, dims={"N": 2, "T": 3}, bench=False, threads=1, criterion="l2"
    )
    assert result.pruning is not None
    gone = {(s.tensor, s.axis): s.indices for s in result.pruning.slices}
    for layer in "ab":
        w, r = arrays[f"{layer}w"], arrays[f"{layer}r"]
        units = r.shape[2]
        rows = np.square(w).sum(axis=(0, 2)) + np.square(r).sum(axis=(0, 2))
        columns = np.square(r).sum(axis=(0, 1))
        reader = arrays["bw"] if layer == "a" else arrays["wy"]
        axis = 2 if layer == "a" else 0
        read = np.square(reader).sum(axis=tuple(k for k in range(reader.ndim) if k != axis))
        score = rows.reshape(-1, units).sum(axis=0) + columns
        score += read.reshape(-1, units).sum(axis=0)
        least = np.sort(np.argsort(score)[: units // 2])
        assert gone[f"{layer}r", 2] == tuple(least)
        gates = rows.size // units
        assert gone[f"{layer}w", 1] == tuple((np.arange(gates)[:, None] * units + least).ravel())
