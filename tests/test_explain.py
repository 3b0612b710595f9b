"""Paths to pins, checked link by link against the coupling they explain."""

from __future__ import annotations

import networkx as nx
import numpy as np
import onnx
import pytest

import secateur
from secateur.ir.analysis import Analysis
from secateur.ir.errors import UsageError
from secateur.ir.explain import Explanation, axis_graph, explain, nodes_across

from .graph_builder import build, net
from .graphs import GRAPHS, INFO
from .test_coupling import coordinates, pinned_by_hand

Coordinate = tuple[int, int]


def analyze(name: str, **options: list[str]) -> Analysis:
    dims = {d: 2 + i for i, d in enumerate(INFO[name].dims)}
    return secateur.analyze(GRAPHS[name](), dims=dims, protect=options.get("protect", ()))


def named_by(found: Analysis, site: int) -> str:
    node = found.sites[site].node
    return node.name or next(str(o.name) for o in node.outputs if o.name)


def check(found: Analysis, entry: Explanation, start: Coordinate) -> None:
    """Every step is linked to the one before by the node it names; the last one holds a pin."""
    between = coordinates(found.coupling)
    axes: dict[tuple[str, int], list[int]] = {}
    for axis, owner in enumerate(found.owners):
        axes.setdefault(owner, []).append(axis)
    here = {start}
    for step in entry.path:
        targets = {(a, step.coordinate) for a in axes[step.value, step.axis]}
        reached = set()
        for target in targets:
            hubs = [n for n in between if not found.owners[n[0]][0]]
            near = between.subgraph([*hubs, *here, target])
            if any(nx.has_path(near, source, target) for source in here):
                reached.add(target)
        assert reached, f"{step} does not follow from {here}"
        sites = {
            link.site
            for link in found.coupling.links
            for target in reached
            if target[0] in (link.a, link.b)
        }
        assert any(f"'{named_by(found, site)}'" in step.node for site in sites)
        here = reached
    # The pin may sit on a virtual axis behind the last step.
    near = between.subgraph([*(n for n in between if not found.owners[n[0]][0]), *here])
    here = set().union(*(nx.node_connected_component(near, node) for node in here))
    pins = [
        pin
        for pin in found.coupling.pins
        for axis, coordinate in here
        if pin.axis == axis and (pin.index is None or coordinate in pin.index)
    ]
    assert any(entry.reason.startswith(pin.reason) for pin in pins), entry.reason


@pytest.mark.parametrize("name", INFO)
def test_every_axis_of_every_value(name: str) -> None:
    found = analyze(name)
    kept = pinned_by_hand(found.coupling)
    for value in dict.fromkeys(owner for owner, _ in found.owners if owner):
        for entry in explain(found, value):
            assert entry.value == value
            candidates = [a for a, owner in enumerate(found.owners) if owner == (value, entry.axis)]
            held = [[k for a, k in kept if a == axis] for axis in candidates]
            assert entry.size in {found.coupling.sizes[a] for a in candidates}
            assert sum(len(g.units) for g in entry.groups) > 0 or entry.free == 0
            if entry.free == entry.size:
                assert not entry.path
                assert not entry.reason or "single unit" in entry.reason
            elif "owns a weight" in entry.reason:
                assert not entry.path and any(len(h) < entry.size for h in held)
            elif len(candidates) == 1:
                axis = candidates[0]
                assert entry.free <= entry.size - len(held[0])
                units = found.units_of(axis)
                first = 0 if units is None else int(np.flatnonzero(units < 0)[0])
                check(found, entry, (axis, first))


def only(found: Analysis, name: str, axis: int) -> Explanation:
    (entry,) = explain(found, name, axis)
    return entry


def test_a_free_axis_names_its_groups() -> None:
    entry = only(analyze("split_unequal"), "w0", 0)
    assert (entry.size, entry.free, entry.path, entry.reason) == (16, 16, (), "")
    assert sorted(len(g.units) for g in entry.groups) == [4, 12]


def test_the_path_leads_through_the_sum_to_the_output() -> None:
    """w2 makes f1, an output; so does the input of w3, one step further."""
    found = analyze("many_outputs")
    entry = only(found, "w2", 0)
    assert (entry.free, entry.reason) == (0, "an output of the model")
    assert [(s.value, s.axis, s.node) for s in entry.path] == [("f1", 1, "Conv 'f1'")]
    entry = only(found, "w3", 1)
    assert [(s.value, s.node) for s in entry.path] == [("f1", "Conv 'b'")]


def test_a_pin_on_the_axis_itself_needs_no_path() -> None:
    found = analyze("residual_identity")
    entry = only(found, "w1", 2)
    assert entry.path == () and entry.reason == "a spatial axis of a convolution (Conv 'b')"
    assert only(found, "x", 1).reason == "an input of the model"
    assert only(found, "wy", 0).reason == "an output of the model"
    assert [s.value for s in only(found, "wy", 0).path] == ["y"]


