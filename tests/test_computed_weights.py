"""Weights that nodes compute from constants: stored where that frees channels, and only there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import pytest
from onnx import helper, numpy_helper, parser

import secateur
from secateur.ir.analysis import analyze as analyze_as_written
from secateur.ir.errors import CertificateError, UsageError
from secateur.ir.io import load_model
from secateur.passes import computed_weights

from .graph_builder import Array, feeds
from .graphs_standardised import CHANNELS, FORMS, STORED
from .pruning_checks import arrays, constants, run, zeroed


def prune(model: Any, **options: Any) -> secateur.PruneResult:
    return secateur.prune(model, **{"ratio": 0.5, "dims": {"N": 1}, "bench": False, **options})


def proto(result: secateur.PruneResult) -> onnx.ModelProto:
    from secateur.ir.io import to_proto

    return to_proto(result.model)


def value_of(model: onnx.ModelProto, name: str) -> Array:
    """What ONNX Runtime computes for a value of the model."""
    model = onnx.inliner.inline_local_functions(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return run(copy, feeds(model, N=1))[name]


def masked_by_hand(model: onnx.ModelProto, removed: list[dict[str, Any]]) -> onnx.ModelProto:
    """The original with what was removed of stored weights set to zero in it, and what was removed
    of computed ones multiplied by zero right after they are computed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    held = constants(copy)
    copy = zeroed(
        copy, [(r["tensor"], r["axis"], r["indices"]) for r in removed if r["tensor"] in held]
    )
    for k, cut in enumerate(r for r in removed if r["tensor"] not in held):
        name, axis = cut["tensor"], cut["axis"]
        value = value_of(model, name)
        keep = np.ones(value.shape, value.dtype)
        keep[(slice(None),) * axis + (cut["indices"],)] = 0
        (place,) = (i for i, n in enumerate(copy.graph.node) if name in n.output)
        node = copy.graph.node[place]
        inner = f"{name}/before {k}"
        node.output[list(node.output).index(name)] = inner
        copy.graph.initializer.append(numpy_helper.from_array(keep, f"keep {k}"))
        copy.graph.node.insert(place + 1, helper.make_node("Mul", [inner, f"keep {k}"], [name]))
    return copy


@pytest.mark.parametrize("form", FORMS)
def test_nothing_exact_without_and_all_channels_with(form: str) -> None:
    model = FORMS[form]()
    onnx.checker.check_model(model, full_check=True)
    plain = analyze_as_written(load_model(model), {"N": 1})
    found = secateur.analyze(model, dims={"N": 1})
    assert list(found.stored) == STORED[form]
    exact = [sum(len(g.units) for g in a.groups if g.exact) for a in (plain, found)]
    assert exact[0] < exact[1] or form == "weight_norm"  # zeros add nothing to a norm


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_pruned_and_certified(form: str, ratio: float) -> None:
    model = FORMS[form]()
    result = prune(model, ratio=ratio)
    assert result.certificate is not None and result.certificate.ok
    assert [entry["tensor"] for entry in result.report["stored"]] == STORED[form]
    pruned = proto(result)
    onnx.checker.check_model(pruned, full_check=True)
    stored = arrays(pruned)
    for name in STORED[form]:
        wanted = value_of(model, name)
        for cut in result.report["removed"]:
            if cut["tensor"] == name:
                wanted = np.delete(wanted, cut["indices"], cut["axis"])
        np.testing.assert_array_equal(stored[name], wanted)
    if ratio == 0.5:
        before = value_of(model, STORED[form][0]).shape
        for axis in CHANNELS.get(form, (0, 1)):
            assert stored[STORED[form][0]].shape[axis] == before[axis] // 2
    read = {name for node in pruned.graph.node for name in node.input}
    assert {t.name for t in pruned.graph.initializer} <= read, "what nothing reads is not kept"
    assert not pruned.functions


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("in_a_function", "quantised")])
def test_equals_the_original_masked_by_hand(form: str) -> None:
    model = FORMS[form]()
    result = prune(model)
    reference = masked_by_hand(model, result.report["removed"])
    for size in (1, 3):
        feed = feeds(model, seed=size, N=size)
        got, wanted = run(proto(result), feed)["y"], run(reference, feed)["y"]
        assert not np.allclose(wanted, run(model, feed)["y"], atol=1e-2 * abs(wanted).max())
        tolerance = 4e-3 if got.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * abs(wanted).max())


