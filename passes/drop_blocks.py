"""``drop-blocks``: remove whole residual branches that change little.

A branch ``f`` of ``y = v + f(v)`` is scored by the cosine similarity of ``v`` and ``y`` on the
calibration data, the mean over samples (Men et al. 2024, "ShortGPT", call 1 - similarity the block
influence, there per token). The branches with the highest similarity go: ``y`` becomes ``v``, and
what a fused operator computed from ``y`` becomes a node of its own. The result equals the original
with ``f`` multiplied by zero, which the certificate proves.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as oir

from ..ir.bindings import bind_dims
from ..ir.branches import Branch, node_sum, residual_branches
from ..ir.errors import TargetError, UsageError
from ..ir.graphs import Names, detach, value_names
from ..ir.masks import Mask
from ..ir.naming import output_name
from ..ir.shapes import Facts, Skeleton, infer_bindings
from ..ir.wording import counted
from .base import Contract, Pass, PassContext, PassResult, clone_model
from .eliminate_dead import remove_initializers
from .proof import Points, Removal, prove

if TYPE_CHECKING:
    import onnx

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
        branches = [b for b in residual_branches(model.graph) if _masks(b, facts)]
        similarities = _similarities(model, branches, context)
        chosen = self._choose(branches, similarities)
        smaller = _without(model, [branches[k] for k in chosen])
        masks = [mask for k in chosen for mask in _masks(branches[k], facts)]
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
        found = {b: {(b.joint, k) for k, _ in b.operands} for b in residual_branches(model.graph)}
        branches = [b for b, inputs in found.items() if inputs <= wanted]
        if missing := wanted.difference(*(found[b] for b in branches)):
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
            if not any(_overlap(branches[k], branches[j]) for j in taken):
                taken.append(k)
        if not taken or (self.count is not None and len(taken) < self.count):
            best = f"; the highest similarity is {similarities.max():.4f}" if branches else ""
            raise TargetError(
                f"{counted(len(branches), 'residual branch', 'residual branches')} found, "
                f"{len(taken)} can go together{best}"
            )
        return sorted(taken)


def _overlap(a: Branch, b: Branch) -> bool:
    """Whether one of two branches lies within the other. Both may end in one sum."""
    return bool({*a.nodes, a.joint} & {*b.nodes} or {*a.nodes} & {*b.nodes, b.joint})


def _masks(branch: Branch, facts: Sequence[Facts]) -> list[Mask]:
    """What stands for the branch's absence; none if its shape is not that of the sum, or if no
    axis of an operand has a fixed size."""
    types = [(f.types.get(branch.source), f.types.get(branch.joint)) for f in facts]
    if any(source is None or source != joint for source, joint in types):
        return []
    masks = []
    for number, name in branch.operands:
        shapes = [f.types[name][1] if name in f.types else () for f in facts]
        fixed = [k for k, sizes in enumerate(zip(*shapes, strict=False)) if len({*sizes}) == 1]
        if not fixed:
            return []
        indices = tuple(range(shapes[0][fixed[-1]]))
        masks.append(Mask(branch.joint, number, fixed[-1] - len(shapes[0]), indices))
    return masks


def _similarities(model: oir.Model, branches: Sequence[Branch], context: PassContext) -> Array:
    """float64[branches]: mean over samples of cos(source, sum)."""
    import onnx

    from ..runtime.calibration import calibration_feeds
    from ..runtime.runnable import run_feeds, runnable

    total, count = np.zeros(len(branches)), 0
    assert context.calibration is not None
    with runnable(model) as (proto,):
        binding = bind_dims(model, context.dims)
        feeds = list(calibration_feeds(dict(context.calibration), proto, binding, SAMPLES))
        sums = _sums(proto, branches)
        names = sorted({*sums, *(b.source for b in branches)})
        present = {value.name for value in (*proto.graph.output, *proto.graph.input)}
        extra = [onnx.ValueInfoProto(name=name) for name in names if name not in present]
        proto.graph.output.extend(extra)
        results = run_feeds(proto, feeds, threads=context.threads)
        for feed, outputs in zip(feeds, results, strict=True):
            values = {**feed, **outputs}
            pairs = zip(branches, sums, strict=True)
            total += [_cosine(values[b.source], values[s]) for b, s in pairs]
            count += 1
            context.progress("compare", count / len(feeds))
    return total / max(count, 1)


def _sums(proto: onnx.ModelProto, branches: Sequence[Branch]) -> list[str]:
    """The values of the sums that close the branches; outputs that nodes left out are added."""
    made = {name: node for node in proto.graph.node for name in node.output}
    sums = []
    for branch in branches:
        outputs = made[branch.joint].output
        outputs.extend([""] * (branch.output + 1 - len(outputs)))
        outputs[branch.output] = outputs[branch.output] or f"{branch.joint}/sum"
        sums.append(outputs[branch.output])
    return sums


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
    """A copy of the model in which these branches are no part of the sums that close them."""
    smaller = clone_model(model)
    graph = smaller.graph
    names = Names(value_names(graph))
    made = {str(o.name): node for node in graph for o in node.outputs}
    left_out: dict[str, set[int]] = {}
    for branch in branches:
        left_out.setdefault(branch.joint, set()).update(k for k, _ in branch.operands)
    dead = {made[name] for branch in branches for name in (branch.joint, *branch.nodes)}
    weights = {v for node in dead for v in node.inputs if v is not None}
    for joint, inputs in left_out.items():
        _replace(made[joint], inputs, names)
    for node in reversed(graph):
        if node in dead:
            detach(node)
    remove_initializers(graph, weights)
    return smaller


def _replace(node: oir.Node, left_out: Collection[int], names: Names) -> None:
    """Puts what is left of a sum, and what the node computes from it, in the node's place."""
    total = node_sum(node)
    assert total is not None and node.graph is not None
    kept = [v for k in total.terms if k not in left_out and (v := node.inputs[k]) is not None]
    value, added, rest = kept[0], list[oir.Node](), None
    if len(kept) > 1:
        added.append(oir.node("Sum", kept))
        value = added[-1].outputs[0]
        value.name = names.free(f"{output_name(node)}/sum")
    if total.rest is not None:
        added.append(rest := total.rest(node, value))
    for number, old in enumerate(node.outputs):
        if not (old.uses() or old.is_graph_output()):
            continue
        new = value if rest is None or number == total.output else rest.outputs[number]
        if new is value and old.is_graph_output():
            added.append(oir.node("Identity", [value]))
            new = added[-1].outputs[0]
        if new.name is None:
            new.name, new.type, new.shape = old.name, old.type, old.shape
            old.name = None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    for number, new_node in enumerate(added):
        new_node.name = node.name if number == 0 else new_node.outputs[0].name
    node.graph.insert_after(node, added)
