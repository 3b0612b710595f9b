"""`secateur.prune` from outside: sources, targets, limits, reports, and what it leaves alone."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx import TensorProto, helper, numpy_helper

import secateur
from secateur.ir.errors import ModelError, TargetError, UsageError
from secateur.ir.io import to_proto

from .graphs import GRAPHS, INFO, Array, feeds
from .test_certificates import assert_same, constants, dims, run
from .test_cost import counted_macs, counted_parameters, stored_bytes

RUNNABLE = [name for name, info in INFO.items() if info.runnable]
SOME = ["residual_identity", "dense_concat", "channel_shuffle", "qdq", "weights_in_constants",
        "weights_as_inputs", "computed_attention", "swiglu_fused"]  # fmt: skip


def prune(source: Any, name: str = "", **options: Any) -> secateur.PruneResult:
    if name:
        options.setdefault("dims", dims(name))
    return secateur.prune(source, **{"bench": False, "threads": 1, **options})


def arrays(model: onnx.ModelProto) -> dict[str, Array]:
    return {name: numpy_helper.to_array(t) for name, t in constants(model).items()}


def saved(model: onnx.ModelProto, path: Path, **options: Any) -> Path:
    onnx.save(model, path, **options)
    return path


# ---- sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
def test_path_proto_and_model_give_the_same_and_stay_as_they_are(name: str, tmp_path: Path) -> None:
    proto = GRAPHS[name]()
    path = saved(proto, tmp_path / "in.onnx")
    model = oir.serde.deserialize_model(proto)
    before = proto.SerializeToString(deterministic=True), path.read_bytes()
    nodes, as_proto = list(model.graph), to_proto(model).SerializeToString(deterministic=True)
    outputs = []
    for number, source in enumerate((path, str(path), proto, model)):
        result = prune(source, name, ratio=0.5)
        result.save(tmp_path / f"{number}.onnx")
        outputs.append((tmp_path / f"{number}.onnx").read_bytes())
    assert outputs[1:] == outputs[:-1]
    assert len(outputs[0]) < len(before[1])
    assert (proto.SerializeToString(deterministic=True), path.read_bytes()) == before
    assert list(model.graph) == nodes
    assert to_proto(model).SerializeToString(deterministic=True) == as_proto


def test_the_same_command_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """In two processes that hash strings differently."""
    path = saved(GRAPHS["inception"](), tmp_path / "in.onnx")
    written = []
    for seed in ("1", "2"):
        out, report = tmp_path / f"{seed}.onnx", tmp_path / f"{seed}.json"
        command = [sys.executable, "-m", "secateur", "prune", str(path), "-o", str(out)]
        command += ["--macs", "0.5", "--no-bench", "--report", str(report), "--quiet"]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[1])
        facts = json.loads(report.read_text())
        del facts["seconds"]
        for entry in facts.get("passes", []):
            del entry["seconds"]
        facts["pruned"].pop("file")
        written.append((out.read_bytes(), facts))
    assert written[0] == written[1]


def test_calibration_data_is_used_by_the_certificate(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=samples)
    for calibration in (tmp_path / "data.npz", {"x": samples}):
        result = prune(GRAPHS["option_a"](), ratio=0.5, calibration=calibration)
        assert result.certificate is not None and result.certificate.calibrated
        assert any("calibration" in entry.label for entry in result.certificate.runs)


# ---- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("name", SOME)
def test_macs_and_params_are_never_exceeded(name: str, scope: Literal["local", "global"]) -> None:
    model = GRAPHS[name]()
    macs, params = counted_macs(model, dims(name)), counted_parameters(model)
    for share in (0.9, 0.6):
        result = prune(model, name, macs=share, scope=scope)
        assert counted_macs(to_proto(result.model), dims(name)) <= share * macs
        result = prune(model, name, params=share, scope=scope)
        assert counted_parameters(to_proto(result.model)) <= share * params


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("name", ["residual_identity", "dense_concat", "swiglu_fused", "option_a"])
def test_no_unit_could_be_given_back(name: str, kind: Literal["macs", "params"]) -> None:
    """Rewritten once more with any one of the removed units kept, the model misses the target."""
    model = GRAPHS[name]()

    def count(proto: onnx.ModelProto) -> int:
        return counted_macs(proto, dims(name)) if kind == "macs" else counted_parameters(proto)

    result = prune(model, name, **{kind: 0.55})
    pruning = result.pruning
    assert pruning is not None
    assert count(to_proto(result.model)) <= 0.55 * count(model)
    for group in pruning.analysis.groups:
        for unit in group.units[pruning.removed[group.units]][:1]:
            more = pruning.removed.copy()
            more[unit] = False
            other = secateur.rewrite(secateur.Plan(pruning.analysis, more))
            assert count(to_proto(other.model)) > 0.55 * count(model)


@pytest.mark.parametrize(("ratio", "gone"), [(0.25, 4), (0.5, 8), (0.99, 15)])
def test_ratio_takes_its_share_of_every_group(ratio: float, gone: int) -> None:
    result = prune(GRAPHS["conv3d"](), "conv3d", ratio=ratio)
    assert [(g["units"], g["removed"]) for g in result.report["groups"]] == [
        (8, min(gone // 2 + (ratio > 0.9), 7)),
        (16, gone),
    ]
    shapes = {k: v.shape for k, v in arrays(to_proto(result.model)).items()}
    kept = 8 - result.report["groups"][0]["removed"]
    assert shapes["w1"] == (kept, 2, 3, 3, 3) and shapes["w2"] == (16 - gone, kept, 2, 2, 2)
    assert shapes["n_s"] == shapes["n_v"] == (kept,) and shapes["wy"] == (10, 16 - gone)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_the_lowest_norms_go(criterion: str) -> None:
    """Norms over the filters that make a channel and those that read it, biases left out."""
    model = GRAPHS["weights_in_constants"]()
    w = arrays(model)
    power: Callable[[Array], Array] = np.abs if criterion == "l1" else np.square
    first = power(w["w1"]).sum((1, 2, 3)) + power(w["w2"]).sum((0, 2, 3))
    second = power(w["w2"]).sum((1, 2, 3)) + power(w["wy"]).sum(1)
    result = prune(model, "weights_in_constants", ratio=0.25, criterion=criterion)
    removed = {(e["tensor"], e["axis"]): e["indices"] for e in result.report["removed"]}
    assert removed["w1", 0] == removed["b1", 0] == removed["w2", 1] == sorted(np.argsort(first)[:4])
    assert (
        removed["w2", 0] == removed["b2", 0] == removed["wy", 0] == sorted(np.argsort(second)[:6])
    )
    rest = [np.delete(w["w2"], removed["w2", 0], 0), removed["w2", 1]]
    after = arrays(to_proto(result.model))
    np.testing.assert_array_equal(after["w2"], np.delete(rest[0], rest[1], 1))


def packed(block: int) -> onnx.ModelProto:
    """Weights of 4 bits: one per output channel, the other in blocks along what it contracts."""
    rng = np.random.default_rng(3)

    def nibbles(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.integers(-8, 8, shape).ravel().tolist()
        return helper.make_tensor(name, TensorProto.INT4, shape, values)

    scales = {"s1": (9,), "s2": (-(-9 // block), 6)}
    floats = [numpy_helper.from_array(rng.uniform(0.1, 0.2, shape).astype(np.float32), name)
              for name, shape in scales.items()]  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["q1", "s1"], ["k1"], axis=1),
        helper.make_node("MatMul", ["x", "k1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("DequantizeLinear", ["q2", "s2"], ["k2"], axis=0, block_size=block),
        helper.make_node("MatMul", ["r", "k2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "packed", [helper.make_tensor_value_info("x", 1, ["N", 5])],
        [helper.make_tensor_value_info("y", 1, ["N", 6])],
        [nibbles("q1", 5, 9), nibbles("q2", 9, 6), *floats],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def dequantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the results of DequantizeLinear on constants in their place."""
    held = arrays(model)
    left = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held:
            output = onnx.ValueInfoProto(name=node.output[0])
            weights = [t for t in model.graph.initializer if t.name in node.input]
            alone = helper.make_graph([node], "alone", [], [output], weights)
            opsets = model.opset_import
            real = run(helper.make_model(alone, opset_imports=opsets, ir_version=10), {})
            model.graph.initializer.append(
                numpy_helper.from_array(real[node.output[0]], node.output[0])
            )  # fmt: skip
        else:
            left.append(node)
    del model.graph.node[:]
    model.graph.node.extend(left)
    return model


