"""Every proof graph, pruned in many ways: certified, well formed, and equal to what numpy says.

Two references that share nothing with `secateur.runtime.certificate` stand beside it: the original
with the reported slices set to zero (`replayed`), and, for a choice of graphs, the original with
the consumers of chosen channels set to zero as worked out by hand (`HAND`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import onnx
import onnx_ir as oir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import secateur
from secateur.ir.analysis import Analysis
from secateur.ir.coupling import Flags
from secateur.ir.errors import CertificateError
from secateur.ir.io import to_proto
from secateur.ir.rewrite import Rewritten
from secateur.ir.units import Group

from .graphs import GRAPHS, INFO, Array, feeds

RUNNABLE = [name for name, info in INFO.items() if info.runnable]
RATIOS = (0.25, 0.5, 0.8)
Carrier = Literal["heads", "largest"]
CARRIERS: tuple[Carrier, Carrier] = ("heads", "largest")
Slices = Iterable[tuple[str, int, Iterable[int]]]


def dims(name: str, size: int = 2) -> dict[str, int]:
    return {dim: size + i for i, dim in enumerate(INFO[name].dims)}


@cache
def analysis(name: str, carrier: Carrier = "heads") -> Analysis:
    return secateur.analyze(GRAPHS[name](), dims=dims(name), carrier=carrier)


def prunable(found: Analysis, inexact: bool = False) -> list[Group]:
    return [g for g in found.groups if len(g.units) > 1 and (g.exact or inexact)]


def at_random(found: Analysis, ratio: float, seed: int, inexact: bool = False) -> Flags:
    """A random share of the units of every group, at least one kept and one removed."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(found.unit_count, np.bool_)
    for group in prunable(found, inexact):
        count = len(group.units)
        gone = min(max(round(count * ratio), 1), count - 1)
        removed[rng.choice(group.units, gone, replace=False)] = True
    return removed


