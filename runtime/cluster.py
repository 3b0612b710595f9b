"""The same function on many items, on the workers of a Dask cluster.

Workers need not see our files: what the items speak of is sent to each worker once, and unpacked
there into a folder of the worker's own, which goes when the work is done, or with the worker.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from ..ir.errors import CertificateError, SecateurError, UsageError
from .session import one_line

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")
Function = Callable[[Path, Item], Result]
"""A function of the folder with the files and of an item."""

WAIT = 15.0
"""Seconds that scheduler and workers have to answer."""


@dataclass(frozen=True)
class Parcel:
    """The contents of files by their names in the folder, and a name for the folder."""

    files: Mapping[str, bytes]
    key: str


def pack(files: Mapping[str, Path]) -> Parcel:
    """A parcel of these files. Raises UsageError when one cannot be read."""
    try:
        contents = {name: path.read_bytes() for name, path in files.items()}
    except OSError as error:
        raise UsageError(f"cannot send {error.filename}: {error.strerror}") from None
    return Parcel(contents, secrets.token_hex(8))


def on_cluster(
    address: str,
    parcel: Parcel,
    function: Function[Item, Result],
    items: Sequence[Item],
    forget: Callable[[], None],
) -> Iterator[tuple[Item, Result]]:
    """Pairs of item and result, as the cluster whose scheduler is at ``address`` completes them.

    ``forget`` is called on every worker in the end. Raises UsageError when `distributed` is missing
    or when the scheduler or its workers do not answer, CertificateError when workers die of the
    work, and what the function raises.
    """
    try:
        import distributed
    except ImportError:
        raise UsageError(
            "`scheduler` needs the package distributed: pip install 'secateur[cluster]'"
        ) from None
    with _quiet(), _client(address) as client:
        sent = client.scatter(parcel, broadcast=True, hash=False)
        futures = {
            client.submit(_unpack_and_run, function, sent, item, pure=False): item for item in items
        }
        try:
            for future in distributed.as_completed(futures, loop=client.loop):
                yield futures[future], future.result()
        except SecateurError:
            raise
        except Exception as error:
            raise CertificateError(
                f"the cluster at {address} failed: {type(error).__name__}: {one_line(error)}"
                " (its workers need the same secateur)"
            ) from None
        finally:
            client.cancel(list(futures))
            with contextlib.suppress(Exception):  # tidying up is no reason to fail
                client.run(_clean, parcel.key, forget)


def _client(address: str) -> Client:
    import distributed

    try:
        client = distributed.Client(address, timeout=WAIT, set_as_default=False)
    except Exception as error:  # whatever its transports say to a wrong address
        raise UsageError(
            f"no scheduler answers at {address}: {type(error).__name__}: {one_line(error)}"
        ) from None
    try:
        client.wait_for_workers(1, timeout=WAIT)
    except (TimeoutError, distributed.TimeoutError):
        client.close()
        raise UsageError(f"the scheduler at {address} has no workers: start some") from None
    return client


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing from the logger of `distributed`: what is wrong, our errors say."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _unpack_and_run(function: Function[Item, Result], parcel: Parcel, item: Item) -> Result:
    from distributed import get_worker

    return function(_unpacked(parcel, _home(parcel.key, get_worker())), item)


def _home(key: str, worker: Any) -> Path:
    return Path(worker.local_directory) / f"secateur-{key}"


def _unpacked(parcel: Parcel, home: Path) -> Path:
    """``home``, with the files in it; what several threads unpack at once is kept once."""
    if home.exists():
        return home
    folder = Path(tempfile.mkdtemp(prefix="secateur-", dir=home.parent))
    for name, data in parcel.files.items():
        path = folder / PurePosixPath(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        folder.rename(home)
    except OSError:  # another thread was first
        shutil.rmtree(folder, ignore_errors=True)
    return home


def _clean(key: str, forget: Callable[[], None], dask_worker: Any) -> None:
    """Dask gives a function with an argument of that name its worker."""
    forget()
    shutil.rmtree(_home(key, dask_worker), ignore_errors=True)
