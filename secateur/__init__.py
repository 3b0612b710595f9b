"""Secateur: a structured-pruning compiler for ONNX."""

from pathlib import Path as _Path

# In a checkout the subpackages are siblings of this folder.
_here = _Path(__file__).resolve().parent
if not (_here / "ir").is_dir():
    __path__.append(str(_here.parent))

__version__ = "0.1.0"
