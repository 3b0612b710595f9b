"""Roles of weight axes: producer, consumer or coupled.

A contraction marks the axes of its operands. Where the operand is computed from a constant
(dequantised, transposed, reshaped), the mark is carried back to the constant along the links that
constant nodes state.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .analysis import Analysis


def roles_of_axes(analysis: Analysis) -> dict[int, str]:
    """The role "producer" or "consumer" of axes of constant operands; others are "coupled"."""
    constant: set[int] = set()
    for operand in analysis.operands.values():
        if operand.constant:
            constant.update(operand.axes)
    # Hubs of factored axes lead from constant to constant, too. Scales merely follow.
    inside = constant | {axis for axis, (name, _) in enumerate(analysis.owners) if not name}
    carriers = set()
    for site in analysis.sites:
        if site.outputs and site.outputs[0] is not None and site.outputs[0].constant:
            carriers.add(site.number)
            if site.node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                inside.difference_update(*(o.axes for o in site.inputs[1:] if o is not None))
    near: defaultdict[int, list[int]] = defaultdict(list)
    for link in analysis.coupling.links:
        if link.site in carriers and link.a in inside and link.b in inside:
            near[link.a].append(link.b)
            near[link.b].append(link.a)
    roles: dict[int, str] = {}
    for role, seeds in (
        ("consumer", analysis.statements.consumers),
        ("producer", analysis.statements.producers),
    ):
        front = [axis for axis in seeds if axis in constant]
        while front:
            axis = front.pop()
            if axis not in roles:
                roles[axis] = role
                front += [n for n in near[axis] if n not in roles]
    return roles
