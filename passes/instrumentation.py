"""Watching a pipeline run: one interface, and what the command line offers through it.

All text goes to standard error. An instrumentation may raise after a pass: that counts as a
failure of the pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

import onnx_ir as oir

from ..ir.errors import CertificateError, SecateurError
from ..ir.registry import one_line
from .base import Contract, Pass, PassContext, PassResult, clone_model
from .pipeline import format_pipeline

if TYPE_CHECKING:
    import onnx

    from .manager import PipelineResult


@dataclass(frozen=True)
class Step:
    """A pass and its place: ``index`` counts from 1, ``remaining`` starts with the pass."""

    index: int
    total: int
    current: Pass
    remaining: tuple[Pass, ...]
    context: PassContext


class Instrumentation:
    """Override what you want to see. The model belongs to the pipeline: read it, do not edit."""

    def before_pipeline(
        self, model: oir.Model, passes: Sequence[Pass], context: PassContext
    ) -> None:
        """Called once, with the model the first pass will get."""

    def before_pass(self, step: Step, model: oir.Model) -> bool:
        """Called before a pass. False leaves the pass out."""
        return True

    def after_pass(self, step: Step, result: PassResult, seconds: float) -> None:
        """Called after a pass that ran for ``seconds``. May raise `SecateurError`."""

    def failed(self, step: Step, error: Exception) -> str | None:
        """Called when a pass or a check after it raised. What it returns ends the message."""
        return None

    def after_pipeline(self, result: PipelineResult) -> None:
        """Called once when every pass is through."""


class Proof(Protocol):
    """The outcome of a numerical comparison."""

    @property
    def ok(self) -> bool: ...

    def describe(self) -> str: ...


CheckPreserves = Callable[[oir.Model, oir.Model, PassContext], Proof]
"""Compares the outputs of two models: (before, after, context)."""

FindProblems = Callable[[oir.Model], Sequence[Hashable]]
"""Lists structural problems of a model; each has a one-line ``str``."""


@dataclass(frozen=True)
class _Compared:
    ok: bool
    text: str

    def describe(self) -> str:
        return self.text


def same_outputs(before: oir.Model, after: oir.Model, context: PassContext) -> Proof:
    """Run both models in ONNX Runtime on three seeds and on the calibration data, if any.

    Symbolic dimensions without a size in ``context.dims`` are bound to 2. With calibration
    data, random feeds that ``before`` itself cannot run are left out; without, they are a
    `CertificateError`.
    """
    from ..runtime.runnable import runnable

    with runnable(before, after) as (reference, candidate):
        return _same_outputs(reference, candidate, context)


def _same_outputs(
    reference: onnx.ModelProto, candidate: onnx.ModelProto, context: PassContext
) -> Proof:
    from ..runtime.calibration import CALIBRATION_SAMPLES, calibration_feeds
    from ..runtime.compare import compare_models
    from ..runtime.inputs import random_feed
    from ..runtime.runnable import runner
    from ..runtime.signature import input_dims

    dims = {**dict.fromkeys(input_dims(reference), 2), **context.dims}
    seeds = range(context.seed, context.seed + 3)
    feeds = [(f"seed {seed}", random_feed(reference, dims, seed)) for seed in seeds]
    try:
        runner(reference, threads=context.threads, optimize=False)(feeds[0][1])
    except CertificateError as error:
        if context.calibration is None:
            raise CertificateError(
                f"cannot be checked, the model does not run on random inputs ({error}); give "
                "sizes for its dimensions or calibration data, or turn verification off"
            ) from error
        feeds = []
    if context.calibration is not None:
        real = calibration_feeds(dict(context.calibration), reference, dims, CALIBRATION_SAMPLES)
        feeds += [(f"calibration {i}", feed) for i, feed in enumerate(real)]
    result = compare_models(reference, candidate, feeds, threads=context.threads)
    worst = result.worst
    if worst is None:
        return _Compared(result.ok, "the model has no outputs to compare")
    return _Compared(
        result.ok,
        f"output '{worst.output}' differs by {worst.relative:.3g} on {worst.label} "
        f"(tolerance {worst.tolerance:.3g}, optimisation {worst.optimisation})",
    )


def _find_problems(model: oir.Model) -> Sequence[Hashable]:
    from ..ir.verifier import find_problems

    return find_problems(model)


class VerifyEach(Instrumentation):
    """Hold every pass to a well-formed graph, the same interface, and its contract's numbers.

    Structural problems that the input had already are not held against a pass. A pass that
    says it changed nothing must have changed nothing.
    """

    def __init__(
        self,
        check_preserves: CheckPreserves = same_outputs,
        find_problems: FindProblems = _find_problems,
    ) -> None:
        self._check = check_preserves
        self._find = find_problems
        self._known: frozenset[Hashable] = frozenset()
        self._before: oir.Model | None = None

    def before_pipeline(
        self, model: oir.Model, passes: Sequence[Pass], context: PassContext
    ) -> None:
        self._known = frozenset(self._find(model))

    def before_pass(self, step: Step, model: oir.Model) -> bool:
        self._before = clone_model(model)
        return True

    def after_pass(self, step: Step, result: PassResult, seconds: float) -> None:
        before, self._before = self._before, None
        assert before is not None
        new = [problem for problem in self._find(result.model) if problem not in self._known]
        if new:
            more = f" (and {len(new) - 1} more)" if len(new) > 1 else ""
            raise CertificateError(f"broke the model: {one_line(new[0])}{more}")
        changed = set(_interface(before)) ^ set(_interface(result.model))
        if changed or _interface(before) != _interface(result.model):
            what = min(changed)[0] if changed else "the order of inputs or outputs"
            raise CertificateError(f"changed the interface of the model: {what}")
        if not result.modified:
            from ..ir.io import digest

            if digest(before) != digest(result.model):
                raise CertificateError("says it changed nothing, but the model differs")
        elif step.current.contract is Contract.PRESERVES:
            proof = self._check(before, result.model, step.context)
            if not proof.ok:
                raise CertificateError(
                    f"promises to preserve the outputs, but {one_line(proof.describe())}"
                )


def _interface(model: oir.Model) -> list[tuple[str, str, str]]:
    """Inputs and outputs; of a weight that is listed as an input (as before IR version 4), only
    the name is part of the interface."""
    return [
        (
            f"{kind} '{value.name}'",
            str(value.type),
            "a weight" if value.is_initializer() else str(value.shape),
        )
        for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs))
        for value in values
    ]


class _Printer(Instrumentation):
    """Base of those that print; ``stream`` defaults to the standard error of the moment."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def _print(self, text: str) -> None:
        print(text, file=self._stream if self._stream is not None else sys.stderr)


