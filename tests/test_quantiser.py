"""Models as ONNX Runtime's quantiser writes them, in every mode: pruned, certified, and small.

The certificate compares them as they are and without the rounding of activations; the second
comparison has the tolerance of floats, so a unit too many shows.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import secateur
from secateur.ir.io import load_model, to_proto
from secateur.ir.reference import reference_points
from secateur.passes.proof import facts_types
from secateur.runtime.compare import CAP, is_quantised, rounds
from secateur.runtime.masked import masked_model
from secateur.runtime.session import make_session, run
from secateur.runtime.unrounded import unrounded

from .graph_builder import feeds
from .pruning_checks import at_random, certified, prunable
from .quantiser_models import (
    MODES,
    branches,
    convolutions,
    embedding,
    perceptron,
    quantised,
    recurrent,
)

INTEGERS = {
    getattr(TensorProto, name)
    for name in ("INT8", "UINT8", "INT16", "UINT16", "INT4", "UINT4", "INT2", "UINT2")
}
TOGETHER = "perceptron blocked 2 zero points"
"""Four zero points share a byte there: of six and four blocks, units are four."""


def dims(model: onnx.ModelProto) -> dict[str, int]:
    sizes = {"N": 2, "T": 3}
    shape = model.graph.input[0].type.tensor_type.shape
    return {d.dim_param: sizes[d.dim_param] for d in shape.dim if d.dim_param}


def planned(mode: str, seed: int = 0, ratio: float = 0.4) -> secateur.Plan:
    model = quantised(mode)
    analysis = secateur.analyze(model, dims=dims(model))
    return secateur.Plan(analysis, at_random(analysis, ratio, seed))


def weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Stored integers that are not scales, zero points, biases or shapes."""
    return {
        t.name: t for t in model.graph.initializer if len(t.dims) > 1 and t.data_type in INTEGERS
    }


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_prunes_and_is_certified(mode: str) -> None:
    for seed in (0, 1):
        plan = planned(mode, seed)
        assert plan.analysis.warnings == []
        rewritten = secateur.rewrite(plan)
        certificate = secateur.certify(plan, rewritten, threads=1, seed=seed)
        assert certificate.ok, certificate.describe()
        assert certificate.notes == ()
        assert certificate.replay is not None and certificate.replay["agrees"]
        rounded = is_quantised(quantised(mode))  # codes of floats alone are compared once
        strict = [r for r in certificate.runs if not rounded or r.label.endswith("unrounded")]
        assert strict, "rounding was not taken out"
        assert max(r.tolerance for r in strict) <= CAP["float32"]
        before, after = quantised(mode), to_proto(rewritten.model)
        onnx.checker.check_model(after, full_check=True)
        smaller = weights(after)
        for name, tensor in weights(before).items():
            if name.endswith("_zero_points") or mode == TOGETHER:
                continue
            assert np.prod(smaller[name].dims) < np.prod(tensor.dims), name
            assert smaller[name].data_type == tensor.data_type
            packed = 2 if helper.tensor_dtype_to_np_dtype(tensor.data_type).name[-1] == "4" else 1
            stored = len(smaller[name].raw_data) or len(smaller[name].int32_data)
            assert stored == -(-int(np.prod(smaller[name].dims)) // packed), "stays packed"


@pytest.mark.parametrize("mode", MODES)
def test_the_same_channels_as_in_floats(mode: str) -> None:
    """What can go in the float model can go in the quantised one, in whole blocks at the least."""
    sources = {f.__name__: f for f in (convolutions, perceptron, branches, embedding, recurrent)}
    source = sources[mode.split()[0]]()
    wanted = [g.units.size for g in prunable(secateur.analyze(source, dims=dims(source)))]
    found = [g.units.size for g in prunable(planned(mode).analysis)]
    if "blocked" not in mode:
        assert sorted(found) == sorted(wanted)
        return
    together = 1
    if "zero points" in mode and "QDQ" not in mode:
        together = 8 // next(int(word) for word in mode.split() if word.isdigit())
    if "embedding" in mode:
        together = 2 if "zero points" in mode else 1
    sizes = [-(-(size // 16) // together) for size in wanted]
    assert sorted(found) == sorted(size for size in sizes if size > 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(2))
def test_a_unit_too_many_is_seen(mode: str, seed: int) -> None:
    plan = planned(mode, seed)
    rewritten = secateur.rewrite(plan)
    wrong = plan.removed.copy()
    for group in prunable(plan.analysis):  # a single one may be dead on these inputs
        wrong[np.random.default_rng(seed).choice(group.units[wrong[group.units]])] = False
    assert not certified(plan.analysis, to_proto(rewritten.model), wrong).ok


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_rounded_and_the_function_is_close(mode: str) -> None:
    """Also behind the masks that the certificate puts in."""
    model, plan = to_proto(load_model(quantised(mode))), planned(mode)
    types = facts_types(plan.analysis.facts)
    masked = masked_model(model, *reference_points(plan.analysis, plan.removed), types=types)
    for given in (model, masked):
        plain = unrounded(given)
        if plain is None:  # only weights are quantised
            assert not rounds(given)
            continue
        onnx.checker.check_model(plain)
        assert not rounds(plain)
        feed = feeds(model, **dims(model))
        rounded, smooth = (
            next(iter(run(make_session(m, optimize=False), feed).values())) for m in (given, plain)
        )
        scale = np.abs(rounded).max()
        steps = 2**16 if "QUInt16" in mode else 2**8
        assert np.abs(rounded - smooth).max() < 20 / steps * scale
        assert is_quantised(given)
