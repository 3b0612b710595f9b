"""The errors a user can meet, each with its documented exit code.

Every message is one line: what is wrong, where (file, node or tensor name), and what to do.
"""


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
