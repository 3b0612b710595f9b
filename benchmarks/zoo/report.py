"""The results as text: the table, what peers do better, a summary, and failures by cause."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.table import markdown

from .record import Result

OURS = ("secateur", "secateur-inexact")
PEERS = {"torch-pruning": "Torch-Pruning", "onnxsim": "onnxsim"}
SLACK = 0.005
"""Differences of shares up to here are rounding: a peer is better beyond."""


@dataclass(frozen=True)
class Gap:
    """A peer whose result runs and that does better: ``what`` is the measure, higher is better."""

    case: str
    peer: str
    what: str
    ours: float
    theirs: float

    def __str__(self) -> str:
        return (
            f"{self.case}: {self.what} {self.ours:.3f}, {PEERS[self.peer]} {self.theirs:.3f} "
            f"({self.theirs - self.ours:+.3f})"
        )


@dataclass(frozen=True)
class Row:
    """The results of one case by step."""

    name: str
    steps: Mapping[str, Result] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]

    @property
    def origin(self) -> tuple[str, str]:
        """Machine and state of Secateur's code, of its pruning if there is one."""
        return (self._origin("machine"), self._origin("code"))

    @property
    def when(self) -> str:
        """Day and time, of its pruning if there is one."""
        return self._origin("when")

    def _origin(self, key: str) -> str:
        step = "secateur" if "secateur" in self.steps else "export"
        return str(self.get(step, key) or "unknown")

    def ok(self, step: str) -> bool:
        return self.steps.get(step, {}).get("status") == "ok"

    def get(self, step: str, *keys: str) -> Any:
        """A value of a step's result, None when it is not there."""
        value: Any = self.steps.get(step)
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def gaps(self) -> list[Gap]:
        """Where a peer is better, in prunable share or in MACs removed."""
        found = []
        for peer in PEERS:
            if not self.get(peer, "runs"):
                continue
            share = max((self.get(s, "prunable", "all") or 0.0 for s in OURS), default=0.0)
            left = min(self._left(step) for step in OURS)
            pairs = [
                ("prunable share", share, self.get(peer, "prunable")),
                ("MACs removed", 1 - left, _less(self.get(peer, "left", "macs"))),
            ]
            found += [
                Gap(self.name, peer, what, ours, theirs)
                for what, ours, theirs in pairs
                if theirs is not None and theirs > ours + SLACK
            ]
        return found

    def _left(self, step: str) -> float:
        left = self.get(step, "left", "macs")
        return 1.0 if left is None else float(left)


def rows_of(cases: Iterable[tuple[str, Mapping[str, Result]]]) -> list[Row]:
    """Rows in the order of their names."""
    return sorted((Row(name, steps) for name, steps in cases), key=lambda row: row.name)


# ---- the table ----------------------------------------------------------------------------

HEADER = (
    "model",
    "groups",
    "units",
    "prunable",
    "MACs left",
    "params left",
    "certificate",
    "speed-up",
    "analyse s",
    "all s",
    "warnings",
    "TP prunable",
    "TP MACs",
    "TP params",
    "onnxsim prunable",
    "onnxsim MACs",
    "onnxsim params",
)

LEGEND = """\
Written by `python -m benchmarks.zoo --table docs/zoo.md`; see `benchmarks/zoo/README.md`. Weights
are random, inputs small. Every model is exported, pruned at ratio 0.5 and certified: the pruned
model computes what the original does with the removed units at zero.

- **groups, units**: exact + inexact. **prunable**: share of the parameters at coordinates that
  belong to a unit, of exact groups / of all.
- **MACs, params left**: of the original, exact groups only / inexact ones too.
- **certificate**: the relative error against the masked original, exact / with inexact.
- **speed-up**: ONNX Runtime, one thread, batch 1, paired runs, with quartiles; exact / with
  inexact.
- **analyse s, all s**: of the analysis; of analysis, pruning and certificate (exact).
- **TP**: Torch-Pruning on the module, **onnxsim**: its structured pruning on the same file, both
  at 0.5. *broken*: the result does not run, or gives outputs of other shapes. **Bold**: better
  than Secateur with all groups. A dash: does not apply, or not run yet."""


def table(rows: Sequence[Row], note: str = "") -> str:
    """The whole page: versions, a note, a summary, one table per family, failures."""
    sittings = _sittings(rows)
    parts = ["# Zoo", LEGEND, _versions(rows), _origins(sittings), *([note] if note else [])]
    parts += ["## Summary", summary(rows)]
    for family, members in _families(rows).items():
        header: Sequence[str] = HEADER
        cells = [_cells(row) for row in members]
        if len(sittings) > 1:
            header = (*header, "sitting")
            numbers = {origin: str(number) for number, origin in enumerate(sittings, 1)}
            cells = [[*c, numbers[row.origin]] for c, row in zip(cells, members, strict=True)]
        parts += [f"## {family}", markdown(header, cells)]
    failed = failures(rows)
    parts += ["## What failed", failed or "Nothing."]
    return "\n\n".join(parts) + "\n"


