"""docs/operators.md says what the registry and the probing tests say."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection

import onnx
import onnx_ir as oir

from secateur.ir.analysis import analyze
from secateur.ir.rules import RULES
from tests.probed import Operator, cases
from tests.probing_runs import observer
from tools.operators import COMMAND, PAGE, STANDARD, page, versions


def observed() -> dict[Operator, set[str]]:
    """For every operator of the cases, what its rule says in them: "inexact" and "free" (something
    may go) where it does, and always "exact"."""
    found: defaultdict[Operator, set[str]] = defaultdict(set)
    for model, feeds in cases():
        source = oir.serde.deserialize_model(model)
        observe = observer(model, feeds)
        analysis = analyze(source, interface=False, weights_only=False, observe=observe)
        crossed = {inexact.site for inexact in analysis.statements.inexact}
        for node in model.graph.node:
            found[node.domain, node.op_type].add("exact")
        for site in analysis.sites:
            said = found[site.node.domain, site.node.op_type]
            if site.number in crossed:
                said.add("inexact")
            held = [o for s in (*site.lists_in, *site.lists_out) if s for o in s.operands]
            axes = [axis for o in (*site.inputs, *site.outputs, *held) if o for axis in o.axes]
            if any(analysis.units_of(axis) is not None for axis in axes):
                said.add("free")
    return dict(found)


def rows(text: str) -> dict[Operator, list[str]]:
    """The rows of the tables of a page."""
    found: dict[Operator, list[str]] = {}
    domain = ""
    for line in text.splitlines():
        if line.startswith("## "):
            domain = line[3:].removeprefix("ai.onnx") if line == "## ai.onnx" else line[3:]
        elif line.startswith("| ") and not line.startswith(("| operator", "| ---")):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found[domain, cells[0]] = cells[1:]
    return found


def test_every_operator_of_the_standard_has_a_row() -> None:
    written = rows(PAGE.read_text("utf-8"))
    assert {(s.domain, s.name) for s in onnx.defs.get_all_schemas()} <= written.keys()
    for domain in STANDARD:
        for name in versions(domain):
            family = written[domain, name][0]
            rule = RULES.get((domain, name))
            assert family == ("none" if rule is None else rule.family)


def test_what_rules_declare_and_the_page_says_is_what_they_do() -> None:
    """A rule that is never inexact is exact; one that always holds everything is pinned."""
    found, wrong = observed(), {}
    assert found.keys() >= RULES.keys(), "not probed: no case of these operators is compared"
    for operator, rule in RULES.items():
        said = found[operator]
        expected = {
            "exact": {"exact", "free"},
            "inexact": said | {"inexact", "free"},
            "depends": {"exact", "inexact", "free"},
            "pinned": {"exact"},
        }
        if said != expected[rule.exactness]:
            wrong[operator] = said, rule.exactness
    assert wrong == {}
    _compare_page(found)


def _compare_page(probed: Collection[Operator]) -> None:
    """With another release of ONNX than the page was written with, its rows are compared as far
    as both know the operator."""
    written, current = PAGE.read_text("utf-8"), page(probed)
    (release,) = set(re.findall(r"ONNX (\d+\.\d+\.\d+)", written))
    advice = f"docs/operators.md is out of date: run `{COMMAND}`"
    if release == onnx.__version__:
        assert written == current, advice
    old, new = rows(written), rows(current)
    for operator in old.keys() & new.keys():
        assert [old[operator][k] for k in (0, 1, -1)] == [new[operator][k] for k in (0, 1, -1)], (
            f"{advice} ({operator})"
        )
