"""Running a pipeline and holding every pass to its contract.

``preserves``: before and after are compared in ONNX Runtime (unless verification is off).
``masks``: the pass must hand back a certificate that is ``ok``; this cannot be turned off.
``approximates``: the pass must report its ``drift``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as oir

from ..ir.errors import CertificateError, SecateurError
from ..ir.registry import one_line
from ..ir.rules.registry import all_rules
from .base import Contract, Pass, PassContext, PassResult, clone_model
from .instrumentation import CheckPreserves, Instrumentation, Step, VerifyEach, same_outputs


@dataclass(frozen=True)
class PipelineResult:
    """The final model; for every pass that ran, its result and its time in seconds."""

    model: oir.Model
    passes: tuple[Pass, ...]
    results: tuple[PassResult, ...]
    timings: tuple[float, ...]

    @property
    def modified(self) -> bool:
        """Whether any pass changed the model."""
        return any(result.modified for result in self.results)


class PassManager:
    """Runs passes in order. Holds no state between runs.

    ``verify`` adds `VerifyEach` after the given instrumentations (so that they see a broken
    model before it is rejected); ``check_preserves`` replaces its numerical comparison.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        instrumentations: Iterable[Instrumentation] = (),
        verify: bool = True,
        check_preserves: CheckPreserves = same_outputs,
    ) -> None:
        self._passes = tuple(passes)
        self._instrumentations = tuple(instrumentations)
        self._verify = verify
        self._check = check_preserves

    def run(
        self, model: oir.Model, context: PassContext | None = None, clone: bool = True
    ) -> PipelineResult:
        """Run the passes on a clone of ``model``, or on ``model`` itself if ``clone`` is false.

        The clone shares the weights. Unless the context says otherwise, its ``original`` is the
        model as it was given. Raises `CertificateError` when a pass breaks its
        contract, and whatever `SecateurError` a pass raises; other exceptions become a
        `SecateurError`. Every message names the pass.
        """
        context = context if context is not None else PassContext()
        watchers = self._instrumentations
        if self._verify:
            watchers += (VerifyEach(self._check),)
        if context.original is None:
            context = replace(context, original=model if clone else clone_model(model))
        if clone:
            model = clone_model(model)
        for watcher in watchers:
            watcher.before_pipeline(model, self._passes, context)
        ran: list[tuple[Pass, PassResult, float]] = []
        for number, current in enumerate(self._passes):
            step = Step(number + 1, len(self._passes), current, self._passes[number:], context)
            if not all(watcher.before_pass(step, model) for watcher in watchers):
                continue
            try:
                start = time.perf_counter()
                history = tuple(result for _, result, _ in ran)
                result = current.run(model, replace(context, history=history))
                seconds = time.perf_counter() - start
                _check_contract(current, result)
                for watcher in watchers:
                    watcher.after_pass(step, result, seconds)
            except Exception as error:
                raise _failure(step, error, watchers) from error
            model = result.model
            ran.append((current, result, seconds))
        passes, results, timings = zip(*ran, strict=True) if ran else ((), (), ())
        outcome = PipelineResult(model, passes, results, timings)
        for watcher in watchers:
            watcher.after_pipeline(outcome)
        return outcome


def _check_contract(current: Pass, result: PassResult) -> None:
    if current.contract is Contract.MASKS:
        certificate = result.certificate
        if certificate is None:
            raise CertificateError("removed units without a certificate; nothing is written")
        if getattr(certificate, "ok", False) is not True:
            describe = getattr(certificate, "describe", lambda: "no reason given")
            others = sorted({rule.provider for rule in all_rules().values()} - {"secateur"})
            suspect = f"the coupling rules of {', '.join(others)} are the first to suspect"
            raise CertificateError(
                f"the certificate failed: {one_line(describe())}; `protect` keeps layers whole; "
                + (suspect if others else "please report it")
            )
    if current.contract is Contract.APPROXIMATES and "drift" not in result.statistics:
        raise CertificateError("approximates the outputs but does not report its 'drift'")


def _failure(step: Step, error: Exception, watchers: Sequence[Instrumentation]) -> SecateurError:
    """The error to raise: of the kind of ``error``, naming the pass and ending in the notes."""
    kind: type[SecateurError] = SecateurError
    text = f"{type(error).__name__}: {one_line(error)}"
    if isinstance(error, SecateurError):
        home = SecateurError.__module__
        kind = next(c for c in type(error).__mro__ if c.__module__ == home)
        text = one_line(error)
    notes = [note for w in watchers if (note := w.failed(step, error)) is not None]
    return kind("; ".join([f"pass '{step.current.name}': {text}", *notes]))
