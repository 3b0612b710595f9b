"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import UsageError, reason


def write_files(files: Sequence[tuple[Path, Iterable[bytes | memoryview]]]) -> None:
    """Writes all files or none: beside their places first, then renamed in the order given."""
    staged: list[tuple[Path, Path]] = []
    target = Path()
    try:
        for target, chunks in files:
            if target.exists() and not target.is_file():
                raise UsageError(f"cannot write {target}: not a regular file; give another path")
            temporary = _beside(target)
            staged.append((temporary, target))
            with temporary.open("xb") as file:
                for chunk in chunks:
                    file.write(chunk)
            if target.exists():
                shutil.copymode(target, temporary)
        _rename(staged)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {target}: {reason(error)}; give another path") from None
    finally:
        for temporary, _ in staged:
            with contextlib.suppress(OSError, ValueError):
                temporary.unlink(missing_ok=True)


def _rename(staged: Sequence[tuple[Path, Path]]) -> None:
    """Renames in order; when one fails the old files come back."""
    moved: list[tuple[Path | None, Path]] = []
    try:
        for temporary, target in staged[:-1]:
            backup = _beside(target) if target.exists() else None
            if backup:
                target.replace(backup)
            moved.append((backup, target))
            temporary.replace(target)
        temporary, target = staged[-1]
        temporary.replace(target)
    except BaseException:
        for backup, target in moved:
            if backup:
                backup.replace(target)
            else:
                target.unlink(missing_ok=True)
        raise
    for backup, _ in moved:
        if backup:
            backup.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    return target.with_name(f".secateur-{secrets.token_hex(8)}.tmp")
