"""Sequences and optionals whose elements are known: what is in them, and of which sizes.

An optional that holds a tensor counts as that tensor. A sequence is a tuple of *elements*, each of
which has a name, a type and, where it can be known, a value, as every tensor of the model has. An
operator that puts tensors into a sequence makes elements, ``<output>[0]`` and so on; all others
hand elements on. `infer_lists` follows the operators, `evaluate_lists` finds values alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx

if TYPE_CHECKING:
    from .shapes import Facts, Typed

Array = npt.NDArray[np.generic]

_LONGEST = 4096
"""Longer sequences stay unknown."""

_OPERATORS = frozenset(
    """SequenceConstruct SequenceEmpty SequenceInsert SequenceErase SequenceAt SequenceLength
    SplitToSequence ConcatFromSequence Identity Optional OptionalGetElement
    OptionalHasElement""".split()
)


@dataclass(frozen=True)
class Elements:
    """What a sequence holds: these elements in this order if ``exact``, else any of them, any
    number of times, in any order."""

    names: tuple[str, ...]
    exact: bool = True

    def union(self, other: Elements) -> Elements:
        """What may be the one or the other."""
        if self == other:
            return self
        return Elements(tuple(dict.fromkeys((*self.names, *other.names))), False)

    def slot(self, position: int, length: int | None = None) -> int | None:
        """A position counted from the front, if it is one of ``length``."""
        length = len(self.names) if length is None else length
        return position % length if -length <= position < length else None


def element(name: str, place: object) -> str:
    """The name of an element that the operator with output ``name`` makes."""
    return f"{name}[{place}]"


def about_lists(proto: onnx.NodeProto, facts: Facts) -> bool:
    """Whether a node is one of this module's operators, and so not for shape inference."""
    if proto.domain not in ("", "ai.onnx") or proto.op_type not in _OPERATORS:
        return False
    return proto.op_type != "Identity" or proto.input[0] in facts.lists


