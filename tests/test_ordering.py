"""Nodes in any order: sorted when the model is read, and then like any other model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import secateur
from secateur.ir.errors import ModelError
from secateur.ir.io import load_model, model_bytes, to_proto
from secateur.ir.protos import model_bodies
from secateur.runtime.inputs import random_feed

from .cli_runs import invoke
from .faithfulness import assert_same_model
from .graphs import GRAPHS
from .probing_draw import Draw
from .pruning_checks import assert_same, at_random, run
from .quantiser_models import quantised
from .random_graphs import Graph
from .random_networks import image_network, sequence_network
from .test_random_graphs import budget

QUANTISED = ["branches dynamic tensor", "branches QDQ QInt8 QInt8 tensor"]


def shuffled(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """A copy with the nodes of every graph and function in another order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for body in list(model_bodies(copy)):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in body.node]
        del body.node[:]
        body.node.extend(nodes[k] for k in rng.permutation(len(nodes)))
    return copy


def valid(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return False
    return True


@pytest.mark.parametrize("mode", QUANTISED)
def test_a_quantiser_that_moves_a_branch_in_front(mode: str, tmp_path: Path) -> None:
    model = quantised(mode)
    assert not valid(model), "the quantiser keeps the order now: take another model"
    paths = [str(tmp_path / name) for name in ("m.onnx", "p.onnx", "r.json")]
    onnx.save(model, paths[0])
    invoke("prune", paths[0], "-o", paths[1], "--ratio=0.5", "--no-bench", "--report", paths[2],
           "--dim=N=2", "--threads=1")  # fmt: skip
    invoke("verify", paths[0], paths[1], "--report", paths[2], "--threads=1")
    assert valid(onnx.load(paths[1]))


@pytest.mark.parametrize("name", GRAPHS)
def test_sorted_nodes_stay_where_they_are(name: str) -> None:
    assert_same_model(GRAPHS[name](), to_proto(load_model(GRAPHS[name]())))


@pytest.mark.parametrize("network", [image_network, sequence_network])
def test_any_order_is_read(network: Callable[[Graph], None]) -> None:
    pruned = 0

    @budget(15)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal pruned
        d = Draw(data.draw)
        graph = Graph(d, d.number(15, 24), nests=True)
        network(graph)
        model = graph.model()
        other = shuffled(model, d.rng)
        loaded = to_proto(load_model(other))
        assert valid(loaded)
        assert model_bytes(load_model(loaded)) == model_bytes(load_model(other))
        feed = random_feed(model, {"N": 2}, 0)
        assert_same(run(loaded, feed), run(model, feed))
        found, wanted = (secateur.analyze(m, dims={"N": 2}) for m in (other, model))
        assert sorted(len(g.units) for g in found.groups) == sorted(
            len(g.units) for g in wanted.groups
        )
        plan = secateur.Plan(found, at_random(found, 0.5, 0, inexact=d.flag()))
        rewritten = secateur.rewrite(plan)
        assert valid(to_proto(rewritten.model))
        certificate = secateur.certify(plan, rewritten, threads=1)
        assert certificate.ok or not any(entry.scale for entry in certificate.runs)
        pruned += bool(plan.removed.any() and certificate.ok)

    check()
    assert pruned >= 5


TEXT = """<ir_version: 8, opset_import: ["": 17, "m": 1]>
    g (float[2, 4] x, bool c) => (float[2, 4] y) {{ {main} }}
    <domain: "m", opset_import: ["": 17]> f (p) => (q) {{ {function} }}"""
CALL = "q = Relu(p)"


def test_captured_at_any_depth() -> None:
    """Each of the three nodes of the main graph is read in the innermost branch only."""
    inner = """b = If(c) <then_branch = i () => (float[2, 4] s) { s = Sum(u, v, w) },
                          else_branch = j () => (float[2, 4] t) { t = Identity(v) }>"""
    lines = [
        *("u = Relu(x)", "v = m.f(u)", "w = Tanh(v)"),
        f"y = If(c) <then_branch = t () => (float[2, 4] b) {{ {inner} }}, "
        "else_branch = e () => (float[2, 4] d) { d = Neg(u) }>",
    ]
    sorted_model = onnx.parser.parse_model(TEXT.format(main=" ".join(lines), function=CALL))
    for order in itertools.permutations(lines):
        model = onnx.parser.parse_model(TEXT.format(main=" ".join(order), function=CALL))
        assert to_proto(load_model(model)) == to_proto(load_model(sorted_model))


CYCLES = {
    "nodes": ("a = Relu(b) b = Tanh(a) y = m.f(a)", CALL, "'a' needs 'b', 'b' needs 'a'"),
    "one node": ("a = Add(x, a) y = m.f(a)", CALL, "'a' needs 'a'"),
    "a branch": (
        """y = If(c) <then_branch = t () => (float[2, 4] a) { a = Neg(y) },
                      else_branch = e () => (float[2, 4] b) { b = Neg(x) }>""",
        CALL,
        "'y' needs 'a', 'a' needs 'y'",
    ),
    "a function": ("y = m.f(x)", "r = Add(p, q) q = Relu(r)", "'r' needs 'q', 'q' needs 'r'"),
}


@pytest.mark.parametrize("kind", CYCLES)
def test_cycles_are_refused(kind: str, tmp_path: Path) -> None:
    main, function, words = CYCLES[kind]
    model = onnx.parser.parse_model(TEXT.format(main=main, function=function))
    with pytest.raises(ModelError, match=f"nodes form a cycle: {words}; export the model again"):
        load_model(model)
    onnx.save(model, tmp_path / "m.onnx")
    message = invoke("inspect", str(tmp_path / "m.onnx"), code=3).stderr
    assert words in message and len(message.splitlines()) == 1
