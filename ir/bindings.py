"""Symbolic dimensions, and the numbers that stand for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import onnx_ir as oir

from .errors import UsageError


def symbolic_dims(model: oir.Model) -> dict[str, list[tuple[str, int]]]:
    """Symbolic dimensions of the inputs: name to the (input, axis) pairs that bear it.

    A dimension without a name is called ``<input>.<axis>``.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for value in model.graph.inputs:
        if value.is_initializer() or value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            if not isinstance(dim, int):
                name = dim.value if dim.value is not None else f"{value.name}.{axis}"
                found.setdefault(str(name), []).append((str(value.name), axis))
    return found


def bind_dims(model: oir.Model, dims: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the symbolic dimensions.

    A dimension that is the first axis of some input defaults to 1 (a batch); every other one
    must be given in ``dims``. Raises UsageError for a missing, unknown or impossible size.
    """
    found = symbolic_dims(model)
    for name, size in dims.items():
        if name not in found:
            known = ", ".join(found) or "none"
            raise UsageError(f"no symbolic dimension is called '{name}' (the model has: {known})")
        if size < 0:
            raise UsageError(f"dimension '{name}' needs a size of 0 or more, not {size}")
    binding: dict[str, int] = {}
    for name, places in found.items():
        if name in dims:
            binding[name] = dims[name]
        elif any(axis == 0 for _, axis in places):
            binding[name] = 1
    missing = [name for name in found if name not in binding]
    if missing:
        where = "; ".join(
            f"'{name}': "
            + ", ".join(f"axis {axis} of input '{value}'" for value, axis in found[name])
            for name in missing
        )
        options = " ".join(f"--dim {name}=SIZE" for name in missing)
        raise UsageError(f"symbolic dimensions without a size ({where}); pass {options}")
    return binding


def moved_together(binding: Mapping[str, int]) -> list[dict[str, int]]:
    """Other sizes of all dimensions, the best first: doubled; halved, for models that bear no
    longer input (a position table ends, say); one less, where halves would not add up.

    A size of 1 always doubles, and none shrinks to 1, which broadcasts: where others shrink, one of
    2 doubles as well, or else stays. A size of 0 (the past of a decoder that has none yet) becomes
    what the largest gains or loses: where that is the sum of both and of new tokens, these may stay
    as many.
    """
    ways: list[Callable[[int], int]] = [
        lambda size: 2 * size,
        lambda size: max(size // 2, 2) if size > 2 else 2 * size,
        lambda size: max(size // 2, 2),
        lambda size: size - 1 if size > 2 else 2 * size,
        lambda size: max(size - 1, 2),
    ]
    largest = max(binding.values(), default=0)
    return _others(
        binding,
        (
            {
                name: way(size) if size else abs(way(largest) - largest) or 1
                for name, size in binding.items()
            }
            for way in ways
        ),
    )


def moved_alone(binding: Mapping[str, int]) -> list[dict[str, int]]:
    """Other sizes of one dimension at a time: each doubled, then halved."""
    doubled_halved = moved_together(binding)[:2]
    return _others(
        binding,
        ({**binding, name: other[name]} for name in binding for other in doubled_halved),
    )


def moved_but_one(binding: Mapping[str, int]) -> list[dict[str, int]]:
    """Other sizes of all dimensions but one, of three or more."""
    together = moved_together(binding) if len(binding) > 2 else []
    names = sorted(binding, key=lambda name: not binding[name])  # a size of 0 rather moves
    return _others(
        binding, ({**other, name: binding[name]} for other in together for name in names)
    )


def _others(binding: Mapping[str, int], found: Iterable[dict[str, int]]) -> list[dict[str, int]]:
    """Those that differ from the binding, each once."""
    result: list[dict[str, int]] = []
    for other in found:
        if other != binding and other not in result:
            result.append(other)
    return result
