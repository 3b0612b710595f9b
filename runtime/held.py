"""Comparing two models whose discrete choices are held at those of the reference.

Where rounding decides a choice (see `choices`), a plain comparison sees another choice and not
what led to it. Here both models are fed the choices that the reference makes. Every path from a
weight to an output either is continuous, and is compared at its end, or ends in a choice, whose
operands are compared instead: nothing is left out. Held are the choices

- that both models make, by the same operator with the same attributes,
- from float operands that are not the same to the bit,
- of the same shapes in both; an operator that looks at single elements may have fewer coordinates
  along one axis of the candidate. Which ones is found by their values. Nothing rests on that: a
  wrong guess makes the operands differ.

All others stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as oir
from onnx import helper

from ..ir.flatten import flatten
from ..ir.io import to_proto
from .choices import Choice, Holding, Kept, fed, find_choices, hold, opset
from .compare import LabelledFeed
from .elements import is_float, same, wide
from .runnable import is_large, lacks_kernels, run_feeds
from .segments import living_nodes, node_reads
from .session import Array
from .widened import FLOATS, widened, widened_feed

Values = Sequence[Mapping[str, Array]]

_PROJECTIONS = 4
"""Numbers per feed by which a coordinate is recognised."""


@dataclass(frozen=True)
class Held:
    """Two models with choices as inputs, and their feeds. ``choices`` are the nodes that are held,
    ``fixed`` the inputs that hold them, ``operands`` the outputs that show what they choose from.
    """

    reference: onnx.ModelProto
    candidate: onnx.ModelProto
    feeds: Sequence[LabelledFeed]
    choices: tuple[str, ...]
    fixed: frozenset[str]
    operands: frozenset[str]


def held_models(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    feeds: Sequence[LabelledFeed],
    *,
    threads: int = 0,
) -> Held | None:
    """The two models with their discrete choices held at those of the reference.

    None when rounding decides none that can be held. Raises CertificateError when a model does
    not run.
    """
    reference, candidate = _flat(reference), _flat(candidate)
    if opset(reference) != opset(candidate):
        return None
    theirs = find_choices(candidate)
    living = {
        name
        for node in living_nodes(reference.graph.node, _outputs(reference))
        for name in node.output
    }
    found = [
        choice
        for name, choice in find_choices(reference).items()
        if name in living and name in theirs and choice.same(theirs[name])
    ]
    if not found:
        return None
    if lacks_kernels(reference, feeds[0][1]):  # what is held then comes in float32
        reference, candidate = (widened(model, FLOATS) for model in (reference, candidate))
        feeds = [(label, widened_feed(feed, FLOATS)) for label, feed in feeds]
    inputs = [feed for _, feed in feeds]
    watched = (
        _observed(reference, found),
        _observed(candidate, [theirs[choice.result] for choice in found]),
    )
    seen = [
        [*run_feeds(model, inputs, threads=threads, optimize=optimize)]
        for optimize in (False, True)
        for model in watched
    ]
    ours = seen[0]
    held = _decided(reference, found, seen)
    if not held:
        return None
    fixed = frozenset(map(fed, held))
    before, operands = hold(reference, held, smaller=False)
    return Held(
        before,
        hold(candidate, held, smaller=True)[0],
        [
            (f"{label}, choices held", {**feed, **{fed(name): values[name] for name in held}})
            for (label, feed), values in zip(feeds, ours, strict=True)
        ],
        tuple(choice.name for choice in found if choice.result in held),
        fixed,
        operands,
    )


def _flat(model: onnx.ModelProto) -> onnx.ModelProto:
    """Local functions inlined: what they choose has the names of the masked original then."""
    if not model.functions or is_large(model):
        return model
    return to_proto(flatten(oir.serde.deserialize_model(model)), sparse=False)


def _outputs(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.output]


def _shown(number: int, operand: int) -> str:
    return f"secateur/choice {number}/{operand}"


def _observed(model: onnx.ModelProto, choices: Sequence[Choice]) -> onnx.ModelProto:
    """A copy that puts out the choices' results, and their operands by `_shown`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = []
    for number, choice in enumerate(choices):
        names.append(choice.result)
        for operand, name in enumerate(choice.node.input):
            if name:
                names.append(_shown(number, operand))
                copy.graph.node.append(helper.make_node("Identity", [name], names[-1:]))
    present = {*_outputs(model)}
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    return copy


def _decided(
    model: onnx.ModelProto, choices: Sequence[Choice], seen: Sequence[Values]
) -> dict[str, Holding]:
    """The choices that rounding may decide. Behind another one a shape may differ for that.

    ``seen`` are runs of the reference and of the candidate, without optimisation and with it.
    """
    numbers = {choice.result: number for number, choice in enumerate(choices)}
    ours, others = seen[:2]
    decided, behind = dict[str, Holding](), set[str]()
    for node in model.graph.node:
        after = bool(behind & node_reads(node))
        number = next((numbers[name] for name in node.output if name in numbers), None)
        if number is not None:
            names = {k: _shown(number, k) for k, name in enumerate(node.input) if name}
            pairs = {
                k: [(a[n], b[n]) for a, b in zip(ours, others, strict=True)]
                for k, n in names.items()
            }
            alike = after or all(a.shape == b.shape for p in pairs.values() for a, b in p)
            kept = None if alike else _kept(choices[number], pairs)
            moved = any(
                _differ([run[n] for run in runs])
                for runs in zip(*seen, strict=True)
                for n in names.values()
            )
            if moved and (alike or kept):
                result = choices[number].result
                decided[result] = Holding(ours[0][result], kept)
                after = True
        if after:
            behind.update(node.output)
    return decided


def _differ(arrays: Sequence[Array]) -> bool:
    """Whether float arrays are not all the same to the bit."""
    first = arrays[0]
    return is_float(first) and any(
        a.shape != first.shape or not same(first, a).all() for a in arrays
    )


def _kept(choice: Choice, pairs: Mapping[int, Sequence[tuple[Array, Array]]]) -> Kept | None:
    """The coordinates that the candidate has of the one axis that is shorter there.

    They are found by a few random projections of what they hold on all feeds.
    """
    smaller = {k: entry for k, entry in pairs.items() if entry[0][0].shape != entry[0][1].shape}
    places = set[tuple[int, int, int]]()
    for entry in smaller.values():
        for a, b in entry:
            if a.ndim != b.ndim:
                return None
            odd = [k - a.ndim for k in range(a.ndim) if a.shape[k] != b.shape[k]]
            places.update((axis, a.shape[axis], b.shape[axis]) for axis in odd)
            if len(odd) != 1 or not is_float(a):
                return None
    if len(places) != 1 or not choice.elementwise:
        return None
    ((axis, _, _),) = places
    from scipy.spatial import cKDTree

    rng, projections = np.random.default_rng(0), list[tuple[Array, Array]]()
    for a, b in (pair for entry in smaller.values() for pair in entry):
        full, part = _rows(a, axis), _rows(b, axis)
        base = rng.standard_normal((full.shape[1], _PROJECTIONS))
        projections.append((full @ base, part @ base))
    ours, theirs = (np.concatenate(entry, 1) for entry in zip(*projections, strict=True))
    indices = np.asarray(cKDTree(ours).query(theirs)[1])
    return Kept(axis, tuple(indices.tolist()), frozenset(smaller))


def _rows(array: Array, axis: int) -> Array:
    """float64[coordinates of the axis, everything else], finite."""
    rows = np.moveaxis(wide(array), axis, 0).reshape(array.shape[axis], -1)
    return np.nan_to_num(rows, posinf=1.0, neginf=-1.0)
