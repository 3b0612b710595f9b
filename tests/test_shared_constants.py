"""Constants that several nodes read: which uses are tied, and what is stored how often."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

import secateur
from secateur.ir.analysis import Analysis
from secateur.ir.coupling import Flags
from secateur.ir.io import to_proto
from secateur.ir.rewrite import Rewritten, rewrite

from .graph_builder import Weight, build, net
from .graphs import GRAPHS
from .pruning_checks import analysis, arrays, constants

IN_TWO = "(float[N,4] x) => (float[N,4] y, float[N,4] z)"


def found(signature: str, body: str, **weights: Weight) -> Analysis:
    return secateur.analyze(build("g", net(signature, body, **weights), 17, "initializers"))


def groups_of(analysed: Analysis, name: str) -> set[int]:
    """The numbers of the groups that some use of a constant belongs to."""
    weight = next(w for w in analysed.weights if w.name == name)
    units = [analysed.units_of(axis) for axes in weight.axes for axis in axes]
    return {int(analysed.group_of_unit[u]) for k in units if k is not None for u in k if u >= 0}


def removed(analysed: Analysis, **places: list[int]) -> Flags:
    """The units that hold these coordinates of a weight's last axis."""
    flags = np.zeros(analysed.unit_count, np.bool_)
    for name, coordinates in places.items():
        units = analysed.units_of(analysed.operands[name].axis(-1))
        assert units is not None
        flags[units[coordinates]] = True
    return flags


def certified(analysed: Analysis, flags: Flags) -> Rewritten:
    plan = secateur.Plan(analysed, flags)
    rewritten = secateur.rewrite(plan)
    certificate = secateur.certify(plan, rewritten, threads=1)
    assert certificate.ok, certificate.describe()
    return rewritten


# ---- cut for each use ---------------------------------------------------------------------------


def test_a_table_is_stored_once_while_its_uses_agree() -> None:
    analysed = analysis("table_added_twice")
    rewritten = certified(analysed, removed(analysed, u0=[1, 5], u1=[1, 5]))
    after = arrays(to_proto(rewritten.model))
    assert rewritten.copies == [] and set(after) == set(arrays(GRAPHS["table_added_twice"]()))
    assert after["table"].shape == (6, 14)
    assert next(s.indices for s in rewritten.slices if s.tensor == "table") == (1, 5)


@pytest.mark.parametrize("second", [[], [1, 2, 3]])
def test_a_table_is_stored_twice_where_they_do_not(second: list[int]) -> None:
    analysed = analysis("table_added_twice")
    rewritten = certified(analysed, removed(analysed, u0=[1, 5], u1=second))
    before = arrays(GRAPHS["table_added_twice"]())["table"]
    after = arrays(to_proto(rewritten.model))
    assert {(c.stored_as, c.axis, c.indices) for c in rewritten.copies} == {
        ("table" if second else "table_1", 1, (1, 5)),
        ("table_1" if second else "table", 1, tuple(second)),
    }
    for copy in rewritten.copies:
        assert copy.tensor == "table"
        np.testing.assert_array_equal(
            after[copy.stored_as], np.delete(before, copy.indices, copy.axis)
        )
    both = [s.indices for s in rewritten.slices if s.tensor == "table"]
    assert both == ([(1,)] if second else [])


def test_dimensions_of_heads_part_between_layers() -> None:
    """Rotations that two layers share: each keeps its own pairs of dimensions."""
    analysed = analysis("rotations_of_two_layers", "head-dim")
    cosines = groups_of(analysed, "cos")
    assert len(cosines) == 2 and cosines == groups_of(analysed, "sin")
    assert groups_of(analysed, "wq0") | groups_of(analysed, "wq1") == cosines
    rewritten = certified(analysed, removed(analysed, wq0=[0], wq1=[1, 2]))
    after = arrays(to_proto(rewritten.model))
    assert sorted((n, a.shape) for n, a in after.items() if n[:3] in ("cos", "sin")) == [
        ("cos", (6, 6)), ("cos_1", (6, 4)), ("sin", (6, 6)), ("sin_1", (6, 4)),
    ]  # fmt: skip


def test_slices_of_one_axis_leave_the_others_free() -> None:
    """Every layer takes as many rows of the bias as it needs; heads are cut for each layer."""
    analysed = analysis("bias_of_heads_sliced")
    assert len(groups_of(analysed, "bias")) == 2


