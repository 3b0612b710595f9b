"""Processes that tests have started: do they end?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path


def of_group(group: int) -> Iterator[int]:
    """The processes of a process group that have not ended; those that nobody waits for have."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, found = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ends while we look
            continue
        if int(found) == group and state not in "ZX":
            yield int(path.parent.name)


def run(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def assert_soon(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Waits until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
