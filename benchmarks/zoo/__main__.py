"""The zoo: exports models of many frameworks, prunes them, and sets peers beside.

python -m benchmarks.zoo [--only GLOB ...] [--jobs N] [--work DIR] [--table FILE] [...]
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import report
from .catalog import modules
from .record import STEPS, read_cases
from .records import Keeper, unpack
from .runner import Options, list_cases, run_all


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo",
        description="Export, prune and certify a zoo of models, with peers beside. "
        "What is done is not done again.",
    )
    add = made.add_argument
    add("--only", action="append", default=[], metavar="GLOB", help="only these, in this order")
    add("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="only these steps")
    add("--jobs", type=int, default=2, help="cases at a time (default 2)")
    add("--work", type=Path, default=Path("zoo-work"), help="results and exported files")
    add("--records", type=Path, metavar="FILE", help="a text file that keeps all results")
    add("--redo", action="append", default=[], metavar="GLOB", help="again: NAME or NAME:STEP")
    add("--retry", action="store_true", help="what failed, again")
    add(
        "--python",
        action="append",
        default=[],
        metavar="ENV=PATH",
        help="the Python of an environment (torch, tensorflow, jax); torch is the running one, "
        "and the cases of the others need theirs",
    )
    add("--timeout", type=float, default=900, help="seconds per step (default 900)")
    add("--memory", type=float, metavar="GB", help="per step (default: 0.8 of the machine / jobs)")
    add(
        "--keep",
        type=float,
        nargs="?",
        const=float("inf"),
        default=100,
        metavar="MB",
        help="keep exported files up to this size (default 100; without a number: all)",
    )
    add("--ratio", type=float, default=0.5, help="share of units to remove (default 0.5)")
    add("--modules", nargs="+", help=argparse.SUPPRESS)
    add("--list", action="store_true", help="print the names of the cases, and stop")
    add("--no-run", action="store_true", help="only report what is there")
    add("--table", type=Path, metavar="FILE", help="write the table")
    add("--note", default="", metavar="TEXT", help="what the reader of the table should know")
    add("--gaps", action="store_true", help="print what peers do better")
    add("--summary", action="store_true", help="print counts per family")
    add("--failures", action="store_true", help="print failures by cause")
    add("--warnings", action="store_true", help="print distinct warnings")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is not done, then prints or writes the reports that were asked for."""
    made = parser()
    given = made.parse_args(arguments)
    if given.jobs < 1:
        made.error("--jobs: give at least 1")
    pythons = {}
    for text in given.python:
        name, equals, path = text.partition("=")
        if not equals or not Path(path).is_file():
            made.error(f"--python: give ENVIRONMENT=PATH of a Python, not '{text}'")
        pythons[name] = path
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    options = Options(
        work=given.work,
        pythons=pythons,
        jobs=given.jobs,
        steps=given.steps,
        timeout=given.timeout,
        memory=given.memory * 1e9 if given.memory else 0.8 * total / given.jobs,
        keep=given.keep * 1e6,
        redo=given.redo,
        retry=given.retry,
        ratio=given.ratio,
    )

    def rank(name: str) -> int:
        """The first of the globs that the name matches, their number if none does."""
        matching = (i for i, glob in enumerate(given.only) if fnmatch.fnmatch(name, glob))
        return next(matching, len(given.only))

    def wanted(name: str) -> bool:
        return not given.only or rank(name) < len(given.only)

    keeper = Keeper(given.work, given.records) if given.records and not given.list else None
    if keeper:
        try:
            unpack(given.records, given.work)
        except ValueError as error:
            made.error(f"--records: {error}")
    if given.list or not given.no_run:
        found, notes = list_cases(options, given.modules or modules())
        for note in notes:
            say(note)
        entries = sorted((e for e in found if wanted(e.name)), key=lambda e: rank(e.name))
        if given.list:
            print("\n".join(entry.name for entry in entries))
            return
        if not entries:
            made.error("--only: no case has such a name; see --list")
        if keeper:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

        def progress(line: str) -> None:
            say(line)
            if keeper:
                keeper.tick()

        try:
            run_all(entries, options, progress)
        finally:
            if keeper:
                keeper.write()
    elif keeper:
        keeper.write()
    rows = report.rows_of((name, steps) for name, steps in read_cases(given.work) if wanted(name))
    for asked, text in (
        (given.summary, report.summary),
        (given.gaps, report.gaps),
        (given.failures, report.failures),
        (given.warnings, report.reasons),
    ):
        if asked:
            print(text(rows))
    if given.table:
        given.table.write_text(report.table(rows, given.note))


def say(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
