"""Einsum: any equation over any number of operands.

Every subscript is one axis of the sum; an ellipsis stands for subscripts counted from its end.
What bears the same subscript lives and dies together, twice on one operand (a diagonal) included.
A subscript that the output does not name is summed away: exact to remove. A size of 1 is
broadcast against the rest and couples nothing.
"""

from __future__ import annotations

from collections import Counter

from .base import Site, rule

Subscripts = list[list[str]]


def subscripts(equation: str, ranks: list[int]) -> tuple[Subscripts, list[str]]:
    """The subscript of every axis of the operands (which have these ranks) and of the output.

    Those of an ellipsis are called ".1", ".2", …, the last one first. Without an arrow the output
    has the ellipsis, then all letters that occur once, in order. Raises ValueError for an
    equation that does not fit.
    """
    left, arrow, right = "".join(equation.split()).partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ValueError(f"the equation '{equation}' is not one of {len(ranks)} operands")
    operands = [_letters(term, rank) for term, rank in zip(terms, ranks, strict=True)]
    hidden = max(sum(s.startswith(".") for s in operand) for operand in operands)
    if arrow:
        return operands, _letters(right, len(right.replace("...", "")) + hidden)
    counts = Counter(s for operand in operands for s in operand if not s.startswith("."))
    once = sorted(s for s, count in counts.items() if count == 1)
    return operands, [*(f".{k}" for k in range(hidden, 0, -1)), *once]


def _letters(term: str, rank: int) -> list[str]:
    head, dots, tail = term.partition("...")
    hidden = rank - len(head) - len(tail)
    if hidden < 0 or (hidden and not dots):
        raise ValueError(f"the subscripts '{term}' do not fit rank {rank}")
    return [*head, *(f".{k}" for k in range(hidden, 0, -1)), *tail]


@rule("Einsum", family="contraction")
def einsum(site: Site) -> None:
    """Axes with the same subscript are linked; see the module."""
    operands = [operand for operand in site.inputs if operand is not None]
    terms, result = subscripts(site.string("equation", ""), [o.rank for o in operands])
    sizes: dict[str, int] = {}
    places: dict[str, list[tuple[int, int]]] = {}
    for number, (operand, term) in enumerate(zip(operands, terms, strict=True)):
        for index, subscript in enumerate(term):
            sizes[subscript] = max(sizes.get(subscript, 1), operand.shape[index])
            places.setdefault(subscript, []).append((number, index))
    full: dict[str, list[tuple[int, int]]] = {}
    for subscript, found in places.items():
        for number, index in found:
            if operands[number].shape[index] == sizes[subscript]:
                full.setdefault(subscript, []).append((number, index))
            else:
                site.pin(operands[number].axis(index), "broadcast along this axis")
    axes = {s: [operands[n].axis(k) for n, k in found] for s, found in full.items()}
    for first, *others in axes.values():
        for axis in others:
            site.link(first, axis)
    for index, subscript in enumerate(result):
        site.link(axes[subscript][0], site.y.axis(index))
    _count(site, [set(term) for term in terms], set(result), {s: a[0] for s, a in axes.items()})

    contracted = any(s not in result and len({n for n, _ in full[s]}) > 1 for s in full)
    for subscript, found in full.items():
        if subscript not in result:
            # One masked factor is enough: the others are then multiplied by zero.
            site.sink(*min(found, key=lambda place: operands[place[0]].constant))
            role = "consumer"
        elif len({n for n, _ in places[subscript]}) == 1:
            role = "producer"
        else:
            if contracted and len(operands) == 2 and sizes[subscript] > 1:
                site.heads(axes[subscript][0])
            continue
        for axis in axes[subscript]:
            site.role(role, axis)


def _count(site: Site, terms: list[set[str]], result: set[str], axes: dict[str, int]) -> None:
    """Multiply-accumulates when operands are taken one by one from the left: every step that
    sums over a product counts all of its subscripts."""
    done = terms[0]
    for k, term in enumerate(terms[1:], start=1):
        needed = result.union(*terms[k + 1 :])
        if (done & term) - needed:
            site.macs(*(axes[s] for s in sorted(done | term)))
        done = (done | term) & needed
