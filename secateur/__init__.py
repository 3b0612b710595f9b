"""Secateur: a structured-pruning compiler for ONNX.

``secateur.prune("model.onnx", macs=0.5)`` prunes, proves and times a model; `analyze`, `plan`,
`rewrite`, `certify` and `bench` are its steps; `run` executes a pipeline of passes and `verify`
proves a certificate again from files; `pack_calibration` makes the data that some of them need, and
`sensitivity` measures on it what each group is worth. Names load on first use, so importing costs
nothing.
"""

from __future__ import annotations

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

# In a checkout the subpackages are siblings of this folder.
_here = _Path(__file__).resolve().parent
if not (_here / "ir").is_dir():
    __path__.append(str(_here.parent))

__version__ = "0.1.0"

_API = (
    "Bench",
    "Packed",
    "Plan",
    "PruneResult",
    "Sensitivity",
    "analyze",
    "bench",
    "certify",
    "load",
    "pack_calibration",
    "plan",
    "prune",
    "rewrite",
    "run",
    "sensitivity",
    "verify",
)
_ERRORS = (
    "CertificateError",
    "DataError",
    "ModelError",
    "SecateurError",
    "TargetError",
    "UsageError",
)
__all__ = ["__version__", *_API, *_ERRORS]

if _TYPE_CHECKING:
    from .driver.api import (
        Bench as Bench,
    )
    from .driver.api import (
        Packed as Packed,
    )
    from .driver.api import (
        Plan as Plan,
    )
    from .driver.api import (
        PruneResult as PruneResult,
    )
    from .driver.api import (
        Sensitivity as Sensitivity,
    )
    from .driver.api import analyze as analyze
    from .driver.api import bench as bench
    from .driver.api import certify as certify
    from .driver.api import load as load
    from .driver.api import pack_calibration as pack_calibration
    from .driver.api import plan as plan
    from .driver.api import prune as prune
    from .driver.api import rewrite as rewrite
    from .driver.api import run as run
    from .driver.api import sensitivity as sensitivity
    from .driver.api import verify as verify
    from .ir.errors import CertificateError as CertificateError
    from .ir.errors import DataError as DataError
    from .ir.errors import ModelError as ModelError
    from .ir.errors import SecateurError as SecateurError
    from .ir.errors import TargetError as TargetError
    from .ir.errors import UsageError as UsageError


def __getattr__(name: str) -> _Any:
    from importlib import import_module

    if name in _API:
        return getattr(import_module(".driver.api", __name__), name)
    if name in _ERRORS:
        return getattr(import_module(".ir.errors", __name__), name)
    raise AttributeError(f"module 'secateur' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
