"""The certificate: the pruned model equals the masked original up to floating-point reordering.

What counts as equal is said in `compare`. Where the models differ by discrete choices that rounding
may decide, they are compared again with these held (see `held`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx

from ..ir.errors import CertificateError, SecateurError
from ..ir.masks import Compaction, Mask
from ..ir.wording import counted
from .calibration import CALIBRATION_SAMPLES, calibration_feeds
from .compare import (
    Comparison,
    LabelledFeed,
    Progress,
    Run,
    compare_models,
    is_quantised,
    named,
    rounds,
)
from .held import held_models
from .inputs import random_feed
from .masked import masked_model
from .runnable import is_large, lacks_kernels, runner
from .seeded import draws
from .session import Array
from .signature import Types
from .unrounded import unrounded
from .widened import uses_bfloat16
from .zeroed import zeroed_model


@dataclass(frozen=True)
class Certificate:
    """What was proved about a pruned model, and how closely.

    ``kind`` is "masked", "original" where nothing was masked, or "held" where discrete choices had
    to be held. ``worst`` is the relative error of the decisive run and ``tolerance`` what it was
    allowed; ``bindings`` are the sizes of the symbolic dimensions that were run; ``replay`` is the
    comparison with the weights zeroed (``agrees``, ``worst``), which does not decide.
    """

    ok: bool
    kind: str
    runs: tuple[Run, ...]
    worst: float
    tolerance: float
    seeds: tuple[int, ...]
    bindings: tuple[dict[str, int], ...]
    calibrated: bool
    replay: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values; what is not finite becomes null."""
        data: dict[str, Any] = _plain(asdict(self))
        return data

    def describe(self) -> str:
        """One line: the verdict, what was run, and the decisive error."""
        infinite = any(np.isinf(r.error) for r in self.runs)
        if not self.ok and not any(r.scale or 0 < r.error < np.inf for r in self.runs):
            return "no output ever held a finite number on these inputs; give --calibration"
        labels = len({(entry.label, entry.optimisation) for entry in self.runs})
        data = " and calibration data" if self.calibrated else ""
        verdict = "equals" if self.ok else "DIFFERS from"
        whom = "original" if self.kind == "original" else "masked original"
        held = " with discrete choices held" if self.kind == "held" else ""
        seeds = counted(len(self.seeds), "seed")
        sizes = counted(len(self.bindings), "size")
        return (
            f"{verdict} the {whom}{held}: {counted(labels, 'run')} ({seeds} at "
            f"{sizes}{data}), relative error {self.worst:.2g}, "
            f"allowed {self.tolerance:.2g}"
            + ("; where numbers overflow, give --calibration" if infinite and not self.ok else "")
        )


