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
from .seeded import draws, seeded
from .segments import run_segments, weight_bytes
from .session import Array, Feed, KernelError, make_session, run
from .widened import BFLOAT16, FLOATS, uses, widened, widened_feed

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
    """A function that runs the model on a feed; one session serves all calls unless the model is
    large or draws random numbers, which are the same in every call.

    Both raise CertificateError when the model does not load or run.
    """
    if draws(model):
        same = seeded(model)
        return lambda feed: _runner(same, threads, optimize)(feed)
    return _runner(model, threads, optimize)


def _runner(model: onnx.ModelProto, threads: int, optimize: bool) -> Runner:
    if is_large(model):
        return lambda feed: next(_in_segments(model, [feed], threads, optimize))
    return _Session(model, threads, optimize)


class _Session:
    """A session of the model, or of its copy in float32 once kernels turn out to be missing."""

    def __init__(self, model: onnx.ModelProto, threads: int, optimize: bool) -> None:
        self.model, self.threads, self.optimize = model, threads, optimize
        try:
            self._open(BFLOAT16)
        except KernelError as error:
            self._widen(error)

    def __call__(self, feed: Feed) -> dict[str, Array]:
        try:
            return run(self.session, widened_feed(feed, self.kinds))
        except KernelError as error:
            self._widen(error)
        return run(self.session, widened_feed(feed, self.kinds))

    def _open(self, kinds: frozenset[int]) -> None:
        self.kinds = kinds if uses(self.model, kinds) else frozenset[int]()
        source = widened(self.model, kinds) if self.kinds else self.model
        self.session = make_session(source, threads=self.threads, optimize=self.optimize)

    def _widen(self, error: KernelError) -> None:
        """Goes on in float32. Raises the error where that changes nothing."""
        if self.kinds == FLOATS or not uses(self.model, FLOATS):
            raise error
        self._open(FLOATS)


def _in_segments(
    model: onnx.ModelProto, feeds: Sequence[Feed], threads: int, optimize: bool
) -> Iterator[dict[str, Array]]:
    """`run_segments`, in float32 where kernels are missing; nothing comes before all has run."""
    try:
        yield from run_segments(model, feeds, threads=threads, optimize=optimize)
    except KernelError:
        if not uses(model, FLOATS):
            raise
        yield from run_segments(model, feeds, threads=threads, optimize=optimize, kinds=FLOATS)


def lacks_kernels(model: onnx.ModelProto, feed: Feed) -> bool:
    """Whether float32 stands in for other floats than bfloat16 when the model is run.

    Raises CertificateError when the model does not load or run.
    """
    if not uses(model, FLOATS - BFLOAT16):
        return False
    if not is_large(model):
        each = _Session(model, 0, False)
        each(feed)
        return each.kinds == FLOATS
    try:
        next(run_segments(model, [feed], optimize=False))
    except KernelError:
        return True
    return False


def run_feeds(
    model: onnx.ModelProto, feeds: Sequence[Feed], *, threads: int = 0, optimize: bool = True
) -> Iterator[dict[str, Array]]:
    """The outputs on every feed. Raises CertificateError when the model does not load or run."""
    if is_large(model) and not draws(model):
        return _in_segments(model, feeds, threads, optimize)
    return map(runner(model, threads=threads, optimize=optimize), feeds)
