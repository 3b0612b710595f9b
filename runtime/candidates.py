"""Candidates for removal, run in ONNX Runtime without being built.

A candidate is where the original would be masked. The masked original computes what the pruned
model would (that is what certificates prove), so it shows the drift; nothing is sliced. Masks of
stored weights are multiplied in before the model is loaded: one session per candidate costs little
beside its runs, and it is as well optimised as the original. Masks that are fed would keep
ONNX Runtime from preparing the weights, and could not stand for the removal from a normalisation.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import onnx

from ..ir.errors import DataError, SecateurError
from ..ir.flatten import flatten
from ..ir.io import load_model
from ..ir.masks import Compaction, Mask
from .calibration import calibration_feeds, load_calibration
from .drift import Drift, drift
from .masked import masked_model
from .runnable import run_feeds, runnable
from .session import Array, Feed


@dataclass(frozen=True)
class Study:
    """What all candidates have in common: files of the model and the data, and how to run them.

    ``dims`` are sizes of symbolic dimensions, ``samples`` is how many are run at most, ``threads``
    are those of ONNX Runtime. Small, hashable, and the same in every process.
    """

    model: str
    calibration: str
    dims: tuple[tuple[str, int], ...] = ()
    samples: int = 64
    threads: int = 1


@dataclass(frozen=True)
class Candidate:
    """Where the original is masked, with the types of the values that this needs."""

    masks: tuple[Mask, ...]
    compactions: tuple[Compaction, ...]
    types: tuple[tuple[str, tuple[int, tuple[int | str | None, ...]]], ...]

    @cached_property
    def key(self) -> str:
        """A name for the removal: equal masks, equal key, in any run on the same model."""
        data = [m.to_json() for m in self.masks], [c.to_json() for c in self.compactions]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Measured:
    """The drift of every output, or why there is none."""

    outputs: Mapping[str, Drift]
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Measured:
        """The inverse of `to_json`. Raises DataError for anything `to_json` does not write."""
        try:
            outputs = {str(k): Drift.from_json(v) for k, v in data["outputs"].items()}
            failure = data["failure"]
            if failure is not None and not isinstance(failure, str):
                raise TypeError(f"failure {failure!r} is no text")
            return cls(outputs, failure)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a measurement: {error!r}") from None


def measure(study: Study, candidate: Candidate) -> Measured:
    """The drift of one candidate. The original is read and run once per process.

    A candidate that cannot be masked or run is a failure of its own; raises the errors of
    `secateur.ir.errors` when the original is at fault.
    """
    originals = _originals(study)
    try:
        model = masked_model(
            originals.model, candidate.masks, candidate.compactions, dict(candidate.types)
        )
        results = run_feeds(model, originals.feeds, threads=study.threads)
        return Measured(drift(zip(originals.outputs, results, strict=True)))
    except SecateurError as error:
        return Measured({}, str(error))


def measure_in(study: Study, folder: Path, candidate: Candidate) -> Measured:
    """`measure`, where the files of the study lie in ``folder``."""
    model, calibration = folder / study.model, folder / study.calibration
    return measure(replace(study, model=str(model), calibration=str(calibration)), candidate)


def forget() -> None:
    """Lets go of the original that `measure` holds."""
    _prepared.cache_clear()


class _Originals:
    """The original of a study with its feeds and outputs."""

    def __init__(self, study: Study) -> None:
        self._files = ExitStack()
        flat = flatten(load_model(study.model))
        self.model: onnx.ModelProto = self._files.enter_context(runnable(flat))[0]
        dims = dict(study.dims)
        arrays = load_calibration(study.calibration, self.model, dims)
        self.feeds: list[Feed] = list(calibration_feeds(arrays, self.model, dims, study.samples))
        self.outputs: list[dict[str, Array]] = list(
            run_feeds(self.model, self.feeds, threads=study.threads)
        )


@lru_cache(maxsize=1)
def _prepared(study: Study) -> _Originals:
    return _Originals(study)


_PREPARING = threading.Lock()


def _originals(study: Study) -> _Originals:
    """One copy per process, also where several threads ask for it at once."""
    with _PREPARING:
        return _prepared(study)