def test_an_operator_without_a_rule_is_the_reason() -> None:
    found = analyze("custom_operator")
    entry = only(found, "w2", 0)
    assert [s.value for s in entry.path] == ["b"]
    assert entry.reason == "no coupling rule for vendor.ops.Mystery (vendor.ops.Mystery 'u')"
    assert only(found, "w3", 1).path[-1].value == "u"


def test_protection_is_a_reason() -> None:
    found = analyze("residual_identity", protect=["w2"])
    entry = only(found, "w1", 0)
    assert entry.reason == "protected by 'w2'"
    assert entry.path[-1].value == "w2" and entry.path[-1].axis == 1
    assert {s.node for s in entry.path} <= {"Conv 'b'", "Relu 'br'", "Conv 'c'"}


def test_part_of_an_axis_can_be_free() -> None:
    """Of a concatenation only the part that does not meet the protected weight is free."""
    found = analyze("dense_concat", protect=["w1"])
    entry = only(found, "abc", 1)
    assert (entry.size, entry.free) == (32, 8), "w1 pins its inputs (a) and outputs (b)"
    assert [len(g.units) for g in entry.groups] == [8]
    assert entry.reason == "protected by 'w1'"


def test_a_single_unit_is_no_choice() -> None:
    found = analyze("expand_channels")
    entry = only(found, "w0", 0)
    assert entry.size == 1 and entry.reason


def test_names_of_nodes_and_of_nothing() -> None:
    model = GRAPHS["residual_identity"]()
    model.graph.node[1].name = "block/conv"
    found = secateur.analyze(model, dims={"N": 2})
    entries = explain(found, "block/conv")
    assert {(e.value, e.axis) for e in entries} == {(v, k) for v in ("w1", "b") for k in range(4)}
    assert {e.value for e in explain(found, "block/conv", 0)} == {"w1", "b"}
    assert only(found, "w1", -3).axis == 1
    with pytest.raises(UsageError, match=r"no tensor or node is called 'block/con'.*block/conv"):
        explain(found, "block/con")
    with pytest.raises(UsageError, match=r"'w1' has no axis 4 \(axes: \[0, 1, 2, 3\]\)"):
        explain(found, "w1", 4)


def test_a_single_number_has_no_axes() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 3] x) => (float[2, 3] y) <float half = {0.5}> { y = Mul(x, half) }""")
    found = secateur.analyze(model)
    for axis in (None, 0):
        with pytest.raises(UsageError, match="'half' has no axes: it is a single number"):
            explain(found, "half", axis)


def test_the_axis_graph_holds_every_axis_and_link() -> None:
    found = analyze("channel_shuffle")
    graph = axis_graph(found)
    assert graph.number_of_nodes() == len(found.coupling.sizes)
    assert graph.number_of_edges() == len(found.coupling.links)
    sizes = nx.get_node_attributes(graph, "size")
    assert [sizes[a] for a in range(len(sizes))] == found.coupling.sizes
    ends = {frozenset((a, b)) for a, b in graph.edges()}
    assert ends == {frozenset((link.a, link.b)) for link in found.coupling.links}


LOCAL_NORM = """h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) NORM
v = Conv(n, u) p = GlobalAveragePool(v) y = Flatten(p)"""
"""Channels divided by a power of the mean square of five neighbours, as one operator or as PyTorch
exports it: a pooling over the channels, which Pad has widened."""
NORMS = {
    "operator": "n = LRN<size = 5>(r)",
    "exported": """s = Mul(r, r) c = Unsqueeze(s, one) d = Pad(c, wide)
    m = AveragePool<kernel_shape = [5, 1, 1]>(d) e = Squeeze(m, one) f = Add(e, k) n = Div(r, f)""",
}


@pytest.mark.parametrize("form", NORMS)
def test_a_norm_over_neighbouring_channels_is_named(form: str) -> None:
    parts = net(
        "(float[N,3,6,6] x) => (float[N,10] y)",
        LOCAL_NORM.replace("NORM", NORMS[form]),
        w=(16, 3, 3, 3), u=(10, 16, 1, 1), one=[1], wide=[0, 0, 2, 0, 0, 0, 0, 2, 0, 0], k=1.0,
    )  # fmt: skip
    found = secateur.analyze(build("local", parts, 17, "initializers"))
    (entry,) = explain(found, "w", 0)
    if form == "operator":
        (group,) = entry.groups
        assert not group.exact and nodes_across(found, group) == ["LRN 'n'"]
    else:
        assert entry.reason == "a spatial axis of a pooling (AveragePool 'm')"
        assert [step.value for step in entry.path] == ["h", "r", "s", "c", "d"]


def test_a_gate_over_the_channels_is_named() -> None:
    found = analyze("efficient_channel_attention")
    inexact = [group for group in found.groups if not group.exact]
    assert [nodes_across(found, group) for group in inexact] == [["Conv 'k'"]]
    assert all(nodes_across(found, group) == [] for group in found.groups if group.exact)
