"""What a step leaves behind: one JSON file per case and step, and how a worker fills it.

A worker writes ``STEP.part`` at every stage, so that a crash loses nothing that was found before
it; the runner turns it into ``STEP.json``, which is what makes a step done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .origin import origin

Result = dict[str, Any]

STEPS = ("export", "secateur", "secateur-inexact", "torch-pruning", "onnxsim")


@dataclass(frozen=True)
class Spec:
    """One step of one case, as the runner asks a worker for it.

    ``folder`` holds the results, ``threads`` is what the step may use, ``environment`` the
    environment of the case.
    """

    name: str
    module: str
    step: str
    folder: str
    environment: str = "torch"
    dims: dict[str, int] = field(default_factory=dict)
    ratio: float = 0.5
    threads: int = 1

    @property
    def files(self) -> Path:
        """Where the large files of the case are; they go when all steps are done."""
        return Path(self.folder) / "files"

    @property
    def model(self) -> Path:
        """The exported ONNX file; its external data lie beside it, and nothing else."""
        return self.files / "model" / "model.onnx"

    @property
    def peer(self) -> Path:
        """The pickled module that the file was exported from, and its inputs."""
        return self.files / "peer.pt"

    @property
    def part(self) -> Path:
        """The unfinished result."""
        return Path(self.folder) / f"{self.step}.part"

    @property
    def done(self) -> Path:
        """The result."""
        return Path(self.folder) / f"{self.step}.json"

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


class Record:
    """Collects the values of a step and keeps them on disk."""

    def __init__(self, spec: Spec) -> None:
        self.path = spec.part
        self.begin = time.perf_counter()
        self.values: Result = {
            "case": spec.name,
            "step": spec.step,
            "status": "failed",
            "stage": "start",
            **origin(),
        }
        self.write()

    def stage(self, name: str) -> None:
        """What the step does now; a crash is reported with it."""
        if self.values["stage"] != name:
            self.values["stage"] = name
            self.write()

    def add(self, **values: Any) -> None:
        """Adds to the result."""
        self.values |= values
        self.write()

    def finish(self) -> None:
        """The step did what it should."""
        self.values.pop("stage")
        self.add(status="ok")

    def write(self) -> None:
        """Whole or not at all, with the time spent so far."""
        self.values["seconds_all"] = round(time.perf_counter() - self.begin, 3)
        write_result(self.path, self.values)


def write_result(path: Path, result: Result) -> None:
    """Writes beside and renames."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(result, indent=1, default=float) + "\n")
    beside.replace(path)


def read_result(path: Path) -> Result | None:
    """A result, or None when there is none or it is not whole."""
    try:
        found: Result = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found


def read_cases(work: Path) -> Iterator[tuple[str, dict[str, Result]]]:
    """Every case with results below ``work``, by name: its results by step."""
    for path in sorted(work.rglob("export.json")):
        steps = {step: read_result(path.with_name(f"{step}.json")) for step in STEPS}
        found = {step: result for step, result in steps.items() if result is not None}
        if "export" in found:
            yield found["export"]["case"], found
