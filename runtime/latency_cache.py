"""Measured times that outlive a run: JSON files in the user's cache folder.

One file per layer and machine, under ``$XDG_CACHE_HOME/secateur`` (``~/.cache/secateur``). It says
what it belongs to: processor, cores, ONNX Runtime version, thread count and the layer. A file that
is unreadable, damaged or of something else is as good as none, and is written anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..ir.errors import SecateurError
from ..ir.io import atomic_write

Sizes = tuple[int, ...]
_VERSION = 2


def cache_folder() -> Path:
    """Where times are kept; nothing is created."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = base if base.is_absolute() else Path.home() / ".cache"
    return root / "secateur" / "latency"


def machine(threads: int) -> dict[str, str | int]:
    """What times depend on besides the layer."""
    import onnxruntime

    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count() or 0,
        "onnxruntime": str(onnxruntime.__version__),
        "threads": threads,
    }


def load_times(signature: str, where: Mapping[str, str | int]) -> dict[Sizes, float]:
    """Milliseconds by sizes of the layer's dimensions; empty when nothing is known."""
    try:
        found = json.loads(_path(signature, where).read_text("utf-8"))
        if {k: found[k] for k in ("version", "machine", "layer")} != _head(signature, where):
            return {}
        times = {tuple(map(int, key.split("x"))): value for key, value in found["ms"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    sound = all(type(t) in (int, float) and math.isfinite(t) and t >= 0 for t in times.values())
    return {sizes: float(t) for sizes, t in times.items()} if sound else {}


def store_times(
    signature: str, where: Mapping[str, str | int], times: Mapping[Sizes, float]
) -> None:
    """Writes the times of a layer, whole or not at all; a folder that cannot be written to only
    means that they are measured again."""
    path = _path(signature, where)
    listed = {"x".join(map(str, sizes)): round(ms, 6) for sizes, ms in sorted(times.items())}
    with suppress(OSError, SecateurError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(_head(signature, where) | {"ms": listed}, indent=1) + "\n")


def _head(signature: str, where: Mapping[str, str | int]) -> dict[str, object]:
    return {"version": _VERSION, "machine": dict(where), "layer": json.loads(signature)}


def _path(signature: str, where: Mapping[str, str | int]) -> Path:
    key = hashlib.sha256(json.dumps(_head(signature, where), sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{key[:32]}.json"


def _processor() -> str:
    """The processor's model as the system states it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
