"""Models as ONNX Runtime gets them: small ones as one message, large ones with weights in files.

What is compared with what never depends on the size; only how much of it is in memory does. The
weights of a large model stay in the files that they are read from, or, where a pass has changed
them, go to a temporary folder (see the environment variable TMPDIR); see also `segments`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import onnx
import onnx_ir as oir

from ..ir.external import EXTERNAL_THRESHOLD, MappedTensor
from ..ir.io import load_model, save_model, to_proto
from ..ir.tensors import all_tensors
from .segments import run_segments, weight_bytes
from .session import Array, Feed, make_session, run
from .widened import uses_bfloat16, widened, widened_feed

LARGE = 2**30
"""Models with at least this many bytes of weights are run from files, in segments."""

Runner = Callable[[Feed], dict[str, Array]]


@contextmanager
def runnable(*models: oir.Model) -> Iterator[list[onnx.ModelProto]]:
    """The models as protobuf messages. Within the block, the files of large ones exist.

    Raises ModelError when a model cannot be serialized, UsageError when the disk is full.
    """
    with ExitStack() as stack:
        yield [_message(model, stack) for model in models]


def _message(model: oir.Model, stack: ExitStack) -> onnx.ModelProto:
    tensors = [t for t in all_tensors(model) if t.dtype != oir.DataType.STRING]
    if sum(t.nbytes for t in tensors) < LARGE:
        return to_proto(model, sparse=False)
    if not all(isinstance(t, MappedTensor) or t.nbytes <= EXTERNAL_THRESHOLD for t in tensors):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="secateur-")))
        save_model(model, folder / "model.onnx", external=True)
        model = load_model(folder / "model.onnx")
    return to_proto(model, inline=False, sparse=False)


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the model is run in segments."""
    return weight_bytes(model) >= LARGE


def runner(model: onnx.ModelProto, *, threads: int = 0, optimize: bool = True) -> Runner:
    """A function that runs the model on a feed; one session serves all calls unless it is large.

    Both raise CertificateError when the model does not load or run.
    """
    if is_large(model):
        return lambda feed: next(run_segments(model, [feed], threads=threads, optimize=optimize))
    wide = uses_bfloat16(model)
    source = widened(model) if wide else model
    session = make_session(source, threads=threads, optimize=optimize)
    return lambda feed: run(session, widened_feed(feed) if wide else feed)


def run_feeds(
    model: onnx.ModelProto, feeds: Sequence[Feed], *, threads: int = 0, optimize: bool = True
) -> Iterator[dict[str, Array]]:
    """The outputs on every feed. Raises CertificateError when the model does not load or run."""
    if is_large(model):
        return run_segments(model, feeds, threads=threads, optimize=optimize)
    return map(runner(model, threads=threads, optimize=optimize), feeds)
