"""What all passes that promise the same outputs have in common."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as oir
import pytest

from secateur.ir.io import load_model
from secateur.passes.base import Pass, clone_model
from secateur.passes.eliminate_dead import EliminateDead
from secateur.passes.fold_batchnorm import FoldBatchNorm
from secateur.passes.fold_constants import FoldConstants

from .graphs import GRAPHS, INFO, feeds
from .pass_runs import apply, build, compare, normal

PASSES: list[Callable[[], Pass]] = [EliminateDead, FoldConstants, FoldBatchNorm]


@pytest.mark.parametrize("make", PASSES)
@pytest.mark.parametrize("name", [n for n in GRAPHS if INFO[n].runnable and not INFO[n].deprecated])
def test_proof_graphs_keep_their_outputs(name: str, make: Callable[[], Pass]) -> None:
    old = GRAPHS[name]()
    new, _ = apply(make(), old)
    tolerance = 2e-3 if name == "fp16" else 2e-6
    # ONNX Runtime packs recurrent weights that are constant, and then adds in another order.
    exact = make is not FoldBatchNorm and name != "weights_of_pytorch"
    compare(old, new, 0.0 if exact else tolerance, **feeds(old))


def test_clones_share_weights() -> None:
    model = load_model(build("g (float[4] x) => (float[4] y) { y = Add (x, w) }", w=normal(4)))
    copy = clone_model(model)
    assert copy.graph.initializers["w"] is not model.graph.initializers["w"]
    assert copy.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    assert isinstance(copy, oir.Model)
