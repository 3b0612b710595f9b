"""The differentiable executor on whole graphs, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from secateur.ir.errors import UsageError
from secateur.ir.flatten import flatten
from secateur.ir.io import load_model
from secateur.ir.trainable import trainable

from .graph_builder import Array, all_nodes
from .graphs import GRAPHS, INFO, feeds
from .pass_runs import build, normal, run

torch = pytest.importorskip("torch")

RUNNABLE = sorted(name for name, info in INFO.items() if info.runnable)
STEPPED = {"qdq": 1e-3}
"""Allowed where a quantiser's step may flip: a few elements by a step."""
REFUSED = {"gru_reset_before": "activations with alpha or beta"}
UNUSED = {"if_dead_branch", "ranked_places"}
"""Graphs with weights that no output depends on, or that only choose places."""


def unknown(model: onnx.ModelProto) -> set[str]:
    """The operators of a model that the executor does not have."""
    from secateur.runtime.torch_ops import known_operators
    from secateur.runtime.torch_program import CONTROL

    functions = {(f.domain, f.name) for f in model.functions}
    known = known_operators().keys() | functions | {("", n) for n in (*CONTROL, "Constant")}
    return {n.op_type for n in all_nodes(model) if (n.domain, n.op_type) not in known}


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_graphs(name: str) -> None:
    """At two sizes of every symbolic dimension, with gradients for every weight that runs."""
    from secateur.runtime.torch_executor import TorchExecutor

    proto = GRAPHS[name]()
    flat = flatten(load_model(proto))
    weights = trainable(flat).weights
    missing = unknown(proto)
    if missing or name in REFUSED:
        form = "|".join(missing) or REFUSED[name]
        with pytest.raises(UsageError, match=f"the differentiable executor .*({form})"):
            executor = TorchExecutor(flat)
            executor(executor.feed_tensors(feeds(proto)))
        return
    executor = TorchExecutor(flat, trained=weights)
    reached: set[str] = set()
    for size in (2, 3):
        feed = feeds(proto, **{dim: size + k for k, dim in enumerate(INFO[name].dims)})
        try:
            expected = run(proto, feed)
        except Exception:  # a size that the graph ties to another
            assert size == 3
            continue
        found = executor(executor.feed_tensors(feed))
        for output, wanted in zip(proto.graph.output, expected, strict=True):
            got = found[output.name]
            assert got.shape == wanted.shape
            a, b = (v.astype(np.float64) for v in (got.detach().numpy(), wanted))
            limit = 2e-2 if wanted.dtype == np.float16 else STEPPED.get(name, 2e-5)
            assert np.abs(a - b).max() <= limit * max(np.abs(b).max(), 1e-3)
        losses = [v.square().sum() for v in found.values() if v.requires_grad]
        gradients = torch.autograd.grad(
            sum(losses), list(executor.parameters.values()), allow_unused=True
        )
        named = zip(executor.parameters, gradients, strict=True)
        reached |= {key for key, gradient in named if gradient is not None}
        assert all(torch.isfinite(g).all() for g in gradients if g is not None)
    branches = any(node.op_type == "If" for node in all_nodes(proto))
    assert reached == set(executor.parameters) or branches or name in UNUSED


def test_most_graphs_run() -> None:
    ran = [name for name in RUNNABLE if not unknown(GRAPHS[name]())]
    assert len(ran) >= 180


def test_statistics_follow_only_while_renewing() -> None:
    """By a tenth towards those of the batch, the variance that of a sample."""
    from secateur.runtime.torch_executor import TorchExecutor

    model = build(
        "g (float[N,2,3,3] x) => (float[N,2,3,3] y) { y = BatchNormalization(x, s, b, m, v) }",
        s=np.ones(2, np.float32),
        b=np.zeros(2, np.float32),
        m=np.array([1, -1], np.float32),
        v=np.array([1, 2], np.float32),
    )
    executor = TorchExecutor(load_model(model), trained=["s", "b"], renew=True)
    x = normal(8, 2, 3, 3)
    feed = executor.feed_tensors({"x": x})
    np.testing.assert_allclose(executor(feed)["y"].detach(), run(model, {"x": x})[0], atol=1e-5)
    assert executor.buffers["m"].tolist() == [1, -1]
    executor.renewing = True
    y = executor(feed)["y"].detach().numpy()
    np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-5)
    means, variances = x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(executor.buffers["m"], [0.9, -0.9] + 0.1 * means, rtol=1e-5)
    np.testing.assert_allclose(executor.buffers["v"], [0.9, 1.8] + 0.1 * variances, rtol=1e-5)


def test_values_inside_can_be_asked_for() -> None:
    from secateur.runtime.torch_executor import TorchExecutor

    text = "g (float[N,4] x) => (float[N,3] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    weights: dict[str, Array] = {"w": normal(4, 5), "v": normal(5, 3)}
    executor = TorchExecutor(load_model(build(text, 20, 10, "", **weights)), wanted=["h", "w"])
    x = normal(2, 4)
    found = executor(executor.feed_tensors({"x": x}))
    assert list(found) == ["h", "w"]
    np.testing.assert_allclose(found["h"], x @ weights["w"], rtol=1e-5)


def test_what_follows_from_constants_can_be_trained() -> None:
    """The dequantised weight of a product: its gradient is that of a plain weight."""
    from secateur.runtime.torch_executor import TorchExecutor

    text = """g (float[N,4] x) => (float[N,3] y) {
        d = DequantizeLinear(q, s) w = Transpose(d) y = MatMul(x, w) }"""
    q = np.random.default_rng(0).integers(-9, 9, (3, 4)).astype(np.int8)
    model = load_model(build(text, q=q, s=np.array(0.5, np.float32)))
    executor = TorchExecutor(model, trained=["w"])
    x = normal(2, 4)
    executor(executor.feed_tensors({"x": x}))["y"].sum().backward()
    np.testing.assert_array_equal(executor.parameters["w"].detach(), q.T * 0.5)
    np.testing.assert_allclose(
        executor.parameters["w"].grad, np.repeat(x.sum(0)[:, None], 3, 1), rtol=1e-5
    )


def test_bfloat16_and_float64() -> None:
    from secateur.runtime.torch_executor import TorchExecutor

    text = "g ({0}[N,4] x) => ({0}[N,3] y) {{ y = MatMul(x, w) }}"
    bfloat16 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    for name, dtype, held in (("bfloat16", bfloat16, "float32"), ("double", np.float64, "float64")):
        w = normal(4, 3).astype(dtype)
        model = build(text.format(name), w=w)
        executor = TorchExecutor(load_model(model), trained=["w"])
        (weight,) = executor.parameters.values()
        assert str(weight.dtype) == f"torch.{held}"
        np.testing.assert_array_equal(weight.detach().numpy(), w.astype(held))
