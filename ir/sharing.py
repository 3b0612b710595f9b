"""Constants that several nodes read: tied where they are weights, else cut for each use.

A bias, a mask or a table of rotations that many layers share may have to lose other coordinates
in each, and is then stored several times. So every use of such a constant gets axes of its own.
Weights that are contracted or looked up are worth more in one piece: once all rules have spoken,
the uses of a constant are linked again where a rule calls one of its axes, or an axis of what is
computed from it alone, a producer or a consumer. Then its coordinates go everywhere or nowhere.

Axes that slices take apart are linked, too: a clone for each slice would keep what it leaves out.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import onnx_ir as oir

from .constants import tensor_shape
from .roles import roles_of_axes

if TYPE_CHECKING:
    from .analysis import Analysis
    from .rules.base import Operand

Use = tuple[int, int]
"""A node's number and the number of its input."""


def is_shared(value: oir.Value, tensor: oir.TensorProtocol, hidden: Collection[oir.Node]) -> bool:
    """Whether a constant has several uses, at which other parts of it may be cut; not so in
    subgraphs in which no rule holds."""
    uses = value.uses()
    return (
        len(uses) > 1
        and bool(tensor_shape(tensor))
        and not value.is_graph_output()
        and not any(use.node in hidden for use in uses)
    )


def tie_weights(analysis: Analysis) -> None:
    """Links the uses of shared constants where they must not part. A weight is then known by its
    name alone as well."""
    shared: dict[str, list[tuple[Use, Operand]]] = {}
    for key, operand in analysis.operands.items():
        if not isinstance(key, str):
            shared.setdefault(key[0], []).append((key[1:], operand))
    roles = roles_of_axes(analysis) if shared else {}
    for name, uses in shared.items():
        weight = any(axis in roles for _, operand in uses for axis in operand.axes)
        (_, first), *others = uses
        for index in range(first.rank):
            if weight or _is_taken_apart(analysis, uses, index):
                for (site, _), operand in others:
                    analysis.coupling.link(first.axis(index), operand.axis(index), None, None, site)
        if weight:
            analysis.operands[name] = first


def _is_taken_apart(analysis: Analysis, uses: list[tuple[Use, Operand]], index: int) -> bool:
    """Whether all uses are slices, and one of them cuts this axis."""
    cut = False
    for (site, position), operand in uses:
        node = analysis.sites[site]
        part = node.output(0)
        if node.node.op_type != "Slice" or position or part is None:
            return False
        cut |= (part.shape[index], part.later[index]) != (operand.shape[index],) * 2
    return cut
