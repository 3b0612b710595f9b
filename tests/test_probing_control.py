"""Control flow against ONNX Runtime: what links across the boundary of a body (see `probing`)."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from secateur.ir.analysis import analyze
from secateur.ir.io import load_model
from tests.probing import probe
from tests.probing_runs import Array

LOOP = "<int64 n = {3}, bool yes = {1}>"
CASES: dict[str, tuple[int, int, str]] = {
    "a state and what the body captures": (
        17,
        5,
        f"""g (float[2, 3] x, float[3] b) => (float[2, 3] y) {LOOP} {{
            y = Loop(n, yes, x) <body = l (int64 i, bool c, float[2, 3] s)
                => (bool c, float[2, 3] t) {{ t = Add(s, b) }}> }}""",
    ),
    "a state that turns, and comes back": (
        17,
        5,
        f"""g (float[2, 3] x, float[2, 3] z) => (float[2, 3] y, float[3, 3, 2] turned) {LOOP} {{
            y, turned = Loop(n, yes, x) <body = l (int64 i, bool c, float[2, 3] s)
                => (bool c, float[2, 3] t, float[3, 2] o) {{
                t = Mul(s, z) m = Relu(t) o = Transpose(m) }}> w = Identity(x) }}""",
    ),
    "states that change places": (
        17,
        5,
        f"""g (float[2, 3] x, float[2, 3] z) => (float[2, 3] y, float[2, 3] v) {LOOP} {{
            y, v = Loop(n, yes, x, z) <body = l (int64 i, bool c, float[2, 3] s, float[2, 3] r)
                => (bool c, float[2, 3] r2, float[2, 3] s2) {{
                r2 = Tanh(r) s2 = Add(s, r) }}> }}""",
    ),
    "a state that grows": (
        17,
        3,
        f"""g (float[2, 3] x, float[1, 3] z) => (float[5, 3] y) {LOOP} {{
            y = Loop(n, yes, x) <body = l (int64 i, bool c, float[k, 3] s)
                => (bool c, float[m, 3] t) {{ t = Concat<axis = 0>(s, z) }}> }}""",
    ),
    "no iteration at all": (
        17,
        5,
        """g (float[2, 3] x) => (float[2, 3] y) <int64 n = {0}, bool yes = {1}> {
            y = Loop(n, yes, x) <body = l (int64 i, bool c, float[2, 3] s)
                => (bool c, float[2, 3] t) { t = Neg(s) }> }""",
    ),
    "a condition of the body": (
        17,
        3,
        """g (float[3] x, float limit) => (float[3] y) <bool yes = {1}, int64 n = {4}> {
            y = Loop(n, yes, x) <body = l (int64 i, bool c, float[3] s)
                => (bool d, float[3] t) { t = Add(s, s) u = Cast<to = 1>(i)
                d = Less(u, limit) }> }""",
    ),
    "scanned and stacked along other axes": (
        17,
        7,
        """g (float[2] x, float[2, 4, 3] xs) => (float[2] y, float[2, 3, 4] ys) {
            y, ys = Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-1],
                scan_input_directions = [1], body = b (float[2] s, float[2, 3] v)
                => (float[2] t, float[2, 3] o) { t = Neg(s) o = Relu(v) }>(x, xs) }""",
    ),
    "two sequences and a state": (
        11,
        3,
        """g (float[3] x, float[4, 3] a, float[4, 3] b) => (float[3] y, float[4, 3] ys) {
            y, ys = Scan<num_scan_inputs = 2, body = l (float[3] s, float[3] v, float[3] w)
                => (float[3] t, float[3] o) { p = Add(v, w) t = Add(s, p) o = Mul(t, v) }>(x, a, b)
        }""",
    ),
    "a batch in front": (
        8,
        3,
        """g (float[2, 3] x, float[2, 4, 3] xs) => (float[2, 3] y, float[2, 4, 3] ys) {
            y, ys = Scan<num_scan_inputs = 1, body = b (float[3] s, float[3] v)
                => (float[3] t, float[3] o) { t = Add(s, v) o = Neg(t) }>(, x, xs) }""",
    ),
    "branches of one size": (
        17,
        5,
        """g (bool c, float[2, 3] x, float[3] b) => (float[2, 3] y) <int64[2] to = {2, 3}> {
            y = If(c) <then_branch = t () => (float[2, 3] p) { q = Expand(b, to) p = Add(x, q) },
                else_branch = e () => (float[2, 3] r) { r = Mul(x, b) }> }""",
    ),
    "a branch that always runs": (
        17,
        3,
        """g (float[1, 3] x) => (float[3] y) <bool yes = {1}, int64[1] nil = {0}> {
            y = If(yes) <then_branch = t () => (float[3] p) { p = Squeeze(x, nil) },
                else_branch = e () => (float[1, 3] r) { r = Neg(x) }> }""",
    ),
    "a loop in a branch in a loop": (
        17,
        5,
        f"""g (float[2, 3] x, float[3] b) => (float[2, 3] y) {LOOP} {{
            y = Loop(n, yes, x) <body = l (int64 i, bool c, float[2, 3] s)
                => (bool c, float[2, 3] t) {{
                two = Constant<value_int = 2>() odd = Mod(i, two) first = Cast<to = 9>(odd)
                t = If(first) <then_branch = p () => (float[2, 3] u) {{
                        u = Loop(n, yes, s) <body = k (int64 j, bool d, float[2, 3] a)
                            => (bool d, float[2, 3] e) {{ e = Add(a, b) }}> }},
                    else_branch = q () => (float[2, 3] v) {{ v = Neg(s) }}> }}> }}""",
    ),
}
"""Opset, units (by hand), and the graph: its inputs are fed at random."""


def model_of(opset: int, text: str) -> onnx.ModelProto:
    header = f'<ir_version: 8, opset_import: ["": {opset}]> '
    model: onnx.ModelProto = onnx.parser.parse_model(header + text)
    return model


def build(opset: int, text: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model, random numbers for its inputs, and true for conditions."""
    model = model_of(opset, text)
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        real = value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        feeds[value.name] = (
            rng.standard_normal(shape).astype(np.float32) if real else np.array(True)
        )
    return model, feeds


