"""A decoder with GroupQueryAttention and a cache, from the graph to the generated tokens.

What it computes after pruning is compared with the original, what was removed zeroed,
in ONNX Runtime: with caches of several lengths, and token by token with the sequence at
once.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import secateur
from secateur.ir.io import to_proto

from .graphs import Array
from .pruning_checks import constants, run, zeroed

WIDTH, HEADS, GROUPS, SIZE, WORDS, LONGEST = 24, 8, 4, 16, 20, 48
ATTENTION = (
    f"com.microsoft.GroupQueryAttention<num_heads={HEADS}, kv_num_heads={GROUPS}, do_rotary=1>"
)
CACHE = f"{GROUPS},P,{SIZE}"

GIVEN = f"""(int64[N,S] ids, int32[N] ends, int32 total, float[N,{CACHE}] pk, float[N,{CACHE}] pv)
    => (float[N,S,{WORDS}] y, float[N,{GROUPS},U,{SIZE}] nk, float[N,{GROUPS},U,{SIZE}] nv) {{
    e = Gather(table, ids) q = MatMul(e, wq) k = MatMul(e, wk) v = MatMul(e, wv)
    o, nk, nv = {ATTENTION}(q, k, v, pk, pv, ends, total, cos, sin)
    p = MatMul(o, wo) r = Add(e, p) h = MatMul(r, w1) g = Relu(h) d = MatMul(g, w2)
    f = Add(r, d) y = MatMul(f, wy) }}"""
"""As exporters write it: the cache is an input and an output."""

MADE = f"""(int64[N,S] ids, int32[N] ends, int32 total, float[N,P,{WIDTH}] memory, int64[N,1] next)
    => (float[N,S,{WORDS}] y, float[N,1,{WORDS}] z) <int64[4] split = {{0, 0, {GROUPS}, {SIZE}}},
    int32 one = {{1}}> {{
    k0 = MatMul(memory, mk) k1 = Reshape(k0, split) pk = Transpose<perm=[0,2,1,3]>(k1)
    v0 = MatMul(memory, mv) v1 = Reshape(v0, split) pv = Transpose<perm=[0,2,1,3]>(v1)
    e = Gather(table, ids) q = MatMul(e, wq) k = MatMul(e, wk) v = MatMul(e, wv)
    o, nk, nv = {ATTENTION}(q, k, v, pk, pv, ends, total, cos, sin)
    p = MatMul(o, wo) f = Add(e, p) y = MatMul(f, wy)
    ends2 = Add(ends, one) total2 = Add(total, one)
    e2 = Gather(table, next) q2 = MatMul(e2, wq) k2 = MatMul(e2, wk) v2 = MatMul(e2, wv)
    o2, lk, lv = {ATTENTION}(q2, k2, v2, nk, nv, ends2, total2, cos, sin)
    p2 = MatMul(o2, wo) f2 = Add(e2, p2) z = MatMul(f2, wy) }}"""
"""A cache made of a second sequence, and the next token behind it, with the same weights."""


def build(text: str) -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> decoder ' + text
    )
    rng = np.random.default_rng(0)
    keys, angles = GROUPS * SIZE, np.outer(np.arange(LONGEST), 100.0 ** (-np.arange(8) / 8))
    shapes = {
        "table": (WORDS, WIDTH), "wq": (WIDTH, HEADS * SIZE), "wk": (WIDTH, keys),
        "wv": (WIDTH, keys), "wo": (HEADS * SIZE, WIDTH), "w1": (WIDTH, 32), "w2": (32, WIDTH),
        "wy": (WIDTH, WORDS), "mk": (WIDTH, keys), "mv": (WIDTH, keys),
    }  # fmt: skip
    arrays = {name: rng.standard_normal(shape) / 5 for name, shape in shapes.items()}
    arrays |= {"cos": np.cos(angles), "sin": np.sin(angles)}
    read = {name for node in model.graph.node for name in node.input}
    for name in sorted(arrays.keys() & read):
        model.graph.initializer.append(
            numpy_helper.from_array(arrays[name].astype(np.float32), name)
        )
    return model


def pruned(text: str, dims: dict[str, int]) -> tuple[secateur.PruneResult, onnx.ModelProto]:
    """What half of the units may go leaves, certified, and the original with the rest zeroed."""
    model = build(text)
    result = secateur.prune(model, ratio=0.5, dims=dims, bench=False, threads=1)
    assert result.certificate is not None and result.certificate.ok
    first, second = result.certificate.bindings
    assert first == {"N": 1, **dims} and second["P"] != dims["P"]
    assert result.pruning is not None
    return result, zeroed(model, ((s.tensor, s.axis, s.indices) for s in result.pruning.slices))


def lengths(past: int, new: int) -> dict[str, Array]:
    """What the operator is told about them, of a batch of one."""
    return {"ends": np.array([past + new - 1], np.int32), "total": np.array(past + new, np.int32)}


def heads(model: onnx.ModelProto) -> list[tuple[int, int]]:
    found = [n for n in model.graph.node if n.op_type == "GroupQueryAttention"]
    stated = [{a.name: a.i for a in node.attribute} for node in found]
    return [(entry["num_heads"], entry["kv_num_heads"]) for entry in stated]


def test_groups_of_heads_go_with_the_cache() -> None:
    result, reference = pruned(MADE, {"S": 1, "P": 6})
    model, rng = to_proto(result.model), np.random.default_rng(1)
    assert heads(model) == [(HEADS // 2, GROUPS // 2)] * 2
    left = {name: list(tensor.dims) for name, tensor in constants(model).items()}
    assert [left[name][1] for name in ("wq", "wk", "wv", "mk", "mv")] == [64, 32, 32, 32, 32]
    assert left["wo"][0] == 64
    for past, new in ((0, 3), (1, 1), (2, 5), (6, 1), (17, 1), (40, 7)):
        feed: dict[str, Array] = {
            "ids": rng.integers(0, WORDS, (1, new)),
            "next": rng.integers(0, WORDS, (1, 1)),
            "memory": rng.standard_normal((1, past, WIDTH)).astype(np.float32),
            **lengths(past, new),
        }
        got, wanted = run(model, feed), run(reference, feed)
        for name in ("y", "z"):
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5, atol=1e-5)


def test_a_cache_that_is_given_keeps_its_heads() -> None:
    """Queries and the rest are pruned, and token by token gives what the whole sequence does."""
    result, reference = pruned(GIVEN, {"S": 1, "P": 6})
    model = to_proto(result.model)
    assert heads(model) == [(HEADS // 2, GROUPS)]  # one of the two queries of every key
    left = {name: list(tensor.dims) for name, tensor in constants(model).items()}
    assert left["wq"][1] == 64 and left["wk"][1] == left["wv"][1] == GROUPS * SIZE
    assert left["w1"] == [WIDTH // 2, 16] and left["w2"] == [16, WIDTH // 2]

    ids = np.random.default_rng(1).integers(0, WORDS, (1, 24))
    empty = np.zeros((1, GROUPS, 0, SIZE), np.float32)
    whole = run(reference, {"ids": ids, "pk": empty, "pv": empty, **lengths(0, 24)})
    cache, past = {"pk": empty, "pv": empty}, 0
    for new in (5, 1, 1, 9, 1, 7):
        part = ids[:, past : past + new]
        found = run(model, {"ids": part, **cache, **lengths(past, new)})
        past += new
        cache = {"pk": found["nk"], "pv": found["nv"]}
        np.testing.assert_allclose(
            found["y"], whole["y"][:, past - new : past], rtol=1e-5, atol=1e-5
        )
    assert past == ids.shape[1]
    np.testing.assert_allclose(cache["pk"], whole["nk"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", ["heads", "cache"])
def test_another_group_of_heads_is_seen(wrong: str) -> None:
    """The comparison would see one group of queries, or of the cache, taken for another."""
    result, reference = pruned(MADE, {"S": 1, "P": 6})
    model = to_proto(result.model)
    name = "wq" if wrong == "heads" else "mk"
    tensor = constants(model)[name]
    array = np.roll(numpy_helper.to_array(tensor), SIZE, axis=1)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    memory = np.random.default_rng(1).standard_normal((1, 6, WIDTH)).astype(np.float32)
    feed = {"ids": np.array([[3]]), "next": np.array([[4]]), "memory": memory, **lengths(6, 1)}
    assert np.abs(run(model, feed)["y"] - run(reference, feed)["y"]).max() > 1e-3
