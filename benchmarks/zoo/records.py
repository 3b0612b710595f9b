"""All results in one text file that can live in a repository.

The work folder holds a file for every case and step, beside exported models; it goes with its
machine. The records file holds the same results, one line per case, so that several sittings on
several machines add up. It is JSON lines: first the environments (machine and versions of the
libraries) under short names, which results then say instead, then the cases by name. Floats are
rounded, what only helps to find a bug (``kept``, ``trace``) is left out, and a step that
``repeats`` another one says only what differs.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .record import Result, read_cases, write_result

DIGITS = 4
"""Significant digits of floats."""
OURS = ("secateur", "secateur-inexact")
ENVIRONMENT = ("machine", "versions")
BULK = ("case", "step", "kept", "trace")
EVERY = 120.0
"""Seconds between two writings during a run."""


def unpack(file: Path, work: Path) -> None:
    """Results of the records that the work folder lacks become done in it.

    Raises ValueError for a file that is not one of records.
    """
    for name, steps in read_records(file):
        for step, result in steps.items():
            path = work / name / f"{step}.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_result(path, {"case": name, "step": step, **result})


def read_records(file: Path) -> Iterator[tuple[str, dict[str, Result]]]:
    """Every case of the file: its results by step, without the names of case and step. A file that
    is not there has none; raises ValueError for one that does not hold records."""
    environments: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(file.read_text().splitlines() if file.exists() else ()):
        try:
            found = json.loads(line)
            if "environment" in found:
                environments[found.pop("environment")] = found
                continue
            name, results = found["case"], found["steps"]
            steps = {step: _unpacked(r, results, environments) for step, r in results.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}, line {number + 1}: not a record of the zoo") from error
        yield name, steps


def _unpacked(
    result: Result, results: Mapping[str, Result], environments: Mapping[str, Result]
) -> Result:
    whole = results[result["repeats"]] | result if "repeats" in result else result
    return _without(whole, "made_in", "repeats") | environments[whole["made_in"]]


def pack(cases: Iterable[tuple[str, Mapping[str, Result]]]) -> str:
    """The text of the records file."""
    environments: dict[str, str] = {}
    lines = []
    for name, steps in sorted(cases, key=lambda case: case[0]):
        results = {step: _packed(result, environments) for step, result in steps.items()}
        _shorten(results, *OURS)
        lines.append(json.dumps({"case": name, "steps": results}))
    heads = [
        json.dumps({"environment": key, **json.loads(text)})
        for key, text in sorted(environments.items())
    ]
    return "".join(f"{line}\n" for line in [*heads, *lines])


def _packed(result: Result, environments: dict[str, str]) -> Result:
    """Without bulk, with the name of its environment, which joins ``environments``."""
    text = json.dumps({key: result[key] for key in ENVIRONMENT if key in result}, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:6]
    environments[key] = text
    packed: Result = _rounded(_without(result, *BULK, *ENVIRONMENT))
    return packed | {"made_in": key}


def _shorten(results: dict[str, Result], first: str, second: str) -> None:
    """Lets the second step say only what differs from the first, if both are there."""
    one, other = results.get(first), results.get(second)
    if one is not None and other is not None and one.keys() <= other.keys():
        new = {key: value for key, value in other.items() if one.get(key) != value}
        results[second] = {"repeats": first, **new}


def _without(result: Result, *keys: str) -> Result:
    return {key: value for key, value in result.items() if key not in keys}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


class Keeper:
    """Writes the records of a work folder now and then, whole or not at all; from any thread."""

    def __init__(self, work: Path, file: Path) -> None:
        self.work, self.file = work, file
        self.lock = threading.Lock()
        self.next = time.monotonic() + EVERY

    def tick(self) -> None:
        """Writes if the last time is long ago."""
        if time.monotonic() > self.next:
            self.write()

    def write(self) -> None:
        """Writes beside and renames."""
        with self.lock:
            beside = self.file.with_name(self.file.name + ".tmp")
            beside.write_text(pack(read_cases(self.work)))
            beside.replace(self.file)
            self.next = time.monotonic() + EVERY