def infer_lists(proto: onnx.NodeProto, facts: Facts) -> None:
    """Elements, types and values of what the node gives, as far as they follow."""
    found = _elements(proto, facts)
    if found is not None and len(found.names) <= _LONGEST:
        facts.lists[proto.output[0]] = found
    if proto.op_type == "SplitToSequence" and proto.output[0] in facts.lists:
        _infer_pieces(proto, facts)
    for source, target in _copies(proto, facts.lists, facts.values):
        if target not in proto.output:  # an element, maybe of another iteration
            facts.types.pop(target, None)
            facts.values.pop(target, None)
        if source in facts.types:
            facts.types[target] = facts.types[source]
    if proto.op_type == "ConcatFromSequence":
        _infer_concat(proto, facts)
    if proto.op_type == "SequenceAt" and proto.input[0] in facts.lists:
        kinds = {facts.types.get(name) for name in facts.lists[proto.input[0]].names}
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is not None:
            facts.types[proto.output[0]] = kind
    for name, array in evaluate_lists(proto, facts.lists, facts.values).items():
        facts.values[name] = array
        facts.types[name] = (onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
    _infer_counts(proto, facts)


def evaluate_lists(
    proto: onnx.NodeProto, lists: Mapping[str, Elements], values: Mapping[str, Array]
) -> dict[str, Array]:
    """The values of the node's outputs and of the elements that it makes, where they are known."""
    found = {
        target: values[source]
        for source, target in _copies(proto, lists, values)
        if source in values
    }
    given = lists.get(proto.input[0]) if proto.input else None
    if proto.op_type == "ConcatFromSequence" and given is not None and given.exact:
        parts = [values.get(name) for name in given.names]
        known = [part for part in parts if part is not None]
        if known and len(known) == len(parts):
            join = np.stack if _integer(proto, "new_axis", 0) else np.concatenate
            found[proto.output[0]] = join(known, axis=_integer(proto, "axis", 0))
    pieces = lists.get(proto.output[0])
    if proto.op_type == "SplitToSequence" and pieces is not None and proto.input[0] in values:
        whole = values[proto.input[0]]
        axis = _integer(proto, "axis", 0)
        cuts = _pieces(proto, whole.shape, values) or ()
        for name, piece in zip(pieces.names, cuts, strict=False):
            if isinstance(piece, int):
                found[name] = np.asarray(np.take(whole, piece, axis))
            else:
                found[name] = np.take(whole, np.arange(*piece), axis)
    return found


def _infer_counts(proto: onnx.NodeProto, facts: Facts) -> None:
    given = facts.lists.get(proto.input[0]) if proto.input else None
    if proto.op_type == "SequenceLength" and given is not None and given.exact:
        facts.values[proto.output[0]] = np.array(len(given.names), np.int64)
    if proto.op_type == "OptionalHasElement" and proto.input and proto.input[0]:
        if given is None and proto.input[0] not in facts.types:
            return
        facts.values[proto.output[0]] = np.array(True)


def _elements(proto: onnx.NodeProto, facts: Facts) -> Elements | None:
    """What the sequence holds that the node gives; None if it gives none or that is not known."""
    op, out = proto.op_type, proto.output[0]
    if op == "SequenceEmpty":
        return Elements(())
    if op == "SequenceConstruct":
        return Elements(tuple(element(out, k) for k in range(len(proto.input))))
    given = facts.lists.get(proto.input[0]) if proto.input and proto.input[0] else None
    if op == "SplitToSequence" and proto.input[0] in facts.types:
        pieces = _pieces(proto, facts.types[proto.input[0]][1], facts.values)
        return (
            None if pieces is None else Elements(tuple(element(out, k) for k in range(len(pieces))))
        )
    if given is None:
        return None
    if op in ("Identity", "Optional", "OptionalGetElement"):
        return given
    if op in ("SequenceInsert", "SequenceErase"):
        insert = op == "SequenceInsert"
        new = Elements((element(out, "+"),) if insert else (), False)
        position = _position(proto, 1 + insert, facts.values)
        length = len(given.names) + insert
        slot = None if position is None else given.slot(position, length)
        if not given.exact or slot is None:
            return Elements(given.union(new).names, False)
        after = given.names[slot if insert else slot + 1 :]
        return Elements((*given.names[:slot], *new.names, *after))
    return None


def _position(proto: onnx.NodeProto, index: int, values: Mapping[str, Array]) -> int | None:
    """The position that an input says; the end (-1) if it is left out, None if it is unknown."""
    if len(proto.input) <= index or not proto.input[index]:
        return -1
    value = values.get(proto.input[index])
    return None if value is None or value.size != 1 else int(value.reshape(-1)[0])


def _copies(
    proto: onnx.NodeProto, lists: Mapping[str, Elements], values: Mapping[str, Array]
) -> Iterator[tuple[str, str]]:
    """Tensors and elements that the node copies: (from, to)."""
    op, out = proto.op_type, proto.output[0]
    if op == "SequenceConstruct":
        yield from ((name, element(out, k)) for k, name in enumerate(proto.input))
    elif op == "SequenceInsert":
        yield proto.input[1], element(out, "+")
    elif op in ("Optional", "OptionalGetElement") and proto.input:
        yield proto.input[0], out
    elif op == "SequenceAt":
        chosen = chosen_element(proto, lists, values)
        if chosen:
            yield chosen, out


def chosen_element(
    proto: onnx.NodeProto, lists: Mapping[str, Elements], values: Mapping[str, Array]
) -> str:
    """The element that SequenceAt takes; "" if nobody knows."""
    given, position = lists.get(proto.input[0]), _position(proto, 1, values)
    slot = None if given is None or position is None else given.slot(position)
    if given is None or slot is None:
        return ""
    return given.names[slot] if given.exact or len(given.names) == 1 else ""


def join_lists(
    facts: Facts,
    name: str,
    options: tuple[str, str],
    either: Callable[[Facts, Typed | None, Typed | None], Typed | None],
) -> None:
    """A sequence that may be the one or the other: element by element, of the types that
    ``either`` tells, if both are as long."""
    first, later = map(facts.lists.get, options)
    if first is None or later is None:
        return
    pairs = list(zip(first.names, later.names, strict=False))
    kinds = [either(facts, *map(facts.types.get, pair)) for pair in pairs]
    exact = first.exact and later.exact and len(first.names) == len(later.names)
    if first != later and exact and None not in kinds:
        made = {element(name, k): kind for k, kind in enumerate(kinds) if kind is not None}
        facts.types.update(made)
        facts.lists[name] = Elements(tuple(made))
    else:
        facts.lists[name] = first.union(later)


# -- sizes ------------------------------------------------------------------------------------


def _pieces(
    proto: onnx.NodeProto, shape: tuple[int, ...], values: Mapping[str, Array]
) -> list[tuple[int, int] | int] | None:
    """What SplitToSequence cuts: (begin, end) of each piece, or a coordinate whose axis goes."""
    size = shape[_integer(proto, "axis", 0)]
    if len(proto.input) < 2 or not proto.input[1]:
        single = [(k, k + 1) for k in range(size)]
        return list(single if _integer(proto, "keepdims", 1) else range(size))
    split = values.get(proto.input[1])
    if split is None:
        return None
    if split.ndim:
        ends = np.cumsum(split).tolist()
    else:
        step = int(split)
        ends = [min(k + step, size) for k in range(0, size, step)] if step > 0 else []
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _infer_pieces(proto: onnx.NodeProto, facts: Facts) -> None:
    dtype, shape = facts.types[proto.input[0]]
    axis = _integer(proto, "axis", 0) % len(shape)
    pieces = _pieces(proto, shape, facts.values) or ()
    for k, piece in enumerate(pieces):
        sizes = () if isinstance(piece, int) else (piece[1] - piece[0],)
        name = element(proto.output[0], k)
        facts.types[name] = (dtype, (*shape[:axis], *sizes, *shape[axis + 1 :]))


def _infer_concat(proto: onnx.NodeProto, facts: Facts) -> None:
    given = facts.lists.get(proto.input[0])
    kinds = [facts.types.get(name) for name in given.names] if given and given.exact else []
    known = [kind for kind in kinds if kind is not None]
    if not known or len(known) < len(kinds):
        return
    (dtype, shape), new = known[0], _integer(proto, "new_axis", 0)
    axis = _integer(proto, "axis", 0) % (len(shape) + new)
    size = len(known) if new else sum(sizes[axis] for _, sizes in known)
    facts.types[proto.output[0]] = (dtype, (*shape[:axis], size, *shape[axis + 1 - new :]))


def _integer(proto: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in proto.attribute if a.name == name), default)
