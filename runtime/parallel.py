"""The same function on many items, in this process or in several others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ..ir.errors import CertificateError

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[tuple[Item, Result]]:
    """Pairs of item and result, as they are completed; with one job here, and in order.

    ``function`` and items must be picklable, and a script that asks for several jobs needs the
    usual ``if __name__ == "__main__"``: processes are spawned, for threads and forks do not mix.
    What the function raises is raised here, after which no process is left running. Raises
    CertificateError when a process dies.
    """
    jobs = min(jobs, len(items))
    if jobs <= 1:
        yield from ((item, function(item)) for item in items)
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, _start)
    try:
        futures = {pool.submit(function, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise CertificateError(
            "a process that runs the model died, out of memory perhaps: give fewer `jobs`"
        ) from None
    except BaseException:  # an interrupt, too: nobody wants the rest
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    """Ctrl-C is the parent's to handle; and when the parent is killed, so is this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
