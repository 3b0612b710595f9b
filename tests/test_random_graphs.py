"""Random models, pruned at random and certified.

``SECATEUR_NIGHTLY=n`` multiplies the number of cases by n: 30 makes thousands.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import secateur
from secateur.ir.errors import CertificateError
from secateur.ir.io import to_proto
from secateur.ir.protos import model_nodes
from tests import test_probing_generated as generated
from tests import test_probing_quantised as quantised
from tests.probed import written
from tests.probing_draw import NIGHTLY, Case, Draw, Unavailable, draws
from tests.pruning_checks import at_random, check_interface
from tests.random_graphs import OPSETS, Graph, grafted
from tests.random_networks import attention_network, image_network, sequence_network


def pruned_at_random(model: onnx.ModelProto, d: Draw) -> bool:
    """As `prune_at_random`; a failure shows the model."""
    try:
        return prune_at_random(model, d)
    except Exception as error:
        raise AssertionError(f"{error}\n{onnx.printer.to_text(model)}") from error


def prune_at_random(model: onnx.ModelProto, d: Draw) -> bool:
    """Prunes random units and certifies; whether there was anything to prune."""
    carrier = d.pick(["heads", "head-dim"])
    found = (
        secateur.analyze(model, dims={"N": 2}, carrier=carrier)
        if _dynamic(model)
        else (secateur.analyze(model, carrier=carrier))
    )
    removed = at_random(found, d.pick([0.2, 0.5, 0.9]), d.number(0, 99), inexact=d.flag())
    if not removed.any():
        return False
    plan = secateur.Plan(found, removed)
    rewritten = secateur.rewrite(plan)
    pruned = to_proto(rewritten.model)
    if _is_valid(model):
        onnx.checker.check_model(pruned)
    check_interface(model, pruned)
    assert weight_count(pruned) < weight_count(model)
    certificate = secateur.certify(plan, rewritten, threads=1)
    if not any(entry.scale for entry in certificate.runs):
        return False  # the logarithm of a negative sum, say: nothing finite to compare
    assert certificate.ok, certificate.describe()
    return True


def weight_count(model: onnx.ModelProto) -> int:
    """The elements of all weights, those in functions included."""
    tensors = [*model.graph.initializer]
    tensors += [
        a.t for f in model.functions for n in f.node for a in n.attribute if a.HasField("t")
    ]
    return sum(math.prod(t.dims) for t in tensors)


def _is_valid(model: onnx.ModelProto) -> bool:
    """Some run, and the checker refuses them: a GroupNormalization of opset 18 is deprecated."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return False
    return True


def _dynamic(model: onnx.ModelProto) -> bool:
    return any(d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim)


def budget(count: int) -> settings:
    return settings(
        max_examples=count * NIGHTLY,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def check_all(count: int, make: Callable[[st.DataObject], onnx.ModelProto | None]) -> None:
    pruned = 0

    @budget(count)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal pruned
        model = make(data)
        if model is None:
            return
        pruned += pruned_at_random(model, Draw(data.draw))

    check()
    assert pruned >= count // 3


@pytest.mark.parametrize("network", [image_network, sequence_network])
def test_networks(network: Callable[[Graph], None]) -> None:
    def make(data: st.DataObject) -> onnx.ModelProto:
        d = Draw(data.draw)
        graph = Graph(d, d.number(*OPSETS), nests=True)
        network(graph)
        return graph.model()

    check_all(50, make)


def test_attention_operators() -> None:
    """With heads, masks, rotations and layouts drawn, inside branches, loops and functions too."""
    pruned, seen = 0, set[str]()
    for d in draws("attention operators", 40):
        graph = Graph(d, d.pick([OPSETS[0], 23, 24]), nests=True)
        attention_network(graph)
        model = graph.model()
        seen.update(node.op_type for node in model_nodes(model))
        pruned += pruned_at_random(model, d)
    assert pruned >= NIGHTLY * 25
    assert seen >= {"Attention", "MultiHeadAttention", "GroupQueryAttention", "RotaryEmbedding"}


MAKERS: list[Callable[[Draw], Case]] = [
    make for make, _ in (generated.FAMILIES | quantised.FAMILIES).values()
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_operators_between_layers() -> None:
    def make(data: st.DataObject) -> onnx.ModelProto | None:
        d = Draw(data.draw)
        return grafts(d, [d.pick(MAKERS) for _ in range(d.number(1, 3))], d.number(*OPSETS))

    check_all(100, make)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_written_operators_between_layers() -> None:
    """Attention, experts, fused operators, control flow and sequences: each once, with one of any
    family behind it if both can be in one model."""
    pruned = 0
    cases = list(written())
    for number, d in enumerate(draws("written", len(cases))):
        case = cases[number % len(cases)]
        opset = next(o.version for o in case[0].opset_import if not o.domain)
        alone: list[Callable[[Draw], Case]] = [lambda _, case=case: case]  # type: ignore[misc]
        model = grafts(d, [*alone, d.pick(MAKERS)], opset) or grafts(d, alone, opset)
        pruned += model is not None and pruned_at_random(model, d)
    assert pruned >= NIGHTLY * len(cases) // 2


def grafts(d: Draw, families: list[Callable[[Draw], Case]], opset: int) -> onnx.ModelProto | None:
    """The model in which cases of these families stand; None if the opset lacks one of them, or
    if it does not run."""
    d.settled = opset
    try:
        model = grafted(d, families, opset)
    except Unavailable:
        return None
    return model if _runs(model) else None


def _runs(model: onnx.ModelProto) -> bool:
    """Without overflow on the certificate's feeds: there a mask of zero makes NaN of infinity."""
    from secateur.runtime.inputs import random_feed
    from secateur.runtime.session import make_session, run

    try:
        session = make_session(model, threads=1, optimize=False)
        arrays = [
            a for seed in range(3) for a in run(session, random_feed(model, {}, seed)).values()
        ]
    except CertificateError:
        return False
    return all(np.isfinite(array).all() and np.abs(array).max() > 0 for array in arrays)
