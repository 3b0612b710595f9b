"""Every model of the ONNX backend test data survives reading and writing, bit for bit in results.

What cannot be loaded as it is (an opset before 7, or none of the default domain) must be refused,
and goes on converted. Models that ONNX Runtime cannot run are compared as protos only.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.version_converter
import pytest

from secateur.ir.errors import ModelError
from secateur.ir.io import load_model, model_bytes, save_model
from secateur.ir.verifier import find_problems

from .faithfulness import assert_same_model

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
CHUNKS = 32
FLOOR = 47  # models of each chunk that ONNX Runtime must have compared
RANDOM_OPS = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
# ONNX's inference rejects the body that ONNX itself gives this operator at opset 9
KNOWN_PROBLEMS = {"test_mvn"}


@functools.cache
def cases() -> list[tuple[str, onnx.ModelProto | Path, Any]]:
    """Name, model or its file, and the inputs if they are at hand."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = collect_testcases(None)
    found: list[tuple[str, onnx.ModelProto | Path, Any]] = [
        (case.name, case.model, case.data_sets) for case in nodes if case.model is not None
    ]
    found += [(f"{path.parent.name}/{path.name}", path, None) for path in DATA.rglob("*.onnx")]
    return sorted(found, key=lambda case: case[0])


def loadable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or its conversion when it must be refused as it is."""
    versions = {imported.domain: imported.version for imported in model.opset_import}
    if versions.get("", 0) >= 7:
        return model
    with pytest.raises(ModelError, match=r"opset . is below 7|no opset of the default domain"):
        load_model(model)
    if "" in versions:
        return onnx.version_converter.convert_version(model, 8)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.opset_import.add(domain="", version=15)
    return copy


def stored_inputs(path: Path, model: onnx.ModelProto) -> list[Any]:
    """The inputs stored beside a model; random ones for the light models, which have none."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs: list[Any] = []
    for index, info in enumerate(i for i in model.graph.input if i.name not in weights):
        file = path.parent / "test_data_set_0" / f"input_{index}.pb"
        if not file.exists():
            shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            inputs.append(np.random.default_rng(1).random(shape, np.float32))
        elif info.type.HasField("sequence_type"):
            sequence = onnx.SequenceProto.FromString(file.read_bytes())
            inputs.append(onnx.numpy_helper.to_list(sequence))
        else:
            tensor = onnx.TensorProto.FromString(file.read_bytes())
            inputs.append(onnx.numpy_helper.to_array(tensor))
    return inputs


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            yield from operators(attribute.g)


def run(model: bytes | str, feeds: list[Any]) -> list[Any]:
    """The outputs in ONNX Runtime, one thread, no optimisation."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [info.name for info in session.get_inputs()]
    arrays = (np.asarray(feed) if isinstance(feed, np.generic) else feed for feed in feeds)
    outputs: list[Any] = session.run(None, dict(zip(names, arrays, strict=False)))
    return outputs


def bits(value: Any) -> Any:
    """Something that is equal exactly when the values are, NaN and signed zero included."""
    if isinstance(value, np.ndarray):
        data = value.tolist() if value.dtype == object else value.tobytes()
        return str(value.dtype), value.shape, data
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return repr(value)


def compare(name: str, source: onnx.ModelProto | Path, sets: Any, folder: Path) -> str:
    """Round trips one model; says whether ONNX Runtime compared the results."""
    proto = onnx.load(source) if isinstance(source, Path) else source
    original = loadable(proto)
    model = load_model(source if isinstance(source, Path) and original is proto else original)
    assert (find_problems(model) != []) == (name in KNOWN_PROBLEMS)
    path = folder / "model.onnx"
    assert save_model(model, path) == [path]
    assert path.read_bytes() == model_bytes(model)
    if RANDOM_OPS & set(operators(original.graph)):
        verdict = "random"
    else:
        feeds = stored_inputs(source, original) if isinstance(source, Path) else sets[0][0]
        try:
            wanted = run(original.SerializeToString(), feeds)
        except Exception:
            verdict = "not run"
        else:
            assert bits(run(str(path), feeds)) == bits(wanted), name
            verdict = "compared"
    assert_same_model(original, onnx.load(path))
    return verdict


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_backend_models(chunk: int, tmp_path: Path) -> None:
    verdicts = Counter(compare(*case, tmp_path) for case in cases()[chunk::CHUNKS])
    print(f"chunk {chunk}: {dict(verdicts)}")
    assert verdicts["compared"] >= FLOOR


def test_the_data_is_all_there() -> None:
    files = sum(isinstance(source, Path) for _, source, _ in cases())
    assert files >= 140
    assert len(cases()) - files >= 1500
