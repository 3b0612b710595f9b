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
