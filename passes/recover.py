"""``recover``: refit the weights of a pruned model to the original's activations, in closed form.

The pruned model is gone through in order. Every linear layer (convolutions of any kind, matrix
products, the input weights of recurrent layers) gets the weights and the bias that best give, from
what the pruned network feeds it, what the original gave in its place (see `aims`): ridge least
squares, whose ridge is chosen layer by layer on held-out samples (see `least_squares`). Weights
that are stored as integers are fitted as the real numbers they stand for, and rounded to their
steps again. BatchNormalization gets new statistics. No labels, no gradients; the graph stays as it
is, and only numbers in it change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import onnx
import onnx_ir as oir

from ..ir.errors import UsageError
from ..ir.flatten import flatten, with_constants
from ..ir.wording import counted
from .base import Contract, Pass, PassContext, PassResult, clone_model
from .layers import batches, noise
from .refitting import Walk, measured
from .taken_branches import as_taken

if TYPE_CHECKING:
    from ..runtime.session import Feed

FEW = 64
"""With fewer samples the report says that they are few."""
_NOISE = (
    "weights were refitted to noise, for want of calibration data: how far the outputs are off is"
    " measured on noise too, and real data would bring more"
)
_WORSE = (
    "weights stay as they were: refitted on {}, they brought the outputs no closer to the"
    " original's; more samples may"
)


@dataclass(frozen=True)
class Recover(Pass):
    """Refits linear layers to what the original gives on ``samples`` of calibration data, at most
    ``rows`` rows for each (0: as many as its size asks for), or, with ``data`` noise, on random
    inputs. ``memory`` bounds the gigabytes of activations that are held; fewer samples are used
    where they would need more."""

    name: ClassVar[str] = "recover"
    contract: ClassVar[Contract] = Contract.APPROXIMATES
    summary: ClassVar[str] = "refit the weights to the original's activations, without labels"
    refits: ClassVar[bool] = True

    samples: int = 4096
    rows: int = 0
    data: Literal["calibration", "noise"] = "calibration"
    memory: float = 4.0

    def __post_init__(self) -> None:
        if self.samples < 5:
            raise ValueError(f"samples must be at least 5, not {self.samples}")
        if self.rows < 0:
            raise ValueError(f"rows must be at least 0, not {self.rows}")
        if self.memory <= 0:
            raise ValueError(f"memory must be more than 0, not {self.memory:g}")

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        """Raises UsageError without calibration data or without an original to go by."""
        from ..runtime.runnable import runnable
        from ..runtime.stepwise import steppable

        if context.original is None:
            raise UsageError("recover needs the original model: run it in a pipeline")
        if context.calibration is None and self.data == "calibration":
            raise UsageError(
                "recover fits to activations on data: give --calibration FILE, or data=noise"
            )
        closed = flatten(context.original), flatten(model)
        opened = as_taken(closed, lambda proto: self._feeds(proto, context), context.threads)
        with runnable(*opened) as (before, after):
            (before, after), feeds = steppable([before, after], self._feeds(before, context))
            walk = Walk(self, opened, context, (before, after), feeds)
            fits = walk.run()
            drifts = walk.drifts() if opened[0] is closed[0] else None
        tensors = {n: oir.tensor(array, name=n) for n, array in walk.found.items()}
        if drifts is None:  # other branches may be taken now
            refitted = with_constants(clone_model(model), tensors)
            drifts = measured(*closed, flatten(refitted), walk.feeds, context.threads)
        better = drifts[1] <= drifts[0]
        notes = [_NOISE] if self.data == "noise" else []
        if not notes and walk.samples < FEW:
            notes.append(
                f"weights were refitted to {counted(walk.samples, 'sample')} only: what these do "
                "not show may be lost; some hundreds do better"
            )
        if walk.found and not better:
            notes.append(_WORSE.format(counted(walk.samples, "sample")))
        if better and tensors:
            model = with_constants(model, tensors)
        return PassResult(
            model,
            better and bool(walk.found),
            {
                "layers": len(fits) if better else 0,
                "samples": walk.samples,
                "drift-before": drifts[0],
                "drift": drifts[1] if better else drifts[0],
            },
            {
                "fits": fits,
                "refitted": sorted(walk.found) if better else [],
                "notes": notes,
            },
        )

    def _feeds(self, model: onnx.ModelProto, context: PassContext) -> list[Feed]:
        return (noise if self.data == "noise" else batches)(model, context, self.samples)
