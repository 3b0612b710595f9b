"""Sums among what nodes compute, for passes that take terms out of them.

    s = x_1 + … + x_n + product + biases,    outputs = rest(s)

A fused operator adds and then normalises or activates; a Gemm and a convolution with a further
input add that to a product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as oir


@dataclass(frozen=True)
class Sum:
    """The sum that one node computes, by numbers of its inputs.

    ``terms`` are added as they are, ``biases`` too, but only beside other terms: they are vectors
    that a fusion took in. ``product`` are the factors of one more term. ``output`` is the output
    that is the sum, None where the sum does not leave the node. ``rest`` makes the node that
    computes the other outputs, in their order, from the sum.
    """

    terms: tuple[int, ...]
    product: tuple[int, ...] = ()
    biases: tuple[int, ...] = ()
    output: int | None = 0
    rest: Callable[[oir.Node, oir.Value], oir.Node] | None = None


def inputs_sum(node: oir.Node) -> Sum:
    """Every input is a term."""
    return Sum(tuple(range(len(node.inputs))))


def gemm_sum(node: oir.Node) -> Sum | None:
    """A B and C, where C is not scaled."""
    scale = node.attributes.get("beta")
    if not has_input(node, 2) or (scale is not None and scale.as_float() != 1):
        return None
    return Sum((2,), (0, 1))


def has_input(node: oir.Node, number: int) -> bool:
    """Whether the node is given this input."""
    return number < len(node.inputs) and node.inputs[number] is not None
