"""The pass recover and branches: one that all samples take is refitted, the others stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from secateur.ir.io import to_proto

from .pass_runs import build, run
from .test_recover import (
    RESIDUAL,
    check_drifts,
    correlated,
    error,
    outputs,
    pruned,
    residual,
    residual_weights,
    samples,
)

BRANCHES = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    most = ReduceMax<keepdims = 0>(x)  few = Less(most, top)
    y = If(few) <
        then_branch = t () => (float[N, 5] y1) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0)  s = Relu(a)
            large = Greater(most, top)
            d = If(large) <
                then_branch = t2 () => (float[N, 16, 8, 8] d1) {
                    c1 = Conv<pads = [1, 1, 1, 1]>(s, w6, b6)  d1 = Abs(c1)
                },
                else_branch = e2 () => (float[N, 16, 8, 8] d2) {
                    c2 = Conv<pads = [1, 1, 1, 1]>(s, w1, b1)  d2 = Relu(c2)
                }
            >
            e = Conv<pads = [1, 1, 1, 1]>(d, w2, b2)  f = Add(e, s)  h = Relu(f)
            p = GlobalAveragePool(h)  q = Flatten(p)  y1 = Gemm<transB = 1>(q, w3, b3)
        },
        else_branch = e () => (float[N, 5] y2) {
            o = Conv<pads = [1, 1, 1, 1]>(x, w4)  p2 = GlobalAveragePool(o)  q2 = Flatten(p2)
            y2 = Gemm<transB = 1>(q2, w5, OTHER)
        }
    >
}"""


def branches(top: float, other: str = "b5") -> onnx.ModelProto:
    """The residual block in a branch that is taken where no number is above ``top``; ``other`` is
    the bias at the end of the other branch."""
    weights = residual_weights()
    weights |= {"w4": correlated((12, 3, 3, 3), 4), "w5": correlated((5, 12), 5)}
    weights |= {"w6": correlated((16, 12, 3, 3), 6), "b6": weights["b1"] + 1}
    weights |= {"b5": weights["b3"] + 1} if other == "b5" else {}
    return build(BRANCHES.replace("OTHER", other), top=np.array(top, np.float32), **weights)


def test_branches_that_all_samples_take_are_refitted() -> None:
    """As well as the same layers in the main graph, and the other branches stay as they are."""
    original, fresh = branches(100.0), samples(64, seed=1)
    data = {"x": samples()}
    alone = pruned(original, "prune{ratio=0.4}", calibration=data)
    both = pruned(original, "prune{ratio=0.4},recover", calibration=data)
    flat = pruned(residual(), "prune{ratio=0.4},recover", calibration=data)
    assert error(both.model, original, fresh) < 0.5 * error(alone.model, original, fresh)
    assert set(both.report["refitted"]) == set(flat.report["refitted"]) != set()
    assert [n.op_type for n in to_proto(both.model).graph.node].count("If") == 1
    check_drifts(alone, both, original, data["x"])
    aside = 200 + fresh
    np.testing.assert_array_equal(outputs(both.model, aside), outputs(alone.model, aside))


def test_what_the_other_branch_reads_stays() -> None:
    original, data, aside = branches(100.0, "b3"), {"x": samples()}, 200 + samples(64, seed=1)
    alone = pruned(original, "prune{ratio=0.4}", calibration=data)
    both = pruned(original, "prune{ratio=0.4},recover", calibration=data)
    assert {"w2", "w3"} <= set(both.report["refitted"])
    assert "b3" not in both.report["refitted"]
    np.testing.assert_array_equal(outputs(both.model, aside), outputs(alone.model, aside))


def test_a_weight_that_a_branch_gives_keeps_its_name() -> None:
    """What is refitted is in the model, and the drift is that of what is written."""
    text = RESIDUAL.replace(
        "c = Conv<pads = [1, 1, 1, 1]>(s, w1, b1)",
        """most = ReduceMax<keepdims = 0>(x)  few = Less(most, top)
        w = If(few) <
            then_branch = t () => (float[16, 12, 3, 3] wa) {
                wa = Constant<value = float[16, 12, 3, 3] {NUMBERS}>()
            },
            else_branch = e () => (float[16, 12, 3, 3] wb) { wb = Abs(w1) }
        >
        c = Conv<pads = [1, 1, 1, 1]>(s, w, b1)""",
    )
    weights = residual_weights() | {"top": np.array(100, np.float32)}
    numbers = ", ".join(f"{n:.6f}" for n in weights["w1"].ravel())
    original, data = build(text.replace("NUMBERS", numbers), **weights), {"x": samples()}
    alone = pruned(original, "prune{ratio=0.4}", calibration=data)
    both = pruned(original, "prune{ratio=0.4},recover", calibration=data)
    assert both.report["refitted"] and "w" not in both.report["refitted"]
    check_drifts(alone, both, original, data["x"])


def test_a_branch_that_refitting_leaves() -> None:
    """A condition over what is refitted may change with it; the drift is that of the whole."""
    end = "p = GlobalAveragePool(h)  q = Flatten(p)  y = Gemm<transB = 1>(q, w3, b3)"
    text = RESIDUAL.replace(
        end,
        f"""m = ReduceMean<keepdims = 0>(h)  few = Less(m, top)
        y = If(few) <
            then_branch = t () => (float[N, 5] y1) {{ {end.replace(" y =", " y1 =")} }},
            else_branch = e () => (float[N, 5] y2) {{
                p2 = GlobalMaxPool(h)  q2 = Flatten(p2)  y2 = Gemm<transB = 1>(q2, w3, b3)
            }}
        >""",
    )
    x, weights = samples(), residual_weights() | {"top": np.array(np.inf, np.float32)}
    means = []
    for pipeline in ("prune{ratio=0.4}", "prune{ratio=0.4},recover"):
        found = to_proto(pruned(build(text, **weights), pipeline, calibration={"x": x}).model)
        found.graph.output.append(onnx.ValueInfoProto(name="m"))
        means.append(max(float(run(found, {"x": x[k : k + 64]})[1]) for k in range(0, 200, 64)))
    assert means[0] != means[1]
    for top in (np.mean(means), max(means) + 1):
        weights["top"] = np.array(top, np.float32)
        original = build(text, **weights)
        alone = pruned(original, "prune{ratio=0.4}", calibration={"x": x})
        both = pruned(original, "prune{ratio=0.4},recover", calibration={"x": x})
        wanted, before, after = (
            np.concatenate([outputs(m, x[k : k + 64]) for k in range(0, 200, 64)])
            for m in (original, alone.model, both.model)
        )
        drifts = [np.sqrt(np.square(m - wanted).mean() / wanted.var()) for m in (before, after)]
        statistics = both.results[-1].statistics
        assert statistics["drift-before"] == pytest.approx(drifts[0], rel=0.02)
        assert statistics["drift"] == pytest.approx(drifts[1], rel=0.02)
        assert drifts[1] <= drifts[0]


def test_branches_that_some_samples_take_stay() -> None:
    original, x = branches(3.0), samples(8)
    seen = {bool(sample.max() < 3.0) for sample in x}
    assert seen == {True, False}
    result = pruned(original, "prune{ratio=0.4},recover", calibration={"x": x}, dims={"N": 1})
    assert result.report["refitted"] == []
