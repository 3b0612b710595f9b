"""How a pruning describes its masked original: sinks to multiply by zero, nodes to compact.

Removing units whose paths all end in exact sinks equals multiplying them by zero in front of
those sinks (`Mask`). An inexact operator looks across the axis: it equals the original node run
on the kept coordinates only (`Compaction`). Both name a node by its first non-empty output and
are plain data, so that what builds the masked original shares no code with the slicing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .errors import DataError


@dataclass(frozen=True)
class Mask:
    """Multiply coordinates of one operand by zero, in front of one node.

    ``output``: first non-empty output of the node; ``input``: number of the operand;
    ``axis``: axis of the operand; ``indices``: coordinates on that axis that become zero.
    """

    output: str
    input: int
    axis: int
    indices: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values."""
        return asdict(self) | {"indices": list(self.indices)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Mask:
        """The inverse of `to_json`. Raises DataError for anything `to_json` does not write."""
        try:
            return cls(
                _text(data["output"]),
                _number(data["input"]),
                _number(data["axis"]),
                tuple(_number(i) for i in data["indices"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a mask: {error!r}") from None


@dataclass(frozen=True)
class Compaction:
    """Run one inexact node on its kept coordinates only, and pad its outputs back with zeros.

    ``output``: first non-empty output of the node; ``inputs``: (input number, axis) pairs that
    are gathered down to the coordinates not in ``indices``; ``outputs``: (output number, axis)
    pairs that are scattered back to ``size``, the full size of every axis named here.
    """

    output: str
    inputs: tuple[tuple[int, int], ...]
    outputs: tuple[tuple[int, int], ...]
    indices: tuple[int, ...]
    size: int

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values."""
        return {
            "output": self.output,
            "inputs": [list(pair) for pair in self.inputs],
            "outputs": [list(pair) for pair in self.outputs],
            "indices": list(self.indices),
            "size": self.size,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Compaction:
        """The inverse of `to_json`. Raises DataError for anything `to_json` does not write."""
        try:
            return cls(
                _text(data["output"]),
                tuple((_number(i), _number(a)) for i, a in data["inputs"]),
                tuple((_number(o), _number(a)) for o, a in data["outputs"]),
                tuple(_number(i) for i in data["indices"]),
                _number(data["size"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a compaction: {error!r}") from None


def _number(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a name")
    return value