class TimePasses(_Printer):
    """Print a table of the time spent in each pass (checks not included)."""

    def after_pipeline(self, result: PipelineResult) -> None:
        total = sum(result.timings)
        width = max([len("total"), *(len(p.name) for p in result.passes)])
        self._print(f"{'pass':<{width}}  {'seconds':>9}  share")
        for current, seconds in zip(result.passes, result.timings, strict=True):
            share = seconds / total if total else 0.0
            self._print(f"{current.name:<{width}}  {seconds:>9.3f}  {share:>5.1%}")
        self._print(f"{'total':<{width}}  {total:>9.3f}")


class Statistics(_Printer):
    """Print what the passes counted, in the order of the passes."""

    def after_pipeline(self, result: PipelineResult) -> None:
        rows = [
            (p.name, key, f"{value:g}" if isinstance(value, float) else str(value))
            for p, r in zip(result.passes, result.results, strict=True)
            for key, value in r.statistics.items()
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        for name, key, value in rows:
            self._print(f"{name:<{widths[0]}}  {key:<{widths[1]}}  {value:>{widths[2]}}")


class PrintIRAfter(_Printer):
    """Print the model after the named passes (None: after every pass)."""

    def __init__(self, names: Collection[str] | None = None, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._names = names

    def after_pass(self, step: Step, result: PassResult, seconds: float) -> None:
        if self._names is not None and step.current.name not in self._names:
            return
        from ..ir.printer import format_model

        self._print(f"// After {step.current.name} ({step.index} of {step.total})")
        self._print(format_model(result.model))


class Bisect(_Printer):
    """Run only the first ``limit`` passes and say which, like LLVM's -opt-bisect-limit.

    Halve the limit until the last pass that runs is the one that introduces a fault.
    """

    def __init__(self, limit: int, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._limit = limit

    def before_pass(self, step: Step, model: oir.Model) -> bool:
        runs = step.index <= self._limit
        word = "running" if runs else "NOT running"
        self._print(f"bisect: {word} pass ({step.index}) {format_pipeline([step.current])}")
        return runs


class CrashReproducer(Instrumentation):
    """On failure write ``reproducer.onnx``, the model before the failing pass, and
    ``pipeline.txt``, the passes from there on, into ``directory``; the message names it."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._before: oir.Model | None = None

    def before_pass(self, step: Step, model: oir.Model) -> bool:
        self._before = clone_model(model)
        return True

    def failed(self, step: Step, error: Exception) -> str | None:
        if self._before is None:
            return None
        from ..ir.io import atomic_write, save_model

        path = self._directory / "reproducer.onnx"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            atomic_write(self._directory / "pipeline.txt", format_pipeline(step.remaining) + "\n")
            save_model(self._before, path)
        except (SecateurError, OSError) as failure:
            return f"no reproducer, {one_line(failure)}"
        return f"reproducer: {path} with the pipeline in pipeline.txt"