def test_quantised_weights_stay_quantised() -> None:
    pruned = proto(prune(FORMS["quantised"]()))
    assert arrays(pruned)["wq"].dtype == np.int8 and arrays(pruned)["wq"].shape == (6, 4, 3, 3)
    assert [n.op_type for n in pruned.graph.node].count("DequantizeLinear") == 1


def test_the_file_does_not_grow() -> None:
    """Expanded weights are stored before they are expanded, shared ones before they are moved."""
    for form in ("expanded", "transposed"):
        result = prune(FORMS[form](), ratio=0.13)
        bytes_ = result.report["totals"]["file_bytes"]
        assert bytes_["after"] < bytes_["before"] + 200


CASES: dict[str, tuple[str, str, dict[str, tuple[int, ...]], dict[str, list[int]]]] = {
    "a table resized in the graph": (
        "(float[N,16,6] x) => (float[N,16,4] y)",
        """r = Resize<mode="linear">(table, , , sizes) f = Reshape(r, flat)
        p = Transpose<perm=[0,2,1]>(f) h = MatMul(x, w1) s = Add(h, p) a = Relu(s)
        y = MatMul(a, w2)""",
        {"table": (1, 8, 2, 2), "w1": (6, 8), "w2": (8, 4)},
        {"sizes": [1, 8, 4, 4], "flat": [1, 8, 16]},
    ),
    "a low-rank weight": (
        "(float[N,6] x) => (float[N,4] y)",
        "w1 = MatMul(u, v) h = MatMul(x, w1) a = Relu(h) y = MatMul(a, w2)",
        {"u": (6, 3), "v": (3, 8), "w2": (8, 4)},
        {},
    ),
    "a mean of what must stay": (
        "(float[N,6] x) => (float[N,4] y)",
        "m = ReduceMean<axes=[0]>(w) k = Sub(w, m) y = MatMul(x, k)",
        {"w": (6, 4)},
        {},
    ),
    "a transposed weight": (
        "(float[N,6] x) => (float[N,4] y)",
        "k = Transpose(w) h = MatMul(x, k) a = Relu(h) y = MatMul(a, w2)",
        {"w": (8, 6), "w2": (8, 4)},
        {},
    ),
}


