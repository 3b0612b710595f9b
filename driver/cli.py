"""The command line. Only argument handling: every command is a call of `secateur.driver.api`.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from .. import __version__
from ..ir.errors import CertificateError, SecateurError, UsageError

if TYPE_CHECKING:
    from .api import PruneResult


class Commands(typer.core.TyperGroup):
    """All commands. Every error becomes one line on stderr and the documented exit code."""

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs the command line; exits unless ``standalone_mode`` is false."""
        try:
            code = super().main(args, prog_name, standalone_mode=False, **extra) or 0
            sys.stdout.flush()
        except SecateurError as error:
            _report(str(error))
            code = error.exit_code
        except BrokenPipeError:
            code = _pipe_closed()
        except typer.Abort:
            code = 130
        except MemoryError as error:
            _report(f"not enough memory: {error}; smaller sizes (--dim) need less")
            code = 1
        except Exception as error:
            show = getattr(error, "format_message", None)  # Typer's errors have it, others do not
            if show is None:
                code = _internal_error(error)
            else:
                path = getattr(getattr(error, "ctx", None), "command_path", "secateur")
                _report(f"{show().rstrip('.')} (see '{path} --help')")
                code = UsageError.exit_code
        if standalone_mode:
            sys.exit(code)
        return code


app = typer.Typer(
    name="secateur",
    cls=Commands,
    help="A structured-pruning compiler for ONNX: smaller, faster models, each with a proof.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _internal_error(error: Exception) -> int:
    if os.environ.get("SECATEUR_DEBUG"):
        raise error
    _report(
        f"internal error: {type(error).__name__}: {error} "
        "(set SECATEUR_DEBUG=1 for the traceback, and please report it)"
    )
    return 1


def _report(message: str) -> None:
    print(f"secateur: error: {' '.join(message.split())}", file=sys.stderr)


def _pipe_closed() -> int:
    """Whoever read our output has left: be quiet, also when the interpreter flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


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
Threads = Annotated[
    int, typer.Option(min=0, max=1024, help="ONNX Runtime threads (0: as many as it likes).")
]
Seed = Annotated[
    int, typer.Option(min=0, help="Seed of the random inputs of certificate and timing.")
]
Bench = Annotated[bool, typer.Option("--bench/--no-bench", help="Time original and result.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def _dims(pairs: list[str] | None) -> dict[str, int]:
    dims: dict[str, int] = {}
    for pair in pairs or ():
        name, equals, size = pair.rpartition("=")
        if not (name and equals and re.fullmatch("[0-9]{1,10}", size)):
            raise UsageError(f"--dim '{pair}' is not of the form NAME=SIZE")
        if name in dims:
            raise UsageError(f"--dim gives dimension '{name}' twice")
        dims[name] = int(size)
    return dims


def _check_files(inputs: Sequence[Path | None], output: Path, report: Path | None) -> None:
    """Finds out before the work whether the results can be written, and over nothing they need."""
    data = output.with_name(f"{output.name}.data") if output.name else output
    for path in (output, report):
        if path is not None:
            _check_writable(path)
    if report is not None and os.path.realpath(report) in map(os.path.realpath, (output, data)):
        raise UsageError(f"--report {report} and the pruned model would be one file")
    for path in (output, data, report):
        for source in inputs:
            if path is not None and source is not None and _is_same(path, source):
                raise UsageError(f"{path} is an input of this command; write to another file")


def _check_writable(path: Path) -> None:
    folder = path.parent
    try:
        reasons = {
            "it is a folder": path.is_dir(),
            f"the folder {folder} does not exist": not folder.exists(),
            f"{folder} is not a folder": not folder.is_dir(),
            f"the folder {folder} is not writable": not os.access(folder, os.W_OK),
            "it is no plain file": path.exists() and not path.is_file(),
            "its name is too long": len(os.fsencode(path.name)) > 200,
        }
    except OSError as error:
        reasons = {str(error.strerror): True}
    for reason, found in reasons.items():
        if found:
            raise UsageError(f"cannot write {path}: {reason}")


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one of them does not exist
        return False


def _keep_weights(model: Path, result: PruneResult, output: Path) -> None:
    """Refuses to write over the original's external data: `verify` needs the original."""
    from ..ir.io import model_files

    data = output.with_name(f"{output.name}.data")
    for source in model_files(model, result.original):
        for path in (output, data):
            if _is_same(path, source):
                raise UsageError(f"{path} holds weights of the original; write to another file")


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="secateur: %(message)s")
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(UsageError.exit_code)


# -- commands ---------------------------------------------------------------------------------


@app.command()
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
    round_to: Annotated[int, typer.Option(min=1, help="Keep multiples of this many channels.")] = 1,
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

    _check_files([model, calibration], output, report)
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
        _keep_weights(model, result, output)
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
    from .terminal import show_result, working

    _check_files([model, calibration, config], output, report)
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
    _check_printed(print_ir_after or (), [p.name for p in passes])
    if reproducer is not None and reproducer.exists() and not reproducer.is_dir():
        raise UsageError(f"--reproducer {reproducer} is not a folder")
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
        _keep_weights(model, result, output)
        result.save(output, report)
    _print_result(result, output, json, quiet, show_result)


def _check_printed(wanted: Sequence[str], names: Sequence[str]) -> None:
    from ..ir.registry import suggest

    for name in wanted:
        if name not in (*names, "all"):
            raise UsageError(
                f"--print-ir-after {name}: no such pass in the pipeline{suggest(name, names)}"
            )


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
            dims=_dims(dim),
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
def passes(json: Json = False) -> None:
    """List every pass with its options, contract and provider; criteria and rules besides."""
    from .inspection import describe_plugins
    from .terminal import show_passes

    _print(describe_plugins(), json, show_passes)


def main() -> None:
    """The entry point of ``secateur`` and ``python -m secateur``."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="secateur")
