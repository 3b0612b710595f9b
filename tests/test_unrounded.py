"""Quantised models are also compared without the rounding of their activations."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from secateur.ir.io import load_model, to_proto
from secateur.passes.base import PassContext
from secateur.passes.prune import Prune
from secateur.runtime.session import make_session, run
from secateur.runtime.unrounded import unrounded

from .graphs import GRAPHS, feeds
from .pruning_checks import certified


def test_the_pairs_are_gone_and_the_function_is_close() -> None:
    model = GRAPHS["qdq"]()
    plain = unrounded(model)
    assert plain is not None
    onnx.checker.check_model(plain)
    assert not any(node.op_type == "QuantizeLinear" for node in plain.graph.node)
    feed = feeds(model)
    rounded, smooth = (next(iter(run(make_session(m), feed).values())) for m in (model, plain))
    assert 0 < np.abs(rounded - smooth).max() < 0.2 * np.abs(rounded).max()
    assert unrounded(GRAPHS["residual_identity"]()) is None


@pytest.mark.parametrize("seed", range(6))
def test_a_unit_too_many_is_seen(seed: int) -> None:
    model = load_model(GRAPHS["qdq"]())
    result = Prune(ratio=0.5).run(model, PassContext())
    pruning = result.details["pruning"]
    wrong = pruning.removed.copy()
    wrong[np.random.default_rng(seed).choice(np.flatnonzero(wrong))] = False
    assert not certified(pruning.analysis, to_proto(result.model), wrong).ok


def test_a_vector_of_zero_points_for_what_is_computed_stays() -> None:
    """They have no axis that is known: that product is left as it is, the rest is not."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x, float[4, 3] w) => (float[N, 3] y)
        <float s = {0.1}, uint8 z = {128}, uint8[3] zs = {127, 128, 129}> {
            a = QuantizeLinear(x, s, z) b = QuantizeLinear(w, s, z)
            p = MatMulInteger(a, b, z, zs) y = Cast<to = 1>(p) }"""
    )
    plain = unrounded(model)
    assert plain is not None and "MatMulInteger" in [node.op_type for node in plain.graph.node]
    feed = feeds(model)
    rounded, same = (next(iter(run(make_session(m), feed).values())) for m in (model, plain))
    np.testing.assert_array_equal(rounded, same)
