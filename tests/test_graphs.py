"""The proof graphs are valid, run, and say about themselves what is true."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks import models

from .graph_builder import all_nodes, subgraphs
from .graphs import GRAPHS, INFO, Array, feeds
from .pruning_checks import constants


def run(model: onnx.ModelProto, **dims: int) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    outputs: list[Array] = session.run(None, feeds(model, **dims))
    return outputs


def weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    graphs = [model.graph, *subgraphs(model.graph)]
    nodes = [node for graph in graphs for node in graph.node]
    constants = [a.t for n in nodes if n.op_type == "Constant" for a in n.attribute if a.t.name]
    stored = [tensor for graph in graphs for tensor in graph.initializer]
    return {t.name: t for t in [*stored, *constants]}


@pytest.mark.parametrize("name", GRAPHS)
def test_is_valid(name: str) -> None:
    if INFO[name].deprecated:
        with pytest.raises(onnx.checker.ValidationError, match="is deprecated"):
            onnx.checker.check_model(GRAPHS[name]())
    else:
        onnx.checker.check_model(GRAPHS[name](), full_check=True)


@pytest.mark.parametrize("name", [n for n, i in INFO.items() if i.runnable])
def test_runs_at_two_sizes(name: str) -> None:
    model, info = GRAPHS[name](), INFO[name]
    for size in (2, 5):
        outputs = run(model, **{d: size + i for i, d in enumerate(info.dims)})
        for output, value in zip(outputs, model.graph.output, strict=True):
            assert np.isfinite(output).all()
            assert np.ptp(output) > 1e-3, "the output says nothing"
            for n, d in zip(output.shape, value.type.tensor_type.shape.dim, strict=True):
                assert n == d.dim_value or (d.dim_param and d.dim_param not in info.dims) or (
                    n == size + info.dims.index(d.dim_param)
                )  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_record_is_true_of_the_model(name: str) -> None:
    model, info = GRAPHS[name](), INFO[name]
    opsets = {o.domain: o.version for o in model.opset_import}
    assert opsets[""] == info.opset
    held = constants(model)
    symbolic = {
        d.dim_param
        for v in model.graph.input
        if v.name not in held
        for d in v.type.tensor_type.shape.dim
        if d.dim_param
    }
    assert symbolic == set(info.dims)
    assert info.must_shrink
    assert {*info.must_shrink, *info.must_stay} <= set(held)
    assert not set(info.must_shrink) & set(info.must_stay)
    assert all(np.prod(held[n].dims) > 1 for n in info.must_shrink)
    assert 0 < info.exact_groups < 10
    assert GRAPHS[name].__doc__
    assert GRAPHS[name]() == model, "the same model every time"


def test_every_weight_is_used() -> None:
    for name, make in GRAPHS.items():
        model = make()
        used = {i for n in all_nodes(model) for i in n.input}
        used |= {o.name for graph in subgraphs(model.graph) for o in graph.output}
        assert set(weights(model)) <= used, name


@pytest.mark.parametrize("batch_norm", [True, False])
def test_resnet50_has_the_size_of_torchvision(batch_norm: bool) -> None:
    model = models.resnet50(batch_norm=batch_norm, dynamic_batch=True)
    onnx.checker.check_model(model, full_check=True)
    statistics = ("running_mean", "running_var")
    count = sum(
        int(np.prod(t.dims))
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and not t.name.endswith(statistics)
    )
    assert count == (25_557_032 if batch_norm else 25_557_032 - 26_560)
    assert run(model, N=2)[0].shape == (2, 1000)


@pytest.mark.parametrize("nodes", [1000, 6000])
def test_swin_like_runs(nodes: int) -> None:
    model = models.swin_like(nodes)
    onnx.checker.check_model(model, full_check=True)
    assert abs(len(model.graph.node) - nodes) < 80, "half a pair of blocks"
    assert model.ByteSize() < 30 << 20
    assert all(np.isfinite(o).all() for o in run(model))


def test_wide_graph_has_the_coordinates_asked_for() -> None:
    model = models.wide_graph(coordinates=3_000_000)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    values = [*inferred.graph.value_info, *model.graph.input, *model.graph.output]
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]
    shapes += [list(t.dims) for t in model.graph.initializer]
    assert all(0 not in s for s in shapes)
    assert len(shapes) >= len(model.graph.node) + 2
    assert 0.98 * 3_000_000 < sum(map(sum, shapes)) < 1.02 * 3_000_000
    assert all(np.isfinite(o).all() for o in run(model))
