"""Results never overwrite what they were made from: `verify` needs the original."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as oir

from ..ir.errors import UsageError
from ..ir.io import model_files


def refuse_overwriting(source: Path, original: oir.Model, output: Path) -> None:
    """Raises UsageError when writing ``output`` (or the data file beside it) would replace the
    model file ``source`` or a file that holds weights of ``original``."""
    for path in (output, output.with_name(f"{output.name}.data")):
        if not path.exists():
            continue
        if source.exists() and path.samefile(source):
            raise UsageError(f"{path} is the original; write to another file")
        if any(path.samefile(data) for data in model_files(source, original) if data.exists()):
            raise UsageError(f"{path} holds weights of the original; write to another file")
