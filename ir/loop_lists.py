"""Sequences that a Loop fills: which elements its body and its outputs hold.

Inside the body, a sequence holds what it may hold in any iteration. When the number of iterations
is known, they are followed one by one, with the number of the iteration, and states that follow
from it, as known values: the outputs then hold, in order, one copy for each iteration of every
element that the body makes, with the sizes that it has there. An axis of the body whose size
depends on the iteration is split as the states of a loop are (see `control`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from .lists import Elements

if TYPE_CHECKING:
    from .control import Iterations
    from .shapes import Array, Facts, Typed

Lists = dict[str, Elements]
"""By the names of the states in the body."""


def follow_lists(
    loop: Iterations,
    facts: Facts,
    proto: onnx.NodeProto,
    body: onnx.GraphProto,
    rounds: Sequence[Mapping[str, Array]] | None,
) -> None:
    """Finds the sequences among the states of a Loop whose body, which must have been inferred,
    runs once for each of ``rounds``, values that are known then (None: nobody knows how often)."""
    states = [
        (outer, into.name, out.name, result)
        for outer, into, out, result in zip(
            proto.input[2:], body.input[2:], body.output[1:], proto.output, strict=False
        )
        if outer in facts.lists
    ]
    if not states:
        return
    first = {into: facts.lists[outer] for outer, into, _, _ in states}
    back = {into: out for _, into, out, _ in states}
    _settle(loop, facts, first, back)
    found = dict(loop.lists)
    if rounds is not None:
        found.update(_run(loop, facts, first, back, rounds))
    for _, into, _, result in states:
        if result and into in found:
            facts.lists[result] = found[into]


def _settle(loop: Iterations, facts: Facts, first: Lists, back: Mapping[str, str]) -> None:
    """Finds what the body's sequences may hold in any iteration."""
    loop.lists, settled = first, False
    while not settled:
        loop.show()
        after: Lists = {}
        for into, given in loop.lists.items():
            made = facts.lists.get(back[into])
            if made is not None:
                after[into] = given.union(made)
        settled = after == loop.lists
        loop.lists = after


def _run(
    loop: Iterations,
    facts: Facts,
    first: Lists,
    back: Mapping[str, str],
    rounds: Sequence[Mapping[str, Array]],
) -> Lists:
    """What the sequences hold after the last iteration, as far as that can be told."""
    lasting, known, copies = loop.lists, loop.known, set[str]()
    current = {into: first[into] for into in lasting}
    seen: list[dict[str, Typed]] = []
    for iteration, values in enumerate(rounds):
        loop.lists, loop.known = current, values
        loop.at(iteration)
        seen.append(_types(loop, facts))
        current = {}
        for into in loop.lists:
            made = facts.lists.get(back[into])
            if made is not None and made.exact:
                current[into] = _copied(loop, facts, made, copies, iteration)
    loop.lists, loop.known = lasting, known
    guess, facts.cut_open = facts.cut_open, False  # the iterations tell more about slices
    loop.show()
    facts.cut_open = guess
    _show_types(facts, seen)
    return current


def _copied(
    loop: Iterations, facts: Facts, made: Elements, copies: set[str], iteration: int
) -> Elements:
    """The same with a copy in place of each element that the body has made in this iteration."""
    names = []
    for name in made.names:
        if name not in copies and name[: name.rfind("[")] in loop.inner:
            copy = f"{name}@{iteration}"
            facts.origins[copy] = name
            if name in facts.types:
                facts.types[copy] = facts.types[name]
            copies.add(copy)
            name = copy
        names.append(name)
    return Elements(tuple(names))


def _types(loop: Iterations, facts: Facts) -> dict[str, Typed]:
    names = [*loop.inner]
    for name in loop.inner:
        names += facts.lists[name].names if name in facts.lists else ()
    return {name: facts.types[name] for name in names if name in facts.types}


def _show_types(facts: Facts, seen: Sequence[Mapping[str, Typed]]) -> None:
    """Types in the body that depend on the number of the iteration."""
    found: dict[str, list[Typed]] = {}
    for name in seen[0] if seen else ():
        kinds = [types[name] for types in seen if name in types]
        ranks = {(kind[0], len(kind[1])) for kind in kinds}
        if name not in facts.types and len(kinds) == len(seen) and len(ranks) == 1:
            found[name] = kinds
    moving = {name for name, kinds in found.items() if len(set(kinds)) > 1}
    sizes = [[d for name in sorted(moving) for d in found[name][k][1]] for k in range(len(seen))]
    moved = np.array(sizes, np.int64).reshape(len(seen), -1)
    moved = moved != moved[:1]
    clear = np.flatnonzero(moved[:, moved.any(axis=0)].all(axis=1))
    shown = 0
    if moving and facts.look is not None and clear.size:
        facts.split = True
        shown = int(clear[0]) if facts.look else 0
    elif moving:
        found = {name: kinds for name, kinds in found.items() if name not in moving}
    facts.types.update({name: kinds[shown] for name, kinds in found.items()})
