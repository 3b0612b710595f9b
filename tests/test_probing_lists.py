"""Sequences and optionals against ONNX Runtime: elements link as tensors do (see `probing`)."""

from __future__ import annotations

import pytest

from secateur.ir.analysis import analyze
from secateur.ir.io import load_model
from tests.probing import probe
from tests.test_probing_control import build, model_of

TWO = "<int64 first = {0}, int64 last = {-1}, int64 one = {1}>"
CASES: dict[str, tuple[int, int, str]] = {
    "put in and taken out": (
        17,
        10,
        f"""g (float[2, 3] x, float[2, 3] z) => (float[2, 3] y, float[2, 3] v) {TWO} {{
            s = SequenceConstruct(x, z) y = SequenceAt(s, last) v = SequenceAt(s, first) }}""",
    ),
    "taken out at a place of which only the run knows": (
        17,
        5,
        """g (float[2, 3] x, float[2, 3] z, bool c) => (float[2, 3] y) {
            s = SequenceConstruct(x, z) i = Cast<to = 7>(c) y = SequenceAt(s, i) }""",
    ),
    "inserted in front, and one erased": (
        17,
        9,
        f"""g (float[2, 3] x, float[4] z) => (float[2, 3] y, float[4] v) {TWO} {{
            n = SequenceEmpty() r = SequenceInsert(n, x) s = SequenceInsert(r, z, first)
            t = SequenceInsert(s, x) q = SequenceErase(t, one) v = SequenceAt(q, first)
            size = SequenceLength(q) at = Sub(size, one) y = SequenceAt(q, at) }}""",
    ),
    "joined": (
        17,
        9,
        """g (float[2, 3] x, float[2, 4] z) => (float[2, 7] y) {
            s = SequenceConstruct(x, z) y = ConcatFromSequence<axis = 1>(s) }""",
    ),
    "stacked": (
        17,
        5,
        """g (float[2, 3] x, float[2, 3] z) => (float[2, 2, 3] y) {
            s = SequenceConstruct(x, z)
            y = ConcatFromSequence<axis = 1, new_axis = 1>(s) }""",
    ),
    "split in unequal pieces": (
        17,
        9,
        """g (float[2, 7] x) => (float[2, 3] y, float[2, 4] v)
            <int64[2] sizes = {3, 4}, int64 first = {0}, int64 one = {1}> {
            s = SplitToSequence<axis = -1>(x, sizes) y = SequenceAt(s, first)
            v = SequenceAt(s, one) }""",
    ),
    "split with a rest": (
        17,
        9,
        """g (float[2, 7] x) => (float[2, 4] y, float[2, 3] v)
            <int64 size = {4}, int64 first = {0}, int64 one = {1}> {
            s = SplitToSequence<axis = 1>(x, size) y = SequenceAt(s, first)
            v = SequenceAt(s, one) }""",
    ),
    "taken apart": (
        17,
        2,
        f"""g (float[2, 3] x) => (float[2] y, float[2] v) {TWO} {{
            s = SplitToSequence<axis = 1, keepdims = 0>(x) y = SequenceAt(s, first)
            v = SequenceAt(s, last) }}""",
    ),
    "appended in every iteration": (
        17,
        6,
        """g (float[3, 2, 4] x) => (float[2, 12] y) <int64 n = {3}, bool yes = {1}> {
            e = SequenceEmpty()
            s = Loop(n, yes, e) <body = b (int64 i, bool c, seq(float[2, 4]) a)
                => (bool d, seq(float[2, 4]) f) {
                r = Gather<axis = 0>(x, i) t = Neg(r) f = SequenceInsert(a, t) d = Identity(c) }>
            y = ConcatFromSequence<axis = 1>(s) }""",
    ),
    "one slice of a single iteration": (
        17,
        9,
        """g (float[2, 7] x) => (float[2, 3] y) <int64 n = {1}, bool yes = {1}, int64[1] one = {1},
            int64[1] two = {2}, int64[1] five = {5}, int64 first = {0}> {
            e = SequenceEmpty()
            s = Loop(n, yes, e) <body = b (int64 i, bool c, seq(float[2, k]) a)
                => (bool d, seq(float[2, k]) f) {
                i2 = Add(i, two) r = Slice(x, i2, five, one) f = SequenceInsert(a, r)
                d = Identity(c) }>
            y = SequenceAt(s, first) }""",
    ),
    "one sequence or another": (
        17,
        10,
        f"""g (float[2, 3] x, float[2, 3] z, bool c) => (float[2, 3] y, float[2, 3] v) {TWO} {{
            s = If(c) <then_branch = t () => (seq(float[2, 3]) p) {{ p = SequenceConstruct(x, z) }},
                else_branch = e () => (seq(float[2, 3]) q) {{
                    a = Neg(x) b = Neg(z) q = SequenceConstruct(a, b) }}>
            y = SequenceAt(s, first) v = SequenceAt(s, one) }}""",
    ),
    "an optional": (
        18,
        5,
        """g (float[2, 3] x) => (float[2, 3] y, bool h) {
            o = Optional(x) h = OptionalHasElement(o) g = OptionalGetElement(o) y = Neg(g) }""",
    ),
}
"""Opset, units (by hand), and the graph: its inputs are fed at random."""


@pytest.mark.parametrize("name", CASES)
def test_links_through_sequences(name: str) -> None:
    opset, units, text = CASES[name]
    model, feeds = build(opset, text)
    report = probe(model, feeds)
    assert report.units == units
    assert report.links > 0 and report.removals > 0


UNKNOWN = {
    "erased at a place of which only the run knows": (
        """g (float[2, 3] x, float[2, 4] z, bool c) => (float[k, l] y) {
            s = SequenceConstruct(x, z) i = Cast<to = 7>(c) t = SequenceErase(s, i)
            y = ConcatFromSequence<axis = 1>(t) }""",
        {"x", "z", "y"},
    ),
    "two sequences of unequal lengths": (
        """g (float[2, 3] x, float[2, 3] z, bool c) => (float[k, 3] y) {
            s = If(c) <then_branch = t () => (seq(float[2, 3]) p) { p = SequenceConstruct(x, z) },
                else_branch = e () => (seq(float[2, 3]) q) { q = SequenceConstruct(x) }>
            y = ConcatFromSequence<axis = 0>(s) }""",
        {"x", "z", "y"},
    ),
    "nobody knows how often the body runs": (
        """g (float[2, 3] x, int64 n) => (float[k, 3] y) <bool yes = {1}> {
            e = SequenceEmpty()
            s = Loop(n, yes, e) <body = b (int64 i, bool c, seq(float[2, 3]) a)
                => (bool d, seq(float[2, 3]) f) { f = SequenceInsert(a, x) d = Identity(c) }>
            y = ConcatFromSequence<axis = 0>(s) }""",
        {"x"},
    ),
    "an operator that nobody knows": (
        """g (float[2, 3] x, float[2, 3] z) => (float[2, 3] y) {
            s = SequenceConstruct(x, z) y = other.Op(s) }""",
        {"x", "z"},
    ),
    "an output of the model": (
        """g (float[2, 3] x, float[2, 3] z) => (seq(float[2, 3]) s) {
            s = SequenceConstruct(x, z) }""",
        set(),
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_stays(name: str) -> None:
    text, held = UNKNOWN[name]
    model = load_model(model_of(17, text))
    found = analyze(model, interface=not held, weights_only=False)
    for operand in held or {"x", "z"}:
        if operand in found.operands:
            assert all(found.units_of(axis) is None for axis in found.operands[operand].axes)