def eight_bits(**zero: int) -> onnx.ModelProto:
    """dq_weights with uint8 weights and one zero point, or with scales that differ widely."""
    model = GRAPHS["dq_weights"]()
    held, rng = constants(model), np.random.default_rng(5)
    scales = rng.uniform(1e-4, 1e-1, 16).astype(np.float32)
    held["s1"].CopyFrom(numpy_helper.from_array(scales, "s1"))
    held["s2"].CopyFrom(numpy_helper.from_array(scales[::-1].copy(), "s2"))
    if zero:
        shifted = (numpy_helper.to_array(held["w1"]).astype(np.int16) + 128).astype(np.uint8)
        held["w1"].CopyFrom(numpy_helper.from_array(shifted, "w1"))
        points = np.full(16, zero["point"], np.uint8)
        held["z1"].CopyFrom(numpy_helper.from_array(points, "z1"))
    return model


@pytest.mark.parametrize("criterion", ["l1", "l2"])
@pytest.mark.parametrize("zero", [{}, {"point": 90}])
def test_quantised_weights_are_ranked_by_what_they_stand_for(
    criterion: str, zero: dict[str, int]
) -> None:
    results = [
        prune(model, "dq_weights", ratio=0.5, criterion=criterion).report["removed"]
        for model in (eight_bits(**zero), dequantised(eight_bits(**zero)))
    ]
    quantised, real = ({(e["tensor"], e["axis"]): e["indices"] for e in r} for r in results)
    for number, axis in (("1", 0), ("2", 0), ("2", 1)):
        assert quantised[f"w{number}", axis] == real[f"k{number}", axis]