@pytest.mark.parametrize("name", CASES)
def test_links_across_the_boundary(name: str) -> None:
    opset, units, text = CASES[name]
    model, feeds = build(opset, text)
    report = probe(model, feeds)
    assert report.units == units
    assert (report.links > 0 and report.removals > 0) == (units > 0)


def test_branches_of_different_sizes() -> None:
    """Their common axes link, the others stay; whatever reads the result sees that it moves."""
    text = """g (bool c, float[4, 3] x) => (float[k, 3] y)
        <int64[1] one = {1}, int64[1] two = {2}, int64[1] nil = {0}> {
        y = If(c) <then_branch = t () => (float[1, 3] p) { p = Slice(x, nil, one, nil) },
            else_branch = e () => (float[2, 3] r) { r = Slice(x, nil, two, nil) }> }"""
    found = analyze(load_model(model_of(17, text)), interface=False, weights_only=False)
    rows = [found.operands[name].axis(0) for name in ("p", "r", "y")]
    assert all(found.units_of(axis) is None for axis in rows)
    assert found.operands["y"].dynamic == (True, False)
    columns = {found.coupling.root(found.operands[name].axis(1)) for name in ("x", "p", "r", "y")}
    assert len(columns) == 1


def test_states_of_unequal_sizes_are_not_linked() -> None:
    """After one iteration the first axis is as long as the other state's: it changes."""
    text = f"""g (float[2, 3] x, float[4, 3] z) => (float[k, 3] y, float[m, 3] v) {LOOP} {{
        y, v = Loop(n, yes, x, z) <body = l (int64 i, bool c, float[a, 3] s, float[b, 3] r)
            => (bool c, float[b, 3] r2, float[a, 3] s2) {{ r2 = Neg(r) s2 = Neg(s) }}> }}"""
    found = analyze(load_model(model_of(17, text)), interface=False, weights_only=False)
    assert found.unit_count == 3
    assert {found.operands[name].later for name in ("s", "r")} == {(4, 3), (2, 3)}
    assert found.operands["y"].shape == (4, 3), "three iterations swap them thrice"
