"""Mixtures of experts as operators (see `probing`), and numpy's against ONNX Runtime's.

How many units the rows of the second weights and their columns fall into is counted by hand:
channels of the tokens, and those between the two products.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as oir
import pytest

from secateur.ir.analysis import analyze
from tests.probing import probe
from tests.probing_runs import reference, runs, runtime
from tests.test_probing_attention import FIXED, build

Counted = tuple[str, str, int, int]
"""Signature and node; the second weights; units on its rows, and on its columns."""

_FLOAT = """(float[5,8] x, float[5,3] route, float[3,6,8] w1, float[3,6] b1, float[3,8,6] w2,
    float[3,8] b2) => (float[5,8] y)"""
_GATED = """(float[5,8] x, float[5,3] route, float[3,12,8] w1, float[3,12] b1, float[3,8,6] w2,
    float[3,8] b2) => (float[5,8] y)"""


def _packed(bits: int, rows: int, scales: str = "", zeros: str = "") -> str:
    """Signature of QMoE: 32 channels of tokens, 16 between; ``rows`` are those of the first
    weights."""
    h, i = 32 * bits // 8, 16 * bits // 8
    first, second = scales.split("|") if scales else ("", "")
    text = f"""(float[5,32] x, float[5,3] route, uint8[3,{rows},{h}] w1, float[3,{rows}{first}] s1,
        float[3,{rows}] b1, uint8[3,32,{i}] w2, float[3,32{second}] s2, float[3,32] b2"""
    if zeros:
        text += ", uint8[{}] z1, uint8[{}] z2".format(*zeros.split("|"))
    return text + ") => (float[5,32] y)"


_Q = "y = com.microsoft.QMoE<k=2, expert_weight_bits="

CASES: dict[str, Counted] = {
    "relu": (_FLOAT + "{ y = com.microsoft.MoE<k=2>(x, route, w1, b1, w2, b2) }", "w2", 8, 6),
    "samples, no biases": (
        """(float[2,3,8] x, float[6,3] route, float[3,7,8] w1, float[3,8,7] w2) => (float[2,3,8] y)
        { y = com.microsoft.MoE<k=1, activation_type="gelu">(x, route, w1, , w2) }""",
        *("w2", 8, 7),
    ),
    "as many channels between": (
        """(float[5,6] x, float[5,3] route, float[3,6,6] w1, float[3,6,6] w2) => (float[5,6] y)
        { y = com.microsoft.MoE<k=2, activation_type="silu">(x, route, w1, , w2) }""",
        *("w2", 6, 6),
    ),
    "gates interleaved": (
        _GATED
        + """{ y = com.microsoft.MoE<k=2, activation_type="swiglu", swiglu_fusion=1,
        activation_alpha=1.702, activation_beta=1.0>(x, route, w1, b1, w2, b2) }""",
        *("w2", 8, 6),
    ),
    "gates first": (
        _GATED
        + """{ y = com.microsoft.MoE<k=2, activation_type="swiglu", swiglu_fusion=2>
        (x, route, w1, b1, w2, b2) }""",
        *("w2", 8, 6),
    ),
    "gates apart": (
        """(float[5,8] x, float[5,3] route, float[3,6,8] w1, float[3,6] b1, float[3,8,6] w2,
            float[3,8] b2, float[3,6,8] w3, float[3,6] b3) => (float[5,8] y)
        { y = com.microsoft.MoE<k=2, activation_type="silu">(x, route, w1, b1, w2, b2, w3, b3) }""",
        *("w2", 8, 6),
    ),
    "rows and columns exchanged": (
        """(float[5,8] x, float[5,3] route, float[3,8,6] w1, float[3,6,8] w2) => (float[5,8] y)
        { y = com.microsoft.MoE<k=2>(x, route, w1, , w2) }""",
        *("w2", 0, 0),
    ),
    "8 bits": (
        _packed(8, 16) + f"{{ {_Q}8>(x, route, w1, s1, b1, w2, s2, b2) }}",
        *("w2", 32, 16),
    ),
    "4 bits": (
        _packed(4, 16) + f"{{ {_Q}4>(x, route, w1, s1, b1, w2, s2, b2) }}",
        *("w2", 16, 8),
    ),
    "4 bits, gates interleaved, zero points": (
        _packed(4, 32, zeros="3,16|3,16")
        + f"""{{ {_Q}4, activation_type="swiglu", swiglu_fusion=1>
        (x, route, w1, s1, b1, w2, s2, b2, , , , z1, z2) }}""",
        *("w2", 16, 8),
    ),
    "2 bits, zero points": (
        _packed(2, 16, zeros="3,4|3,8")
        + f"""{{ {_Q}2, activation_type="silu">
        (x, route, w1, s1, b1, w2, s2, b2, , , , z1, z2) }}""",
        *("w2", 8, 4),
    ),
    "8 bits in blocks": (
        _packed(8, 32, ",2|,1")
        + f"""{{ {_Q}8, activation_type="swiglu", swiglu_fusion=1, block_size=16>
        (x, route, w1, s1, b1, w2, s2, b2) }}""",
        *("w2", 2, 1),
    ),
    "4 bits in blocks, zero points": (
        """(float[5,64] x, float[5,2] route, uint8[2,48,32] w1, float[2,48,4] s1,
            uint8[2,64,24] w2, float[2,64,3] s2, uint8[2,48,2] z1, uint8[2,64,2] z2)
        => (float[5,64] y)"""
        + f"{{ {_Q}4, block_size=16>(x, route, w1, s1, , w2, s2, , , , , z1, z2) }}",
        *("w2", 2, 2),
    ),
    "another router": (
        _packed(8, 16).replace(") =>", ", float[5,3] mixing) =>")
        + f"{{ {_Q}8>(x, route, w1, s1, b1, w2, s2, b2, , , , , , , mixing) }}",
        *("w2", 32, 16),
    ),
    "packed for one machine": (
        _packed(4, 16) + f"{{ {_Q}4, weights_prepacked=1>(x, route, w1, s1, b1, w2, s2, b2) }}",
        *("w2", 0, 0),
    ),
}
"""In 4 bits with blocks, two blocks lie in one byte of the zero points: of four blocks of the
tokens' channels two units are left, and of three between two."""

FIXED["route"] = np.array([0.3, -1.2, 0.9, 1.1, 0.4, -0.2, 0.7])
FIXED["mixing"] = np.array([0.4, 0.2, 0.9, 0.1])
"""Not perturbed: products of more or fewer tokens are rounded differently."""

NO_KERNEL = {"gates first", "gates apart"}
HELD = {"rows and columns exchanged", "packed for one machine"}


@pytest.mark.parametrize("name", CASES)
def test_node(name: str) -> None:
    text, operand, rows, columns = CASES[name]
    model, feeds = build(text)
    report = probe(model, feeds, removals=12)
    assert not report.refused
    if name not in HELD:
        assert report.links and report.removals
        assert report.reference == (name in NO_KERNEL)
    found = analyze(oir.serde.deserialize_model(model), interface=False, weights_only=False)
    for axis, wanted in zip(found.operands[operand].axes[1:], (rows, columns), strict=True):
        units = found.units_of(axis)
        assert len(set(() if units is None else units.tolist()) - {-1}) == wanted
    assert found.units_of(found.operands[operand].axis(0)) is None, "experts stay"
    assert found.units_of(found.operands["route"].axis(1)) is None


@pytest.mark.parametrize("name", sorted(CASES.keys() - NO_KERNEL - HELD))
def test_numpy_computes_the_same(name: str) -> None:
    """So it may stand in where there is no kernel."""
    model, feeds = build(CASES[name][0])
    if "gelu" in CASES[name][0]:
        pytest.skip("not needed")
    found, on_reference = runtime(model)
    assert not on_reference and runs(found, feeds)
    wanted, (got,) = reference(model)(feeds)[0], found(feeds)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
