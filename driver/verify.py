"""Proving a certificate again, from files alone.

The report says which units went as masks on named nodes of the model that the pruning pass was
given. Passes before it preserve the outputs and are run again; then the masked original is built
and compared with the pruned model as it was when the certificate was made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as oir

from ..ir.errors import CertificateError, DataError, ModelError, SecateurError, UsageError
from ..ir.io import digest, load_model
from ..ir.masks import Compaction, Mask
from .report import read_report

if TYPE_CHECKING:
    from ..passes.base import Pass, PassContext
    from ..runtime.certificate import Certificate
    from .api import Source


def verify_report(
    model: oir.Model,
    original: Source,
    pruned: Source,
    report: str | os.PathLike[str] | Mapping[str, Any],
    context_for: Callable[[Mapping[str, int], int], PassContext],
) -> Certificate:
    """See `secateur.driver.api.verify`."""
    from ..ir.shapes import Skeleton, bind_dims, infer_bindings
    from ..passes.manager import PassManager
    from ..passes.pipeline import parse_pipeline
    from ..passes.proof import Points, prove
    from ..runtime.observe import observer

    data = read_report(report)
    _check_digest(data, "original", original)
    _check_digest(data, "pruned", pruned)
    if data.get("certificate") is None:
        raise DataError("the report holds no certificate: its pipeline pruned nothing")
    try:
        passes = parse_pipeline(data["pipeline"])
        proof = data["certificate"]
        points = Points(
            [Mask.from_json(m) for m in proof["masks"]],
            [Compaction.from_json(c) for c in proof["compactions"]],
        )
        removed = [
            (str(r["tensor"]), int(r["axis"]), list(map(int, r["indices"])))
            for r in data["removed"]
        ]
        dims, seed = {str(k): int(v) for k, v in data["dims"].items()}, int(data["seed"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, SecateurError) as error:
        text = error if isinstance(error, SecateurError) else repr(error)
        raise DataError(
            f"the report holds no certificate that can be proved again: {text}"
        ) from None
    try:
        context = context_for(dims, seed)
        before = PassManager(_prefix(passes), verify=False).run(model, context).model
        skeleton = Skeleton(before)
        facts = infer_bindings(
            skeleton, bind_dims(before, context.dims), observer(before, context.calibration)
        )
    except UsageError as error:
        raise DataError(f"the report does not fit the original model: {error}") from None
    smaller = load_model(pruned)
    try:
        return prove(before, smaller, points, facts, context, removed=removed or None, source=model)
    except (ModelError, OverflowError) as error:
        raise CertificateError(
            f"the report's certificate does not fit the original model: {error}"
        ) from None


def _prefix(passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    """The passes before the pruning; there must be exactly one, with only preserving others."""
    from ..passes.base import Contract

    masking = [k for k, p in enumerate(passes) if p.contract is Contract.MASKS]
    others = [p for p in passes if p.contract is Contract.APPROXIMATES]
    if len(masking) != 1 or others:
        raise DataError(
            "only a pipeline with one pruning pass and output-preserving passes can be proved"
            " again from files"
        )
    return passes[: masking[0]]


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
