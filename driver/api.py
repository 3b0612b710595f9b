"""The Python interface: every step of the command line as a function.

Every function takes a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``. `prune` does all;
`analyze`, `plan`, `rewrite`, `certify` and `bench` are its steps one by one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx
import onnx_ir as oir

from ..ir import rewrite as _rewrite
from ..ir.analysis import Analysis
from ..ir.errors import CertificateError, UsageError
from ..ir.io import load_model
from ..ir.rewrite import Rewritten
from ..passes import computed_weights as _analysis
from ..passes.base import Contract, Pass, PassContext
from ..passes.choose import choose
from ..passes.criteria import score_units
from ..passes.proof import Points, prove_by_dims
from ..passes.prune import Prune
from ..passes.scoring import Combine, Normalize, Scoring
from ..runtime.benchmark import Speedup
from ..runtime.certificate import Certificate
from ..runtime.packing import Packed as Packed
from .context import Calibration, Progress, check_threads, pass_context
from .packing import pack_calibration as pack_calibration
from .results import Bench as Bench
from .results import Plan as Plan
from .results import PruneResult as PruneResult
from .sensitivity import Sensitivity as Sensitivity
from .sensitivity import sensitivity as sensitivity

if TYPE_CHECKING:
    from ..passes.manager import PipelineResult

Source = str | os.PathLike[str] | onnx.ModelProto | oir.Model


def load(source: Source) -> oir.Model:
    """The model in Secateur's representation. Raises ModelError for anything that is not one."""
    return load_model(source)


def analyze(
    source: Source,
    *,
    dims: Mapping[str, int] | None = None,
    protect: Sequence[str] = (),
    carrier: Literal["heads", "head-dim"] = "heads",
    calibration: Calibration | None = None,
) -> Analysis:
    """Units, groups and pins of a model; see `secateur.ir.analysis`."""
    from ..runtime.observe import observer

    model = load_model(source)
    context = pass_context(model, dims, calibration)
    return _analysis.analyze(
        model,
        context.dims,
        protect=protect,
        prefer=carrier,
        observe=observer(model, context.calibration),
    )


