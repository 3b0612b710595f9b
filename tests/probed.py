"""Every node that the probing tests compare with its operator: what "probed" means in
`docs/operators.md`.

The tests that run these cases fail where a case compares nothing, and for an operator that holds
everything where anything may go.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests import test_probing_attention as attention
from tests import test_probing_contrib as contrib
from tests import test_probing_control as control
from tests import test_probing_experts as experts
from tests import test_probing_generated as generated
from tests import test_probing_lists as lists
from tests import test_probing_quantised as quantised
from tests.probing_draw import Case, draws
from tests.test_probing import node_cases, with_sizes

Operator = tuple[str, str]
"""Domain and operator type."""


def cases() -> Iterator[Case]:
    """The ONNX backend's one-node models, those that are written out, and the generated ones, with
    inputs."""
    for found in node_cases().values():
        yield from (with_sizes(model, feeds) for _, model, feeds in found)
    yield from written()
    for name, (make, count) in (generated.FAMILIES | quantised.FAMILIES).items():
        yield from map(make, draws(name, count))


def written() -> Iterator[Case]:
    """Those that are written out: attention, experts, operators of ONNX Runtime, control flow and
    sequences."""
    for texts in (attention.CASES.values(), experts.CASES.values()):
        yield from (attention.build(text) for text, *_ in texts)
    yield from map(attention.build, contrib.CASES.values())
    for graphs in (control.CASES, lists.CASES):
        yield from (control.build(opset, text) for opset, _, text in graphs.values())


def probed_operators() -> frozenset[Operator]:
    """The operators of all `cases`."""
    return frozenset((n.domain, n.op_type) for model, _ in cases() for n in model.graph.node)
