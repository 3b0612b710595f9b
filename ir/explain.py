"""Why an axis can or cannot be pruned: the path through the axis graph to the pin.

The graph is a `networkx.MultiGraph` whose nodes are axes and whose edges are the links that
rules stated; pins hang on axes. A path is followed coordinate by coordinate, so that a
concatenation of a pinned and a free part is told apart.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .analysis import GRAPH_INPUT, Analysis
from .coupling import Link, Pin
from .errors import UsageError
from .naming import describe, node_label
from .registry import suggest
from .units import Group

if TYPE_CHECKING:
    import networkx as nx

    AxisGraph = nx.MultiGraph[int]


@dataclass(frozen=True)
class Step:
    """One step of a path: the link stated by ``node`` leads to ``axis`` of ``value``."""

    value: str
    axis: int
    coordinate: int
    node: str


@dataclass(frozen=True)
class Explanation:
    """What can happen to one axis.

    ``free`` of ``size`` coordinates belong to prunable units of ``groups``. When some cannot go,
    ``path`` leads from the first of them to the pin and ``reason`` says what holds it.
    """

    value: str
    axis: int
    size: int
    free: int
    groups: tuple[Group, ...]
    path: tuple[Step, ...]
    reason: str


def axis_graph(analysis: Analysis) -> AxisGraph:
    """Axes as nodes (``value``, ``axis``, ``size``), links as edges (``link``)."""
    import networkx as nx

    graph: AxisGraph = nx.MultiGraph()
    for axis, (value, index) in enumerate(analysis.owners):
        graph.add_node(axis, value=value, axis=index, size=analysis.coupling.sizes[axis])
    for link in analysis.coupling.links:
        graph.add_edge(link.a, link.b, link=link)
    return graph


def explain(analysis: Analysis, name: str, axis: int | None = None) -> list[Explanation]:
    """Explains one axis or all axes of a tensor, or of the outputs and weights of a node.

    Raises UsageError when nothing bears the name or the axis does not exist.
    """
    axes = _named_axes(analysis, name)
    if not axes:
        raise UsageError(f"'{name}' has no axes: it is a single number")
    if axis is not None:
        ranks = {analysis.owners[a][1] for a in axes}
        if axis < 0:
            axis += max(ranks, default=-1) + 1
        axes = [a for a in axes if analysis.owners[a][1] == axis]
        if not axes:
            raise UsageError(f"'{name}' has no axis {axis} (axes: {sorted(ranks)})")
    graph = axis_graph(analysis)
    return [_explain_axis(analysis, graph, a) for a in axes]


def _named_axes(analysis: Analysis, name: str) -> list[int]:
    axes = [a for a, (value, _) in enumerate(analysis.owners) if name and value == name]
    if axes:
        return axes
    for site in analysis.sites:
        if name and site.node.name == name:
            operands = [o for o in site.inputs if o is not None and o.constant]
            operands += [o for o in site.outputs if o is not None]
            return [a for o in operands for a in o.axes]
    if name and any(o.name == name for o in analysis.operands.values()):
        return []
    known = {value for value, _ in analysis.owners} | {site.node.name for site in analysis.sites}
    near = suggest(name, {str(found) for found in known if found}, most=3)
    raise UsageError(f"no tensor or node is called '{name}'{near}")


def _explain_axis(analysis: Analysis, graph: AxisGraph, axis: int) -> Explanation:
    value, index = analysis.owners[axis]
    size = analysis.coupling.sizes[axis]
    units = analysis.units_of(axis)
    free = 0 if units is None else int((units >= 0).sum())
    found = set() if units is None else set(analysis.group_of_unit[units[units >= 0]].tolist())
    groups = tuple(analysis.groups[g] for g in sorted(found))
    path: tuple[Step, ...] = ()
    reason = ""
    if free < size:
        start = 0 if units is None else int(np.flatnonzero(units < 0)[0])
        path, reason = _path_to_pin(analysis, graph, axis, start)
    elif all(len(g.units) == 1 for g in groups):
        reason = "the group has a single unit, and a group never falls below one"
    return Explanation(value, index, size, free, groups, path, reason)


def _path_to_pin(
    analysis: Analysis, graph: AxisGraph, axis: int, coordinate: int
) -> tuple[tuple[Step, ...], str]:
    """Breadth first from one coordinate to the nearest pin."""
    pins: dict[int, list[Pin]] = {}
    for pin in analysis.coupling.pins:
        pins.setdefault(pin.axis, []).append(pin)
    start = (axis, coordinate)
    came: dict[tuple[int, int], tuple[tuple[int, int], int] | None] = {start: None}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        held = next((p for p in pins.get(here[0], ()) if _holds(p, here[1])), None)
        if held is not None:
            return _walk_back(analysis, came, here), pin_reason(analysis, held)
        link: Link
        for _, _, link in graph.edges(here[0], data="link"):
            for there in _follow(link, here):
                if there not in came:
                    came[there] = (here, link.site)
                    queue.append(there)
    return (), "no unit here owns a weight, so there is nothing to gain"


def _holds(pin: Pin, coordinate: int) -> bool:
    return pin.index is None or bool((pin.index == coordinate).any())


def _follow(link: Link, here: tuple[int, int]) -> list[tuple[int, int]]:
    axis, coordinate = here
    found = []
    for mine, other, my_index, other_index in (
        (link.a, link.b, link.a_index, link.b_index),
        (link.b, link.a, link.b_index, link.a_index),
    ):
        if mine != axis:
            continue
        if my_index is None or other_index is None:
            found.append((other, coordinate))
        else:
            found += [(other, int(k)) for k in other_index[my_index == coordinate]]
    return found


def _walk_back(
    analysis: Analysis,
    came: dict[tuple[int, int], tuple[tuple[int, int], int] | None],
    end: tuple[int, int],
) -> tuple[Step, ...]:
    steps = []
    here = end
    while (previous := came[here]) is not None:
        value, index = analysis.owners[here[0]]
        if value:
            steps.append(Step(value, index, here[1], site_name(analysis, previous[1])))
        here = previous[0]
    return tuple(reversed(steps))


def pin_reason(analysis: Analysis, pin: Pin) -> str:
    """Why a pin holds, with the node that says so."""
    if pin.site < 0:
        return pin.reason
    return f"{pin.reason} ({site_name(analysis, pin.site)})"


def nodes_across(analysis: Analysis, group: Group) -> list[str]:
    """The nodes that look across the axes of a group: what makes it inexact."""
    root, inexact = analysis.coupling.root, analysis.statements.inexact
    roots = {root(axis) for axis in group.axes}
    sites = dict.fromkeys(entry.site for entry in inexact if root(entry.axis) in roots)
    return [site_name(analysis, site) for site in sites]


def site_name(analysis: Analysis, site: int) -> str:
    """The operator and name of a node by its site number."""
    if site <= GRAPH_INPUT:
        return "the model's interface"
    node = analysis.sites[site].node
    return f"{describe(node)} '{node_label(node)}'"
