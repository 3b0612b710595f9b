"""`secateur.prune` from outside: sources, limits, bad options, and files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from secateur.ir.errors import ModelError, TargetError, UsageError
from secateur.ir.io import save_model, to_proto

from .graphs import GRAPHS, feeds
from .pruning_checks import SOME, arrays, assert_same, prune, run, saved

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
        ({}, "at least one target: `ratio`, `macs`, .*, `latency_ms`, `min_quality`"),
        ({"ratio": 0.5, "macs": 0.5}, "`ratio` cannot be combined"),
        ({"ratio": 1.0}, "less than 1, not 1"),
        ({"ratio": 0.0}, "more than 0"),
        ({"macs": 1.5}, "at most 1, not 1.5"),
        ({"params": -1.0}, "more than 0"),
        ({"params": math.nan}, "not nan"),
        ({"ratio": 0.5, "round_to": 0}, "`round_to` must be at least 1 .*not 0"),
        ({"ratio": 0.5, "max_ratio": 0.0}, "`max_ratio` must be more than 0"),
        ({"ratio": 0.5, "criterion": "tailor"}, "tailor"),
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

    for name in before:
        with pytest.raises(UsageError, match="write to another file"):
            result.save(source / name)
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    save_model(result.model, path)  # over the file that the weights are still mapped from
    again = onnx.load(path)
    assert_same(run(again, feed), run(there, feed))
