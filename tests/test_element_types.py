"""Every element type that weights come in: sliced as stored, proved, and never widened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import secateur
from secateur.ir.io import to_proto
from secateur.runtime import runnable
from secateur.runtime.inputs import random_feed
from secateur.runtime.session import KernelError, make_session, run
from secateur.runtime.widened import uses_bfloat16, widened

from .pruning_checks import constants

SIZES = {"w1": (8, 32), "b1": (32,), "w2": (32, 16), "w3": (16, 4)}
BODY = """
  a = MatMul(x, w1)  b = Add(a, b1)  c = Relu(b)  d = MatMul(c, w2)  e = Relu(d)  y = MatMul(e, w3)
"""


def floats(element: str, dtype: npt.DTypeLike) -> onnx.ModelProto:
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g ({element}[N, 8] x) => ({element}[N, 4] y) {{ {BODY} }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in SIZES.items():
        array = (rng.standard_normal(shape) * 0.4).astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def dequantised(element: int, layout: str, opset: int) -> onnx.ModelProto:
    """Three matrix products whose weights are stored in a narrow type."""
    attributes = {"per tensor": "", "per channel": "<axis=1>", "blocked": "<axis=0, block_size=4>"}
    lines, value = [], "x"
    for k in range(3):
        lines.append(f"d{k} = DequantizeLinear{attributes[layout]}(w{k}, s{k})")
        lines.append(f"m{k} = MatMul({value}, d{k})")
        lines.append(f"r{k} = Relu(m{k})")
        value = f"r{k}"
    model = parser.parse_model(
        f"""<ir_version: {11 if opset > 22 else 10}, opset_import: ["": {opset}]>
        g (float[N, 8] x) => (float[N, 4] r2) {{ {" ".join(lines)} }}"""
    )
    rng = np.random.default_rng(1)
    signed = not TensorProto.DataType.Name(element).startswith("U")
    for k, (rows, columns) in enumerate(((8, 32), (32, 16), (16, 4))):
        low, high = (-2, 2) if signed else (0, 4)
        values = rng.integers(low, high, rows * columns).tolist()
        model.graph.initializer.append(
            helper.make_tensor(f"w{k}", element, (rows, columns), values)
        )
        scales: dict[str, tuple[int, ...]] = {
            "per tensor": (),
            "per channel": (columns,),
            "blocked": (rows // 4, columns),
        }
        scale = rng.uniform(0.05, 0.2, scales[layout]).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(scale), f"s{k}"))
    return model


@pytest.mark.parametrize(
    ("element", "dtype"),
    [("float16", np.float16), ("double", np.float64), ("bfloat16", ml_dtypes.bfloat16)],
)
def test_floats_stay_what_they_are(element: str, dtype: Any) -> None:
    model = floats(element, dtype)
    result = secateur.prune(model, ratio=0.5, bench=False)
    assert result.certificate is not None and result.certificate.ok
    before = {t.name: t for t in model.graph.initializer}
    for tensor in to_proto(result.model).graph.initializer:
        assert tensor.data_type == before[tensor.name].data_type
        kept = numpy_helper.to_array(tensor).astype(np.float64)
        whole = numpy_helper.to_array(before[tensor.name]).astype(np.float64)
        assert np.isin(kept, whole).all() and kept.size < whole.size


NARROW = "INT2 UINT2 INT4 UINT4 INT8 UINT8 INT16 UINT16 FLOAT8E4M3FN FLOAT8E5M2".split()


@pytest.mark.parametrize("layout", ["per tensor", "per channel", "blocked"])
@pytest.mark.parametrize("element", NARROW)
def test_narrow_weights_stay_packed(element: str, layout: str) -> None:
    kind = TensorProto.DataType.Value(element)
    model = dequantised(kind, layout, 25 if element.endswith("INT2") else 21)
    result = secateur.prune(model, ratio=0.5, bench=False)
    assert result.certificate is not None and result.certificate.ok
    shapes = {"w0": (8, 16), "w1": (16, 8), "w2": (8, 4)}
    widths = {"2": 2, "4": 4, "8": 8, "6": 16, "N": 8}
    for tensor in to_proto(result.model).graph.initializer:
        if tensor.name in shapes:
            assert tensor.data_type == kind and tuple(tensor.dims) == shapes[tensor.name]
            bits = widths["8" if "FLOAT8" in element else element[-1]]
            assert len(tensor.raw_data) == np.prod(shapes[tensor.name]) * bits // 8


def test_bfloat16_is_proved_in_float32_and_not_timed(tmp_path: Path) -> None:
    result = secateur.prune(floats("bfloat16", ml_dtypes.bfloat16), ratio=0.5)
    assert result.certificate is not None and result.certificate.worst < 1e-5
    assert any("bfloat16" in note for note in result.certificate.notes)
    assert result.bench is None
    assert any("not timed" in warning for warning in result.report["warnings"])


@pytest.mark.parametrize("stored", ["initializer", "constant"])
def test_strings_go_with_their_channels(stored: str) -> None:
    model = parser.parse_model(
        """<ir_version: 9, opset_import: ["": 19]> g (float[N, 8] x, string[N, 1] name)
        => (float[N, 4] y) { h = MatMul(x, w1)  e = Equal(name, names)  f = Cast<to=1>(e)
            m = Mul(h, f)  y = MatMul(m, w2) }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (8, 6)), ("w2", (6, 4))):
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    words = ["a", "b", "pruning", "Zürich", "a", "b"]
    names = numpy_helper.from_array(np.array(words, object), "names")
    if stored == "initializer":
        model.graph.initializer.append(names)
    else:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["names"], value=names))
    result = secateur.prune(model, ratio=0.5, bench=False)
    assert result.certificate is not None and result.certificate.ok
    gone = next(e["indices"] for e in result.report["removed"] if e["tensor"] == "names")
    kept = [word for place, word in enumerate(words) if place not in gone]
    found = constants(to_proto(result.model))["names"]
    assert [word.decode() for word in found.string_data] == kept


