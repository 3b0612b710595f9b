"""``drop-blocks``: remove whole residual branches that change little.

A branch ``f`` of ``y = v + f(v)`` is scored by the cosine similarity of ``v`` and ``y`` on the
calibration data, the mean over samples (Men et al. 2024, "ShortGPT", call 1 - similarity the block
influence, there per token). The branches with the highest similarity go: ``y`` becomes ``v``. The
result equals the original with ``f`` multiplied by zero, which the certificate proves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as oir

from ..ir.bindings import bind_dims
from ..ir.branches import Branch, residual_branches
from ..ir.errors import TargetError, UsageError
from ..ir.masks import Mask
from ..ir.shapes import Facts, Skeleton, infer_bindings
from ..ir.wording import counted
from .base import Contract, Pass, PassContext, PassResult, clone_model
from .eliminate_dead import detach
from .proof import Points, Removal, prove

if TYPE_CHECKING:
    from ..runtime.session import Array

SAMPLES = 64
"""At most this many calibration samples are looked at."""


@dataclass(frozen=True)
class DropBlocks(Pass):
    """Removes residual branches until exactly one target is met: ``count`` of them, or all whose
    ``similarity`` is at least the given one (-1 to 1)."""

    name: ClassVar[str] = "drop-blocks"
    contract: ClassVar[Contract] = Contract.MASKS
    summary: ClassVar[str] = "remove residual branches that change their input least"

    count: int | None = None
    similarity: float | None = None

    def __post_init__(self) -> None:
        if (self.count is None) == (self.similarity is None):
            raise ValueError("drop-blocks needs exactly one of `count` and `similarity`")
        if self.count is not None and self.count < 1:
            raise ValueError(f"`count` must be at least 1, not {self.count}")
        if self.similarity is not None and not -1 <= self.similarity <= 1:
            raise ValueError(f"`similarity` must be from -1 to 1, not {self.similarity:g}")

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        """Raises UsageError without calibration data, TargetError when there are too few branches,
        CertificateError when the result does not equal the masked original."""
        from ..runtime.observe import observer

        if context.calibration is None:
            raise UsageError("drop-blocks compares activations on data: give --calibration FILE")
        facts = infer_bindings(
            Skeleton(model),
            bind_dims(model, context.dims),
            observer(model, context.calibration),
        )
        branches = [b for b in residual_branches(model.graph) if _mask(b, facts) is not None]
        similarities = _similarities(model, branches, context)
        chosen = self._choose(branches, similarities)
        smaller = _without(model, [branches[k] for k in chosen])
        masks = [m for m in (_mask(branches[k], facts) for k in chosen) if m is not None]
        points = Points(masks)
        certificate = prove(model, smaller, points, facts, context)
        blocks = [
            {"joint": b.joint, "similarity": round(float(s), 6), "dropped": k in chosen}
            for k, (b, s) in enumerate(zip(branches, similarities, strict=True))
        ]
        return PassResult(
            smaller,
            bool(chosen),
            {"branches": len(branches), "dropped": len(chosen)},
            {"points": points, "blocks": blocks},
            certificate,
        )

    def repeat(self, model: oir.Model, removal: Removal, context: PassContext) -> oir.Model:
        """The model without the branches that the masks name. Raises UsageError when it has no
        such branches."""
        wanted = {(mask.output, mask.input) for mask in removal.points.masks}
        branches = [b for b in residual_branches(model.graph) if (b.joint, b.operand) in wanted]
        if missing := wanted - {(b.joint, b.operand) for b in branches}:
            raise UsageError(f"no residual branch ends in '{min(missing)[0]}'")
        return _without(model, branches)

    def _choose(self, branches: Sequence[Branch], similarities: Array) -> list[int]:
        """The numbers of the branches to drop, of nested ones the outer or the inner."""
        taken: list[int] = []
        for k in np.argsort(-similarities, kind="stable").tolist():
            enough = len(taken) == self.count or (
                self.similarity is not None and similarities[k] < self.similarity
            )
            if enough:
                break
            own = {*branches[k].nodes, branches[k].joint}
            if not any(own & {*branches[j].nodes, branches[j].joint} for j in taken):
                taken.append(k)
        if not taken or (self.count is not None and len(taken) < self.count):
            best = f"; the highest similarity is {similarities.max():.4f}" if branches else ""
            raise TargetError(
                f"{counted(len(branches), 'residual branch', 'residual branches')} found, "
                f"{len(taken)} can go together{best}"
            )
        return sorted(taken)


def _mask(branch: Branch, facts: Sequence[Facts]) -> Mask | None:
    """What stands for the branch's absence; None if its shape is not that of the sum, or if no
    axis has a fixed size."""
    types = [(f.types.get(branch.source), f.types.get(branch.joint)) for f in facts]
    if any(source is None or source != joint for source, joint in types):
        return None
    shapes = [joint[1] for _, joint in types if joint is not None]
    for axis in reversed(range(len(shapes[0]))):
        if len({shape[axis] for shape in shapes}) == 1:
            indices = tuple(range(shapes[0][axis]))
            return Mask(branch.joint, branch.operand, axis - len(shapes[0]), indices)
    return None


def _similarities(model: oir.Model, branches: Sequence[Branch], context: PassContext) -> Array:
    """float64[branches]: mean over samples of cos(source, joint)."""
    import onnx

    from ..runtime.calibration import calibration_feeds
    from ..runtime.runnable import run_feeds, runnable

    names = sorted({name for b in branches for name in (b.source, b.joint)})
    total, count = np.zeros(len(branches)), 0
    assert context.calibration is not None
    with runnable(model) as (proto,):
        binding = bind_dims(model, context.dims)
        feeds = list(calibration_feeds(dict(context.calibration), proto, binding, SAMPLES))
        present = {value.name for value in (*proto.graph.output, *proto.graph.input)}
        extra = [onnx.ValueInfoProto(name=name) for name in names if name not in present]
        proto.graph.output.extend(extra)
        results = run_feeds(proto, feeds, threads=context.threads)
        for feed, outputs in zip(feeds, results, strict=True):
            values = {**feed, **outputs}
            total += [_cosine(values[b.source], values[b.joint]) for b in branches]
            count += 1
            context.progress("compare", count / len(feeds))
    return total / max(count, 1)


def _cosine(a: Array, b: Array) -> float:
    """The cosine of the angle between two arrays; 1 for equal ones, 0 when one is zero or NaN."""
    if np.array_equal(a, b):
        return 1.0
    x, y = (v.astype(np.float64).ravel() for v in (a, b))
    # Not by BLAS, whose threads cost more than they bring here.
    xx, xy, yy = (float(np.einsum("i,i->", u, v)) for u, v in ((x, x), (x, y), (y, y)))
    norm = math.sqrt(xx) * math.sqrt(yy)
    result = xy / norm if norm else 0.0
    return result if np.isfinite(result) else 0.0


def _without(model: oir.Model, branches: Sequence[Branch]) -> oir.Model:
    """A copy of the model in which the joints of these branches are what they would add to."""
    smaller = clone_model(model)
    graph = smaller.graph
    made = {str(o.name): o for node in graph for o in node.outputs}
    for branch in branches:
        joint = made[branch.joint]
        node = joint.producer()
        assert node is not None
        source = node.inputs[1 - branch.operand]
        assert source is not None
        if joint.is_graph_output():
            alias = oir.Node("", "Identity", [source], num_outputs=1, name=node.name)
            output = alias.outputs[0]
            output.name, output.type, output.shape = joint.name, joint.type, joint.shape
            graph.insert_after(node, alias)
            joint.name = f"{branch.joint}/sum"
            for position, value in enumerate(graph.outputs):
                if value is joint:
                    graph.outputs[position] = output
        joint.replace_all_uses_with(source)
        dead = [node, *(made[name].producer() for name in reversed(branch.nodes))]
        weights = {v for n in dead if n is not None for v in n.inputs if v is not None}
        for gone in dead:
            assert gone is not None
            detach(gone)
        for value in weights:
            if value.is_initializer() and not value.uses() and value not in graph.inputs:
                del graph.initializers[str(value.name)]
    return smaller
