"""Finding the coupling rule of an operator: built-in rules, then plug-ins."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from ..errors import UsageError
from . import RULES
from .base import Rule

GROUP = "secateur.rules"
"""Entry points of this group load to a mapping ``{(domain, op_type): Rule}``."""


@lru_cache(maxsize=1)
def all_rules() -> dict[tuple[str, str], Rule]:
    """Every rule by (domain, operator type). Raises UsageError when two providers clash."""
    from dataclasses import replace

    from ..registry import entry_points, load

    rules = dict(RULES)
    for name, provider, loader in entry_points(GROUP):
        table = load("coupling rules", name, provider, loader)
        if not (isinstance(table, Mapping) and all(map(_is_entry, table.items()))):
            raise UsageError(
                f"coupling rules '{name}' of '{provider}' are no mapping of (domain, operator) to"
                f" Rule; repair or uninstall '{provider}'"
            )
        for key, rule in table.items():
            if key in rules:
                raise UsageError(
                    f"the coupling rule of '{key[0] or 'ai.onnx'}.{key[1]}' is provided by both"
                    f" '{rules[key].provider}' and '{provider}'; uninstall one of them"
                )
            rules[key] = replace(rule, provider=provider)
    return rules


def _is_entry(item: tuple[object, object]) -> bool:
    key, rule = item
    return (
        isinstance(key, tuple)
        and len(key) == 2
        and all(isinstance(part, str) for part in key)
        and isinstance(rule, Rule)
    )


def find_rule(domain: str, op_type: str) -> Rule | None:
    """The rule of an operator, or None. Rules that `rule` registered since the first call count."""
    key = ("" if domain == "ai.onnx" else domain, op_type)
    return all_rules().get(key) or RULES.get(key)