def run(model: onnx.ModelProto, feed: Mapping[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers, and Constant nodes by the name of their output."""
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found


def zeroed(model: onnx.ModelProto, slices: Slices) -> onnx.ModelProto:
    """A copy of the model with slices of its constants set to zero."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    held = constants(copy)
    for name, axis, indices in slices:
        array = numpy_helper.to_array(held[name]).copy()
        array[(slice(None),) * axis + (list(indices),)] = 0
        held[name].CopyFrom(numpy_helper.from_array(array, held[name].name))
    return copy


def assert_same(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype
        tolerance = 4e-3 if array.dtype == np.float16 else 1e-5
        scale = float(np.abs(array.astype(np.float64)).max())
        np.testing.assert_allclose(got[name], array, rtol=0, atol=tolerance * scale, err_msg=name)


def check_model(name: str, model: onnx.ModelProto) -> None:
    if not INFO[name].deprecated:
        onnx.checker.check_model(model, full_check=True)


def check_interface(original: onnx.ModelProto, pruned: onnx.ModelProto) -> None:
    """Inputs and outputs as they were, symbolic dimensions among them."""
    held = {t.name for t in original.graph.initializer}
    assert [i.name for i in pruned.graph.input] == [i.name for i in original.graph.input]
    for before, after in zip(original.graph.input, pruned.graph.input, strict=True):
        assert before.name in held or before == after
    assert list(pruned.graph.output) == list(original.graph.output)


def check_pruned(
    name: str,
    rewritten: Rewritten,
    *,
    exact: bool,
    sizes: Iterable[int] = (2, 5),
    original: onnx.ModelProto | None = None,
) -> onnx.ModelProto:
    """Valid, same interface, and at two batch sizes the original with the slices zeroed."""
    original, pruned = original or GRAPHS[name](), to_proto(rewritten.model)
    check_model(name, pruned)
    check_interface(original, pruned)
    replay = zeroed(original, ((s.tensor, s.axis, s.indices) for s in rewritten.slices))
    for size in sizes:
        feed = feeds(original, seed=size, **dims(name, size))
        got, reference = run(pruned, feed), run(replay, feed)
        if exact:
            assert_same(got, reference)
        assert {k: (v.shape, v.dtype) for k, v in got.items()} == {
            k: (v.shape, v.dtype) for k, v in reference.items()
        }
    return pruned


def prune_random(
    name: str, ratio: float, seed: int, *, inexact: bool = False, carrier: Carrier = "heads"
) -> tuple[secateur.Plan, Rewritten]:
    found = analysis(name, carrier)
    plan = secateur.Plan(found, at_random(found, ratio, seed, inexact))
    rewritten = secateur.rewrite(plan)
    certificate = secateur.certify(plan, rewritten, threads=1, seed=seed)
    assert certificate.ok, certificate.describe()
    assert certificate.notes == ()
    assert certificate.bindings == ((dims(name), {k: 2 * v for k, v in dims(name).items()}))
    exact = not any(plan.removed[g.units].any() for g in found.groups if not g.exact)
    if exact:
        assert certificate.replay is not None and certificate.replay["agrees"]
    check_pruned(name, rewritten, exact=exact)
    return plan, rewritten


# ---- what is found and what shrinks -------------------------------------------------------------


@pytest.mark.parametrize("name", INFO)
def test_expected_groups(name: str) -> None:
    assert len(prunable(analysis(name))) >= INFO[name].exact_groups


@pytest.mark.parametrize("name", INFO)
def test_expected_weights_shrink_and_stay(name: str) -> None:
    found = analysis(name)
    removed = at_random(found, 0.5, 0)
    rewritten = secateur.rewrite(secateur.Plan(found, removed))
    before, after = constants(GRAPHS[name]()), constants(to_proto(rewritten.model))
    for tensor in INFO[name].must_shrink:
        assert np.prod(after[tensor].dims) < np.prod(before[tensor].dims), tensor
    for tensor in INFO[name].must_stay:
        assert after[tensor] == before[tensor], tensor
    assert {s.tensor for s in rewritten.slices} >= set(INFO[name].must_shrink)


# ---- certified and run --------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", RUNNABLE)
def test_random_units(name: str, ratio: float) -> None:
    for seed in (0, 1):
        prune_random(name, ratio, seed)


@pytest.mark.parametrize("name", RUNNABLE)
def test_one_unit_left_in_every_group(name: str) -> None:
    plan, _ = prune_random(name, 1.0, 2)
    assert all((~plan.removed[g.units]).sum() == 1 for g in prunable(plan.analysis))


@pytest.mark.parametrize("name", RUNNABLE)
def test_largest_carrier(name: str) -> None:
    prune_random(name, 0.5, 3, carrier="largest")


def test_the_largest_carrier_reaches_inside_the_heads() -> None:
    """Two heads of eight: units are whole heads, or one place of all heads at once."""
    model = GRAPHS["separate_qkv"]()
    constants(model)["split4"].CopyFrom(numpy_helper.from_array(np.array([0, 0, 2, 8]), "split4"))
    heads, places = (secateur.analyze(model, dims={"N": 1, "T": 3}, carrier=c) for c in CARRIERS)
    for found, wanted in (
        (heads, [range(8), range(8, 16)]),
        (places, [(k, k + 8) for k in range(8)]),
    ):
        units = found.units_of(next(w for w in found.weights if w.name == "wv").axes[0][1])
        assert units is not None
        columns = [tuple(np.flatnonzero(units == unit)) for unit in np.unique(units)]
        assert sorted(columns) == [tuple(w) for w in wanted]
        plan = secateur.Plan(found, at_random(found, 0.5, 9))
        assert secateur.certify(plan, secateur.rewrite(plan), threads=1).ok


INEXACT = ["swin_block", "transformer_decomposed_norm", "transformer_layer_norm", "mlp_mixer",
           "convnext"]  # fmt: skip


@pytest.mark.parametrize("name", RUNNABLE)
def test_inexact_groups_are_where_a_norm_looks_across(name: str) -> None:
    found = analysis(name)
    assert any(not g.exact and len(g.units) > 1 for g in found.groups) == (name in INEXACT)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", INEXACT)
def test_inexact(name: str, ratio: float) -> None:
    for seed in (0, 1):
        plan, _ = prune_random(name, ratio, seed, inexact=True)
        assert any(plan.removed[g.units].any() for g in plan.analysis.groups if not g.exact)


@pytest.mark.parametrize("name", INEXACT)
def test_inexact_with_the_largest_carrier(name: str) -> None:
    prune_random(name, 0.6, 5, inexact=True, carrier="largest")


@pytest.mark.parametrize("name", INEXACT)
def test_inexact_with_one_unit_left(name: str) -> None:
    """A norm over a single channel."""
    prune_random(name, 1.0, 6, inexact=True)


@pytest.mark.parametrize("name", RUNNABLE)
def test_lowest_norm(name: str) -> None:
    for number, ratio in enumerate(RATIOS):
        result = secateur.prune(
            GRAPHS[name](), ratio=ratio, dims=dims(name), seed=10 * number, threads=1, bench=False
        )
        assert result.certificate is not None and result.certificate.ok
        assert result.certificate.seeds == tuple(10 * number + k for k in range(3))
        assert result.certificate.replay is not None and result.certificate.replay["agrees"]
        pruning = result.pruning
        assert pruning is not None
        check_pruned(name, Rewritten(result.model, pruning.slices), exact=True, sizes=[3])


@pytest.mark.parametrize("name", RUNNABLE)
def test_round_to(name: str) -> None:
    """Every group keeps a multiple of two channels of each weight that produces it, or all."""
    result = secateur.prune(
        GRAPHS[name](), ratio=0.4, round_to=2, dims=dims(name), threads=1, bench=False
    )
    pruning = result.pruning
    assert pruning is not None
    rewritten = Rewritten(result.model, pruning.slices)
    after = constants(check_pruned(name, rewritten, exact=True))
    for entry in rewritten.slices:
        if entry.role == "producer":
            axis = next(w for w in analysis(name).weights if w.name == entry.tensor).axes[0][
                entry.axis
            ]
            units = analysis(name).units_of(axis)
            assert units is not None
            groups = np.where(units < 0, -1, analysis(name).group_of_unit[units])
            kept = np.delete(groups, list(entry.indices))
            assert kept.size == after[entry.tensor].dims[entry.axis]
            for group in np.unique(groups[list(entry.indices)]):
                assert (kept == group).sum() % 2 == 0


def test_a_model_that_cannot_run_is_refused() -> None:
    with pytest.raises(CertificateError, match="Mystery"):
        secateur.prune(GRAPHS["custom_operator"](), ratio=0.5, dims={"N": 2}, bench=False)
    found = analysis("custom_operator")
    rewritten = secateur.rewrite(secateur.Plan(found, at_random(found, 0.5, 0)))
    pruned = to_proto(rewritten.model)
    onnx.checker.check_model(pruned, full_check=True)
    shapes = {t: list(p.dims) for t, p in constants(pruned).items()}
    assert shapes["w1"] == [8, 3, 3, 3] and shapes["w2"] == [8, 8, 3, 3]
    assert shapes["w3"] == [8, 8, 3, 3] and shapes["w4"] == [4, 8, 3, 3]


# ---- references written by hand -----------------------------------------------------------------


@dataclass(frozen=True)
class Hand:
    """Channels ``gone`` of one weight axis are pruned; ``zeros`` are all places that read them."""

    weight: str
    axis: int
    gone: tuple[int, ...]
    zeros: tuple[tuple[str, int, tuple[int, ...]], ...]


HAND: dict[str, list[Hand]] = {
    "weights_in_constants": [Hand("w1", 0, (1, 5), (("w2", 1, (1, 5)),))],
    "weights_as_inputs": [Hand("w2", 0, (0, 23), (("wy", 0, (0, 23)),))],
    "fp16": [Hand("w1", 0, (2, 3, 9), (("w2", 1, (2, 3, 9)),))],
    "dq_weights": [Hand("w1", 0, (2, 3, 9), (("w2", 1, (2, 3, 9)),))],
    "opset7": [Hand("w1", 0, (15,), (("w2", 1, (15,)),))],
    "gemm_forms": [
        Hand("w2", 0, (0, 7), (("w3", 0, (0, 7)),)),
        Hand("w3", 1, (5, 6, 7), (("w4", 1, (5, 6, 7)),)),
        Hand("w1", 1, (3,), (("w2", 1, (3,)),)),
    ],
    "gemm_transposed_weight": [Hand("w1", 1, (4,), (("w2", 1, (4,)),))],
    "matmul_experts_4d": [
        Hand("w1", 1, (2,), (("w2", 1, (2,)),)),
        Hand("w1", 3, (6, 7), (("w2", 2, (6, 7)),)),
    ],
    "tied_convs": [Hand("w1", 0, (4,), (("w2", 1, (4,)), ("wy", 1, (4,))))],
    "residual_identity": [
        Hand("w0", 0, (2, 3), (("w1", 1, (2, 3)), ("w3", 1, (2, 3)), ("wy", 1, (2, 3))))
    ],
    "option_a": [  # four channels are padded in front of the eight of the stream
        Hand("w0", 0, (1,), (("w1", 1, (1,)), ("w3", 1, (1,)), ("wy", 1, (5,)))),
        Hand("w4", 0, (0, 15), (("wy", 1, (0, 15)),)),
    ],
    "option_a_computed_pads": [
        Hand("w2", 0, (6,), (("w1", 1, (6,)), ("w3", 1, (6,)), ("wy", 1, (10,))))
    ],
    "dense_concat": [Hand("w1", 0, (2,), (("w2", 1, (18,)), ("wt", 1, (18,))))],
    "inception": [
        Hand("wb2", 0, (3,), (("wo", 1, (11,)),)),
        Hand("wd", 0, (7,), (("wo", 1, (35,)),)),
    ],
    "split_unequal": [
        Hand("w0", 0, (0,), (("wa", 1, (0,)),)),
        Hand("w0", 0, (10,), (("wb", 1, (6,)),)),
    ],
    "chunk_by_slices": [Hand("w0", 0, (11,), (("wy", 1, (3,)),))],
    "channel_shuffle": [Hand("w1", 0, (2,), (("w2", 1, (2,)),))],
    "pixel_shuffle_crd": [Hand("w2", 0, (5,), (("w3", 1, (1,)),))],
    "pixel_shuffle_dcr": [Hand("w2", 0, (10,), (("w3", 1, (2,)),))],
    "space_to_depth": [Hand("w2", 0, (3,), (("w3", 1, (3, 11, 19, 27)),))],
    "squeeze_excite_pool_conv": [
        Hand("w0", 0, (4,), (("w1", 1, (4,)), ("wy", 1, (4,)))),
        Hand("w1", 0, (6, 7), (("w2", 1, (6, 7)),)),
    ],
    "unet_transpose": [
        Hand("wu", 1, (5,), (("w3", 1, (5,)),)),
        Hand("w1", 0, (2,), (("w2", 1, (2,)), ("w3", 1, (14,)))),
    ],
    "depthwise_multiplier": [Hand("w0", 0, (1,), (("w2", 1, (2, 3)),))],
    "grouped_conv": [Hand("w0", 0, (2,), (("wy", 1, (4, 5, 6, 7)),))],
    "conv_transpose": [Hand("w0", 0, (9,), (("w1", 0, (9,)),))],
    "conv_transpose_depthwise": [Hand("w0", 0, (9,), (("wy", 1, (9,)),))],
    "instance_norm": [Hand("w1", 0, (8, 12), (("w2", 1, (8, 12)),))],
    "group_norm_reshape": [Hand("w1", 0, (5,), (("w2", 1, (4, 5)),))],
    "flatten_gemm": [Hand("w1", 0, (2,), (("w2", 1, tuple(range(32, 48))),))],
    "tile_channels": [Hand("w1", 0, (3,), (("wy", 1, (3, 19)),))],
    "fused_qkv_gather": [Hand("wqkv", 1, (9,), (("wo", 0, (8, 9, 10, 11)),))],
    "multi_query_expand": [Hand("wq", 1, (15,), (("wo", 0, (12, 13, 14, 15)),))],
    "single_head_computed_scale": [
        Hand("wq", 1, (1,), (("wk", 1, (1,)),)),
        Hand("wv", 1, (2,), (("wo", 0, (2,)),)),
    ],
    "computed_attention": [Hand("wv", 1, (0,), (("wo", 0, (0, 1, 2, 3)),))],
    "swiglu_fused": [Hand("wgu", 1, (40,), (("wd", 0, (8,)),))],
    "tied_embedding": [Hand("table", 1, (3,), (("w1", 0, (3,)), ("table", 1, (3,))))],
    "computed_rows": [Hand("w1", 1, (0, 1, 2), (("w2", 0, (0, 1, 2)),))],
}  # fmt: skip


def units_at(found: Analysis, weight: str, axis: int, channels: Iterable[int]) -> Flags:
    operand = next(w for w in found.weights if w.name == weight)
    units = found.units_of(operand.axes[0][axis])
    assert units is not None
    removed = np.zeros(found.unit_count, np.bool_)
    removed[units[list(channels)]] = True
    return removed


@pytest.mark.parametrize(
    ("name", "hand"),
    [(n, h) for n, hands in HAND.items() for h in hands],
    ids=lambda v: str(v)[:60],
)
def test_equals_the_reference_written_by_hand(name: str, hand: Hand) -> None:
    found = analysis(name)
    plan = secateur.Plan(found, units_at(found, hand.weight, hand.axis, hand.gone))
    pruned = to_proto(secateur.rewrite(plan).model)
    original = GRAPHS[name]()
    before, after = constants(original), constants(pruned)
    for tensor, axis, indices in hand.zeros:
        assert after[tensor].dims[axis] == before[tensor].dims[axis] - len(indices), tensor
    reference = zeroed(original, hand.zeros)
    for size in (2, 4):
        feed = feeds(original, seed=size, **dims(name, size))
        wanted = run(reference, feed)
        assert_same(run(pruned, feed), wanted)
        unpruned = run(original, feed)
        assert any(not np.allclose(unpruned[k], wanted[k], atol=1e-4) for k in wanted)


# ---- sabotage -----------------------------------------------------------------------------------


def verdict(plan: secateur.Plan, proto: onnx.ModelProto, rewritten: Rewritten) -> bool:
    wrong = replace(rewritten, model=oir.serde.deserialize_model(proto))
    return secateur.certify(plan, wrong, threads=1).ok


@pytest.mark.parametrize("name", RUNNABLE)
def test_swapped_channels_are_noticed(name: str) -> None:
    """Two kept channels of one producing weight trade places; nothing else follows."""
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
    order = [1, 0, *range(2, array.shape[axis])]
    swapped = np.ascontiguousarray(np.take(array, order, axis))
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
    found = analysis(name)
    plan = secateur.Plan(found, at_random(found, 0.5, 0))
    rewritten = secateur.rewrite(plan)
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
    found = analysis(name)
    plan = secateur.Plan(found, at_random(found, 0.5, 0))
    rewritten = secateur.rewrite(plan)
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
    found = analysis(name)
    plan = secateur.Plan(found, at_random(found, 0.5, 0))
    rewritten = secateur.rewrite(plan)
    proto = to_proto(rewritten.model)
    divisor = next(n.input[1] for n in proto.graph.node if n.op_type == "Div")
    held = constants(proto)[divisor]
    assert numpy_helper.to_array(held) == 4
    held.CopyFrom(numpy_helper.from_array(np.array(8**0.5, np.float32), held.name))
    assert not verdict(plan, proto, rewritten)


def test_a_model_that_no_longer_runs_is_an_error() -> None:
    name = "grouped_conv"
    found = analysis(name)
    plan = secateur.Plan(found, at_random(found, 0.5, 0))
    rewritten = secateur.rewrite(plan)
    proto = to_proto(rewritten.model)
    conv = next(n for n in proto.graph.node if any(a.name == "group" for a in n.attribute))
    group = next(a for a in conv.attribute if a.name == "group")
    assert group.i == 2
    group.i = 4
    with pytest.raises(CertificateError, match="candidate"):
        verdict(plan, proto, rewritten)


def test_nothing_pruned_is_noticed() -> None:
    found = analysis("residual_identity")
    plan = secateur.Plan(found, at_random(found, 0.25, 0))
    rewritten = secateur.rewrite(plan)
    assert verdict(plan, to_proto(rewritten.model), rewritten)
    assert not verdict(plan, GRAPHS["residual_identity"](), rewritten)