def certify(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    masks: Sequence[Mask],
    compactions: Sequence[Compaction] = (),
    *,
    removed: Iterable[tuple[str, int, Sequence[int]]] | None = None,
    source: onnx.ModelProto | None = None,
    written: onnx.ModelProto | None = None,
    bindings: Sequence[Mapping[str, int]] = ({},),
    spare: Sequence[Mapping[str, int]] = (),
    seeds: Sequence[int] = (0, 1, 2),
    calibration: Mapping[str, Array] | None = None,
    threads: int = 0,
    types: Types | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Compare ``pruned`` with the masked original on random and on calibration feeds.

    Every seed is run at every binding of the symbolic dimensions; a later binding at which the
    *original* does not run is noted, and the first of ``spare`` at which it does takes its place.
    A quantised model is compared a second time with the rounding of its activations taken out
    (see `secateur.runtime.unrounded`), at the tolerance of floats. Models that differ are compared
    again with their discrete choices held (see `secateur.runtime.held`). ``calibration`` is what
    `load_calibration` returned (up to 64 samples are used). ``removed`` lists slices of stored
    tensors for `zeroed_model`, of ``source`` if that is another model than ``original``.
    ``written`` is the model that ``original`` was derived from: it must compute the same. A pruned
    model that computes something else gives a certificate that is not ``ok``; CertificateError is
    raised when a model cannot run at all, and names the remedy.
    """
    bound = [dict(entry) for entry in bindings] or [{}]
    real: list[LabelledFeed] = []
    if calibration is not None:
        samples = calibration_feeds(calibration, original, bound[0], CALIBRATION_SAMPLES)
        real = [(f"calibration {i}", feed) for i, feed in enumerate(samples)]
    masked = masked_model(original, masks, compactions, types)

    feeds = [*_random_feeds(original, bound, seeds), *real]
    held, notes = bound, list[str]()
    try:
        result = compare_models(masked, pruned, feeds, threads=threads, progress=progress)
    except CertificateError:
        held, notes = _runnable(original, bound, spare, seeds, bool(real), threads)
        if held == bound:
            raise
        feeds = [*_random_feeds(original, held, seeds), *real]
        result = compare_models(masked, pruned, feeds, threads=threads, progress=progress)
    result = result.joined(_compare_unrounded(masked, pruned, feeds, threads))
    result, choices = _settled(masked, pruned, feeds, result, threads)
    del masked
    if written is not None:
        labelled = [(f"{label}, as written", feed) for label, feed in feeds]
        same = compare_models(written, original, labelled, threads=threads)
        same, more = _settled(written, original, labelled, same, threads)
        result, choices = result.joined(same), choices | more
    if choices:
        notes.append(f"discrete choices that rounding decides were held: {_some(choices)}")
    notes += [
        f"output {name!r} never held a finite number: it proves nothing" for name in result.unproven
    ]
    if draws(original):
        notes.append("random operators drew the same numbers in both models")
    if uses_bfloat16(original):
        notes.append("bfloat16 was computed as float32, for which ONNX Runtime has kernels")
    if lacks_kernels(pruned, feeds[0][1]):
        notes.append(
            "all floats were computed as float32: ONNX Runtime lacks kernels for other types"
        )
    notes += [f"output {name!r} was the same on every feed" for name in result.constant]
    replay = None
    if removed is not None and not is_large(original):
        replay = _replay(source or original, pruned, removed, feeds[:1], threads, bool(choices))
        if result.ok and not replay["agrees"]:
            why = "a zeroed weight divides, say"
            if compactions:
                why = "normalisations and means now count only what is left: inexact groups"
            notes.append(
                f"zeroing the removed slices does not reproduce this result ({why}); "
                "repeat the pruning by deleting them"
            )
    worst = result.worst
    return Certificate(
        ok=result.ok,
        kind="held" if choices else "masked" if masks or compactions else "original",
        runs=result.runs,
        worst=worst.relative if worst else float("inf"),
        tolerance=worst.tolerance if worst else 0.0,
        seeds=tuple(seeds),
        bindings=tuple(held),
        calibrated=calibration is not None,
        replay=replay,
        notes=tuple(notes),
    )


def _compare_unrounded(
    masked: onnx.ModelProto,
    pruned: onnx.ModelProto,
    feeds: Sequence[LabelledFeed],
    threads: int,
    fixed: Collection[str] = (),
    operands: Collection[str] = (),
) -> Comparison | None:
    """Both models without the rounding of activations; None if there is none to take out.

    Without graph optimisation, which would bring rounding back.
    """
    if not is_quantised(masked):
        return None
    plain, other = unrounded(masked) or masked, unrounded(pruned) or pruned
    labelled = [(f"{label}, unrounded", feed) for label, feed in feeds]
    left = rounds(plain) or rounds(other)
    return compare_models(
        plain,
        other,
        labelled,
        threads=threads,
        levels=["off"],
        quantised=left,
        fixed=fixed,
        operands=operands,
    )


def _settled(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    feeds: Sequence[LabelledFeed],
    plain: Comparison,
    threads: int,
    levels: Sequence[str] = ("off", "on"),
) -> tuple[Comparison, dict[str, None]]:
    """The plain comparison; where it fails, and one with discrete choices held does not, that one
    with the choices."""
    if plain.ok or all(run.ok or run.output in plain.unproven for run in plain.runs):
        return plain, {}
    try:
        held = held_models(reference, candidate, feeds, threads=threads)
        if held is None:
            return plain, {}
        result = compare_models(
            held.reference,
            held.candidate,
            held.feeds,
            threads=threads,
            levels=levels,
            fixed=held.fixed,
            operands=held.operands,
        )
        more = _compare_unrounded(
            held.reference, held.candidate, held.feeds, threads, held.fixed, held.operands
        )
        result = result.joined(more)
    except SecateurError:  # say, a shape that another choice made: the plain verdict stands
        return plain, {}
    if not result.ok:
        return plain, {}
    result = replace(result, unproven=plain.unproven, constant=plain.constant)
    return result, dict.fromkeys(held.choices)


def _some(names: Iterable[str], most: int = 5) -> str:
    """The first few names and the number of the rest."""
    every = list(names)
    rest = len(every) - most
    return ", ".join(every[:most]) + (f" and {rest} more" if rest > 0 else "")


def _random_feeds(
    original: onnx.ModelProto, bindings: Iterable[Mapping[str, int]], seeds: Sequence[int]
) -> list[LabelledFeed]:
    return [
        (f"seed {seed}" + (f", {sizes}" if sizes else ""), random_feed(original, binding, seed))
        for binding in bindings
        for sizes in [_sizes(binding)]
        for seed in seeds
    ]


def _sizes(binding: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sorted(binding.items()))


def _runnable(
    original: onnx.ModelProto,
    bindings: Sequence[dict[str, int]],
    spare: Sequence[Mapping[str, int]],
    seeds: Sequence[int],
    calibrated: bool,
    threads: int,
) -> tuple[list[dict[str, int]], list[str]]:
    """The bindings at which the original itself runs, as many of ``spare`` as there are others,
    and notes on these."""
    run = named("the original", runner, original, threads=threads, optimize=False)
    held: list[dict[str, int]] = []
    notes: list[str] = []
    for number, binding in enumerate([*bindings, *spare]):
        if len(held) == len(bindings):
            break
        try:
            for _, feed in _random_feeds(original, [binding], seeds):
                run(feed)
        except CertificateError as error:
            if number == 0 and not calibrated:
                raise CertificateError(
                    f"the original does not run on random inputs; give real ones with "
                    f"--calibration, or sizes with --dim ({error})"
                ) from None
            if number < len(bindings):
                sizes = _sizes(binding) or "its sizes"
                notes.append(f"the original does not run on random inputs at {sizes}")
            continue
        held.append(dict(binding))
    return held, notes


def _replay(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    removed: Iterable[tuple[str, int, Sequence[int]]],
    feeds: Sequence[LabelledFeed],
    threads: int,
    held: bool,
) -> dict[str, Any]:
    try:
        zeroed = zeroed_model(original, removed)
        result = compare_models(zeroed, pruned, feeds, threads=threads, levels=["off"])
        if held:
            result, _ = _settled(zeroed, pruned, feeds, result, threads, ["off"])
    except SecateurError as error:
        return {"agrees": False, "worst": None, "error": str(error)}
    worst = result.worst
    return {"agrees": result.ok, "worst": worst.relative if worst else None}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