def test_slices_that_take_a_vector_apart_share_it() -> None:
    """A clone for each would keep what its slice leaves out."""
    analysed = found(
        IN_TWO,
        """a = MatMul(x, u) one = Slice(b, i0, i8, i0) ab = Add(a, one) y = MatMul(ab, v)
        c = MatMul(x, w) two = Slice(b, i8, i16, i0) cd = Add(c, two) z = MatMul(cd, t)""",
        u=(4, 8), v=(8, 4), w=(4, 8), t=(8, 4), b=16, i0=[0], i8=[8], i16=[16],
    )  # fmt: skip
    rewritten = certified(analysed, removed(analysed, u=[0, 3], w=[1]))
    assert rewritten.copies == []
    assert arrays(to_proto(rewritten.model))["b"].shape == (13,)


def test_a_table_behind_a_node_of_each_use() -> None:
    """Transposed by a node for each layer: nothing ties the layers."""
    assert len(groups_of(analysis("table_in_two_layouts"), "c0")) == 2


# ---- tied ---------------------------------------------------------------------------------------

TIED: dict[str, tuple[str, dict[str, Weight]]] = {
    "contracted twice": (
        "a = MatMul(x, w) y = MatMul(a, v) c = MatMul(x, w) r = Relu(c) z = MatMul(r, t)",
        {"w": (4, 8), "v": (8, 4), "t": (8, 4)},
    ),
    "transposed by two nodes": (
        """t1 = Transpose<perm=[1,0]>(w) a = MatMul(x, t1) y = MatMul(a, v)
        t2 = Transpose<perm=[1,0]>(w) c = MatMul(x, t2) r = Relu(c) z = MatMul(r, t)""",
        {"w": (8, 4), "v": (8, 4), "t": (8, 4)},
    ),
    "transposed, and as it is": (
        """t1 = Transpose<perm=[1,0]>(w) a = MatMul(x, t1) y = MatMul(a, v)
        c = Gemm<transB=1>(x, w) r = Relu(c) z = MatMul(r, t)""",
        {"w": (8, 4), "v": (8, 4), "t": (8, 4)},
    ),
    "contracted, and added": (
        """a = MatMul(x, w) y = MatMul(a, v)
        c = MatMul(x, u) e = Unsqueeze(c, i1) m = Mul(e, w) s = ReduceSum<keepdims=0>(m, i1)
        z = MatMul(s, t)""",
        {"w": (4, 8), "v": (8, 4), "u": (4, 8), "t": (8, 4), "i1": [1]},
    ),
    "scaled first": (
        """w1 = Mul(w, half) a = MatMul(x, w1) y = MatMul(a, v)
        w2 = Neg(w) c = MatMul(x, w2) r = Relu(c) z = MatMul(r, t)""",
        {"w": (4, 8), "v": (8, 4), "t": (8, 4), "half": 0.5},
    ),
}


@pytest.mark.parametrize("name", TIED)
def test_weights_are_tied(name: str) -> None:
    body, weights = TIED[name]
    analysed = found(IN_TWO, body, **weights)
    assert len(analysed.groups) == 1 and analysed.groups[0].units.size == 8
    flags = np.arange(8) < 3
    rewritten = certified(analysed, flags)
    after = arrays(to_proto(rewritten.model))
    assert rewritten.copies == [] and set(after) == set(weights)
    assert after["w"].size == 5 * 4


def test_a_table_of_tokens_is_tied_where_it_is_looked_up_twice() -> None:
    analysed = found(
        "(int64[N] i, int64[N] j) => (float[N,4] y, float[N,4] z)",
        """a = Gather(w, i) ar = Relu(a) y = MatMul(ar, v)
        c = Gather(w, j) cs = Sigmoid(c) z = MatMul(cs, t)""",
        w=(10, 8), v=(8, 4), t=(8, 4),
    )  # fmt: skip
    assert [g.units.size for g in analysed.groups] == [8]


def test_a_depthwise_weight_ties_two_branches() -> None:
    analysed = analysis("siamese_on_two_streams")
    (group,) = groups_of(analysed, "wd")
    assert groups_of(analysed, "w1") == {group} == groups_of(analysed, "w2")


def test_weights_that_are_inputs_as_well() -> None:
    """Before IR version 4: the table itself is cut, and its copy is a Constant node."""
    parts = net(
        IN_TWO,
        """a = MatMul(x, u) b = Add(a, m) r = Relu(b) y = MatMul(r, v)
        c = MatMul(x, w) d = Add(c, m) q = Relu(d) z = MatMul(q, t)""",
        u=(4, 8), v=(8, 4), w=(4, 8), t=(8, 4), m=(1, 8),
    )  # fmt: skip
    model = build("g", parts, 8, "inputs")
    analysed = secateur.analyze(model)
    rewritten = rewrite(analysed, removed(analysed, u=[0], w=[1, 2]))
    pruned = to_proto(rewritten.model)
    held = {name: numpy_helper.to_array(t).shape for name, t in constants(pruned).items()}
    assert held["m"] == (1, 7) and held["m_1"] == (1, 6)
    assert {t.name for t in pruned.graph.initializer} == set(arrays(model))
