"""Sizes that only the data tells: they are dynamic, and nothing but their own axes stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import parser

import secateur
from secateur.ir.io import to_proto
from secateur.ir.shapes import Skeleton, infer_bindings

from .graphs import GRAPHS, feeds
from .pruning_checks import at_random, constants, run

HEADER = '<ir_version: 8, opset_import: ["" : 17]> g '

OPEN = {
    "NonZero": "(float[2,3] x) => (int64[2,k] y) { y = NonZero(x) }",
    "NonMaxSuppression": """(float[1,6,4] b, float[1,2,6] s) => (int64[k,3] y)
        { y = NonMaxSuppression(b, s) }""",
    "Unique": "(float[4,3] x) => (float[4,k] y, int64[k] c) { y, i, v, c = Unique<axis=1>(x) }",
    "Unique, all": "(float[4,3] x) => (float[k] y) { y = Unique(x) }",
    "Compress": "(float[4,3] x, bool[3] f) => (float[4,k] y) { y = Compress<axis=1>(x, f) }",
    "Compress, all": "(float[4,3] x, bool[12] f) => (float[k] y) { y = Compress(x, f) }",
    "behind a reshape": """(float[2,3] x) => (int64[k] y) <int64[1] flat = {-1}>
        { n = NonZero(x) y = Reshape(n, flat) }""",
}


@pytest.mark.parametrize("name", OPEN)
def test_only_axes_that_the_data_tells_are_dynamic(name: str) -> None:
    """The outputs declare them with a name, and the others with their size."""
    model = parser.parse_model(HEADER + OPEN[name])
    first, second = infer_bindings(Skeleton(oir.from_proto(model)), {})
    for output in model.graph.output:
        dims = output.type.tensor_type.shape.dim
        shapes = [facts.types[output.name][1] for facts in (first, second)]
        for dim, a, b in zip(dims, *shapes, strict=True):
            assert (a != b) if dim.dim_param else (a == b == dim.dim_value)
        assert first.types[output.name][0] == output.type.tensor_type.elem_type


def test_known_flags_leave_nothing_open() -> None:
    model = parser.parse_model(
        HEADER
        + """(float[4,3] x) => (float[4,2] y) <bool[3] f = {1, 0, 1}>
        { y = Compress<axis=1>(x, f) }"""
    )
    (facts,) = infer_bindings(Skeleton(oir.from_proto(model)), {})
    assert facts.types["y"][1] == (4, 2)


def one_picture(name: str) -> onnx.ModelProto:
    """A graph without symbolic dimensions among its inputs, that chooses up to 60 boxes."""
    model = GRAPHS[name]()
    most = onnx.numpy_helper.from_array(np.array([60], np.int64), "most")
    constants(model)["most"].CopyFrom(most)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return model


@pytest.mark.parametrize("name", ["detector", "regions_of_interest"])
def test_detection_keeps_what_it_finds(name: str) -> None:
    """Boxes and classes stay; the count of boxes stays computed, though no input is dynamic."""
    model = one_picture(name)
    found = secateur.analyze(model)
    assert found.warnings == []
    plan = secateur.Plan(found, at_random(found, 0.5, 0))
    rewritten = secateur.rewrite(plan)
    assert secateur.certify(plan, rewritten, threads=1).ok
    pruned = to_proto(rewritten.model)
    after = constants(pruned)
    assert after["wb"].dims[0] == 4 and after["ws"].dims[0] == 2
    assert after["wb"].dims[1] == after["ws"].dims[1] == 6
    counts: set[int] = set()
    for seed in range(8):
        feed = feeds(model, seed=seed)
        counts.update(array.shape[0] for array in run(pruned, feed).values())
    assert len(counts) > 1, "the number of boxes should differ between pictures"


def test_the_backbone_is_free_of_what_the_heads_hold() -> None:
    found = secateur.analyze(one_picture("detector"))
    pinned = {pin.reason for pin in found.coupling.pins}
    assert "boxes and classes are told by their numbers" in pinned
    for name in ("w0", "w1"):
        (weight,) = (w for w in found.weights if w.name == name)
        units = found.units_of(weight.axes[0][0])
        assert units is not None and (units >= 0).all()


def test_a_size_that_follows_from_a_count_is_not_written_down() -> None:
    """Features of the places that are not zero: as many rows as places, before and after."""
    model = parser.parse_model(
        HEADER
        + """(float[2,3,4,4] x) => (float[k,5] y) {
            h = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(h) m = ReduceMax<axes=[1], keepdims=0>(x)
            p = Relu(m) n = NonZero(p) at = Transpose(n) v = GatherND(t, at)
            s = Shape(v) z = ConstantOfShape(s) q = Add(v, z) y = MatMul(q, u)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 3, 1, 1)), ("u", (8, 5))):
        tensor = onnx.numpy_helper.from_array(rng.standard_normal(shape).astype("f4"), name)
        model.graph.initializer.append(tensor)
    found = secateur.analyze(model)
    plan = secateur.Plan(found, at_random(found, 0.5, 0))
    rewritten = secateur.rewrite(plan)
    assert secateur.certify(plan, rewritten, threads=1).ok
    assert constants(to_proto(rewritten.model))["w"].dims[0] == 4
