"""Pruned models made wrong on purpose: the certificate must notice every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import numpy_helper

import secateur
from secateur.ir.errors import CertificateError
from secateur.ir.io import to_proto
from secateur.ir.rewrite import Rewritten

from .graphs import GRAPHS, feeds
from .pruning_checks import RUNNABLE, analysis, at_random, constants, dims, run


def verdict(plan: secateur.Plan, proto: onnx.ModelProto, rewritten: Rewritten) -> bool:
    wrong = replace(rewritten, model=oir.serde.deserialize_model(proto))
    return secateur.certify(plan, wrong, threads=1).ok


def halved(name: str) -> tuple[secateur.Plan, Rewritten]:
    """A pruning of half the units, at random."""
    found = analysis(name)
    plan = secateur.Plan(found, at_random(found, 0.5, 0))
    return plan, secateur.rewrite(plan)


@pytest.mark.parametrize("name", RUNNABLE)
def test_swapped_channels_are_noticed(name: str) -> None:
    """The kept channels of one producing weight move on by one; nothing else follows."""
    found = analysis(name)
    plan = secateur.Plan(found, at_random(found, 0.25, 4))
    rewritten = secateur.rewrite(plan)
    proto = to_proto(rewritten.model)
    held = constants(proto)
    weight, axis = next(
        (s.tensor, s.axis)
        for s in rewritten.slices
        if s.role == "producer" and held[s.tensor].dims[s.axis] > 1
    )
    array = numpy_helper.to_array(held[weight])
    swapped = np.ascontiguousarray(np.roll(array, 1, axis))
    assert not np.array_equal(swapped, array)
    held[weight].CopyFrom(numpy_helper.from_array(swapped, held[weight].name))
    assert not verdict(plan, proto, rewritten)


@pytest.mark.parametrize("name", ["residual_identity", "channel_shuffle", "fused_qkv_split"])
def test_other_channels_than_planned_are_noticed(name: str) -> None:
    found = analysis(name)
    plan = secateur.Plan(found, at_random(found, 0.5, 0))
    other = secateur.rewrite(secateur.Plan(found, at_random(found, 0.5, 1)))
    assert not verdict(plan, to_proto(other.model), other)


@pytest.mark.parametrize("name", ["option_a", "inception", "swiglu_fused", "qdq", "gemm_forms"])
def test_one_wrong_channel_is_noticed(name: str) -> None:
    """Of one producing weight another channel was kept than of all that is coupled with it."""
    plan, rewritten = halved(name)
    proto, original = to_proto(rewritten.model), constants(GRAPHS[name]())
    cut = next(s for s in rewritten.slices if s.role == "producer")
    others = [s for s in rewritten.slices if s.tensor == cut.tensor]
    array = numpy_helper.to_array(original[cut.tensor])
    for entry in others:
        gone = list(entry.indices)
        if entry is cut:
            kept = next(k for k in range(array.shape[cut.axis]) if k not in gone)
            gone[0] = kept
        keep = np.setdiff1d(np.arange(original[cut.tensor].dims[entry.axis]), gone)
        array = np.take(array, keep, entry.axis)
    target = constants(proto)[cut.tensor]
    assert list(target.dims) == list(array.shape)
    target.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), target.name))
    assert not verdict(plan, proto, rewritten)


Shape = list[int]
SIZES: list[tuple[str, str, Callable[[Shape], Shape]]] = [
    ("channel_shuffle", "five", lambda v: [0, v[2], v[1], *v[3:]]),
    ("option_a", "pads", lambda v: [0, v[5], 0, 0, 0, v[1], 0, 0]),
    ("separate_qkv", "split4", lambda v: [0, 0, v[3], v[2]]),
    ("fused_qkv_gather", "five", lambda v: [0, 0, 3, v[4], v[3]]),
    ("pixel_shuffle_reshape", "six", lambda v: [0, v[2], v[3], v[1], *v[4:]]),
]


@pytest.mark.parametrize(("name", "tensor", "change"), SIZES, ids=[n for n, _, _ in SIZES])
def test_a_wrong_size_is_noticed(name: str, tensor: str, change: Callable[[Shape], Shape]) -> None:
    """Two entries of a restated list trade places; the model still runs, its outputs fit."""
    plan, rewritten = halved(name)
    proto = to_proto(rewritten.model)
    used = {i for node in proto.graph.node for i in node.input}
    restated = [t for n, t in constants(proto).items() if n in used and n.startswith(tensor)]
    assert restated
    for held in restated:
        right = numpy_helper.to_array(held).tolist()
        assert change(right) != right
        held.CopyFrom(numpy_helper.from_array(np.array(change(right), np.int64), held.name))
    original = GRAPHS[name]()
    feed = feeds(original, **dims(name))
    shapes = {k: v.shape for k, v in run(original, feed).items()}
    assert {k: v.shape for k, v in run(proto, feed).items()} == shapes
    assert not verdict(plan, proto, rewritten)


def test_a_pruned_number_is_noticed() -> None:
    """Attention divides by the square root of the width before pruning, 16, and not of 8."""
    name = "single_head_computed_scale"
    plan, rewritten = halved(name)
    proto = to_proto(rewritten.model)
    divisor = next(n.input[1] for n in proto.graph.node if n.op_type == "Div")
    held = constants(proto)[divisor]
    assert numpy_helper.to_array(held) == 4
    held.CopyFrom(numpy_helper.from_array(np.array(8**0.5, np.float32), held.name))
    assert not verdict(plan, proto, rewritten)


def test_a_model_that_no_longer_runs_is_an_error() -> None:
    name = "grouped_conv"
    plan, rewritten = halved(name)
    proto = to_proto(rewritten.model)
    conv = next(n for n in proto.graph.node if any(a.name == "group" for a in n.attribute))
    group = next(a for a in conv.attribute if a.name == "group")
    assert group.i == 4
    group.i = 2
    with pytest.raises(CertificateError, match="candidate"):
        verdict(plan, proto, rewritten)


def test_nothing_pruned_is_noticed() -> None:
    found = analysis("residual_identity")
    plan = secateur.Plan(found, at_random(found, 0.25, 0))
    rewritten = secateur.rewrite(plan)
    assert verdict(plan, to_proto(rewritten.model), rewritten)
    assert not verdict(plan, GRAPHS["residual_identity"](), rewritten)