def build(case: str) -> onnx.ModelProto:
    signature, body, floats, sizes = CASES[case]
    model: onnx.ModelProto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g {signature} {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name, shape in floats.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for name, values in sizes.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return model


@pytest.mark.parametrize("case", CASES)
def test_what_frees_nothing_stays_computed(case: str) -> None:
    model = build(case)
    onnx.checker.check_model(model, full_check=True)
    found = secateur.analyze(model, dims={"N": 1})
    assert found.stored == ()
    if case != "a mean of what must stay":
        result = prune(model)
        assert [n.op_type for n in proto(result).graph.node] == [
            n.op_type for n in model.graph.node
        ]


def test_weights_that_a_caller_may_override_stay_computed() -> None:
    model = FORMS["means"]()
    (raw,) = (t for t in model.graph.initializer if t.name == "w1")
    model.graph.input.append(helper.make_tensor_value_info("w1", raw.data_type, raw.dims))
    assert secateur.analyze(model, dims={"N": 1}).stored == ()


def test_random_weights_stay_computed() -> None:
    model = FORMS["means"]()
    (node,) = (n for n in model.graph.node if n.output[0] == "k")
    node.input[0] = "noisy"
    model.graph.node.insert(
        list(model.graph.node).index(node),
        helper.make_node("RandomNormalLike", ["n"], ["noise"], seed=1.0),
    )
    model.graph.node.insert(
        list(model.graph.node).index(node), helper.make_node("Add", ["n", "noise"], ["noisy"])
    )
    assert secateur.analyze(model, dims={"N": 1}).stored == ()


@pytest.mark.parametrize("name", ["w1", "k", "gain"])
def test_protected_weights_are_left_alone(name: str) -> None:
    model = FORMS["means"]()
    found = secateur.analyze(model, dims={"N": 1}, protect=[name])
    units = found.units_of(found.operands["c"].axis(1))
    assert units is None or not (units >= 0).any()
    with pytest.raises(UsageError, match="matches no node"):
        secateur.analyze(model, dims={"N": 1}, protect=[name, "nothing"])


def test_nothing_removed_changes_nothing() -> None:
    model = FORMS["means"]()
    result = prune(model, ratio=None, macs=1.0)
    assert result.report["totals"]["units"]["before"] > 0
    nodes = [(n.op_type, n.input, n.output) for n in proto(result).graph.node]
    assert nodes == [(n.op_type, n.input, n.output) for n in model.graph.node]


def test_counts_agree_everywhere(tmp_path: Path) -> None:
    from secateur.driver.inspection import describe_analysis, describe_explanations

    model = FORMS["batch_norm"]()
    found = secateur.analyze(model, dims={"N": 1})
    data = describe_analysis(found)
    result = prune(model)
    assert data["units"] == result.report["totals"]["units"]["before"]
    assert [g["name"] for g in data["groups"]] == [g["name"] for g in result.report["groups"]]
    assert data["stored"] == ["k"]
    explained = {axis["axis"]: axis["free"] for axis in describe_explanations(found, "k")["axes"]}
    assert explained == {0: 12, 1: 8, 2: 0, 3: 0}


def test_large_ones_are_computed_when_they_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = proto(prune(FORMS["means"]()))
    monkeypatch.setattr(computed_weights, "IN_MEMORY", 0)
    result = prune(FORMS["means"]())
    result.save(tmp_path / "p.onnx")
    read = onnx.load(tmp_path / "p.onnx")
    assert {k: v.tobytes() for k, v in arrays(read).items()} == {
        k: v.tobytes() for k, v in arrays(kept).items()
    }


# ---- made wrong on purpose ----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["means", "weight_norm"])
def test_a_weight_standardised_after_the_cut_is_refused(form: str) -> None:
    """That is what pruning the constants and keeping the nodes would compute."""
    found = secateur.analyze(FORMS[form](), dims={"N": 1})
    plan = secateur.plan(found, ratio=0.5)
    rewritten = secateur.rewrite(plan)
    assert secateur.certify(plan, rewritten).ok
    value = rewritten.model.graph.initializers["k"]
    assert value.const_value is not None
    array = value.const_value.numpy()
    mean = array.mean(axis=(1, 2, 3), keepdims=True) if form == "means" else 0
    again = array - mean
    norm = np.sqrt((again**2).mean(axis=(1, 2, 3), keepdims=True))
    import onnx_ir as oir

    value.const_value = oir.tensor((again / norm).astype(np.float32), name="k")
    assert not secateur.certify(plan, rewritten).ok


def test_verified_from_files(tmp_path: Path) -> None:
    source, target, report = (tmp_path / n for n in ("a.onnx", "b.onnx", "r.json"))
    onnx.save(FORMS["batch_norm"](), str(source))
    prune(source).save(target, report)
    again = secateur.verify(source, target, report)
    assert again.ok and again.replay is not None and again.replay["agrees"]
    changed = onnx.load(target)
    (weight,) = (t for t in changed.graph.initializer if t.name == "k")
    array = numpy_helper.to_array(weight).copy()
    array[0] *= 1.01
    weight.CopyFrom(numpy_helper.from_array(array, "k"))
    onnx.save(changed, str(target))
    data = json.loads(report.read_text())
    data["pruned"]["sha256"] = hashlib.sha256(target.read_bytes()).hexdigest()
    assert not secateur.verify(source, target, data).ok
    with pytest.raises(CertificateError, match="is not the pruned model"):
        secateur.verify(source, target, report)
