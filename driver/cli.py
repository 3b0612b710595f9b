"""The command line. Only argument handling: every command is a call of `secateur.driver.api`.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar

import typer

from .. import __version__
from ..ir.errors import SecateurError, UsageError

if TYPE_CHECKING:
    from .api import PruneResult

app = typer.Typer(
    name="secateur",
    help="A structured-pruning compiler for ONNX: smaller, faster models, each with a proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

P = ParamSpec("P")
R = TypeVar("R")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turns errors into one line on stderr and the documented exit code."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except SecateurError as error:
            _fail(str(error), error.exit_code)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (typer.Exit, KeyboardInterrupt):
            raise
        except Exception as error:
            if os.environ.get("SECATEUR_DEBUG"):
                raise
            text = " ".join(str(error).split())
            _fail(
                f"internal error: {type(error).__name__}: {text} "
                "(set SECATEUR_DEBUG=1 for the traceback, and please report it)",
                1,
            )
        raise AssertionError  # _fail never returns

    return wrapper


def _fail(message: str, code: int) -> None:
    print(f"secateur: error: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(code)


# -- options that several commands share ------------------------------------------------------

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write the pruned model.")]
Dim = Annotated[
    list[str] | None,
    typer.Option("--dim", metavar="NAME=SIZE", help="Size of a symbolic dimension (repeatable)."),
]
Calibration = Annotated[
    Path | None,
    typer.Option(help="npz file with arrays named like the inputs, first axis = samples."),
]
Protect = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Node or tensor names that stay whole (repeatable)."),
]
Carrier = Annotated[
    Literal["heads", "largest"],
    typer.Option(help="Factor of a reshaped axis along which units form, when several could."),
]
Report = Annotated[Path | None, typer.Option(help="Write the report as JSON to this file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Threads = Annotated[int, typer.Option(help="ONNX Runtime threads (0: as many as it likes).")]
Seed = Annotated[int, typer.Option(help="Seed of the random inputs of certificate and timing.")]
Bench = Annotated[bool, typer.Option("--bench/--no-bench", help="Time original and result.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def _dims(pairs: list[str] | None) -> dict[str, int]:
    dims: dict[str, int] = {}
    for pair in pairs or ():
        name, equals, size = pair.rpartition("=")
        if not (name and equals and size.lstrip("+-").isdecimal()):
            raise UsageError(f"--dim '{pair}' is not of the form NAME=SIZE")
        dims[name] = int(size)
    return dims


def _check_output(*paths: Path | None) -> None:
    """Finds out before the work whether the results can be written."""
    for path in paths:
        if path is None:
            continue
        folder = path.parent
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a folder")
        if not folder.is_dir():
            raise UsageError(f"cannot write {path}: the folder {folder} does not exist")
        if not os.access(folder, os.W_OK):
            raise UsageError(f"cannot write {path}: the folder {folder} is not writable")


@app.callback(invoke_without_command=True)
def _global(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="secateur: %(message)s")
    if version:
        print(__version__)
        raise typer.Exit


# -- commands ---------------------------------------------------------------------------------


@app.command()
@guarded
def prune(
    model: Model,
    output: Output,
    ratio: Annotated[
        float | None, typer.Option(help="Share of units to remove from every group.")
    ] = None,
    macs: Annotated[float | None, typer.Option(help="Share of the MACs to keep.")] = None,
    params: Annotated[float | None, typer.Option(help="Share of the parameters to keep.")] = None,
    criterion: Annotated[
        str, typer.Option(help="How units are scored: l1, l2 or a plug-in.")
    ] = "l2",
    scope: Annotated[
        Literal["local", "global"],
        typer.Option(help="The same share in every group, or one ranking over all."),
    ] = "local",
    round_to: Annotated[int, typer.Option(help="Keep multiples of this many channels.")] = 1,
    protect: Protect = None,
    max_ratio: Annotated[
        float, typer.Option(help="Largest share of units that a group may lose.")
    ] = 1.0,
    inexact: Annotated[
        bool, typer.Option("--inexact", help="Also prune groups that a normalisation looks across.")
    ] = False,
    carrier: Carrier = "heads",
    dim: Dim = None,
    calibration: Calibration = None,
    report: Report = None,
    json: Json = False,
    threads: Threads = 0,
    seed: Seed = 0,
    bench: Bench = True,
    quiet: Quiet = False,
) -> None:
    """Prune a model to a target, prove the result and time it.

    Exactly one of --ratio, --macs and --params.
    """
    from .terminal import show_result, working

    _check_output(output, report)
    dims = _dims(dim)
    with working(quiet or json) as progress:
        from .api import prune as prune_model

        result = prune_model(
            model,
            ratio=ratio,
            macs=macs,
            params=params,
            criterion=criterion,
            scope=scope,
            round_to=round_to,
            protect=tuple(protect or ()),
            max_ratio=max_ratio,
            inexact=inexact,
            carrier=carrier,
            dims=dims,
            calibration=calibration,
            threads=threads,
            seed=seed,
            bench=bench,
            progress=progress,
        )
        result.save(output, report)
    _print_result(result, output, json, quiet, show_result)


def _print_result(
    result: PruneResult,
    output: Path,
    json: bool,
    quiet: bool,
    show: Callable[[PruneResult, Path], None],
) -> None:
    if json:
        from .report import to_text

        sys.stdout.write(to_text(result.report))
    elif not quiet:
        show(result, output)


@app.command()
@guarded
def run(
    model: Model,
    output: Output,
    pipeline: Annotated[
        str | None, typer.Option(help="Passes, e.g. 'fold-constants,prune{ratio=0.3}'.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with the passes.")] = None,
    dim: Dim = None,
    calibration: Calibration = None,
    report: Report = None,
    json: Json = False,
    threads: Annotated[int | None, typer.Option(help="ONNX Runtime threads (0: any).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random inputs.")] = None,
    bench: Bench = True,
    quiet: Quiet = False,
    time_passes: Annotated[bool, typer.Option("--time-passes", help="Time of every pass.")] = False,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="What every pass counted.")
    ] = False,
    print_ir_after: Annotated[
        list[str] | None,
        typer.Option(metavar="PASS", help="Print the graph after a pass, or 'all' (repeatable)."),
    ] = None,
    bisect_limit: Annotated[
        int | None, typer.Option(help="Run only the first N passes and say which was the last.")
    ] = None,
    reproducer: Annotated[
        Path | None, typer.Option(help="Folder for the model and pipeline if a pass fails.")
    ] = None,
) -> None:
    """Run a pipeline of passes, each held to its contract."""
    from ..passes.pipeline import load_pipeline_toml, parse_pipeline
    from .terminal import show_result, working

    _check_output(output, report)
    if (pipeline is None) == (config is None):
        raise UsageError("give exactly one of --pipeline and --config")
    dims = _dims(dim)
    if config is not None:
        passes, context = load_pipeline_toml(config)
        dims = dict(context.dims) | dims
        threads = context.threads if threads is None else threads
        seed = context.seed if seed is None else seed
    else:
        passes = parse_pipeline(pipeline or "")
    watchers = _instrumentations(time_passes, statistics, print_ir_after, bisect_limit, reproducer)
    with working(quiet or json) as progress:
        from .api import run as run_pipeline

        result = run_pipeline(
            model,
            passes,
            dims=dims,
            calibration=calibration,
            threads=threads or 0,
            seed=seed or 0,
            bench=bench,
            progress=progress,
            instrumentations=watchers,
        )
        result.save(output, report)
    _print_result(result, output, json, quiet, show_result)


def _instrumentations(
    time_passes: bool,
    statistics: bool,
    print_ir_after: list[str] | None,
    bisect_limit: int | None,
    reproducer: Path | None,
) -> list[Any]:
    from ..passes.instrumentation import (
        Bisect,
        CrashReproducer,
        PrintIRAfter,
        Statistics,
        TimePasses,
    )

    watchers: list[Any] = []
    if bisect_limit is not None:
        watchers.append(Bisect(bisect_limit))
    if reproducer is not None:
        watchers.append(CrashReproducer(reproducer))
    if print_ir_after:
        names = None if "all" in print_ir_after else frozenset(print_ir_after)
        watchers.append(PrintIRAfter(names))
    if statistics:
        watchers.append(Statistics())
    if time_passes:
        watchers.append(TimePasses())
    return watchers


@app.command()
@guarded
def inspect(
    model: Model,
    protect: Protect = None,
    carrier: Carrier = "heads",
    dim: Dim = None,
    calibration: Calibration = None,
    json: Json = False,
) -> None:
    """Show groups and units, what each owns, and what is pinned and why."""
    from .api import analyze
    from .inspection import describe_analysis
    from .terminal import show_analysis, working

    with working(json) as progress:
        progress("analyse", None)
        analysis = analyze(
            model,
            dims=_dims(dim),
            protect=tuple(protect or ()),
            carrier=carrier,
            calibration=calibration,
        )
    _print(describe_analysis(analysis), json, show_analysis)


@app.command()
@guarded
def explain(
    model: Model,
    name: Annotated[
        str, typer.Argument(metavar="NAME[:AXIS]", help="A tensor or node, and one of its axes.")
    ],
    protect: Protect = None,
    carrier: Carrier = "heads",
    dim: Dim = None,
    calibration: Calibration = None,
    json: Json = False,
) -> None:
    """Say why the channels of a tensor can or cannot go: the path to the pin."""
    from .api import analyze
    from .inspection import describe_explanations
    from .terminal import show_explanations

    analysis = analyze(
        model,
        dims=_dims(dim),
        protect=tuple(protect or ()),
        carrier=carrier,
        calibration=calibration,
    )
    _print(describe_explanations(analysis, name), json, show_explanations)


def _print(data: Mapping[str, Any], json: bool, show: Callable[[Mapping[str, Any]], None]) -> None:
    if json:
        from .report import to_text

        sys.stdout.write(to_text(data))
    else:
        show(data)


@app.command()
@guarded
def verify(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="The model before.")],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="The model after.")],
    report: Annotated[Path, typer.Option(help="The report written when it was pruned.")],
    calibration: Calibration = None,
    threads: Threads = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prove a certificate again, from the two models and the report alone."""
    from .terminal import show_certificate, working

    with working(quiet or json) as progress:
        from .api import verify as verify_files

        certificate = verify_files(
            original, pruned, report, calibration=calibration, threads=threads, progress=progress
        )
    if json or not quiet:
        data = certificate.to_json() | {"description": certificate.describe()}
        _print(data, json, show_certificate)
    if not certificate.ok:
        raise typer.Exit(5)


@app.command()
@guarded
def bench(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="The model before.")],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="The model after.")],
    dim: Dim = None,
    calibration: Calibration = None,
    threads: Threads = 0,
    seed: Seed = 0,
    runs: Annotated[int, typer.Option(help="At least this many runs of each.")] = 50,
    seconds: Annotated[float, typer.Option(help="At least this long.")] = 2.0,
    json: Json = False,
) -> None:
    """Time two models in turns in ONNX Runtime: P50 with spread, speed-up beside the MACs ratio."""
    from .terminal import show_bench, working

    with working(json) as progress:
        from .inspection import describe_bench

        data = describe_bench(
            original,
            pruned,
            dims=_dims(dim),
            calibration=calibration,
            threads=threads,
            seed=seed,
            min_runs=runs,
            min_seconds=seconds,
            progress=progress,
        )
    _print(data, json, show_bench)


@app.command()
@guarded
def passes(json: Json = False) -> None:
    """List every pass with its options, contract and provider; criteria and rules besides."""
    from .inspection import describe_plugins
    from .terminal import show_passes

    _print(describe_plugins(), json, show_passes)


def main() -> None:
    """The entry point of ``secateur`` and ``python -m secateur``."""
    app(prog_name="secateur")

