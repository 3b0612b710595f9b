"""Every node that the probing tests compare with its operator: what "probed" means in
`docs/operators.md`.

The tests that run these cases fail where a case compares nothing, and for an operator that holds
everything where anything may go.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from tests import test_probing_attention as attention
from tests import test_probing_contrib as contrib
from tests import test_probing_control as control
from tests import test_probing_experts as experts
from tests import test_probing_generated as generated
from tests import test_probing_quantised as quantised
from tests.probing_draw import draws
from tests.test_probing import node_cases

Operator = tuple[str, str]
"""Domain and operator type."""


def cases() -> Iterator[onnx.ModelProto]:
    """The ONNX backend's one-node models, those that are written out, and the generated ones."""
    for found in node_cases().values():
        yield from (model for _, model, _ in found)
    for text, *_ in attention.CASES.values():
        yield attention.build(text)[0]
    for text in contrib.CASES.values():
        yield attention.build(text)[0]
    for opset, _, text in control.CASES.values():
        yield control.model_of(opset, text)
    for text, *_ in experts.CASES.values():
        yield attention.build(text)[0]
    for name, (make, count) in (generated.FAMILIES | quantised.FAMILIES).items():
        yield from (make(d)[0] for d in draws(name, count))


def probed_operators() -> frozenset[Operator]:
    """The operators of all `cases`."""
    return frozenset((node.domain, node.op_type) for model in cases() for node in model.graph.node)
