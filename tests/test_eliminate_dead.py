"""eliminate-dead: what nobody uses goes, what somebody may use stays."""

from __future__ import annotations

import numpy as np

from secateur.passes.eliminate_dead import EliminateDead

from .pass_runs import apply, build, compare, normal, ops, stored


def test_dead_nodes_weights_and_functions_go() -> None:
    old = build(
        """
        g (float[N,4] x, float[4] default) => (float[N,4] y) {
            a = MatMul (x, w)
            y = Relu (a)
            b = MatMul (a, dead1)
            c = my.twice (b)
        }
        <domain: "my", opset_import: ["": 18]> twice (v) => (r) { unused = Neg (v) r = Add (v, v) }
        <domain: "my", opset_import: ["": 18]> other (v) => (r) { r = Neg (v) }
        """,
        header=', "my": 1, "extra": 7',
        w=normal(4, 4),
        dead1=normal(4, 4),
        dead2=normal(3),
        default=normal(4),
    )
    new, result = apply(EliminateDead(), old)
    assert ops(new.graph.node) == ["MatMul", "Relu"]
    assert set(stored(new)) == {"w", "default"}
    assert not new.functions
    assert list(new.opset_import) == list(old.opset_import)
    assert dict(result.statistics) == {
        "nodes-removed": 2,
        "initializers-removed": 2,
        "functions-removed": 2,
    }
    compare(old, new, x=normal(2, 4))


def test_dead_nodes_inside_a_live_function_go() -> None:
    old = build(
        """
        g (float[N,4] x) => (float[N,4] y) { y = my.twice (x) }
        <domain: "my", opset_import: ["": 18]> twice (v) => (r) { unused = Neg (v) r = Add (v, v) }
        """,
        header=', "my": 1',
    )
    new, _ = apply(EliminateDead(), old)
    assert ops(new.functions[0].node) == ["Add"]
    compare(old, new, x=normal(2, 4))


IF = """
    g (float[N,4] x, bool c) => (float[N,4] y) {{
        kept = Mul (x, w)
        freed = Mul (x, v)
        {name} = If (c) <
            then_branch = t () => (float[N,4] t0) {{ gone = Neg (freed) t0 = Relu (kept) }},
            else_branch = e () => (float[N,4] e0) {{ e0 = Neg (kept) }}
        >
        {last}
    }}
"""


def test_captured_values_are_uses_and_dead_captures_are_not() -> None:
    old = build(IF.format(name="y", last=""), w=normal(4), v=normal(4))
    new, result = apply(EliminateDead(), old)
    assert ops(new.graph.node) == ["Mul", "If"]
    assert list(stored(new)) == ["w"]
    assert result.statistics["nodes-removed"] == 2
    for c in (True, False):
        compare(old, new, x=normal(2, 4), c=np.array(c))


def test_a_dead_if_frees_what_it_captured() -> None:
    old = build(IF.format(name="unused", last="y = Neg (x)"), w=normal(4), v=normal(4))
    new, _ = apply(EliminateDead(), old)
    assert ops(new.graph.node) == ["Neg"]
    assert not stored(new)
    compare(old, new, x=normal(2, 4), c=np.array(True))


def test_an_unknown_operator_is_kept() -> None:
    old = build(
        "g (float[4] x) => (float[4] y) { a = lab.Log (x) b = Neg (a) y = Relu (x) }",
        header=', "lab": 1',
    )
    new, _ = apply(EliminateDead(), old)
    assert ops(new.graph.node) == ["Log", "Relu"]


def test_scales_of_a_quantization_annotation_are_kept() -> None:
    old = build("g (float[4] x) => (float[4] y) { y = Relu (x) }", s=normal(1), t=normal(1))
    entry = old.graph.quantization_annotation.add(tensor_name="y")
    entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    new, _ = apply(EliminateDead(), old)
    assert list(stored(new)) == ["s"]
    assert list(new.graph.quantization_annotation) == list(old.graph.quantization_annotation)
