from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from secateur.ir.errors import CertificateError
from secateur.runtime.session import Model, make_session, run


def scaled() -> onnx.ModelProto:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]>
        g (float[N, 3] x) => (float[N, 3] y) { y = Mul(x, w) }"""
    )
    weight = np.array([1, 2, 3], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("form", ["proto", "bytes", "path", "text path"])
def test_every_form_of_a_model_runs(form: str, optimize: bool, tmp_path: Path) -> None:
    model = scaled()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    forms: dict[str, Model] = {
        "proto": model,
        "bytes": path.read_bytes(),
        "path": path,
        "text path": str(path),
    }
    session = make_session(forms[form], threads=1, optimize=optimize)
    out = run(session, {"x": np.ones((2, 3), np.float32)})
    assert list(out) == ["y"]
    np.testing.assert_array_equal(out["y"], [[1, 2, 3], [1, 2, 3]])


def test_external_data_is_read_from_where_it_lies(tmp_path: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]>
        g (float[N, 600] x) => (float[N, 600] y) { h = Mul(x, w)  y = Add(h, b) }"""
    )
    weight, bias = np.arange(600, dtype=np.float32), np.ones(1, np.float32)
    for name, array in (("w", weight), ("b", bias)):
        path = tmp_path / name / "data.bin"
        path.parent.mkdir()
        path.write_bytes(b"12345678" + array.tobytes())
        tensor = model.graph.initializer.add(name=name, data_type=1, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": path, "offset": 8, "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
    before = model.SerializeToString(deterministic=True)
    out = run(make_session(model), {"x": np.ones((1, 600), np.float32)})
    np.testing.assert_array_equal(out["y"][0], weight + 1)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("model", [b"garbage", Path("/nonexistent/model.onnx")])
def test_unloadable_models_give_one_line(model: bytes | Path) -> None:
    with pytest.raises(CertificateError) as caught:
        make_session(model)
    assert "\n" not in str(caught.value)


def test_a_failing_run_gives_one_line() -> None:
    with pytest.raises(CertificateError) as caught:
        run(make_session(scaled()), {"x": np.ones((2, 4), np.float32)})
    assert "\n" not in str(caught.value)


def test_errors_do_not_reach_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]>
        g (float[4] x, int64[1] i) => (float[1] y) { y = Gather(x, i) }"""
    )
    with pytest.raises(CertificateError):
        run(make_session(model), {"x": np.ones(4, np.float32), "i": np.array([9])})
    assert capfd.readouterr().err == ""


def test_sequences_are_flattened() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]>
        g (float[4, 2] x) => (seq(float[2, 2]) y) { y = SplitToSequence <axis=0> (x, n) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(3), "n"))
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    out = run(make_session(model), {"x": x})
    assert set(out) == {"y.length", "y[0]", "y[1]"}
    assert out["y.length"] == 2
    np.testing.assert_array_equal(out["y[0]"], x[:3])
    np.testing.assert_array_equal(out["y[1]"], x[3:])


def test_bfloat16_goes_in_and_comes_out() -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]>
        g (bfloat16[2, 2] x, float[2] w) => (bfloat16[2, 2] y, float[2] z) {
            y = Transpose(x)  z = Identity(w) }"""
    )
    x = np.array([[1, 2], [3, 4.5]], ml_dtypes.bfloat16)
    w = np.array([5, 6], np.float32)
    out = run(make_session(model), {"x": x, "w": w})
    assert out["y"].dtype == x.dtype
    np.testing.assert_array_equal(out["y"].astype(np.float32), x.astype(np.float32).T)
    np.testing.assert_array_equal(out["z"], w)


def test_threads_and_provider() -> None:
    session = make_session(scaled(), threads=2)
    options = session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_workers_rest_after_a_run() -> None:
    """Spinning workers would slow down whatever runs next, another session being timed for one."""
    options = make_session(scaled(), threads=4).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_an_empty_optional_is_left_out() -> None:
    empty = helper.make_optional_type_proto(helper.make_tensor_type_proto(1, [2]))
    node = helper.make_node("Optional", [], ["y"], type=helper.make_tensor_type_proto(1, [2]))
    other = helper.make_node("Identity", ["x"], ["z"])
    x = helper.make_tensor_value_info("x", 1, [2])
    z = helper.make_tensor_value_info("z", 1, [2])
    graph = helper.make_graph([node, other], "g", [x], [helper.make_value_info("y", empty), z])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    out = run(make_session(model), {"x": np.ones(2, np.float32)})
    assert list(out) == ["z"]