def test_blocks_of_four_bits_are_ranked_by_what_they_stand_for() -> None:
    removed = []
    for model, name in ((packed(3), "q1"), (dequantised(packed(3)), "k1")):
        report = prune(model, ratio=0.34).report
        removed.append(next(e["indices"] for e in report["removed"] if e["tensor"] == name))
    real = arrays(dequantised(packed(3)))
    norms = np.square(real["k1"]).sum(0) + np.square(real["k2"]).sum(1)
    assert removed[0] == [3 * int(np.argmin(norms.reshape(3, 3).sum(1))) + k for k in range(3)]
    assert sorted(np.argsort(norms)[:3]) == removed[1]


def test_global_scope_compares_shares_of_the_groups_mean() -> None:
    model = GRAPHS["weights_in_constants"]()
    w = arrays(model)
    first = np.sqrt(np.square(w["w1"]).sum((1, 2, 3)) + np.square(w["w2"]).sum((0, 2, 3)))
    second = np.sqrt(np.square(w["w2"]).sum((1, 2, 3)) + np.square(w["wy"]).sum(1))
    order = np.argsort(np.r_[first / first.mean(), second / second.mean()])[:16]
    result = prune(model, "weights_in_constants", ratio=0.4, scope="global")
    removed = {(e["tensor"], e["axis"]): e["indices"] for e in result.report["removed"]}
    assert removed.get(("w1", 0), []) == sorted(k for k in order if k < 16)
    assert removed.get(("w2", 0), []) == sorted(k - 16 for k in order if k >= 16)


# ---- limits -------------------------------------------------------------------------------------


