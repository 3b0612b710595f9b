"""What is left of attention operators after pruning: attributes, costs, certificates."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator
from onnx import numpy_helper

import secateur
from secateur.ir.coupling import Flags
from secateur.ir.errors import UsageError
from secateur.ir.io import to_proto
from secateur.runtime.cost import CostModel

from .graph_builder import build, net
from .graphs import Array, feeds
from .pruning_checks import CARRIERS, Carrier, analysis, constants, run

SCHEMA = Path(__file__).parent.parent / "docs" / "report.schema.json"
ATTRIBUTES = ("num_heads", "kv_num_heads", "q_num_heads", "qkv_hidden_sizes", "scale")


def half(found: secateur.Analysis) -> Flags:
    """Every second unit of every exact group."""
    removed = np.zeros(found.unit_count, np.bool_)
    for group in found.groups:
        if group.exact:
            removed[group.units[: len(group.units) // 2]] = True
    return removed


def halved(name: str, carrier: Carrier) -> tuple[onnx.ModelProto, dict[str, object]]:
    """The model without half of its exact units, and what its attention states about sizes."""
    found = analysis(name, carrier)
    model = to_proto(secateur.rewrite(secateur.Plan(found, half(found))).model)
    node = next(n for n in model.graph.node if n.op_type.endswith("Attention"))
    stated = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return model, {k: v for k, v in stated.items() if k in ATTRIBUTES}


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("attention_operator", {"q_num_heads": 2, "kv_num_heads": 2}),
        ("attention_operator_grouped", {"q_num_heads": 4, "kv_num_heads": 1}),
        ("attention_operator_cached", {"q_num_heads": 4, "kv_num_heads": 2}),
        ("encoder_fused", {"num_heads": 2}),
        ("decoder_fused", {"num_heads": 2}),
        ("llama_fused", {"num_heads": 4, "kv_num_heads": 2}),
    ],
)
def test_heads_are_restated(name: str, heads: dict[str, int]) -> None:
    assert halved(name, "heads")[1] == heads


@pytest.mark.parametrize(
    ("name", "size", "stated"),
    [
        ("attention_operator", 4, {"q_num_heads": 4, "kv_num_heads": 4}),
        ("encoder_fused", 4, {"num_heads": 4}),
        ("decoder_fused", 5, {"num_heads": 4}),
    ],
)
def test_the_scale_stays(name: str, size: int, stated: dict[str, int]) -> None:
    _, found = halved(name, "head-dim")
    assert found.pop("scale") == pytest.approx(1 / math.sqrt(size), rel=1e-6)
    assert found == stated


def test_a_scale_that_is_given_stays() -> None:
    assert halved("attention_operator_split", "head-dim")[1]["scale"] == pytest.approx(0.4)


def test_values_of_another_size_are_stated() -> None:
    found = analysis("encoder_fused", "head-dim")
    removed = np.zeros(found.unit_count, np.bool_)
    weight = next(w for w in found.weights if w.name == "wo")
    units = found.units_of(weight.axes[0][0])
    assert units is not None
    removed[units[0]] = True
    node = next(
        n
        for n in to_proto(secateur.rewrite(secateur.Plan(found, removed)).model).graph.node
        if n.op_type == "Attention"
    )
    stated = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert stated == {"num_heads": 4, "qkv_hidden_sizes": [16, 16, 12]}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_multiply_accumulates(carrier: Carrier) -> None:
    """Four projections of 16 by 16 on 2 x 3 tokens, and 2 x 3 x 3 pairs in two products."""
    found = analysis("attention_operator", carrier)
    costs = CostModel(found)
    assert costs.costs().macs == 4 * 6 * 16 * 16 + 2 * 18 * 16
    assert costs.costs(half(found)).macs == 4 * 6 * 16 * 8 + 2 * 18 * 8


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_cache_that_is_an_input_keeps_the_heads_of_keys(carrier: Carrier) -> None:
    found = analysis("attention_operator_cached", carrier)
    units = found.units_of(next(w for w in found.weights if w.name == "wq").axes[0][1])
    assert units is not None
    heads = units.reshape(2, 4, 4)
    assert (heads == heads[:1, :, :1]).all() and np.unique(heads).size == 4


def test_simplified_layer_normalization() -> None:
    """In the default domain, where ONNX does not know it: ONNX Runtime writes it there."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,8] x) => (float[N,4] y) {
            h = MatMul(x, up)
            n = SimplifiedLayerNormalization(h, scale)
            y = MatMul(n, down)
        }
    """)
    rng = np.random.default_rng(0)
    for name, shape in {"up": (8, 16), "scale": (16,), "down": (16, 4)}.items():
        tensor = numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        model.graph.initializer.append(tensor)
    result = secateur.prune(model, ratio=0.5, inexact=True, bench=False, threads=1)
    assert result.certificate is not None and result.certificate.ok
    assert list(constants(to_proto(result.model))["scale"].dims) == [8]


@pytest.mark.parametrize("carrier", CARRIERS)
def test_quantised_attention(carrier: Carrier) -> None:
    """A zero point that is not zero, found at run time; the output projection is in floats."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N,T,16] x) => (float[N,T,8] y) {
            q, s, z = DynamicQuantizeLinear(x)
            a = com.microsoft.QAttention<num_heads=4>(q, w, b, s, ws, , z, wz)
            y = MatMul(a, wo)
        }
    """)
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": rng.integers(-90, 90, (16, 48)).astype(np.int8),
        "b": rng.standard_normal(48).astype(np.float32),
        "ws": np.array(0.01, np.float32),
        "wz": np.array(2, np.int8),
        "wo": rng.standard_normal((16, 8)).astype(np.float32),
    }
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    found = secateur.analyze(model, dims={"N": 2, "T": 3}, carrier=carrier)
    plan = secateur.Plan(found, half(found))
    rewritten = secateur.rewrite(plan)
    certificate = secateur.certify(plan, rewritten, threads=1)
    assert certificate.ok, certificate.describe()
    assert list(constants(to_proto(rewritten.model))["w"].dims) == [16, 24]


def decoder() -> onnx.ModelProto:
    """A cached decoder: keys and values of the past P stand before those of T new tokens, the mask
    covers all S of them."""
    parts = net(
        """(float[N,T,16] x, float[N,4,P,4] pk, float[N,4,P,4] pv, float[N,S] mask)
        => (float[N,T,16] y, float[N,4,S,4] ok, float[N,4,S,4] ov)""",
        """q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv) q1 = Reshape(q0, split)
        k1 = Reshape(k0, split) v1 = Reshape(v0, split) q = Transpose<perm = [0,2,1,3]>(q1)
        k = Transpose<perm = [0,2,1,3]>(k1) v = Transpose<perm = [0,2,1,3]>(v1)
        ok = Concat<axis = 2>(pk, k) ov = Concat<axis = 2>(pv, v)
        kt = Transpose<perm = [0,1,3,2]>(ok) s = MatMul(q, kt) m = Unsqueeze(mask, axes)
        sm = Add(s, m) p = Softmax(sm) o = MatMul(p, ov) o1 = Transpose<perm = [0,2,1,3]>(o)
        o2 = Reshape(o1, merged) h = MatMul(o2, wo) u = MatMul(h, w1) r = Relu(u)
        y = MatMul(r, w2)""",
        wq=(16, 16), wk=(16, 16), wv=(16, 16), wo=(16, 16), w1=(16, 32), w2=(32, 16),
        split=[0, 0, 4, 4], merged=[0, 0, 16], axes=[1, 2],
    )  # fmt: skip
    return build("decoder", parts, 17, "initializers")


def test_a_decoder_is_pruned_without_a_past_and_runs_with_one(tmp_path: Path) -> None:
    source, target, report = (tmp_path / name for name in ("a.onnx", "b.onnx", "r.json"))
    onnx.save(decoder(), str(source))
    result = secateur.prune(source, ratio=0.5, dims={"T": 5, "P": 0, "S": 5}, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert result.certificate.notes == ()
    first, second = result.certificate.bindings
    assert first == {"N": 1, "T": 5, "P": 0, "S": 5}
    assert second["P"] > 0 and second["S"] == second["P"] + second["T"]
    result.save(target, report)
    assert secateur.verify(source, target, report).ok
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(report.read_text()))
    small = onnx.load(target)
    assert run(small, feeds(small, N=2, T=3, P=7, S=10))["y"].shape == (2, 3, 16)


def test_a_batch_of_nothing_and_negative_sizes_are_refused() -> None:
    for dims, least in (({"N": 0, "T": 5, "P": 2, "S": 7}, 1), ({"T": 5, "P": -1, "S": 4}, 0)):
        with pytest.raises(UsageError, match=f"needs a size of {least} to"):
            secateur.prune(decoder(), ratio=0.5, dims=dims, bench=False)
