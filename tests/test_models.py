"""Real trained models: every one prunes at a ratio of 0.3, certifies, and runs.

The models are those below the folder that SECATEUR_MODELS names, or else below ``../shared/data``
beside the repository.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import secateur
from secateur.ir.analysis import analyze
from secateur.ir.errors import TargetError
from secateur.ir.io import load_model, to_proto
from secateur.runtime import certificate
from secateur.runtime.inputs import random_feed

from .pruning_checks import check_interface, constants, run, zeroed

FOLDER = Path(
    os.environ.get("SECATEUR_MODELS") or Path(__file__).resolve().parents[2] / "shared" / "data"
)
MODELS = {str(path.relative_to(FOLDER)): path for path in sorted(FOLDER.rglob("*.onnx"))}

SIZES: dict[str, dict[str, int]] = {
    "ppocr_cls": {"p2o.DynamicDimension.1": 48, "p2o.DynamicDimension.2": 192},
    "silero_vad_16k_op15": {"sequence": 512},
    "yunet_n_dynamic": {"height": 320, "width": 320},
}
SLOW = {"dnsmos"}
"""Nine seconds of sound in 64 maps of 900 x 161: half a second per sample, and a certificate runs
nine samples five times. One sample will do here."""
STATEFUL = {"dtln_1"}
"""Reads its recurrent state from an input and writes it to an output: nothing else holds it."""
ONE_SIZE = {"silero_vad_16k_op15"}
"""Runs on 512 samples of sound at a time and on no other number, whatever its input says."""

pytestmark = pytest.mark.skipif(not MODELS, reason=f"no models below {FOLDER}")


@pytest.mark.parametrize("name", MODELS or ["none"])
def test_prune(name: str, tmp_path: Path) -> None:
    path, dims = MODELS[name], SIZES.get(MODELS[name].stem, {})
    before = path.read_bytes()
    try:
        pruned, removed = _prune_once(path) if path.stem in SLOW else _prune(path, dims, tmp_path)
    except TargetError as error:
        assert path.stem in STATEFUL and "nothing in this model can be pruned" in str(error)
        within = analyze(load_model(path), dims, interface=False)
        assert max(len(group.units) for group in within.groups) >= 64
        return
    assert path.read_bytes() == before

    original = onnx.load(path)
    onnx.checker.check_model(pruned, full_check=True)
    check_interface(original, pruned)
    old, new = constants(original), constants(pruned)
    for entry in removed:
        size = old[entry["tensor"]].dims[entry["axis"]]
        assert new[entry["tensor"]].dims[entry["axis"]] == size - len(entry["indices"])

    bindings = [f.binding for f in secateur.analyze(original, dims=dims).facts]
    if path.stem in SLOW | ONE_SIZE:
        del bindings[1:]
    for binding in bindings:
        feed = random_feed(original, binding, 11)
        got = run(pruned, feed)
        replay = zeroed(original, ((e["tensor"], e["axis"], e["indices"]) for e in removed))
        for output, wanted in run(replay, feed).items():
            assert got[output].shape == wanted.shape and got[output].dtype == wanted.dtype
            scale = float(np.abs(wanted).max(initial=0.0))
            np.testing.assert_allclose(got[output], wanted, rtol=0, atol=1e-4 * scale)


def _prune(path: Path, dims: dict[str, int], folder: Path) -> tuple[onnx.ModelProto, list[Any]]:
    result = secateur.prune(path, ratio=0.3, dims=dims, bench=False, threads=1)
    assert result.certificate is not None and result.certificate.ok
    assert result.certificate.replay is not None and result.certificate.replay["agrees"]
    totals = result.report["totals"]
    assert 0.2 < totals["units"]["removed_share"] < 0.35
    assert totals["macs"]["removed_share"] > 0.2 and totals["parameters"]["removed_share"] > 0.2
    result.save(folder / "pruned.onnx")
    assert (folder / "pruned.onnx").stat().st_size < 0.85 * path.stat().st_size
    return onnx.load(folder / "pruned.onnx"), result.report["removed"]


def _prune_once(path: Path) -> tuple[onnx.ModelProto, list[Any]]:
    """Step by step, so that the certificate can do with one sample."""
    from secateur.ir.reference import reference_points
    from secateur.passes.proof import facts_types

    found = secateur.analyze(path)
    plan = secateur.plan(found, ratio=0.3)
    rewritten = secateur.rewrite(plan)
    pruned = to_proto(rewritten.model)
    masks, compactions = reference_points(found, plan.removed)
    proof = certificate.certify(
        to_proto(found.model), pruned, masks, compactions, bindings=[found.facts[0].binding],
        seeds=[0], threads=1, types=facts_types(found.facts),
    )  # fmt: skip
    assert proof.ok
    removed = [{"tensor": s.tensor, "axis": s.axis, "indices": s.indices} for s in rewritten.slices]
    return pruned, removed
