"""Proving a certificate again, from files alone.

The report says which units went as masks on named nodes of the model that each pruning pass was
given. The passes are gone through in order. Those that preserve the outputs are run again, and
compared; those that refit weights are left out, and their weights taken from the pruned model (see
`refitted`), which fails where others rewrote them. A pruning pass removes again what the report
says that it removed, without choosing again, and its result is proved equal to the masked version
of its input. After the last of them stands the pruned model itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as oir

from ..ir.errors import CertificateError, DataError, ModelError, SecateurError, UsageError
from ..ir.io import digest, load_model
from ..ir.masks import Compaction, Mask
from ..passes.base import Contract, Pass, PassContext
from ..passes.proof import Points, Removal, Repeatable, prove_by_dims
from .refitted import with_refitted
from .report import read_report

if TYPE_CHECKING:
    from ..runtime.certificate import Certificate
    from .api import Source

Slices = list[tuple[str, int, list[int]]]


@dataclass(frozen=True)
class _Recorded:
    """What a report says about how its model was made: ``steps`` are all pruning passes but the
    last (which is there too where weights were ``refitted``), by their numbers from 0, and
    ``points`` and ``removed`` are the last and the whole. ``contracts`` are those of the passes
    that changed something."""

    passes: tuple[Pass, ...]
    contracts: set[str]
    steps: Mapping[int, Removal]
    points: Points
    removed: Slices
    stored: bool
    refitted: tuple[str, ...]
    dims: dict[str, int]
    seed: int


def verify_report(
    model: oir.Model,
    original: Source,
    pruned: Source,
    report: str | os.PathLike[str] | Mapping[str, Any],
    context_for: Callable[[Mapping[str, int], int], PassContext],
) -> Certificate:
    """See `secateur.driver.api.verify`."""
    data = read_report(report)
    _check_digest(data, "original", original)
    _check_digest(data, "pruned", pruned)
    recorded = _read(data)
    preserves = recorded.contracts == {Contract.PRESERVES.value}
    preserves &= not (recorded.points.masks or recorded.points.compactions)
    last = 0 if preserves else _last_pruning(recorded.passes)
    try:
        context = context_for(recorded.dims, recorded.seed)
        if preserves:
            return prove_by_dims(model, load_model(pruned), recorded.points, context)
        before = model
        proofs: list[Certificate] = []
        for number, current in enumerate(recorded.passes[:last]):
            if current.refits:
                continue
            if current.contract is not Contract.MASKS:
                before = _run([current], before, context)
                continue
            after, removal = _repeated(recorded, number, before, context)
            proofs.append(prove_by_dims(before, after, removal.points, context))
            if not proofs[-1].ok:
                return _joined(proofs)
            before = after
        smaller, replay = load_model(pruned), dict[str, Any]()
        if recorded.refitted:
            after, removal = _repeated(recorded, last, before, context)
            later = [p for p in recorded.passes[last + 1 :] if not p.refits]
            try:
                before = with_refitted(
                    before,
                    after,
                    smaller,
                    recorded.refitted,
                    removal,
                    lambda pruned: _run(later, pruned, context),
                )
            except CertificateError:
                _check_order(recorded.passes, last)
                raise
        elif recorded.removed and all(step.slices for step in recorded.steps.values()):
            source = _with_stored_weights(model, recorded, context) if recorded.stored else model
            replay = {"removed": recorded.removed, "source": source}
        return _joined(
            [*proofs, prove_by_dims(before, smaller, recorded.points, context, **replay)]
        )
    except UsageError as error:
        raise DataError(f"the report does not fit the original model: {error}") from None
    except (ModelError, OverflowError) as error:
        raise CertificateError(
            f"the report's certificate does not fit the original model: {error}"
        ) from None


def _read(data: Mapping[str, Any]) -> _Recorded:
    from ..passes.pipeline import parse_pipeline

    if data.get("certificate") is None:
        raise DataError(
            "the report holds no certificate: nothing was pruned, a pass that approximates the "
            "outputs changed them, or sizes were missing"
        )
    try:
        return _Recorded(
            parse_pipeline(data["pipeline"]),
            {str(done["contract"]) for done in data["passes"] if done["modified"]},
            {
                int(step["pass"]) - 1: Removal(_points(step), _slices(step["removed"]))
                for step in data.get("steps", ())
            },
            _points(data["certificate"]),
            _slices(data["removed"]),
            bool(data.get("stored")),
            tuple(map(str, data.get("refitted", ()))),
            {str(k): int(v) for k, v in data["dims"].items()},
            int(data["seed"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, SecateurError) as error:
        text = error if isinstance(error, SecateurError) else repr(error)
        raise DataError(
            f"the report holds no certificate that can be proved again: {text}"
        ) from None


def _points(data: Mapping[str, Any]) -> Points:
    return Points(
        [Mask.from_json(m) for m in data["masks"]],
        [Compaction.from_json(c) for c in data["compactions"]],
    )


def _slices(data: Sequence[Mapping[str, Any]]) -> Slices:
    return [(str(r["tensor"]), int(r["axis"]), list(map(int, r["indices"]))) for r in data]


def _last_pruning(passes: Sequence[Pass]) -> int:
    """The number of the last pruning pass; all others must prune, too, or preserve the outputs."""
    pruning = [k for k, p in enumerate(passes) if p.contract is Contract.MASKS]
    if not pruning or any(p.contract is Contract.APPROXIMATES and not p.refits for p in passes):
        raise DataError(
            "only a pipeline of passes that prune or preserve the outputs, or refit weights, can be"
            " proved again from files"
        )
    return pruning[-1]


def _check_order(passes: Sequence[Pass], last: int) -> None:
    """Raises DataError where a pass may have rewritten what was refitted, or is to be: what it got
    is in no file."""
    refits = [k for k, p in enumerate(passes) if p.refits]
    for number, current in enumerate(passes):
        if current.contract is Contract.PRESERVES and number > min([last, *refits]):
            raise DataError(
                f"pass {number + 1}, '{current.name}', comes after a refitting or the last pruning:"
                " of pipelines that refit weights, only those are sure to be proved again from"
                " files in which all passes that preserve the outputs come before; run it first"
            )


def _repeated(
    recorded: _Recorded, number: int, model: oir.Model, context: PassContext
) -> tuple[oir.Model, Removal]:
    """What a pruning pass makes of the model, without choosing again, and what it removes."""
    current, removal = recorded.passes[number], recorded.steps.get(number)
    if removal is None or not isinstance(current, Repeatable):
        raise DataError(
            f"the report does not say what pass {number + 1}, '{current.name}', removed in"
            " a way that can be repeated"
        )
    return current.repeat(model, removal, context), removal


def _run(passes: Sequence[Pass], model: oir.Model, context: PassContext) -> oir.Model:
    """What passes that preserve the outputs make of the model, compared with it."""
    from ..passes.manager import PassManager

    return PassManager(passes).run(model, context).model


def _with_stored_weights(model: oir.Model, recorded: _Recorded, context: PassContext) -> oir.Model:
    """The original with the computed weights stored of which slices were removed."""
    from ..passes.computed_weights import analyze
    from ..passes.prune import Prune
    from ..runtime.observe import observer

    carriers = {p.carrier for p in recorded.passes if isinstance(p, Prune)}
    prefer = carriers.pop() if len(carriers) == 1 else "heads"
    observe = observer(model, context.calibration)
    return analyze(model, context.dims, prefer=prefer, observe=observe).model


def _joined(proofs: Sequence[Certificate]) -> Certificate:
    """The certificates of all pruning passes as one, of which the last says what was run."""
    *others, last = proofs
    if not others:
        return last
    worst = max(proofs, key=lambda p: p.worst / p.tolerance if p.tolerance else p.worst)
    return replace(
        last,
        ok=all(proof.ok for proof in proofs),
        kind="held" if any(proof.kind == "held" for proof in proofs) else last.kind,
        runs=tuple(
            replace(run, label=f"step {number}, {run.label}")
            for number, proof in enumerate(proofs, start=1)
            for run in proof.runs
        ),
        worst=worst.worst,
        tolerance=worst.tolerance,
        notes=tuple(dict.fromkeys(note for proof in proofs for note in proof.notes)),
    )


def _check_digest(data: Mapping[str, Any], which: str, source: Source) -> None:
    try:
        wanted = data[which]["sha256"]
    except (KeyError, TypeError):
        raise DataError(f"the report does not name the {which} model") from None
    found = digest(source)
    if found != wanted:
        name = source if isinstance(source, (str, os.PathLike)) else "the model given"
        raise CertificateError(
            f"{name} is not the {which} model of this report (SHA-256 {found[:12]}…, the report"
            f" says {str(wanted)[:12]}…)"
        )
