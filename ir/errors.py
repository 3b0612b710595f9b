"""The errors a user can meet, each with its documented exit code.

Every message is one line: what is wrong, where (file, node or tensor name), and what to do. An
option in it is a Python keyword in backquotes, ``min_quality`` in single ones; the command line and
pipelines spell it as it is typed there (`spell_options`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator


class SecateurError(Exception):
    """Base of all errors raised on purpose. ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(SecateurError):
    """An option, a pipeline text or a combination of arguments that makes no sense."""

    exit_code = 2


class ModelError(SecateurError):
    """The model cannot be read, is invalid, or uses something unsupported."""

    exit_code = 3


class TargetError(SecateurError):
    """The target cannot be met, or nothing in the model can be pruned."""

    exit_code = 4


class CertificateError(SecateurError):
    """A numerical or structural proof failed; nothing is written."""

    exit_code = 5


class DataError(SecateurError):
    """Calibration arrays or other data files that do not fit the model."""

    exit_code = 6


def spell_options(message: str, spelled: Callable[[str], str]) -> str:
    """The message with every option, a keyword in backquotes, as ``spelled`` makes it of the
    keyword."""
    return re.sub("`([a-z_]+)`", lambda found: spelled(found[1]), message)


@contextlib.contextmanager
def model_errors(where: str) -> Iterator[None]:
    """Every failure inside becomes a one-line ModelError that starts with ``where``."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{where}: {' '.join(str(error).split())}") from error.__cause__
    except SecateurError:
        raise
    except Exception as error:
        raise ModelError(f"{where}: is invalid: {reason(error)}; export it again") from error


def reason(error: BaseException) -> str:
    """The root cause in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
