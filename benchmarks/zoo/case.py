"""One model of the zoo: a name and how its ONNX file is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Peer:
    """What Torch-Pruning needs: the module the file was exported from, and example inputs (a tuple,
    or a dictionary of keyword arguments)."""

    module: Any
    inputs: tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Case:
    """``export(path)`` writes the ONNX file, with random weights from a fixed seed and nothing
    downloaded, and returns what a peer can start from, or None.

    ``name`` is ``family/model`` (``torchvision/resnet50``, ``timm-dynamo/vit``). ``dims`` binds
    the file's symbolic dimensions where Secateur has no default. ``environment`` names the Python
    that exports it: "torch" or "tensorflow" (see ``requirements-*.txt``). Frameworks are imported
    inside ``export``, so that listing cases costs nothing.
    """

    name: str
    export: Callable[[Path], Peer | None]
    dims: dict[str, int] = field(default_factory=dict)
    environment: str = "torch"
