"""What a pass is: a frozen dataclass with a name, options, a contract and ``run``.

Ownership. ``run`` receives a model that it owns: it may edit the graph in place and return
it, or return another. The pass manager clones the caller's model once, before the first
pass, so the caller's graph is never edited. Weights are not copied by that clone, and type
objects are shared with it. Tensors and types are therefore values: a pass assigns a new
tensor or type to ``Value.const_value`` or ``Value.type``, it never writes into an old one.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from ..ir.errors import ModelError


class Contract(enum.Enum):
    """What a pass promises about the numbers; the pass manager holds it to that."""

    PRESERVES = "preserves"
    """The outputs equal those of the model it was given."""
    MASKS = "masks"
    """The outputs equal those of the masked original, proved by a certificate."""
    APPROXIMATES = "approximates"
    """The outputs move; the statistics report by how much, under ``drift``."""


def _no_progress(_message: str, _fraction: float | None) -> None:
    pass


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class PassContext:
    """What every pass of a pipeline may know besides its own options.

    ``seed`` starts every random generator. ``threads`` is for ONNX Runtime, 0 lets it choose.
    ``dims`` binds symbolic dimensions to sizes. ``calibration`` maps each graph input to an
    array of samples, shape ``(samples, ...)`` (the input's own shape with the batch axis
    first), or is None. ``progress`` takes a message and a fraction in 0..1 (None: unknown).
    ``original`` is the model that the pipeline was given, before any pass; nobody edits it. It
    is None where a pass runs outside a pipeline.
    """

    seed: int = 0
    threads: int = 0
    dims: Mapping[str, int] = field(default_factory=_nothing)
    calibration: Mapping[str, npt.NDArray[np.generic]] | None = None
    progress: Callable[[str, float | None], None] = _no_progress
    original: oir.Model | None = None
    """The model that the pipeline was given; never edited."""
    history: tuple[PassResult, ...] = ()
    """The results of the passes that ran before."""


@dataclass(frozen=True)
class PassResult:
    """What a pass hands back.

    ``statistics`` are counts and measures for tables; ``details`` is anything a report may
    want; ``certificate`` is any object with ``ok`` (bool) and ``describe()`` (str).
    """

    model: oir.Model
    modified: bool
    statistics: Mapping[str, int | float] = field(default_factory=_nothing)
    details: Mapping[str, Any] = field(default_factory=_nothing)
    certificate: object | None = None


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes. A subclass is a frozen dataclass whose fields are its options.

    Options may be ``bool``, ``int``, ``float``, ``str``, a ``Literal``, ``tuple[X, ...]`` of
    these, or ``X | None``. ``__post_init__`` may raise ``ValueError`` with one line saying
    which value is wrong, with options in backquotes; the pipeline parser adds where it stands.
    """

    name: ClassVar[str]
    """The name in pipeline text: lower case, words joined by hyphens."""
    contract: ClassVar[Contract]
    summary: ClassVar[str]
    """One line for ``list_passes``."""
    refits: ClassVar[bool] = False
    """Whether the pass changes the numbers of weights and nothing else. Such passes name them in
    ``PassResult.details["refitted"]``."""

    @abstractmethod
    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        """Transform ``model``, which the pass owns (see the module's docstring).

        Raises a `SecateurError` for anything the user can do something about.
        """


def clone_model(model: oir.Model) -> oir.Model:
    """A copy of the graph that shares weights, types and metadata values with the original.

    Raises `ModelError` if the graph is not sorted or uses values that nothing makes.
    """
    try:
        copy = model.clone()
    except RuntimeError as error:
        from ..ir.verifier import find_problems

        problems = find_problems(model)
        detail = str(problems[0]) if problems else "its nodes are not in topological order"
        raise ModelError(f"the graph is not valid: {detail}") from error
    copy.meta.update(model.meta)
    return copy
