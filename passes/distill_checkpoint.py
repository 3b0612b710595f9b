"""Checkpoints of a training: one .npz file, replaced as a whole, never half written.

It holds the weights, the best ones so far, the optimiser's moments, and as JSON where the training
stood, the loss history, and a fingerprint of everything that the numbers depend on: a checkpoint of
another model, other data or other options is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import DataError, UsageError, reason
from ..ir.io import atomic_write
from ..runtime.session import Array

FILE = "distill.npz"


@dataclass
class State:
    """Where a training stands. ``arrays`` are named ``<kind>/<number of the tensor>``."""

    step: int = 0
    seconds: float = 0.0
    best: float = float("inf")
    start: float = float("inf")
    worse: int = 0
    """Evaluations since the best, or since the rate was last lowered."""
    damping: float = 1.0
    """What the learning rate is multiplied by, less than 1 where it was too high."""
    history: list[tuple[int, float]] = field(default_factory=list)
    """(step, held-out loss)."""
    arrays: dict[str, Array] = field(default_factory=dict)


def fingerprint(arrays: Mapping[str, Array], options: Mapping[str, object]) -> str:
    """A digest of arrays and options."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Checkpoint:
    """The checkpoint in a folder, which is made when it is first written."""

    def __init__(self, folder: str, mark: str) -> None:
        self.path = Path(folder) / FILE
        self._mark = mark

    def write(self, state: State) -> None:
        """Raises UsageError when the file cannot be written."""
        facts: dict[str, Any] = {k: v for k, v in vars(state).items() if k != "arrays"}
        text = json.dumps({"mark": self._mark, **facts})
        stream = io.BytesIO()
        np.savez(stream, state=np.frombuffer(text.encode(), np.uint8), **state.arrays)  # type: ignore[arg-type]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, stream.getvalue())
        except OSError as error:
            raise UsageError(
                f"checkpoint '{self.path}' cannot be written: {reason(error)}"
            ) from error

    def read(self, shapes: Sequence[tuple[int, ...]]) -> State | None:
        """The state, None if there is no file. ``shapes`` are those of the tensors by number.

        Raises DataError for a file that is none of ours, UsageError for one of another training.
        """
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
            facts = json.loads(arrays.pop("state").tobytes().decode())
            mark = facts.pop("mark")
            state = State(**facts, arrays=arrays)
            state.history = [(int(step), float(loss)) for step, loss in state.history]
        except Exception as error:  # whatever zipfile, numpy and json say to a malformed file
            raise DataError(
                f"checkpoint '{self.path}' cannot be read: {reason(error)}; delete it"
            ) from error
        if mark != self._mark:
            raise UsageError(
                f"checkpoint '{self.path}' is of another model, other data or other options; "
                "delete it or name another folder"
            )
        for name, array in arrays.items():
            number = name.rpartition("/")[2]
            if not number.isdigit() or int(number) >= len(shapes):
                raise DataError(f"checkpoint '{self.path}' is damaged; delete it")
            if array.ndim and array.shape != shapes[int(number)]:
                raise DataError(f"checkpoint '{self.path}' is damaged; delete it")
        return state
