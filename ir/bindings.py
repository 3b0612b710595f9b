"""Symbolic dimensions, and the numbers that stand for them."""

from __future__ import annotations

from collections.abc import Mapping

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


def bind_dims(model: oir.Model, dims: Mapping[str, int]) -> list[dict[str, int]]:
    """Sizes of the symbolic dimensions, and then the same with sizes doubled: all of them, and
    each alone (`shapes.infer_bindings` takes what the model can bear).

    A dimension that is the first axis of some input defaults to 1 (a batch); every other one
    must be given in ``dims``. Raises UsageError for a missing, unknown or impossible size.
    """
    found = symbolic_dims(model)
    for name, size in dims.items():
        if name not in found:
            known = ", ".join(found) or "none"
            raise UsageError(f"no symbolic dimension is called '{name}' (the model has: {known})")
        if size < 1:
            raise UsageError(f"dimension '{name}' needs a positive size, not {size}")
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
    if not binding:
        return [{}]
    alone = [{**binding, name: 2 * size} for name, size in binding.items()]
    doubled = {name: 2 * size for name, size in binding.items()}
    return [binding, doubled, *(alone if len(alone) > 1 else [])]
