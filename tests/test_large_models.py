"""Models too large to be held: run in segments, proved from files, written one weight at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest

import secateur
from secateur.ir.errors import CertificateError
from secateur.runtime import runnable as module
from secateur.runtime.segments import cut_segments, run_segments, stored_bytes
from secateur.runtime.session import make_session, run
from tests.graphs import GRAPHS, INFO, feeds

LIMIT = 300
"""Bytes: nearly every node with weights becomes a segment of its own."""

OF_SEQUENCES = {"loop_of_sequences", "loop_of_steps", "sizes_in_a_sequence"}
"""A sequence cannot pass from one segment to the next."""

RUNNABLE = sorted(n for n, i in INFO.items() if i.runnable and n not in OF_SEQUENCES)


@pytest.mark.parametrize("name", RUNNABLE)
def test_segments_compute_what_the_whole_computes(name: str) -> None:
    model = GRAPHS[name]()
    inputs = [feeds(model, seed) for seed in (0, 1)]
    # With weights packed beforehand, QMoE of 8 bits in blocks rounds the tokens to steps, too.
    whole = make_session(model, optimize=False, prepack=False)
    parts = list(run_segments(model, inputs, optimize=False, limit=LIMIT))
    assert len(parts) == len(inputs)
    for feed, found in zip(inputs, parts, strict=True):
        wanted = run(whole, feed)
        assert found.keys() == wanted.keys()
        for key, array in wanted.items():
            # ONNX Runtime computes several float16 nodes in a row without rounding in between, and
            # kernels that find their weights constant add up in other orders.
            error = (5e-3 if array.dtype == np.float16 else 1e-6) * np.abs(array).max()
            np.testing.assert_allclose(found[key], array, rtol=0, atol=error)


def test_segments_hold_no_more_than_the_limit() -> None:
    model = GRAPHS["tied_convs"]()
    sizes = [stored_bytes(tensor) for tensor in model.graph.initializer]
    limit = max(sizes) + 64
    segments = cut_segments(model, limit)
    assert len(segments) > 1
    assert [n for s in segments for n in s.nodes] == list(model.graph.node)
    for segment in segments:
        assert sum(map(stored_bytes, segment.weights)) <= limit or len(segment.nodes) == 1


def test_a_missing_value_is_named() -> None:
    model = GRAPHS[RUNNABLE[0]]()
    with pytest.raises(CertificateError, match="computes"):
        next(run_segments(model, [{}]))


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 0)


@pytest.mark.parametrize("external", [False, True])
def test_a_large_model_is_pruned_and_verified_from_files(
    external: bool, tmp_path: Path, everything_is_large: None
) -> None:
    weights = {"w1": (64, 300), "w2": (300, 200), "w3": (200, 8)}
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 64] x) => (float[N, 8] y) {
          a = MatMul(x, w1)  b = Relu(a)  c = MatMul(b, w2)  d = Relu(c)  y = MatMul(d, w3) }"""
    )
    for name, shape in weights.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    source = tmp_path / "model.onnx"
    onnx.save_model(
        model, str(source), save_as_external_data=external, location="model.bin", size_threshold=0
    )
    result = secateur.prune(source, ratio=0.5, bench=False)
    assert result.certificate is not None and result.certificate.ok
    output, report = tmp_path / "out" / "small.onnx", tmp_path / "out" / "report.json"
    output.parent.mkdir()
    result.save(output, report)
    assert (output.parent / "small.onnx.data").exists() == external
    assert secateur.verify(source, output, report).ok
    pruned = onnx.load(str(output))
    shapes = {t.name: tuple(t.dims) for t in pruned.graph.initializer}
    assert shapes == {"w1": (64, 150), "w2": (150, 100), "w3": (100, 8)}


def test_a_wrong_large_model_is_refused(everything_is_large: None) -> None:
    """The segments are compared in earnest: one changed weight is found."""
    plan = secateur.plan(secateur.analyze("examples/digits.onnx"), ratio=0.3)
    rewritten = secateur.rewrite(plan)
    assert secateur.certify(plan, rewritten).ok
    value = next(v for v in rewritten.model.graph.initializers.values() if len(v.shape or ()) == 4)
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array.flat[0] += 1
    value.const_value = oir.Tensor(array, name=value.name)
    assert not secateur.certify(plan, rewritten).ok
