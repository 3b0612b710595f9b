"""Measured rows that outlive the program: one JSON object a line, the newest of a key counts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.table import environment

Key = tuple[str, float, str]


@dataclass
class Row:
    """What one method gave for a model and a target (how many times fewer multiply-accumulates).

    ``accuracy`` maps the kind of data to percent, ``ratio`` is the MACs before over those after,
    ``wall`` and ``cpu`` are seconds, ``load`` the load averages of one minute at begin and end.
    """

    model: str
    target: float
    method: str
    accuracy: dict[str, float] = field(default_factory=dict)
    ratio: float = 1.0
    wall: float = 0.0
    cpu: float = 0.0
    load: tuple[float, float] = (0.0, 0.0)
    options: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    made: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.model, self.target, self.method


@contextmanager
def clock(row: Row) -> Iterator[None]:
    """Adds the seconds of the block, of this process on all its threads, to the row's."""
    begin, cpu, load = time.perf_counter(), time.process_time(), os.getloadavg()[0]
    yield
    row.wall += time.perf_counter() - begin
    row.cpu += time.process_time() - cpu
    row.load = (row.load[0] or round(load, 1), round(os.getloadavg()[0], 1))


class Rows:
    """The rows in a file, which may not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[Key, Row]:
        """The newest row of every key, in the order in which the keys came."""
        if not self.path.exists():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines()
        rows = [Row(**json.loads(line)) for line in lines if line.strip()]
        return {row.key: row for row in rows}

    def add(self, row: Row) -> None:
        """Appends a row, with today's date and the versions of what it was made with."""
        row.made = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        row.environment = environment()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
