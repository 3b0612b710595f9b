"""What runs in a process of its own: one step of one case, or the list of cases.

python -m benchmarks.zoo.worker serve KIND | list ENVIRONMENT MODULE...

``serve`` is the server of a `nursery`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import re
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from .catalog import listed
from .nursery import fork
from .record import Record, Spec

CODE = {
    "export": "export_step",
    "secateur": "secateur_step",
    "secateur-inexact": "secateur_step",
    "torch-pruning": "torch_pruning_step",
    "onnxsim": "onnxsim_step",
}
MODELS = ("torch.onnx", "onnxscript", "torchvision", "timm", "transformers")
PRELOAD = {
    "torch": MODELS,
    "secateur": ("secateur", "onnxruntime", "scipy.sparse.csgraph"),
    "torch-pruning": ("torch_pruning", *MODELS),
    "onnxsim": ("onnxsim", "onnxruntime", "secateur"),
}
"""What the steps of a kind (exports by environment) import, if it is installed."""

LIBRARIES = (
    "secateur",
    "numpy",
    "scipy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "onnxslim",
    "torch",
    "torchvision",
    "torch-pruning",
    "timm",
    "transformers",
    "tensorflow",
    "keras",
    "tf2onnx",
    "scikit-learn",
    "skl2onnx",
    "jax",
    "jax2onnx",
)


FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.+@-]+/)+")
"""What paths in messages begin with; only the file's name says something to others."""


def step(spec: Spec) -> None:
    """Runs the step; what it raises becomes the reason in its result."""
    record = Record(spec)
    try:
        importlib.import_module(f"benchmarks.zoo.{CODE[spec.step]}").run(spec, record)
    except Exception as error:
        text = FOLDERS.sub("", " ".join(str(error).split()))
        record.add(
            reason=f"{type(error).__name__}: {text}"[:600],
            trace=traceback.format_exc().splitlines()[-12:],
        )
        return
    finally:
        record.add(versions=versions())
    record.finish()


def versions() -> dict[str, str]:
    """Versions of the libraries that this process imported."""
    from importlib.metadata import PackageNotFoundError, version

    imports = {"scikit-learn": "sklearn"}
    found = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        if imports.get(name, name.replace("-", "_")) in sys.modules:
            with contextlib.suppress(PackageNotFoundError):
                found[name] = version(name)
    return found


def die_with_parent() -> None:
    """On Linux, a worker does not outlive a runner that was killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def serve(kind: str) -> None:
    """Forks a process for every step that a line of standard input asks for, one at a time, and
    writes its number and then its exit code."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # imports may print
    for module in PRELOAD.get(kind, ()):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        Path(request["log"]).write_bytes(b"")
        pid = fork(request["log"])
        if pid == 0:
            code = 1
            try:
                die_with_parent()
                step(Spec.from_json(request["spec"]))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, file=answers)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers)


def main(arguments: list[str]) -> None:
    if arguments[0] == "serve":
        die_with_parent()
        serve(arguments[1])
        return
    entries, missing = listed(arguments[1], arguments[2:])
    print(json.dumps({"entries": [asdict(entry) for entry in entries], "missing": missing}))


if __name__ == "__main__":
    main(sys.argv[1:])
