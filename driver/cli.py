"""The command line. Only argument handling: every command is a call of `secateur.driver.api`.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__
from ..ir.errors import CertificateError, UsageError
from .calibrate_command import calibrate
from .failures import Commands, interruptible
from .options import (
    Bench,
    Calibration,
    Carrier,
    Dim,
    Json,
    Model,
    Output,
    Protect,
    Quiet,
    Report,
    Seed,
    Threads,
    check_files,
    check_printed,
    parse_dims,
)
from .prune_command import print_result, prune
from .sensitivity_command import sensitivity

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="secateur",
    cls=Commands,
    help="A structured-pruning compiler for ONNX: smaller, faster models, each with a proof.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="secateur: %(message)s")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # we say ourselves what is wrong
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(UsageError.exit_code)


app.command()(prune)


@app.command()
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
    threads: Annotated[
        int | None,
        typer.Option(min=0, max=1024, help="ONNX Runtime threads (0: as many as it likes)."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of the random inputs of certificate and timing."),
    ] = None,
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
        int | None,
        typer.Option(min=0, help="Run only the first N passes and say which was the last."),
    ] = None,
    reproducer: Annotated[
        Path | None, typer.Option(help="Folder for the model and pipeline if a pass fails.")
    ] = None,
) -> None:
    """Run a pipeline of passes, each held to its contract."""
    from ..passes.pipeline import load_pipeline_toml, parse_pipeline
    from .terminal import working

    check_files([model, calibration, config], output, report)
    if (pipeline is None) == (config is None):
        raise UsageError("give exactly one of --pipeline and --config")
    dims = parse_dims(dim)
    if config is not None:
        passes, context = load_pipeline_toml(config)
        dims = dict(context.dims) | dims
        threads = context.threads if threads is None else threads
        seed = context.seed if seed is None else seed
    else:
        passes = parse_pipeline(pipeline or "")
    check_printed(print_ir_after or (), [p.name for p in passes])
    if reproducer is not None and reproducer.exists() and not reproducer.is_dir():
        raise UsageError(f"--reproducer {reproducer} is not a folder")
    watchers = _instrumentations(time_passes, statistics, print_ir_after, bisect_limit, reproducer)
    with interruptible(output, report), working(quiet or json) as progress:
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
    print_result(result, output, json, quiet)


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
            dims=parse_dims(dim),
            protect=tuple(protect or ()),
            carrier=carrier,
            calibration=calibration,
        )
    _print(describe_analysis(analysis), json, show_analysis)


@app.command()
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
        dims=parse_dims(dim),
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
        raise CertificateError(f"the certificate failed: {certificate.describe()}")


@app.command()
def bench(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="The model before.")],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="The model after.")],
    dim: Dim = None,
    calibration: Calibration = None,
    threads: Threads = 0,
    seed: Seed = 0,
    runs: Annotated[int, typer.Option(min=1, help="At least this many runs of each.")] = 50,
    seconds: Annotated[
        float, typer.Option(min=0, help="At least this long; over 30 also at most.")
    ] = 2.0,
    json: Json = False,
) -> None:
    """Time two models in turns in ONNX Runtime: P50 with spread, speed-up beside the MACs ratio."""
    from .terminal import show_bench, working

    with working(json) as progress:
        from .inspection import describe_bench

        data = describe_bench(
            original,
            pruned,
            dims=parse_dims(dim),
            calibration=calibration,
            threads=threads,
            seed=seed,
            min_runs=runs,
            min_seconds=seconds,
            progress=progress,
        )
    _print(data, json, show_bench)


@app.command()
def passes(json: Json = False) -> None:
    """List every pass with its options, contract and provider; criteria and rules besides."""
    from .inspection import describe_plugins
    from .terminal import show_passes

    _print(describe_plugins(), json, show_passes)


app.command()(sensitivity)
app.command()(calibrate)


def main() -> None:
    """The entry point of ``secateur`` and ``python -m secateur``."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="secateur")
