"""Control flow: the rules of the inner nodes hold inside; here, values link across the boundary.

What a branch gives is what If gives. A state of a loop is one tensor in four places: what goes
in, what the body is given, what it gives back, and what comes out; the axes on which these agree
link. A scan output has one axis more than what the body gives for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..control import ScanForm
from .base import Body, Listed, Operand, Site, rule

_FAMILY = "control flow"
_COUNTS = "counts iterations"
_BATCH = "a batch axis of Scan"
_CHANGES = "changes from one iteration to the next, or is not known"


@rule("If", family=_FAMILY, all_outputs=True, enters=True)
def branches(site: Site) -> None:
    """Only the branches that may run are among the bodies."""
    site.pin_all("decides which branch runs", site.inputs)
    reason = "the branches give different sizes, or unknown ones"
    for number, result in enumerate(site.outputs):
        given = [body.outputs[number] for body in site.bodies.values()]
        tie(site, reason, [*given, result])
        _tie_branches(site, reason, number)


def _tie_branches(site: Site, reason: str, number: int) -> None:
    """What a branch gives as a sequence is, element by element, what If gives."""
    given = [body.lists_out[number] for body in site.bodies.values()]
    result = site.list_out(number)
    if result is None or any(listed is None for listed in given):
        site.pin_lists(reason, [*given, result])
        return
    for listed in given:
        assert listed is not None
        if not result.exact or listed.operands == result.operands:
            continue
        if len(listed.operands) != len(result.operands):
            site.pin_lists(reason, [listed])
        else:
            for pair in zip(listed.operands, result.operands, strict=True):
                tie(site, reason, pair)


@rule("Loop", family=_FAMILY, all_outputs=True, enters=True)
def loop(site: Site) -> None:
    """Trip count, condition, states; then one scan output for each of the body's other results."""
    body = site.bodies["body"]
    site.pin_all(_COUNTS, (*site.inputs[:2], *body.inputs[:2], body.outputs[0]))
    states = len(site.inputs) - 2
    _tie_states(site, body, range(states), 2, 2, 1)
    for k in range(states):
        into, back = body.lists_in[2 + k], body.lists_out[1 + k]
        _tie_lists(site, site.list_in(2 + k), into, back, site.list_out(k))
    for inner, outer in zip(body.outputs[1 + states :], site.outputs[states:], strict=True):
        _stack(site, inner, outer, 0)


def _tie_lists(site: Site, *places: Listed | None) -> None:
    """A sequence among the states holds the same elements in all places, or copies of them, unless
    it is not known in one of these."""
    if any(listed is None for listed in places):
        site.pin_lists(_CHANGES, places)
        return
    for listed in places:
        assert listed is not None
        for element, origin in zip(listed.operands, listed.origins, strict=True):
            if origin is not None:
                tie(site, _CHANGES, [origin, element])


@rule("Scan", family=_FAMILY, all_outputs=True, enters=True)
def scan(site: Site) -> None:
    """States, then operands that are taken apart or put together along their scan axes. Before
    opset 9 sequence lengths come first, and every operand has a batch axis in front."""
    body, attributes = site.bodies["body"], site.node.attributes
    options = {
        name: site.integers(name)
        for name in ("scan_input_axes", "scan_output_axes")
        if name in attributes
    }
    count = {"num_scan_inputs": site.integer("num_scan_inputs", 0)}
    form = ScanForm(len(site.inputs), len(site.outputs), {**options, **count}, site.opset)
    site.pin_all(_COUNTS, site.inputs[: form.first])
    states = form.states
    _tie_states(site, body, range(states), form.first, 0, 0, form.batch)
    for outer, inner, axis in zip(
        site.inputs[form.first + states :], body.inputs[states:], form.input_axes, strict=True
    ):
        _stack(site, inner, outer, axis, form.batch)
    for outer, inner, axis in zip(
        site.outputs[states:], body.outputs[states:], form.output_axes, strict=True
    ):
        _stack(site, inner, outer, axis, form.batch)


def _tie_states(
    site: Site, body: Body, states: range, outer: int, inner: int, back: int, batch: int = 0
) -> None:
    """Ties the states, which come after ``outer`` inputs of the node, ``inner`` inputs of the
    body and ``back`` of its results."""
    for k in states:
        outside = [site.inputs[outer + k], site.outputs[k]]
        inside = [body.inputs[inner + k], body.outputs[back + k]]
        tie(site, _CHANGES, [*outside, *inside], [batch, batch, 0, 0])


def tie(
    site: Site, reason: str, operands: Sequence[Operand | None], skip: Sequence[int] = ()
) -> None:
    """Links the axes of operands that are one tensor, but for the first ``skip`` axes of each.

    Axes on which they differ are pinned, and so is all when the shape of one is unknown.
    """
    known = [(o, k) for o, k in zip(operands, skip or [0] * len(operands), strict=True) if o]
    if len(known) < len(operands) or len({o.rank - k for o, k in known}) > 1:
        site.pin_all(reason, [o for o, _ in known])
        return
    for operand, batch in known:
        for axis in operand.axes[:batch]:
            site.pin(axis, _BATCH)
    for index in range(known[0][0].rank - known[0][1]):
        _tie_axes(site, reason, [(o, k + index) for o, k in known])


def _tie_axes(site: Site, reason: str, axes: Sequence[tuple[Operand, int]]) -> None:
    same = len({(operand.shape[k], operand.later[k]) for operand, k in axes}) == 1
    first = axes[0][0].axis(axes[0][1])
    for operand, k in axes:
        if not same:
            site.pin(operand.axis(k), reason)
        elif operand.axis(k) != first:
            site.link(first, operand.axis(k))


def _stack(
    site: Site, part: Operand | None, whole: Operand | None, axis: int, batch: int = 0
) -> None:
    """Ties what one iteration sees with the whole, which has the scan axis as well."""
    if part is None or whole is None or whole.rank - batch != part.rank + 1:
        site.pin_all("its shape is not the same in every iteration, or not known", [part, whole])
        return
    axis = axis % (whole.rank - batch) + batch
    site.pin(whole.axis(axis), _COUNTS)
    for number in whole.axes[:batch]:
        site.pin(number, _BATCH)
    rest = [k for k in range(batch, whole.rank) if k != axis]
    for ours, theirs in enumerate(rest):
        _tie_axes(site, _CHANGES, [(part, ours), (whole, theirs)])
