"""Results as they come, in a file of JSON lines: work that was cut short goes on from there.

The first line says what the results belong to; each other line is one result under its key. Lines
are written whole and at once, so only the last can be torn, and a torn one is measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..ir.errors import DataError, UsageError, reason

FORMAT = 1


class Journal:
    """The results in ``folder`` that belong to ``inputs`` (JSON values), in a file named after
    these; results of other inputs may lie in the same folder.

    Raises UsageError when folder or file cannot be written, DataError when the file holds
    something else.
    """

    def __init__(self, folder: Path, stem: str, inputs: Mapping[str, Any]) -> None:
        self.inputs = {"journal": stem, "format": FORMAT, **inputs}
        key = hashlib.sha256(json.dumps(self.inputs, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{stem}-{key[:16]}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.found = self._read()
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {reason(error)}") from None
        if self._file.tell() == 0:
            self._write(self.inputs)

    def add(self, key: str, result: Mapping[str, Any]) -> None:
        """Keeps one result. Raises UsageError when it cannot be written."""
        self._write({"key": key, **result})

    def close(self) -> None:
        """No more results."""
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {reason(error)}") from None

    def _read(self) -> dict[str, dict[str, Any]]:
        """The results by key; cuts off a torn last line."""
        if not self.path.exists():
            return {}
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(self.path, len(whole))
        found = {}
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                line = json.loads(text)
                if number > 1:
                    found[str(line.pop("key"))] = line
            except (ValueError, KeyError, AttributeError, TypeError):
                raise DataError(
                    f"{self.path}: line {number} is no result; delete the file"
                ) from None
            if number == 1 and line != self.inputs:
                raise DataError(f"{self.path}: holds results of other inputs; delete the file")
        return found
