"""Targets: what a pruning is asked to reach, as numbers that a user gives.

A target is a share of the original that may stay (``macs``, ``params``, ``latency``), an amount
(``latency-ms``), or one or the other (``size`` and ``memory``: up to 1 a share, above it bytes).
``ratio`` is a share of units that goes, ``min-quality`` a bound from below on a metric. All targets
that are given must hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from .base import PassResult

Kind = Literal["ratio", "macs", "params", "size", "memory", "latency", "latency-ms", "min-quality"]
KINDS: tuple[Kind, ...] = get_args(Kind)

NOUNS: dict[Kind, str] = {
    "macs": "MACs",
    "params": "parameters",
    "size": "the file's bytes",
    "memory": "the peak activation memory",
    "latency": "the latency",
    "latency-ms": "the latency",
}
UNITS: dict[Kind, str] = {"size": "bytes", "memory": "bytes", "latency-ms": "ms"}

_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:([kKMG])(i?)B?|B)?")
_POWERS = {"k": 1, "M": 2, "G": 3}


@dataclass(frozen=True)
class Target:
    """What to reach: a ``kind`` and its ``value`` in the terms of this module's docstring.

    Raises ValueError, in one line, for a value out of range.
    """

    kind: Kind
    value: float

    def __post_init__(self) -> None:
        option = f"`{self.kind.replace('-', '_')}`"
        if self.kind == "min-quality":
            if not math.isfinite(self.value):
                raise ValueError(f"{option} must be a finite number, not {self.value:g}")
        elif self.kind in ("size", "memory", "latency-ms"):
            if not 0 < self.value < math.inf:
                raise ValueError(f"{option} must be more than 0, not {self.value:g}")
        elif not 0 < self.value <= 1 or (self.kind == "ratio" and self.value == 1):
            bound = "less than 1" if self.kind == "ratio" else "at most 1"
            raise ValueError(f"{option} must be more than 0 and {bound}, not {self.value:g}")

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of what the original has."""
        return self.kind not in ("latency-ms", "min-quality") and self.value <= 1

    def goal(self, whole: float) -> float:
        """What may stay, in the unit of ``whole``, the original's own value."""
        return whole * self.value if self.is_share else self.value

    def amount(self, reached: float, whole: float) -> str:
        """A value that was reached, in the terms of the target, never below itself."""
        if self.is_share:
            return f"{_rounded_up(reached / whole)} of the original"
        if self.kind == "latency-ms":
            return f"{_rounded_up(reached)} ms"
        return f"{math.ceil(reached)} bytes"


def parse_amount(option: str, text: str | float) -> float:
    """The number of ``0.5``, ``500k``, ``2MB``, ``1.5MiB``; k, M and G are powers of 1000, with an
    i of 1024. Raises ValueError, which names the ``option``, for anything else."""
    if not isinstance(text, str):
        return float(text)
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"`{option}` '{text}' is no amount; write 0.5, 500k, 2MB or 1.5MiB")
    number, prefix, binary = found.groups()
    if prefix is None:
        return float(number)
    base = 1024.0 if binary else 1000.0
    return float(number) * math.pow(base, _POWERS["k" if prefix in "kK" else prefix])


def _rounded_up(share: float) -> str:
    """Four significant digits, never less than the number itself."""
    if share <= 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(share)) - 3)
    return f"{math.ceil(share / unit - 1e-9) * unit:.4g}"


def shares_of_input(targets: Sequence[Target], history: Sequence[PassResult]) -> tuple[Target, ...]:
    """Shares of what a pipeline was given, as shares of what the passes of ``history`` have left of
    it; a share that they reached already is 1. Amounts stay as they are."""
    found = []
    for target in targets:
        left = 1.0
        for result in history:
            for reached in result.details.get("targets", ()):
                if reached["target"] == target.kind and reached["before"]:
                    left *= reached["reached"] / reached["before"]
        moves = target.is_share and target.kind != "ratio"
        found.append(replace(target, value=min(target.value / left, 1.0)) if moves else target)
    return tuple(found)
