"""Runs the steps of all cases, each in a process of its own with limits on time and memory.

A step is done when its JSON file is there: a run that was interrupted goes on where it stopped,
and a process that crashes, hangs or eats memory is one failed result with its reason.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from .catalog import Entry
from .nursery import ROOT, Child, Nursery
from .record import STEPS, Result, Spec, read_result, write_result

POLL = 0.1
"""Seconds between two looks at a running process."""


@dataclass(frozen=True)
class Options:
    """How to run: folders, environments (name to Python), limits per step, what to keep."""

    work: Path
    pythons: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 2
    steps: Sequence[str] = STEPS
    timeout: float = 900.0
    memory: float = 8e9
    keep: float = 100e6
    redo: Sequence[str] = ()
    retry: bool = False
    ratio: float = 0.5
    threads: int = 0

    def python(self, environment: str) -> str:
        """The Python of an environment; by default the running one."""
        return self.pythons.get(environment, sys.executable)

    @property
    def threads_per_job(self) -> int:
        """Threads that one step may use."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.jobs)


def list_cases(options: Options, modules: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """All cases, each environment asked in its own Python, and notes about what could not be:
    a module counts as asked when one environment knows it."""
    entries: list[Entry] = []
    notes = []
    missing: list[dict[str, str]] = []
    for environment in dict.fromkeys(("torch", *options.pythons)):
        done = subprocess.run(
            [
                *(options.python(environment), "-m", "benchmarks.zoo.worker"),
                *("list", environment, *modules),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            notes.append(f"cases of environment '{environment}' cannot be listed: {last}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        entries += [Entry(**entry) for entry in found["entries"]]
        missing.append(found["missing"])
    notes += [
        f"{module}: {why}"
        for module, why in (missing[0] if missing else {}).items()
        if all(module in other for other in missing)
    ]
    return sorted(entries, key=lambda entry: entry.name), notes


def run_all(
    entries: Sequence[Entry], options: Options, say: Callable[[str], None] = lambda _: None
) -> None:
    """Runs what is not done yet of all cases; ``say`` gets one line per step. An interrupt lets the
    cases end that are running, and starts no other."""
    with ExitStack() as stack:
        free: SimpleQueue[Nursery] = SimpleQueue()
        for _ in range(options.jobs):
            free.put(stack.enter_context(Nursery(options.threads_per_job)))

        def run(entry: Entry) -> None:
            nursery = free.get()
            try:
                run_case(entry, options, say, nursery)
            finally:
                free.put(nursery)

        pool = stack.enter_context(ThreadPoolExecutor(options.jobs))
        try:
            for _ in pool.map(run, entries):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_case(entry: Entry, options: Options, say: Callable[[str], None], nursery: Nursery) -> None:
    """The steps of one case in turn; the large files go afterwards."""
    folder = options.work / entry.name
    folder.mkdir(parents=True, exist_ok=True)
    specs = {
        step: Spec(
            entry.name,
            entry.module,
            step,
            str(folder.resolve()),
            entry.environment,
            entry.dims,
            options.ratio,
            options.threads_per_job,
        )
        for step in STEPS
    }
    _forget(specs, options)
    wanted = [step for step in options.steps if not specs[step].done.exists()]
    if _skips_peer(specs["export"]):
        wanted = [step for step in wanted if step != "torch-pruning"]
    export = read_result(specs["export"].done)
    if not wanted or (export and export["status"] != "ok"):
        return
    if not specs["export"].model.exists():
        wanted = ["export", *(step for step in wanted if step != "export")]
    for step in wanted:
        if step == "torch-pruning" and _skips_peer(specs["export"]):
            continue
        result = run_step(specs[step], options, nursery)
        head = f"{entry.name} {step}: {result['status']}, {result['seconds_all']:.1f} s"
        say(head if result["status"] == "ok" else f"{head}: {result.get('reason', '')}")
        if step == "export" and result["status"] != "ok":
            break
    _tidy(specs["export"], options.keep, specs["torch-pruning"].done.exists())


def _forget(specs: Mapping[str, Spec], options: Options) -> None:
    """Deletes the results that are to be made again."""
    for step in options.steps:
        spec = specs[step]
        named = any(
            fnmatch.fnmatch(spec.name, glob) or fnmatch.fnmatch(f"{spec.name}:{step}", glob)
            for glob in options.redo
        )
        found = read_result(spec.done)
        if named or (options.retry and found is not None and found["status"] != "ok"):
            spec.done.unlink(missing_ok=True)


def _skips_peer(export: Spec) -> bool:
    found = read_result(export.done)
    return found is not None and not found.get("peer", False)


def run_step(spec: Spec, options: Options, nursery: Nursery) -> Result:
    """One step in its own process. Its result is written whatever happens to it."""
    spec.part.unlink(missing_ok=True)
    needs = spec.environment if spec.step == "export" else "torch"
    python = sys.executable if spec.step.startswith("secateur") else options.python(needs)
    child = nursery.start(python, spec, spec.done.with_suffix(".log"))
    begin = time.perf_counter()
    why, peak = _watch(child, options.timeout, options.memory)
    result = read_result(spec.part) or {"case": spec.name, "step": spec.step, "status": "failed"}
    result |= {"seconds_all": round(time.perf_counter() - begin, 3), "peak_bytes": peak}
    if not why and child.code:
        died = child.code < 0
        how = f"died of {signal.Signals(-child.code).name}" if died else f"ended with {child.code}"
        why = f"the process {how}"
    if why:
        result |= {"status": "failed", "reason": f"{why} (stage: {result.get('stage', 'start')})"}
    write_result(spec.done, result)
    spec.part.unlink(missing_ok=True)
    return result


def _watch(child: Child, timeout: float, memory: float) -> tuple[str, int]:
    """Waits for the process, or ends it; the limit it broke ("" if none), and its peak memory.

    Time that it waits for a processor does not count, so that other work fails no step.
    """
    begin, peak, why = time.monotonic(), 0, ""
    while not child.ended(POLL):
        used = memory_of(child.pid)
        peak = max(peak, used)
        if used > memory:
            why = f"more than {memory / 1e9:.3g} GB of memory"
        elif time.monotonic() - begin - waited(child.pid) > timeout:
            why = f"more than {timeout:g} s"
        if why:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    return why, peak


def memory_of(pid: int) -> int:
    """Bytes that a process holds besides mapped files; 0 where the system does not say."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def waited(pid: int) -> float:
    """Seconds that the thread of a process that waited most was ready to run but had no processor
    (the others may have waited for it); 0 where the system does not say. See the kernel's
    documentation of ``schedstat``."""
    most = 0.0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError, IndexError):  # the thread ended
            most = max(most, int(path.read_text().split()[1]) / 1e9)
    return most


def _tidy(spec: Spec, keep: float, peer_done: bool) -> None:
    """Leaves the exported model, and what its peer starts from until that is done; both only when
    they are small enough."""
    if not spec.files.is_dir():
        return
    model = spec.model.parent
    size = sum(file.stat().st_size for file in model.rglob("*")) if model.is_dir() else 0
    for found in spec.files.iterdir():
        if found.is_file():
            if found != spec.peer or peer_done or found.stat().st_size > keep:
                found.unlink()
        elif found != model or size > keep:
            shutil.rmtree(found)
