"""What an operator of the differentiable executor is, and the table of them.

An operator is a function of a `Call` and the node's inputs (a torch tensor each, None where one is
left out) that gives the output, or a tuple of outputs. Two conventions hold everywhere:

- 16-bit floats are computed in float32 (see `tensors`), quantised numbers are held in floats;
- results of shape arithmetic stay on the CPU, whatever the device of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor

Operator = Callable[..., Any]
"""``operator(call, *inputs)`` gives a tensor or a tuple of tensors."""


class Unsupported(Exception):
    """A form of an operator that the executor does not know; the text says which."""


@dataclass(frozen=True)
class Call:
    """What an operator sees of its node besides the inputs.

    ``version`` is the opset of the node's domain, ``outputs`` the number of outputs that anybody
    reads up to the last, ``types`` the ONNX element types of the inputs where they are known, else
    0.
    """

    op: str
    version: int
    outputs: int
    attributes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    types: tuple[int, ...] = ()
    renew: bool = False
    """Whether BatchNormalization uses the batch's own statistics, and follows them."""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return self.attributes.get(name, default)


_OPERATORS: dict[tuple[str, str], Operator] = {}


def operator(*names: str, domain: str = "") -> Callable[[Operator], Operator]:
    """Registers the decorated function for these operators."""

    def register(function: Operator) -> Operator:
        for name in names:
            _OPERATORS[domain, name] = function
        return function

    return register


def known_operators() -> Mapping[tuple[str, str], Operator]:
    """Every operator by domain ("" for ONNX's own) and type."""
    return MappingProxyType(_OPERATORS)


def numbers(tensor: Tensor) -> list[Any]:
    """The entries of a tensor of sizes, axes or indices as Python numbers."""
    found: list[Any] = tensor.reshape(-1).tolist()
    return found


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors on one device: that of the first which is not on the CPU."""
    device = next((t.device for t in tensors if t.device.type != "cpu"), None)
    if device is None:
        return tensors
    return tuple(t if t.device == device else t.to(device) for t in tensors)


def axis_of(axis: int, rank: int) -> int:
    """The axis counted from the front."""
    return axis + rank if axis < 0 else axis
