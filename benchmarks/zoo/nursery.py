"""Processes for steps, forked from one that has already imported what is slow to import.

Frameworks take seconds to import, most of the time that a small model needs. A *nursery* keeps one
server per Python and kind of step (`worker.serve`) which imports them once and forks for every
step: a step still has a process of its own, that may crash, hang or be ended.

The server reads a line of JSON per step, and answers with the number of the process, and when that
has ended, with its exit code.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from .record import Spec

ROOT = Path(__file__).resolve().parent.parent.parent


class Child:
    """A running step: its process number, and its exit code once it has ended."""

    def __init__(self, answers: IO[bytes], pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        self._answers = answers

    def ended(self, seconds: float) -> bool:
        """Whether the process ended, after at most so many seconds of waiting."""
        if self.code is None and select.select([self._answers], [], [], seconds)[0]:
            self.code = int(self._answers.readline() or -9)
        return self.code is not None


@dataclass
class Nursery:
    """The servers of one job; close it after use. One step at a time."""

    threads: int
    _servers: dict[tuple[str, str], subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            with suppress(OSError):
                server.communicate()

    def start(self, python: str, spec: Spec, log: Path) -> Child:
        """Starts a step with its output in ``log``; raises OSError when no process can be had."""
        server = self._server(python, spec)
        assert server.stdin is not None and server.stdout is not None
        request = {"spec": spec.to_json(), "log": str(log)}
        server.stdin.write(json.dumps(request).encode() + b"\n")
        answer = server.stdout.readline()
        if not answer:
            raise OSError(f"{python} starts no worker")
        return Child(server.stdout, int(answer))

    def _server(self, python: str, spec: Spec) -> subprocess.Popen[bytes]:
        what = spec.environment if spec.step == "export" else spec.step.removesuffix("-inexact")
        kind = (python, what)
        found = self._servers.get(kind)
        if found is None or found.poll() is not None:
            settings = {"OMP_NUM_THREADS": str(self.threads), "CUDA_VISIBLE_DEVICES": ""}
            found = subprocess.Popen(
                [python, "-m", "benchmarks.zoo.worker", "serve", what],
                cwd=ROOT,
                env=os.environ | settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,  # a line that waits in a buffer would be missed by `select`
                start_new_session=True,
            )
            self._servers[kind] = found
        return found


def fork(log: str) -> int:
    """Forks: 0 in the child, which has no input, its output in ``log`` and a session of its own;
    in the parent the child's number."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for number, (path, flags) in enumerate(
            [(os.devnull, os.O_RDONLY), *[(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)] * 2]
        ):
            opened = os.open(path, flags, 0o644)
            os.dup2(opened, number)
            os.close(opened)
    return pid