def _cells(row: Row) -> list[str]:
    export = row.name.partition("/")[2]
    if not row.ok("export"):
        return [export, "not exported", *["-"] * (len(HEADER) - 2)]
    ours = "secateur"
    better = {(gap.peer, gap.what) for gap in row.gaps()}
    cells = [
        export,
        _sum(row.get(ours, "groups")),
        _sum(row.get(ours, "units")),
        _both(_share(row.get(ours, "prunable", k)) for k in ("exact", "all")),
        *(_both(_share(row.get(s, "left", k)) for s in OURS) for k in ("macs", "parameters")),
        _both(_certificate(row, step) for step in OURS),
        _both(_speed(row.get(step, "speedup")) for step in OURS),
        *(_seconds(row.get(ours, "seconds", k)) for k in ("analyse", "whole")),
        _count(row.get(ours, "warnings")),
    ]
    for peer in PEERS:
        if peer not in row.steps:
            cells += ["-", "-", "-"]
        elif not row.get(peer, "runs"):
            cells += ["broken" if row.get(peer, "left") else "failed", "-", "-"]
        else:
            cells += [
                _mark(_share(row.get(peer, "prunable")), (peer, "prunable share") in better),
                _mark(_share(row.get(peer, "left", "macs")), (peer, "MACs removed") in better),
                _share(row.get(peer, "left", "parameters")),
            ]
    return cells


def _certificate(row: Row, step: str) -> str:
    if row.get(step, "note"):
        return str(row.get(step, "note"))
    if row.get(step, "certificate", "ok"):
        return f"{row.get(step, 'certificate', 'worst'):.0e}"
    return "failed" if step in row.steps else "-"


def _speed(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def _sum(found: Mapping[str, int] | None) -> str:
    return "-" if found is None else f"{found['exact']}+{found['inexact']}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _count(found: Sequence[str] | None) -> str:
    return "-" if found is None else str(len(found))


def _both(texts: Iterable[str]) -> str:
    return " / ".join(texts)


def _mark(text: str, better: bool) -> str:
    return f"**{text}**" if better else text


def _less(value: float | None) -> float | None:
    return None if value is None else 1 - value


def _versions(rows: Sequence[Row]) -> str:
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for result in row.steps.values():
            for name, version in result.get("versions", {}).items():
                found[name].add(version)
    libraries = ", ".join(f"{name} {'/'.join(sorted(found[name]))}" for name in sorted(found))
    return f"Versions: {libraries}."


def _sittings(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows by machine and code, in the order of their first days."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.when):
        found.setdefault(row.origin, []).append(row)
    return found


def _origins(sittings: Mapping[tuple[str, str], Sequence[Row]]) -> str:
    """When, where and with which state of Secateur's code the rows were made."""
    lines = []
    for number, ((machine, code), rows) in enumerate(sittings.items(), 1):
        first, last = rows[0].when, rows[-1].when
        time = first if first == last else f"{first} to {last}"
        lines.append(f"{number}. {len(rows)} models: {time} (UTC), {machine}, code {code}")
    if len(lines) > 1:
        lines.insert(0, "Rows of several sittings (the last column):\n")
    return "\n".join(lines) if len(lines) > 1 else "".join(lines).removeprefix("1. ") + "."


def _families(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.family, []).append(row)
    return found


# ---- summary, gaps, failures ----------------------------------------------------------------


def summary(rows: Sequence[Row]) -> str:
    """Per family: how many export, load, prune with a certificate, and run; and what peers do."""
    header = ["family", "models", "exported", "loaded", "certified", "run"]
    header += ["TP runs", "onnxsim runs", "peer better"]
    families = _families(rows)
    if len(families) > 1:
        families["all"] = list(rows)
    cells = []
    for family, members in families.items():
        counts = [
            len(members),
            sum(row.ok("export") for row in members),
            sum(row.get("secateur", "groups") is not None for row in members),
            sum(all(_proved(row, step) for step in OURS) for row in members),
            sum(all(row.ok(step) for step in OURS) for row in members),
            sum(bool(row.get("torch-pruning", "runs")) for row in members),
            sum(bool(row.get("onnxsim", "runs")) for row in members),
            sum(bool(row.gaps()) for row in members),
        ]
        cells.append([family, *map(str, counts)])
    return markdown(header, cells)


def _proved(row: Row, step: str) -> bool:
    """Certified, or nothing to prune in exact groups."""
    return bool(row.get(step, "certificate", "ok") or row.get(step, "note"))


def gaps(rows: Sequence[Row]) -> str:
    """Every measure in which a peer is better, largest difference first."""
    found = [gap for row in rows for gap in row.gaps()]
    return "\n".join(map(str, sorted(found, key=lambda gap: gap.ours - gap.theirs)))


def failures(rows: Sequence[Row], steps: Sequence[str] = ("export", *OURS, *PEERS)) -> str:
    """Failed steps by cause: numbers and quoted names do not make causes different."""
    lines = []
    for step in steps:
        causes: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row.get(step, "status") == "failed":
                causes[cause(str(row.get(step, "reason")))].append(row)
        for same in sorted(causes.values(), key=len, reverse=True):
            names = ", ".join(row.name for row in same)
            lines.append(f"- **{step}**, {len(same)}: {same[0].get(step, 'reason')} - {names}")
    return "\n".join(lines)


def cause(reason: str) -> str:
    """A reason without what differs from model to model."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[\w./:]*\d[\w./:]*", "_", reason)[:160]


def reasons(rows: Sequence[Row]) -> str:
    """Distinct warnings of Secateur with the number of models that have them."""
    counts = Counter(
        cause(warning)
        for row in rows
        for warning in {cause(w): w for w in row.get("secateur", "warnings") or ()}.values()
    )
    return "\n".join(f"{count:5d}  {text}" for text, count in counts.most_common())
