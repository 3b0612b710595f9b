"""Proving what a pass removed: the masked original against the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import onnx_ir as oir

from ..ir.bindings import bind_dims, moved_alone, moved_but_one, moved_together
from ..ir.flatten import flatten
from ..ir.masks import Compaction, Mask
from ..ir.shapes import Facts, Skeleton, infer_bindings
from .base import PassContext

if TYPE_CHECKING:
    from ..runtime.certificate import Certificate

SEEDS = 3
"""Random inputs per binding that a certificate is based on."""


@dataclass(frozen=True)
class Points:
    """Where the original is masked: ``PassResult.details["points"]`` of a pass that removes."""

    masks: Sequence[Mask]
    compactions: Sequence[Compaction] = ()


@dataclass(frozen=True)
class Removal:
    """What a pass removed: where its input is masked, and the slices (tensor, axis, indices) of
    the tensors of its input."""

    points: Points
    slices: Sequence[tuple[str, int, Sequence[int]]] = ()


@runtime_checkable
class Repeatable(Protocol):
    """A pass that removes, and can do it again without choosing again."""

    def repeat(self, model: oir.Model, removal: Removal, context: PassContext) -> oir.Model:
        """The model, which stays as it is, without what was removed. Raises UsageError when the
        removal is not one of this model."""


def prove(
    original: oir.Model,
    result: oir.Model,
    points: Points,
    facts: Sequence[Facts],
    context: PassContext,
    *,
    removed: Iterable[tuple[str, int, Sequence[int]]] | None = None,
    source: oir.Model | None = None,
) -> Certificate:
    """The certificate of a removal, at all bindings that ``facts`` hold.

    ``removed`` are slices of the tensors of ``source`` (default: ``original``) to repeat it with.
    Points and slices name what they do in the flat form of these models (see
    `secateur.ir.flatten`), which must compute what the models as written do. Raises
    CertificateError when a model does not run.
    """
    from ..runtime.certificate import certify
    from ..runtime.runnable import runnable

    bindings = [f.binding for f in facts]

    def progress(done: int, total: int) -> None:
        context.progress("certify", done / max(total, 1))

    flat = flatten(original)
    others = {} if source is None else {"source": flatten(source)}
    others |= {} if flat is original else {"written": original}
    with runnable(flat, result, *others.values()) as (before, after, *rest):
        return certify(
            before,
            after,
            points.masks,
            points.compactions,
            removed=removed,
            **dict(zip(others, rest, strict=True)),
            bindings=[b for k, b in enumerate(bindings) if b not in bindings[:k]],
            spare=spare_bindings(facts),
            seeds=tuple(range(context.seed, context.seed + SEEDS)),
            calibration=context.calibration,
            threads=context.threads,
            types=facts_types(facts),
            progress=progress,
        )


def prove_by_dims(
    before: oir.Model, after: oir.Model, points: Points, context: PassContext, **replay: Any
) -> Certificate:
    """As `prove`, at the bindings that follow from ``context.dims``. Raises UsageError when a
    symbolic dimension has no size."""
    from ..runtime.observe import observer

    binding, observe = bind_dims(before, context.dims), observer(before, context.calibration)
    facts = infer_bindings(Skeleton(before), binding, observe)
    return prove(before, after, points, facts, context, **replay)


def spare_bindings(facts: Sequence[Facts]) -> list[dict[str, int]]:
    """Other second sizes, in case the model does not run at those of ``facts``: of all dimensions,
    of all but one, and of one at a time; first those of the most dimensions."""
    if len(facts) == 1:
        return []
    binding = facts[0].binding
    found = [*moved_together(binding), *moved_but_one(binding), *moved_alone(binding)]
    found.sort(key=lambda other: sum(other[name] == size for name, size in binding.items()))
    return [other for other in found if other != facts[1].binding]


def facts_types(facts: Sequence[Facts]) -> dict[str, tuple[int, tuple[int | str | None, ...]]]:
    """Element types and shapes of all values; sizes that move with the binding are None."""
    result: dict[str, tuple[int, tuple[int | str | None, ...]]] = {}
    for name, (dtype, shape) in facts[0].types.items():
        others = [f.types[name][1] for f in facts[1:] if name in f.types]
        result[name] = (
            dtype,
            tuple(
                size if all(len(o) == len(shape) and o[k] == size for o in others) else None
                for k, size in enumerate(shape)
            ),
        )
    return result
