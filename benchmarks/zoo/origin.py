"""Where a result comes from: the day, the machine, and the state of Secateur's code.

Results of several sittings stand in one table; these tell them apart.
"""

from __future__ import annotations

import hashlib
import os
import platform
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("secateur", "driver", "passes", "runtime", "ir")


def origin() -> dict[str, str]:
    """``when`` (UTC, to the minute), ``machine``, and ``code`` (see `code`)."""
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    return {"when": when, "machine": machine(), "code": code()}


@cache
def machine() -> str:
    """Cores, processor and system, as a reader of the table would name them."""
    parts = [_processor(), platform.machine(), platform.system()]
    return ", ".join([f"{os.cpu_count()} cores", *filter(None, parts)])


def _processor() -> str:
    """The processor's name; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")


@cache
def code() -> str:
    """The first digits of a hash over the names and texts of Secateur's source files: the same for
    the same code, whatever its history."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
