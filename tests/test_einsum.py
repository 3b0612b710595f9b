"""Einsum: the rule for any equation, against ONNX Runtime (see `probing`), numpy and MatMul."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from secateur.ir.analysis import Analysis, analyze
from secateur.ir.rules.einsum import subscripts
from tests.probing import probe
from tests.probing_draw import Case, Draw, case, draws
from tests.probing_runs import Array


def einsum(d: Draw) -> Case:
    """Up to three operands; diagonals, ellipses, sizes of 1, with and without an arrow.

    ONNX infers the size of the first operand that bears a subscript: that one is not a 1.
    """
    sizes = {letter: d.number(1, 3) for letter in "ijkLm"}
    hidden = [d.number(1, 3) for _ in range(d.number(1, 2))]
    terms: list[str] = []
    arrays: list[Array | None] = []
    bears = False
    for _ in range(d.number(1, 3)):
        letters = [d.pick("ijkLm") for _ in range(d.number(0, 3))]
        dots = d.number(0, 2) == 0
        at = d.number(0, len(letters))
        once = [s for s in letters if letters.count(s) == 1 and s in "".join(terms)]
        thin = set(d.subset(range(len(letters)))) if d.number(0, 2) == 0 else set()
        shape = [1 if k in thin and s in once else sizes[s] for k, s in enumerate(letters)]
        if dots:
            letters.insert(at, "...")
            shape[at:at] = hidden
        bears = bears or dots
        terms.append("".join(letters))
        arrays.append(np.round(2 * d.floats(*shape)))
    equation = d.pick([",", " , "]).join(terms)
    if d.number(0, 2):
        named = sorted({s for s in equation if s.isalpha()})
        kept = d.order([ord(s) for s in named])[: d.number(0, len(named))]
        out = [chr(c) for c in kept]
        if bears:
            out.insert(d.number(0, len(out)), "...")
        equation += "->" + "".join(out)
    return case("Einsum", arrays, d.opset(12), equation=equation)


def test_any_equation() -> None:
    compared = 0
    for d in draws("einsum", 250):
        made, feeds = einsum(d)
        try:
            report = probe(made, feeds, removals=4, find_pinned=True)
        except Exception as error:
            raise AssertionError(f"{error}\n{onnx.printer.to_text(made)}") from error
        text = onnx.printer.to_text(made)
        assert not report.pinned, f"pinned, yet goes its own way: {report.pinned}\n{text}"
        compared += bool(report.links and report.removals and not report.reference)
    assert compared >= 180


@pytest.mark.parametrize(
    ("equation", "ranks", "result"),
    [
        ("ij,jk", [2, 2], "ik"),
        ("ba", [2], "ab"),
        ("ii", [2], ""),
        ("b...a,a...", [4, 3], [".2", ".1", "b"]),
        ("...i->...", [3], [".2", ".1"]),
        ("aZ", [2], "Za"),
    ],
)
def test_the_output_without_an_arrow_is_that_of_numpy(
    equation: str, ranks: list[int], result: str | list[str]
) -> None:
    assert subscripts(equation, ranks)[1] == list(result)
    sizes = {s: k + 2 for k, s in enumerate(["Z", "a", "b", "i", "j", "k", ".1", ".2"])}
    operands = [np.ones([sizes[s] for s in term]) for term in subscripts(equation, ranks)[0]]
    assert np.einsum(equation, *operands).shape == tuple(sizes[s] for s in result)


@pytest.mark.parametrize(
    ("equation", "ranks", "why"),
    [
        ("ij,jk->ik", [2], "the equation 'ij,jk->ik' is not one of 1 operands"),
        ("i->i", [2], "the subscripts 'i' do not fit rank 2"),
        ("...ij", [1], "the subscripts '...ij' do not fit rank 1"),
    ],
)
def test_an_equation_that_does_not_fit(equation: str, ranks: list[int], why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        subscripts(equation, ranks)


def analysed(text: str) -> Analysis:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    return analyze(oir.serde.deserialize_model(model), interface=False, weights_only=False)


def test_a_matrix_product_is_one_of_matmul() -> None:
    """The same heads, roles and multiply-accumulates as MatMul states."""
    types = "(float[2, 3, 5, 7] a, float[2, 3, 7, 4] b) => (float[2, 3, 5, 4] y)"
    found = [
        analysed(f"g {types} {{ y = {node} }}")
        for node in ('Einsum<equation = "bhik,bhkj->bhij">(a, b)', "MatMul(a, b)")
    ]

    def facts(analysis: Analysis) -> list[object]:
        def owner(axes: set[int]) -> list[tuple[str, int]]:
            return sorted(analysis.owners[a] for a in axes)

        roots = {analysis.coupling.root(a) for a in analysis.coupling.heads}
        statements = analysis.statements
        sizes = [
            sorted(analysis.coupling.sizes[a] for a in c.axes) for c in statements.contractions
        ]
        return [
            {analysis.owners[r][1] for r in roots},
            owner(statements.producers),
            owner(statements.consumers),
            sizes,
            [(s.input, s.index) for s in statements.sinks],
        ]

    assert facts(found[0]) == facts(found[1])


def test_multiply_accumulates_are_counted_from_the_left() -> None:
    """(i k) x (k l) is summed over k, then x (l m) over l; a product alone is not counted."""
    analysis = analysed(
        """g (float[2, 3] a, float[3, 5] b, float[5, 7] c, float[7] d) => (float[2, 7] y) {
            y = Einsum<equation = "ik,kl,lm,m->im">(a, b, c, d) }"""
    )
    sizes = analysis.coupling.sizes
    counted = [int(np.prod([sizes[a] for a in c.axes])) for c in analysis.statements.contractions]
    assert counted == [2 * 3 * 5, 2 * 5 * 7]
