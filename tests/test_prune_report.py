"""The report of a pruning against the files before and after it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from secateur.ir.errors import UsageError

from .graphs import GRAPHS
from .pruning_checks import PLAIN, constants, dims, prune, saved
from .test_cost import BY_DATA, counted_macs, counted_parameters, stored_bytes


@pytest.mark.parametrize("name", PLAIN)
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
        if key == "macs" and name in BY_DATA:
            continue
        before, after = count(original), count(pruned)
        # Shape arithmetic that became constants is no parameter, nor in the estimate of bytes.
        if key == "parameters":
            after -= sum("_pruned" in t.name and t.data_type == onnx.TensorProto.FLOAT
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
    copied = {entry["tensor"] for entry in report["copies"]}  # `test_report` compares these
    assert {place for place in shrunk if place[0] not in copied} <= listed
    assert len(listed) == len(report["removed"])
    for group in report["groups"]:
        places = [(w["tensor"], w["axis"]) for w in group["weights"]]
        assert len(set(places)) == len(places)
    owned = {(w["tensor"], w["axis"]) for g in report["groups"] for w in g["weights"]}
    for entry in report["removed"]:
        tensor, axis, indices = entry["tensor"], entry["axis"], entry["indices"]
        assert indices == sorted(set(indices)) and indices[0] >= 0
        assert indices[-1] < old[tensor].dims[axis]
        if tensor not in copied:
            assert new[tensor].dims[axis] == old[tensor].dims[axis] - len(indices)
        assert entry["role"] in ("producer", "consumer", "coupled")
        assert (tensor, axis) in owned or old[tensor].data_type != onnx.TensorProto.FLOAT
    for tensor in {t for t, _ in listed} - copied:
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
        "producer": "w0[0] w1[1]", "consumer": "w1[0] wy[1]", "coupled": "b1[0]"
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
    result = prune(GRAPHS["distances"](), "distances", ratio=0.5)
    assert any("CDist" in warning for warning in result.report["warnings"])
    assert prune(GRAPHS["option_a"](), "option_a", ratio=0.5).report["warnings"] == []


def test_save_reports_the_file_written(tmp_path: Path) -> None:
    result = prune(GRAPHS["option_a"](), "option_a", ratio=0.5)
    assert result.report["original"]["file"] is None
    result.save(tmp_path / "a.onnx")
    assert result.report["pruned"]["file"] == "a.onnx"
    with pytest.raises(UsageError):
        result.save(tmp_path / "no" / "such" / "folder.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