def test_max_ratio_and_round_to() -> None:
    result = prune(GRAPHS["inception"](), "inception", ratio=0.8, max_ratio=0.5)
    assert all(g["removed"] == g["units"] // 2 for g in result.report["groups"])
    result = prune(GRAPHS["inception"](), "inception", macs=0.6, round_to=4)
    assert all(g["kept"] % 4 == 0 for g in result.report["groups"])
    assert any(g["removed"] for g in result.report["groups"])


def test_protected_tensors_and_nodes_stay_whole() -> None:
    model = GRAPHS["residual_identity"]()
    for number, node in enumerate(model.graph.node):
        node.name = f"block{number // 4}/{node.op_type}_{number}"
    before = arrays(model)
    everything = prune(model, "residual_identity", ratio=0.5)
    assert {e["tensor"] for e in everything.report["removed"]} == {f"w{k}" for k in "01234y"}

    result = prune(model, "residual_identity", ratio=0.5, protect=["w[12]"])
    after = arrays(to_proto(result.model))
    assert {e["tensor"] for e in result.report["removed"]} == {"w3", "w4"}, "the stream stays too"
    for name in ("w0", "w1", "w2", "wy"):
        np.testing.assert_array_equal(after[name], before[name])

    relu = next(n.name for n in model.graph.node if n.output[0] == "er")
    result = prune(model, "residual_identity", ratio=0.5, protect=[relu])
    assert {e["tensor"] for e in result.report["removed"]} == {"w0", "w1", "w2", "w3", "w4", "wy"}
    assert arrays(to_proto(result.model))["w3"].shape == (8, 8, 3, 3), "its inputs are the stream"
    assert arrays(to_proto(result.model))["w1"].shape == (8, 8, 3, 3)

    result = prune(model, "residual_identity", ratio=0.5, protect=["block0/*"])
    assert {e["tensor"] for e in result.report["removed"]} == {"w3", "w4"}
    with pytest.raises(UsageError, match=r"'w9\*' matches no node and no tensor"):
        prune(model, "residual_identity", ratio=0.5, protect=["w9*"])


@pytest.mark.parametrize("name", ["inception", "swin_block", "grouped_conv", "option_a"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_group_never_falls_below_one_unit(name: str, scope: Literal["local", "global"]) -> None:
    result = prune(GRAPHS[name](), name, ratio=0.99, scope=scope)
    prunable = [g for g in result.report["groups"] if g["exact"] and g["units"] > 1]
    assert prunable and all(g["kept"] == 1 for g in prunable)
    assert all(0 not in a.shape for a in arrays(to_proto(result.model)).values())


# ---- errors -------------------------------------------------------------------------------------


def test_a_target_out_of_reach_says_what_can_be_reached() -> None:
    model = GRAPHS["dense_concat"]()
    for kind in ("macs", "params"):
        with pytest.raises(TargetError, match="at best 0") as raised:
            prune(model, "dense_concat", **{kind: 0.0001})
        assert raised.value.exit_code == 4
        best = float(str(raised.value).split("at best ")[1].split()[0])
        result = prune(model, "dense_concat", **{kind: best})
        assert all(g["kept"] == 1 for g in result.report["groups"])
        with pytest.raises(TargetError):
            prune(model, "dense_concat", **{kind: best * 0.99})


def test_nothing_prunable() -> None:
    with pytest.raises(TargetError, match="nothing in this model can be pruned"):
        prune(GRAPHS["dense_concat"](), "dense_concat", ratio=0.5, protect=["*"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one target"),
        ({"ratio": 0.5, "macs": 0.5}, "exactly one target"),
        ({"ratio": 1.0}, "less than 1, not 1"),
        ({"ratio": 0.0}, "more than 0"),
        ({"macs": 1.5}, "at most 1, not 1.5"),
        ({"params": -1.0}, "more than 0"),
        ({"params": math.nan}, "not nan"),
        ({"ratio": 0.5, "round_to": 0}, "round-to must be at least 1 .*not 0"),
        ({"ratio": 0.5, "max_ratio": 0.0}, "max-ratio must be more than 0"),
        ({"ratio": 0.5, "criterion": "taylor"}, "taylor"),
        ({"ratio": 0.5, "dims": {"M": 3}}, "no symbolic dimension is called 'M'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        prune(GRAPHS["dense_concat"](), **options)
    assert "\n" not in str(raised.value)


def test_bad_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        prune(tmp_path / "missing.onnx", ratio=0.5)
    (tmp_path / "garbage.onnx").write_bytes(b"no model at all")
    with pytest.raises(ModelError):
        prune(tmp_path / "garbage.onnx", ratio=0.5)
    with pytest.raises(UsageError, match=r"'T'.*--dim T=SIZE"):
        prune(GRAPHS["conv1d"](), ratio=0.5)


# ---- the report ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNNABLE)
def test_report_agrees_with_the_files(name: str, tmp_path: Path) -> None:
    original = GRAPHS[name]()
    path, out = saved(original, tmp_path / "in.onnx"), tmp_path / "out.onnx"
    result = prune(path, name, ratio=0.5, seed=7)
    result.save(out, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    json.dumps(report, allow_nan=False)
    pruned = onnx.load(out)

    for key, file in (("original", path), ("pruned", out)):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        wanted = {"file": file.name, "sha256": digest, "bytes": file.stat().st_size}
        assert report[key].items() >= wanted.items()
    assert report["seed"] == 7 and report["dims"] == dims(name)
    assert report["certificate"]["ok"] and report["certificate"]["replay"]["agrees"]
    assert report["certificate"]["seeds"] == [7, 8, 9]

    totals = report["totals"]
    counts: dict[str, Callable[[onnx.ModelProto], int]] = {
        "macs": lambda m: counted_macs(m, dims(name)),
        "parameters": counted_parameters,
        "weight_bytes": stored_bytes,
        "file_bytes": lambda m: (path if m is original else out).stat().st_size,
    }
    for key, count in counts.items():
        before, after = count(original), count(pruned)
        # Shape arithmetic that became constants is no parameter, nor in the estimate of bytes.
        if key == "parameters":
            after -= sum(t.name.endswith("_pruned") and t.data_type == onnx.TensorProto.FLOAT
                         for t in pruned.graph.initializer)  # fmt: skip
        if key == "weight_bytes" and constants(original).keys() != constants(pruned).keys():
            continue
        assert (totals[key]["before"], totals[key]["after"]) == (before, after), key
        assert totals[key]["removed_share"] == pytest.approx(1 - after / before, abs=1e-6)
        assert totals[key]["times_smaller"] == pytest.approx(before / after, abs=1e-6)
    assert sum(layer["macs"]["after"] for layer in report["layers"]) == totals["macs"]["after"]
    assert sum(layer["macs"]["before"] for layer in report["layers"]) == totals["macs"]["before"]

    for group in report["groups"]:
        assert group["kept"] + group["removed"] == group["units"] and group["kept"] >= 1
    units = totals["units"]
    assert units["before"] == sum(g["units"] for g in report["groups"])
    assert units["after"] == sum(g["kept"] for g in report["groups"])

    old, new = constants(original), constants(pruned)
    shrunk = {(t, k) for t in old.keys() & new.keys()
              for k, (a, b) in enumerate(zip(old[t].dims, new[t].dims, strict=False)) if a != b
              if old[t].data_type != onnx.TensorProto.INT64}  # fmt: skip
    listed = {(e["tensor"], e["axis"]) for e in report["removed"]}
    assert shrunk <= listed and len(listed) == len(report["removed"])
    owned = {(w["tensor"], w["axis"]) for g in report["groups"] for w in g["weights"]}
    for entry in report["removed"]:
        tensor, axis, indices = entry["tensor"], entry["axis"], entry["indices"]
        assert indices == sorted(set(indices)) and indices[0] >= 0
        assert indices[-1] < old[tensor].dims[axis]
        assert new[tensor].dims[axis] == old[tensor].dims[axis] - len(indices)
        assert entry["role"] in ("producer", "consumer", "coupled")
        assert (tensor, axis) in owned or old[tensor].data_type != onnx.TensorProto.FLOAT
    for tensor in {t for t, _ in listed}:
        array = numpy_helper.to_array(old[tensor])
        for entry in (e for e in report["removed"] if e["tensor"] == tensor):
            array = np.delete(array, entry["indices"], entry["axis"])
        np.testing.assert_array_equal(numpy_helper.to_array(new[tensor]), array)


ROLES = {
    "residual_projected": {
        "producer": "w0[0] w1[0] w2[0] w3[0]",
        "consumer": "w1[1] w2[1] w3[1] wy[1]",
        "coupled": "n_s[0] n_b[0] n_m[0] n_v[0]",
    },
    "depthwise_multiplier": {
        "producer": "w0[0] wd[0] w2[0]", "consumer": "w2[1] wy[1]", "coupled": "bd[0]"
    },
    "gemm_forms": {
        "producer": "w1[1] w2[0] w3[1] w4[0]", "consumer": "w2[1] w3[0] w4[1] w5[0]",
        "coupled": "b1[0] b2[1] b3[0]",
    },
    "qdq": {
        "producer": "w1[0] w2[0]", "consumer": "w2[1] wy[1]",
        "coupled": "s1[0] z1[0] b1[0] sb1[0] s2[0] z2[0] b2[0] sb2[0]",
    },
    "swiglu_fused": {"producer": "wgu[1]", "consumer": "wd[0]", "coupled": "bgu[0]"},
    "conv_transpose_grouped": {
        "producer": "w0[0] w1[0]", "consumer": "wy[1]", "coupled": "b1[0]"
    },
    "positional_embedding": {
        "producer": "table[1] position[1] w1[1] w2[1]", "consumer": "w1[0] w2[0] wy[0]",
        "coupled": "b1[0] b2[0]",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ROLES)
def test_roles(name: str) -> None:
    found: dict[str, set[str]] = {}
    for entry in prune(GRAPHS[name](), name, ratio=0.5).report["removed"]:
        found.setdefault(entry["role"], set()).add(f"{entry['tensor']}[{entry['axis']}]")
    assert found == {role: set(names.split()) for role, names in ROLES[name].items()}


def test_warnings_name_operators_without_a_rule() -> None:
    result = prune(GRAPHS["if_captured_feature"](), "if_captured_feature", ratio=0.5)
    assert any("If" in warning for warning in result.report["warnings"])
    assert prune(GRAPHS["option_a"](), "option_a", ratio=0.5).report["warnings"] == []


def test_save_reports_the_file_written(tmp_path: Path) -> None:
    result = prune(GRAPHS["option_a"](), "option_a", ratio=0.5)
    assert result.report["original"]["file"] is None
    result.save(tmp_path / "a.onnx")
    assert result.report["pruned"]["file"] == "a.onnx"
    with pytest.raises(UsageError):
        result.save(tmp_path / "no" / "such" / "folder.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


# ---- files --------------------------------------------------------------------------------------


def test_external_data_stays_external(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    model = GRAPHS["inception"]()
    path = source / "in.onnx"
    options: dict[str, Any] = {"location": "weights.bin", "size_threshold": 1024}
    saved(GRAPHS["inception"](), path, save_as_external_data=True, **options)
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    assert set(before) == {"in.onnx", "weights.bin"}
    result = prune(path, "inception", ratio=0.5)
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    result.save(target / "out.onnx")
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert {p.name for p in target.iterdir()} == {"out.onnx", "out.onnx.data"}
    head = onnx.load(target / "out.onnx", load_external_data=False)
    large = [t for t in head.graph.initializer if math.prod(t.dims) * 4 > 1024]
    assert large and all(t.data_location == onnx.TensorProto.EXTERNAL for t in large)
    size = sum(p.stat().st_size for p in target.iterdir())
    assert result.report["pruned"]["bytes"] == size < sum(map(len, before.values()))
    assert result.report["original"]["bytes"] == sum(map(len, before.values()))

    inline = prune(model, "inception", ratio=0.5)
    there = onnx.load(target / "out.onnx")
    feed = feeds(model, N=3)
    assert_same(run(there, feed), run(to_proto(inline.model), feed))

    result.save(path)  # over the file that the weights are still mapped from
    again = onnx.load(path)
    assert_same(run(again, feed), run(there, feed))