def plan(
    analysis: Analysis,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    size: float | str | None = None,
    memory: float | str | None = None,
    latency: float | None = None,
    latency_ms: float | None = None,
    min_quality: float | None = None,
    metric: str = "cosine",
    criterion: str = "l2",
    combine: Combine = "sum",
    normalize: Normalize = "auto",
    scope: Literal["local", "global"] = "local",
    round_to: int = 1,
    max_ratio: float = 1.0,
    min_channels: int = 1,
    inexact: bool = False,
    calibration: Calibration | None = None,
    threads: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Chooses the units to remove. Latency and quality are measured with so many ``threads``, on
    ``calibration`` data or random inputs. Raises UsageError for bad options, or when the criterion
    needs calibration data that is not given; TargetError when a target is out of reach."""
    asked = _prune_pass(
        ratio=ratio,
        macs=macs,
        params=params,
        size=size,
        memory=memory,
        latency=latency,
        latency_ms=latency_ms,
        min_quality=min_quality,
        metric=metric,
        scope=scope,
        round_to=round_to,
        max_ratio=max_ratio,
        min_channels=min_channels,
        inexact=inexact,
    )
    dims = analysis.facts[0].binding
    context = pass_context(analysis.model, dims, calibration, threads, seed, progress)
    scores = score_units(analysis, criterion, Scoring(context, combine), normalize)
    choice = choose(analysis, scores, asked.targets, asked.limits, scope, context, metric)
    return Plan(analysis, choice.removed)


def rewrite(plan: Plan) -> Rewritten:
    """The smaller model and what was cut from each tensor. Proves nothing yet."""
    return _rewrite.rewrite(plan.analysis, plan.removed)


def certify(
    plan: Plan,
    rewritten: Rewritten,
    *,
    calibration: Calibration | None = None,
    threads: int = 0,
    seed: int = 0,
) -> Certificate:
    """Compares a rewritten model with the masked original. Raises CertificateError when one of
    them does not run; a difference is in the result (``ok``)."""
    from ..ir.reference import reference_points
    from ..passes.prune import prove_slices

    analysis = plan.analysis
    context = pass_context(
        analysis.model, analysis.facts[0].binding, calibration, threads=threads, seed=seed
    )
    masks, compactions = reference_points(analysis, plan.removed)
    return prove_slices(analysis, rewritten, Points(masks, compactions), context)


def bench(
    original: Source,
    candidate: Source,
    *,
    dims: Mapping[str, int] | None = None,
    calibration: Calibration | None = None,
    threads: int = 0,
    seed: int = 0,
    min_runs: int = 20,
    min_seconds: float = 1.0,
    progress: Progress | None = None,
) -> Bench:
    """Times two models in turns in ONNX Runtime, on calibration data or one random input."""
    from ..ir.bindings import bind_dims
    from ..runtime.benchmark import benchmark
    from ..runtime.calibration import calibration_feeds
    from ..runtime.inputs import random_feed
    from ..runtime.runnable import runnable
    from ..runtime.signature import different_inputs

    model = load_model(original)
    context = pass_context(model, dims, calibration, threads=threads, seed=seed)
    binding = bind_dims(model, context.dims)
    with runnable(model, load_model(candidate)) as (reference, other):
        if different := different_inputs(reference, other):
            raise UsageError(f"two different models: {different}")
        if context.calibration is None:
            feeds = [random_feed(reference, binding, seed)]
        else:
            feeds = list(calibration_feeds(context.calibration, reference, binding, 16))
        first, second = benchmark(
            [reference, other],
            feeds,
            threads=threads,
            min_runs=min_runs,
            min_seconds=min_seconds,
            max_seconds=max(min_seconds, 30.0),
            progress=None if progress is None else lambda done: progress("time", done),
        )
    return Bench(first, second, Speedup.of(first, second), threads)


def prune(
    source: Source,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    size: float | str | None = None,
    memory: float | str | None = None,
    latency: float | None = None,
    latency_ms: float | None = None,
    min_quality: float | None = None,
    metric: str = "cosine",
    criterion: str | None = None,
    combine: Combine = "sum",
    normalize: Normalize = "auto",
    scope: Literal["local", "global"] | None = None,
    round_to: int = 1,
    protect: Sequence[str] = (),
    max_ratio: float = 1.0,
    min_channels: int = 1,
    inexact: bool = False,
    carrier: Literal["heads", "head-dim"] = "heads",
    recover: bool | None = None,
    steps: int | None = None,
    distill: float | None = None,
    dims: Mapping[str, int] | None = None,
    calibration: Calibration | None = None,
    threads: int = 0,
    seed: int = 0,
    bench: bool = True,
    progress: Progress | None = None,
) -> PruneResult:
    """Prunes, proves and times a model. Give ``ratio`` (share of units to remove from every
    group), or one or more of ``macs``, ``params`` (shares of the original to keep), ``size`` and
    ``memory`` (shares up to 1, or bytes as a number or as in "2MB"), ``latency`` (share of the
    original's P50, measured on this machine with so many ``threads``) and ``latency_ms``: all of
    them will hold. ``min_quality`` is the least agreement of the outputs with the original's by
    ``metric`` ("cosine", "top1" or "module:function"; see `secateur.passes.quality`), which alone
    means the most pruning that keeps it.

    With ``calibration`` data, units are chosen by the criterion ``reconstruction`` over all groups,
    in ``steps``, and the rest is refitted after each, unless ``recover`` is False; with ``recover``
    True and no data, the weights are refitted on noise. ``distill`` are minutes of training at the
    end (extra ``finetune``). See `secateur.driver.recipe`.

    Raises the errors of `secateur.ir.errors`; see docs/cli.md for what each means.
    """
    from .recipe import prune_recipe

    targets: dict[str, Any] = {"ratio": ratio, "macs": macs, "params": params, "size": size}
    targets |= {"memory": memory, "latency": latency, "latency_ms": latency_ms}
    shared: dict[str, Any] = {"dims": dims, "calibration": calibration, "threads": threads}
    shared |= {"seed": seed, "progress": progress}

    def recipe(**changed: Any) -> list[Pass]:
        return prune_recipe(
            calibrated=calibration is not None,
            recover=recover,
            steps=steps,
            distill=distill,
            metric=metric,
            criterion=criterion,
            combine=combine,
            normalize=normalize,
            scope=scope,
            round_to=round_to,
            protect=(protect,) if isinstance(protect, str) else tuple(protect),
            max_ratio=max_ratio,
            min_channels=min_channels,
            inexact=inexact,
            carrier=carrier,
            **(targets | changed),
        )

    if min_quality is None or calibration is None or recover is False:
        return run(source, recipe(min_quality=min_quality), bench=bench, **shared)
    from ..passes.quality import Judge
    from .quality import check_quality, least_share

    recipe(min_quality=min_quality)  # options out of range are said before the work
    model = load_model(source)
    judge = Judge(model, metric, pass_context(model, dims, calibration, threads, seed, progress))
    alone = all(value is None for value in targets.values())
    if alone:
        targets["macs"] = least_share(
            lambda share: run(source, recipe(macs=share), bench=False, **shared), judge, min_quality
        )
    return check_quality(run(source, recipe(), bench=bench, **shared), judge, min_quality, alone)


def run(
    source: Source,
    pipeline: str | Sequence[Pass],
    *,
    dims: Mapping[str, int] | None = None,
    calibration: Calibration | None = None,
    threads: int = 0,
    seed: int = 0,
    bench: bool = True,
    progress: Progress | None = None,
    instrumentations: Sequence[Any] = (),
) -> PruneResult:
    """Runs a pipeline (text or passes) on a copy of the model, holding every pass to its contract,
    and times the result against the original when it changed."""
    from ..passes.manager import PassManager
    from ..passes.pipeline import parse_pipeline
    from .report import build_report

    begin = time.perf_counter()
    model = load_model(source)
    passes = parse_pipeline(pipeline) if isinstance(pipeline, str) else tuple(pipeline)
    context = pass_context(model, dims, calibration, threads, seed, progress)
    seconds = {"load": time.perf_counter() - begin}
    outcome = PassManager(passes, instrumentations).run(model, context)
    timing, warnings = None, list[str]()
    begin = time.perf_counter()
    try:
        same = _unchanged(model, outcome, context)
    except (UsageError, CertificateError) as error:  # sizes are missing, or it does not run
        same = None
        warnings.append(f"no certificate: {error}")
    if same is not None:
        seconds["certify"] = time.perf_counter() - begin
        if not same.ok:
            raise CertificateError(f"the certificate failed: {same.describe()}")
    if bench and outcome.modified:
        begin = time.perf_counter()
        try:
            timing = _bench_models(model, outcome.model, context)
        except CertificateError as error:  # the proof stands (bfloat16 has one, but no kernels)
            warnings.append(f"not timed: {error}")
        seconds["time"] = time.perf_counter() - begin
    result = PruneResult(outcome.model, model, outcome.passes, outcome.results, timing)
    result.source = Path(source) if isinstance(source, (str, os.PathLike)) else None
    result.same = same
    result.report = build_report(result, source, context, seconds, outcome.timings, warnings)
    return result


def _unchanged(
    model: oir.Model, outcome: PipelineResult, context: PassContext
) -> Certificate | None:
    """Whether the outputs are the original's, where all passes that changed the model preserve
    them; None where none did. Raises UsageError for sizes that are missing, CertificateError when
    the original does not run."""
    done = zip(outcome.passes, outcome.results, strict=True)
    changing = {current.contract for current, result in done if result.modified}
    if changing != {Contract.PRESERVES}:
        return None
    return prove_by_dims(model, outcome.model, Points(()), context)


def _bench_models(model: oir.Model, pruned: oir.Model, context: PassContext) -> Bench:
    return bench(
        model,
        pruned,
        dims=context.dims,
        calibration=context.calibration,
        threads=context.threads,
        seed=context.seed,
        progress=context.progress,
    )


def verify(
    original: Source,
    pruned: Source,
    report: str | os.PathLike[str] | Mapping[str, Any],
    *,
    calibration: Calibration | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Certificate:
    """Proves a certificate again from the original, the pruned model and the report alone.

    Raises CertificateError when the files are not those the report speaks of, DataError when the
    report is unreadable.
    """
    from .verify import verify_report

    check_threads(threads)
    model = load_model(original)
    return verify_report(
        model,
        original,
        pruned,
        report,
        lambda dims, seed: pass_context(model, dims, calibration, threads, seed, progress),
    )


def _prune_pass(**options: Any) -> Prune:
    try:
        return Prune(**options)
    except ValueError as error:
        raise UsageError(str(error)) from None
