"""The report: complete, true, of the published form, and enough to repeat the pruning."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from jsonschema import Draft202012Validator
from onnx import numpy_helper

import secateur
from secateur.driver.report import read_report, to_text

from .graphs import GRAPHS, INFO, Array, feeds
from .pruning_checks import PLAIN

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits.onnx"
PAGE = (ROOT / "docs" / "report.md").read_text("utf-8")
FORM = json.loads((ROOT / "docs" / "report.schema.json").read_text("utf-8"))
SCHEMA = Draft202012Validator(FORM)
EXACT = [n for n in PLAIN if INFO[n].exact_groups]
Report = dict[str, Any]


@pytest.fixture(scope="module")
def digits() -> Report:
    """The report of the command on the page, as a file would hold it."""
    found: Report = json.loads(to_text(secateur.prune(DIGITS, macs=0.5).report))
    return found


def functions() -> dict[str, Callable[..., Any]]:
    """The functions that the page defines."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        if "def " in block:
            exec(block, names)
    return names


cut_out = functions()["cut_out"]
set_to_zero = functions()["set_to_zero"]


def dims(name: str) -> dict[str, int]:
    return {dim: 2 + i for i, dim in enumerate(INFO[name].dims)}


def outputs(model: onnx.ModelProto, feed: dict[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def weights(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """Initializers, and the values of Constant nodes by their output."""
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = attribute.t
    return {name: numpy_helper.to_array(tensor) for name, tensor in found.items()}


def pruned(model: onnx.ModelProto, pipeline: str, **sizes: int) -> tuple[onnx.ModelProto, Report]:
    result = secateur.run(model, pipeline, dims=sizes, bench=False)
    SCHEMA.validate(json.loads(to_text(result.report)))
    return secateur.ir.io.to_proto(result.model), result.report


# --- repeating the pruning ---


def check_zeroed(name: str, model: onnx.ModelProto, small: onnx.ModelProto, report: Report) -> None:
    """The original with the removed slices at zero equals the pruned model."""
    zeroed = onnx.ModelProto()
    zeroed.CopyFrom(model)
    set_to_zero(zeroed, report["removed"])
    feed = feeds(model, **dims(name))
    wanted, got = outputs(zeroed, feed), outputs(small, feed)
    for output, array in wanted.items():
        assert np.isfinite(array).all()
        tolerance = 4e-3 if array.dtype == np.float16 else 1e-5
        tolerance *= float(np.abs(array.astype(np.float64)).max())
        np.testing.assert_allclose(got[output], array, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", EXACT)
def test_removed_is_enough_to_repeat_a_pruning(name: str) -> None:
    model = GRAPHS[name]()
    small, report = pruned(model, "prune{ratio=0.5}", **dims(name))
    assert report["removed"]
    check_zeroed(name, model, small, report)
    before, after = weights(model), weights(small)
    cut = {entry["tensor"] for entry in report["removed"]}
    smaller = cut_out(before, report["removed"])
    assert cut <= before.keys(), "not named as in the original"
    copied = {entry["stored_as"] for entry in report["copies"]}
    for tensor in (cut & after.keys()) - copied:
        np.testing.assert_array_equal(after[tensor], smaller[tensor], err_msg=tensor)
    for tensor in copied:
        entries = [entry for entry in report["copies"] if entry["stored_as"] == tensor]
        (source,) = {entry["tensor"] for entry in entries}
        copy = cut_out({source: before[source]}, entries)[source]
        np.testing.assert_array_equal(after[tensor], copy, err_msg=tensor)
    for tensor in INFO[name].must_shrink:
        assert tensor in cut


PIPELINES = [
    "fold-constants,fold-batchnorm,eliminate-dead,prune{ratio=0.5}",
    "prune{ratio=0.3},prune{ratio=0.3}",
    "prune{ratio=0.3},fold-batchnorm,prune{ratio=0.3},fold-constants",
]


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize(
    "name",
    [
        "batch_norm_activations",
        "residual_projected",
        "opset7",
        "swin_block",
        "fused_qkv_split",
        "grouped_conv",
        "weights_in_constants",
        "tied_convs",
        "dq_weights",
    ],
)
def test_removed_names_the_original_whatever_went_before(name: str, pipeline: str) -> None:
    model = GRAPHS[name]()
    small, report = pruned(model, pipeline, **dims(name))
    assert {entry["tensor"] for entry in report["removed"]} <= weights(model).keys()
    assert len(report["removed"]) == len({(e["tensor"], e["axis"]) for e in report["removed"]})
    check_zeroed(name, model, small, report)


def test_slices_of_two_prunings_count_in_the_original() -> None:
    model = onnx.load(DIGITS)
    small, report = pruned(model, "prune{ratio=0.3},prune{ratio=0.3}")
    smaller = cut_out(weights(model), report["removed"])
    for name, array in weights(small).items():
        np.testing.assert_array_equal(array, smaller[name])
    assert [g["pass"] for g in report["groups"]] == [1] * 7 + [2] * 7
    assert report["totals"]["units"]["after"] == sum(
        g["kept"] for g in report["groups"] if g["pass"] == 2
    )


def test_roles(digits: Report) -> None:
    """As the convolution and Gemm of ONNX define them: rows make channels, columns contract."""
    for entry in digits["removed"]:
        if entry["tensor"].endswith(".bias"):
            assert (entry["axis"], entry["role"]) == (0, "coupled")
        else:
            assert entry["role"] == {0: "producer", 1: "consumer"}[entry["axis"]]


# --- what the report says is true ---


def test_groups_and_removed_agree(digits: Report) -> None:
    gone = {(e["tensor"], e["axis"]): len(e["indices"]) for e in digits["removed"]}
    for group in digits["groups"]:
        assert group["kept"] + group["removed"] == group["units"]
        for place in group["weights"]:
            assert gone.get((place["tensor"], place["axis"]), 0) == group["removed"]


def test_totals_and_layers(digits: Report) -> None:
    totals = digits["totals"]
    for entry in totals.values():
        before, after = entry["before"], entry["after"]
        assert entry["removed_share"] == pytest.approx(1 - after / before, abs=1e-6)
        assert entry["times_smaller"] == pytest.approx(before / after, abs=1e-6)
    for key in ("macs", "parameters"):
        for moment in ("before", "after"):
            assert sum(row[key][moment] for row in digits["layers"]) == totals[key][moment]
    model = onnx.load(DIGITS)
    layers = [n.name for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    assert [row["name"] for row in digits["layers"]] == layers
    assert totals["parameters"]["before"] == sum(a.size for a in weights(model).values())
    assert totals["weight_bytes"]["before"] == sum(a.nbytes for a in weights(model).values())
    image, maps = 4 * 1 * 64, 4 * 16 * 64
    first, second = (row["live_bytes"]["before"] for row in digits["layers"][:2])
    assert (first, second) == (image + maps, 2 * maps), "one image in float32, 16 channels of 8x8"
    for row in digits["layers"]:
        assert row["live_bytes"]["after"] <= totals["peak_activation_bytes"]["after"]


def test_layers_that_a_pass_folds_have_no_after() -> None:
    _, report = pruned(GRAPHS["batch_norm_activations"](), "fold-batchnorm,prune{ratio=0.5}")
    (folded,) = {
        (row["op_type"], row["macs"]["after"])
        for row in report["layers"]
        if row["op_type"] == "BatchNormalization"
    }
    assert folded == ("BatchNormalization", None)


def test_versions_machine_and_digests(tmp_path: Path) -> None:
    result = secateur.prune(DIGITS, macs=0.5, bench=False)
    report = result.report
    assert report["secateur"] == secateur.__version__
    for name, version in report["libraries"].items():
        assert version == importlib.metadata.version(name)
    assert report["machine"]["python"] == platform.python_version()
    assert report["pruned"]["file"] is None
    result.save(tmp_path / "o.onnx", tmp_path / "r.json")
    written = json.loads((tmp_path / "r.json").read_text("utf-8"))
    for name, path in {"original": DIGITS, "pruned": tmp_path / "o.onnx"}.items():
        data = path.read_bytes()
        assert written[name]["file"] == path.name
        assert written[name]["sha256"] == hashlib.sha256(data).hexdigest()
        assert written[name]["bytes"] == len(data)
    assert written == json.loads(to_text(result.report))


def test_options_and_phases(digits: Report) -> None:
    assert digits["pipeline"] == "prune{macs=0.5}"
    (options,) = digits["options"]
    assert options["macs"] == 0.5 and options["criterion"] == "l2"
    assert list(digits["seconds"]) == ["load", "analyse", "allocate", "rewrite", "certify", "time"]
    (only,) = digits["passes"]
    phases = digits["seconds"]
    inside = sum(phases[k] for k in ("analyse", "allocate", "rewrite", "certify"))
    assert 0 < inside <= only["seconds"] + 1e-3
    assert only["statistics"]["units"] == sum(g["removed"] for g in digits["groups"])


def test_certificate_and_timing(digits: Report) -> None:
    certificate = digits["certificate"]
    assert certificate["ok"] and certificate["replay"]["agrees"]
    assert len(certificate["runs"]) == 3 * 2 * 2, "seeds, sizes, optimisation off and on"
    for entry in certificate["runs"]:
        assert entry["relative"] <= entry["tolerance"] == 1e-5
        assert entry["relative"] == pytest.approx(entry["error"] / entry["scale"])
    timing = digits["timing"]
    assert timing["original"]["runs"] == timing["pruned"]["runs"] >= 20
    for entry in (timing["original"], timing["pruned"]):
        assert entry["p25_ms"] <= entry["p50_ms"] <= entry["p75_ms"]
        assert entry["iqr_ms"] == pytest.approx(entry["p75_ms"] - entry["p25_ms"])
    speedup = timing["speedup"]
    assert 0 < speedup["low"] <= speedup["ratio"] <= speedup["high"]


def test_warnings_name_operators_without_a_rule() -> None:
    _, report = pruned(GRAPHS["distances"](), "prune{ratio=0.5}")
    assert any(
        "no coupling rule for com.microsoft.CDist" in warning for warning in report["warnings"]
    )


def test_a_pipeline_that_prunes_nothing() -> None:
    model = onnx.load(DIGITS)
    _, report = pruned(model, "fold-constants")
    assert (report["certificate"], report["removed"], report["groups"]) == (None, [], [])
    assert report["totals"]["macs"]["removed_share"] == 0
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    _, report = pruned(model, "eliminate-dead")
    assert list(report["totals"]) == ["file_bytes"] and report["layers"] == []


# --- the form ---


def test_the_schema_is_one_and_is_strict(digits: Report) -> None:
    Draft202012Validator.check_schema(FORM)
    SCHEMA.validate(digits)
    open_objects = [
        path
        for path, part in objects(FORM)
        if part.get("type") == "object" and "additionalProperties" not in part
    ]
    assert open_objects == []
    for key in digits:
        without = {k: v for k, v in digits.items() if k != key}
        assert not SCHEMA.is_valid(without), f"{key} is required"
    for path, value in {
        ("schema_version",): 2,
        ("more",): 1,
        ("removed", 0, "role"): "other",
        ("removed", 0, "indices"): [],
        ("original", "sha256"): "0",
        ("groups", 0, "kept"): 0,
        ("certificate", "runs", 0, "optimisation"): "half",
    }.items():
        changed = json.loads(json.dumps(digits))
        place = changed
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        assert not SCHEMA.is_valid(changed), path


def objects(part: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every schema in a schema."""
    found = []
    if isinstance(part, dict):
        found = [(path, part)]
        for key, value in part.items():
            found += objects(value, f"{path}/{key}")
    elif isinstance(part, list):
        for index, value in enumerate(part):
            found += objects(value, f"{path}/{index}")
    return found


def test_every_field_is_described_on_the_page(digits: Report) -> None:
    mentioned = set(re.findall(r"`([\w.]+)`", PAGE))
    mentioned |= set(re.findall(r'"(\w+)":', PAGE))
    free = ("options", "dims", "bindings", "libraries", "statistics")
    names = {
        key
        for path, part in objects(FORM)
        if not path.endswith("/properties")
        for key in part.get("properties", {})
    }
    assert names - mentioned - set(free) - {"pass"} == set()


def test_the_examples_on_the_page_are_real(digits: Report) -> None:
    examples = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(examples) == 4
    for text in examples:
        assert contained(json.loads(text), digits), text


def contained(part: Any, whole: Any) -> bool:
    """Whether ``part`` is ``whole`` with keys and list entries left out."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and contained(value, whole[key]) for key, value in part.items()
        )
    if isinstance(part, list) and any(isinstance(item, dict) for item in part):
        return all(any(contained(item, other) for other in whole) for item in part)
    return bool(part == whole)


def test_numbers_that_json_does_not_have_become_null() -> None:
    report = {"a": float("nan"), "b": [np.float32("inf"), 1.5], "c": np.int64(3), "d": [1, -2]}
    text = to_text(report)
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": 3, "d": [1, -2]}
    assert '"d": [1, -2]' in text


def test_reading_what_was_written(tmp_path: Path, digits: Report) -> None:
    path = tmp_path / "r.json"
    path.write_text(to_text(digits), "utf-8")
    assert read_report(path) == digits
    with pytest.raises(secateur.DataError, match="schema version 1"):
        read_report(digits | {"schema_version": 2})
