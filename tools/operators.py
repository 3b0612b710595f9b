"""Writes docs/operators.md: what is known about every operator, from the registry of rules.

Run ``python -m tools.operators`` from the root of the repository after a rule was added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import onnx

from secateur.ir.rules import RULES

PAGE = Path(__file__).parent.parent / "docs" / "operators.md"
COMMAND = "python -m tools.operators"
STANDARD = sorted(
    {s.domain for s in onnx.defs.get_all_schemas() if f"{s.domain}.".startswith((".", "ai.onnx."))}
)
"""The domains of the installed standard, previews among them."""
OLDEST = 7
"""The oldest opset that can be certified."""

_HEAD = f"""# Operators

What Secateur knows about every operator of the ONNX standard, previews included, and of ONNX
Runtime's domain. This page is written by `{COMMAND}` from the registry of coupling
rules, and the tests hold it to that.

- **rule**: the family of the coupling rule. Without a rule, everything that the operator touches
  stays, and a warning says so. Nothing else is affected.
- **removal**: what it means to remove units at the operator (see `docs/architecture.md`).
  *exact*: the result equals the original with the unit multiplied by zero; *inexact*: the operator
  looks across an axis that shrinks, as a mean does, so that such groups are pruned only when
  asked; *depends*: the one or the other by attributes or shapes; *pinned*: the rule itself says
  that all axes stay, because the results are positions, random or decoded.
- **versions**: the versions of the operator that the rule covers, from opset {OLDEST} on.
- **probed**: single coordinates were perturbed in ONNX Runtime (or the reference implementation),
  and what changed is what the rule says; units were removed, and the numbers agree.
"""


def page(probed: Collection[tuple[str, str]]) -> str:
    """The whole page; ``probed`` are the (domain, operator) pairs that the tests compare."""
    parts = [_HEAD]
    for domain in STANDARD:
        title = domain or "ai.onnx"
        parts.append(f"\n## {title}\n\n{_count(domain)}\n\n" + _table(_standard(domain, probed)))
    parts.append(
        "\n## com.microsoft\n\nOperators of ONNX Runtime that have a rule; all others are"
        " without.\n\n" + _table(_others("com.microsoft", probed), versions=False)
    )
    return "".join(parts)


def _count(domain: str) -> str:
    names = versions(domain)
    without = [name for name in names if (domain, name) not in RULES]
    title = "1 operator" if len(names) == 1 else f"{len(names)} operators"
    text = f"{title} (ONNX {onnx.__version__}), {len(names) - len(without)} with"
    return text + f" a rule, {len(without)} without."


def versions(domain: str) -> dict[str, list[int]]:
    """The operators of a domain in the installed standard, with the versions in use."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == domain:
            found[schema.name].append(schema.since_version)
    oldest = 1 if domain else OLDEST
    return {
        name: sorted(n for n in numbers if n >= max((k for k in numbers if k <= oldest), default=1))
        for name, numbers in sorted(found.items())
    }


Row = tuple[str, str, str, str, str]


def _standard(domain: str, probed: Collection[tuple[str, str]]) -> Iterator[Row]:
    for name, numbers in versions(domain).items():
        yield _row(domain, name, ", ".join(map(str, numbers)), probed)


def _others(domain: str, probed: Collection[tuple[str, str]]) -> Iterator[Row]:
    for name in sorted(op for where, op in RULES if where == domain):
        yield _row(domain, name, "", probed)


def _row(domain: str, name: str, numbers: str, probed: Collection[tuple[str, str]]) -> Row:
    rule = RULES.get((domain, name))
    if rule is None:
        return name, "none", "", numbers, ""
    return name, rule.family, rule.exactness, numbers, "yes" if (domain, name) in probed else "no"


def _table(rows: Iterable[Row], versions: bool = True) -> str:
    head: Row = ("operator", "rule", "removal", "versions", "probed")
    kept = [k for k, title in enumerate(head) if versions or title != "versions"]
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(row[k] for k in kept) + " |\n" for row in lines)


def main() -> None:
    """Writes the page."""
    from tests.probed import probed_operators

    PAGE.write_text(page(probed_operators()), "utf-8")


if __name__ == "__main__":
    main()