def convolutions(element: str, dtype: npt.DTypeLike) -> onnx.ModelProto:
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g ({element}[N, 3, 8, 8] x) => ({element}[N, 4] y) {{
          a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)  b = Elu(a)
          c = AveragePool<kernel_shape=[2, 2], strides=[2, 2]>(b)
          d = Conv(c, w2)  e = Softplus(d)  f = GlobalAveragePool(e)  g0 = Flatten(f)
          y = MatMul(g0, w3) }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {
        "w1": (16, 3, 3, 3),
        "b1": (16,),
        "w2": (12, 16, 3, 3),
        "w3": (12, 4),
    }.items():
        array = (rng.standard_normal(shape) * 0.2).astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def recurrent(element: str, dtype: npt.DTypeLike) -> onnx.ModelProto:
    """ONNX Runtime loads a GRU of float64, and says that it has none when it runs."""
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g ({element}[5, 2, 3] x) => ({element}[5, 1, 2, 4] y) {{
          h, last = GRU<hidden_size=8>(x, w, r)  y = MatMul(h, v) }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"w": (1, 24, 3), "r": (1, 24, 8), "v": (8, 4)}.items():
        array = (rng.standard_normal(shape) * 0.4).astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


LACKING = {"convolutions": convolutions, "recurrent": recurrent}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", LACKING)
def test_types_without_kernels_are_proved_in_float32(
    name: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(LACKING[name]("double", np.float64), tmp_path / "model.onnx")
    with pytest.raises(KernelError):
        session = make_session(tmp_path / "model.onnx")
        run(session, random_feed(onnx.load(tmp_path / "model.onnx"), {"N": 2}, 0))
    if large:
        monkeypatch.setattr(runnable, "LARGE", 0)
    result = secateur.prune(tmp_path / "model.onnx", ratio=0.5)
    certificate = result.certificate
    assert certificate is not None and certificate.ok
    assert certificate.worst < certificate.tolerance == 1e-5
    assert any("computed as float32" in note for note in certificate.notes)
    assert result.bench is None
    assert any("not timed" in warning for warning in result.report["warnings"])
    result.save(tmp_path / "pruned.onnx", tmp_path / "report.json")
    for tensor in onnx.load(tmp_path / "pruned.onnx").graph.initializer:
        assert tensor.data_type == TensorProto.DOUBLE
    again = secateur.verify(
        tmp_path / "model.onnx", tmp_path / "pruned.onnx", tmp_path / "report.json"
    )
    assert again.ok and again.notes == certificate.notes


@pytest.mark.parametrize("name", LACKING)
def test_damage_shows_in_float32_too(name: str) -> None:
    plan = secateur.plan(secateur.analyze(LACKING[name]("double", np.float64)), ratio=0.5)
    rewritten = secateur.rewrite(plan)
    proto = to_proto(rewritten.model)
    weight = proto.graph.initializer[0]
    array = numpy_helper.to_array(weight).copy()
    array.flat[1] += 0.01
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    wrong = replace(rewritten, model=oir.serde.deserialize_model(proto))
    assert not secateur.certify(plan, wrong, threads=1).ok


@pytest.mark.parametrize("name", LACKING)
def test_float16_is_computed_as_it_is(name: str) -> None:
    """ONNX Runtime casts around what it has no float16 kernels for."""
    result = secateur.prune(LACKING[name]("float16", np.float16), ratio=0.5, bench=False)
    assert result.certificate is not None and result.certificate.ok
    assert not any("computed as" in note for note in result.certificate.notes)


def test_widening_changes_no_number() -> None:
    model = floats("bfloat16", ml_dtypes.bfloat16)
    wide = widened(model)
    assert uses_bfloat16(model) and not uses_bfloat16(wide)
    onnx.checker.check_model(wide, full_check=True)
    for narrow, tensor in zip(model.graph.initializer, wide.graph.initializer, strict=True):
        assert tensor.data_type == TensorProto.FLOAT
        np.testing.assert_array_equal(
            numpy_helper.to_array(narrow).astype(np.float32), numpy_helper.to_array(tensor)
        )


def test_large_bfloat16_models_are_widened_segment_by_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runnable, "LARGE", 0)
    path = tmp_path / "model.onnx"
    onnx.save_model(
        floats("bfloat16", ml_dtypes.bfloat16),
        str(path),
        save_as_external_data=True,
        location="data",
        size_threshold=0,
    )
    result = secateur.prune(path, ratio=0.5, bench=False)
    assert result.certificate is not None and result.certificate.ok
