"""How the command line ends: every error becomes one line on stderr and its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
import typer.core

from ..ir.errors import SecateurError, UsageError, spell_options

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


class Interrupted(Exception):
    """Ctrl-C came; the text says so, and what it left."""


@contextmanager
def interruptible(*outputs: Path | None, kept: Path | None = None) -> Iterator[None]:
    """Within the block, Ctrl-C becomes `Interrupted`, which says whether files ``outputs`` were
    written, or that the folder ``kept`` has results to go on from."""
    paths = [path for path in outputs if path is not None]
    before = [_stamp(path) for path in paths]
    try:
        yield
    except KeyboardInterrupt:
        changed = [p for p, stamp in zip(paths, before, strict=True) if _stamp(p) != stamp]
        text = "interrupted"
        if changed:
            text += f"; written: {', '.join(map(str, changed))}"
        elif paths:
            text += f"; nothing was written to {' or '.join(map(str, paths))}"
        if kept is not None:
            text += f"; the same command goes on from what is in {kept}"
        raise Interrupted(text) from None


def _stamp(path: Path) -> tuple[int, int] | None:
    """Another number for every file that takes this place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


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
        end = "interrupted"
        try:
            code = super().main(args, prog_name, standalone_mode=False, **extra) or 0
            sys.stdout.flush()
        except SecateurError as error:
            if error.exit_code == SecateurError.exit_code and error.__cause__ is not None:
                code = _internal_error(error)  # a pass wraps whatever goes wrong in it
            else:
                given = sys.argv[1:] if args is None else args
                _report(spell_options(str(error), self._spelling(given)))
                code = error.exit_code
        except BrokenPipeError:
            code = _pipe_closed()
        except Interrupted as error:
            code, end = INTERRUPTED, str(error)
        except typer.Abort:
            code = INTERRUPTED
        except MemoryError as error:
            _report(f"not enough memory: {error}; smaller sizes (--dim) need less")
            code = 1
        except Exception as error:
            show = getattr(error, "format_message", None)  # Typer's errors have it, others do not
            if show is None:
                code = _internal_error(error)
            else:
                path = getattr(getattr(error, "ctx", None), "command_path", "secateur")
                _report(f"{_wrong_value(error) or show().rstrip('.')} (see '{path} --help')")
                code = UsageError.exit_code
        if code == INTERRUPTED:
            print(f"secateur: {end}", file=sys.stderr)
        if standalone_mode:
            sys.exit(code)
        return code

    def _spelling(self, args: Sequence[str]) -> Callable[[str], str]:
        """How options are typed: those of the command as it lists them, others (which are of
        passes) as in pipelines."""
        command = next((self.commands[text] for text in args if text in self.commands), None)
        options = {p.name: max(p.opts, key=len) for p in command.params} if command else {}
        return lambda name: options.get(name, name.replace("_", "-"))


def _wrong_value(error: Any) -> str | None:
    """What is wrong with the value of an option; None for other errors, and where Typer is older
    and has words of its own. Newer ones hand on what pydantic says."""
    try:
        option, problem = max(error.param.opts, key=len), error.__cause__.errors()[0]
    except (AttributeError, ValueError):
        return None
    kind, known = problem["type"], problem.get("ctx", {})
    value = f"'{str(problem['input'])[:40]}'"
    if kind == "value_error":
        return f"{option}: {known['error']}".rstrip(".")
    if "ge" in known or "le" in known:
        bound = f"at least {known['ge']:g}" if "ge" in known else f"at most {known['le']:g}"
        return f"{option} must be {bound}, not {value}"
    return f"{option} must be a {'' if kind.startswith('float') else 'whole '}number, not {value}"


def _internal_error(error: Exception) -> int:
    if os.environ.get("SECATEUR_DEBUG"):
        raise error
    what = error if isinstance(error, SecateurError) else f"{type(error).__name__}: {error}"
    _report(
        f"internal error: {what} (set SECATEUR_DEBUG=1 for the traceback, and please report it)"
    )
    return 1


def _report(message: str) -> None:
    print(f"secateur: error: {' '.join(message.split())}", file=sys.stderr)


def _pipe_closed() -> int:
    """Whoever read our output has left: be quiet, also when the interpreter flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
