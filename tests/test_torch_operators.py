"""The differentiable executor's operators against the ONNX backend's own cases, and the gradients
of some against differences."""

from __future__ import annotations

import warnings
from collections import defaultdict
from functools import cache

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from onnx.backend.test.case.test_case import TestCase

from secateur.ir.errors import ModelError, UsageError
from secateur.ir.flatten import flatten
from secateur.ir.io import load_model

from .graph_builder import Array
from .pass_runs import build, normal

torch = pytest.importorskip("torch")

TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-2}
"""Relative and absolute; the expected values are computed by numpy, some of them in float32."""

WRONG = {"test_resize_downsample_scales_linear_align_corners",
         "test_resize_downsample_scales_cubic_align_corners"}  # fmt: skip
"""Expected values that ONNX Runtime does not give either: the last place is not aligned."""

TYPES = ("FLOAT8", "FLOAT4", "INT2", "UINT4", "INT4", "e4m3fn", "e5m2", "int2", "float4", "string")
"""In the names of cases with element types that torch lacks."""

FORMS = {"training", "argmax", "crop_and_resize", "antialias", "col2im_5d", "bitwise_not_3d",
         "qk_matmul", "window_gqa"}  # fmt: skip
"""In the names of cases with forms of an operator that the executor refuses."""


@cache
def cases() -> dict[str, list[TestCase]]:
    """The cases that consist of known operators, by the type of the first one."""
    from onnx.backend.test.case.node import collect_testcases

    from secateur.runtime.torch_ops import known_operators
    from secateur.runtime.torch_program import CONTROL

    known = known_operators().keys() | {("", name) for name in (*CONTROL, "Constant")}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        every = collect_testcases(None)
    found: defaultdict[str, list[TestCase]] = defaultdict(list)
    for case in every:
        assert case.model is not None
        graph = case.model.graph
        plain = all(v.type.HasField("tensor_type") for v in (*graph.input, *graph.output))
        modern = case.model.opset_import[0].version >= 7  # what Secateur reads
        if plain and modern and all((n.domain, n.op_type) in known for n in graph.node):
            found[graph.node[0].op_type[0]].append(case)
    return found


def array(data: object) -> Array:
    if isinstance(data, onnx.TensorProto):
        return oir.serde.deserialize_tensor(data).numpy()
    return np.asarray(data)


def outputs(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    from secateur.runtime.torch_executor import TorchExecutor

    executor = TorchExecutor(flatten(load_model(model)))
    with torch.no_grad():
        found = executor(executor.feed_tensors(feed))
    return [found[v.name].numpy() for v in model.graph.output]


def check(case: TestCase) -> bool:
    """Whether the case ran; it must give what is expected, or be refused."""
    assert case.model is not None and case.data_sets
    given, expected = case.data_sets[0]
    names = [v.name for v in case.model.graph.input]
    feed = dict(zip(names, map(array, given), strict=True))
    if any(word in case.name for word in (*TYPES, *FORMS)):
        try:
            outputs(case.model, feed)
        except UsageError as error:
            assert "the differentiable executor" in str(error)
            return False
    for found, wanted in zip(outputs(case.model, feed), map(array, expected), strict=True):
        assert found.shape == wanted.shape, case.name
        tolerance = TOLERANCES.get(wanted.dtype.name, 0)  # integers are equal
        a, b = (v.astype(np.float64) for v in (found, wanted))
        np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=case.name)
    return True


FLOORS = {"A": 169, "B": 44, "C": 320, "D": 30, "E": 30, "F": 11, "G": 79, "H": 12, "I": 12,
          "L": 88, "M": 103, "N": 3, "O": 14, "P": 20, "Q": 8, "R": 178, "S": 208, "T": 41,
          "U": 8, "W": 2, "X": 8}  # fmt: skip
"""By the first letter of the operator, so many cases must run and agree."""


@pytest.mark.parametrize("letter", sorted(FLOORS))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_backend_cases(letter: str) -> None:
    ran = sum(check(case) for case in cases()[letter] if case.name not in WRONG)
    assert ran >= FLOORS[letter]


def test_every_letter_is_looked_at() -> None:
    assert set(cases()) == set(FLOORS)


# -- gradients ------------------------------------------------------------------------------------

GRADIENTS = {
    "conv": ("y = Conv<pads=[1,0,0,1], strides=[2,1], group=2>(x, w, b)", (4, 1, 3, 2), (4,)),
    "transposed": ("y = ConvTranspose<pads=[1,0,1,1], strides=[2,2]>(x, w, b)", (2, 3, 3, 2), (3,)),
    "normal": ("h = Add(x, w) y = LayerNormalization<axis=3>(h, b)", (1, 2, 5, 5), (5,)),
    "instance": ("h = Mul(x, w) y = InstanceNormalization(h, b, b)", (1, 2, 5, 5), (2,)),
    "resized": (
        "h = Mul(x, w) y = Resize<mode=\"cubic\">(h, , s) z = Mul(y, b)", (1, 2, 5, 5), (1,),
    ),
    "softmax": ("h = Mul(x, w) g = Softmax<axis=1>(h) y = Mul(g, b)", (1, 2, 5, 5), (5,)),
    "pooled": (
        "h = Mul(x, w) p = AveragePool<kernel_shape=[2,2], pads=[1,0,0,0], ceil_mode=1, "
        "strides=[2,2]>(h) y = Mul(p, b)", (1, 2, 5, 5), (3,),
    ),
    "matmul": ("h = MatMul(x, w) g = Gelu(h) y = Add(g, b)", (5, 4), (4,)),
    "einsum": ("h = Einsum<equation=\"bcij,jk->bki\">(x, w) y = Mul(h, b)", (5, 4), (5,)),
    "gathered": ("h = Mul(x, w) g = Gather<axis=2>(h, i) y = Mul(g, b)", (1, 2, 5, 5), (5,)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(GRADIENTS))
def test_gradients_are_differences(name: str) -> None:
    """In float64, central differences of a random projection of the output."""
    from secateur.runtime.torch_executor import TorchExecutor

    body, w_shape, b_shape = GRADIENTS[name]
    output = "z" if "z =" in body else "y"
    rank = {"einsum": 3}.get(name, 4)
    dims = ",".join(f"D{k}" for k in range(rank))
    weights: dict[str, Array] = {
        "w": normal(*w_shape, seed=1).astype(np.float64),
        "b": normal(*b_shape, seed=2).astype(np.float64),
        "s": np.array([1, 1, 1.5, 0.6], np.float32),
        "i": np.array([3, -1, 3], np.int64),
    }
    used = {key: a for key, a in weights.items() if f"{key})" in body or f" {key}," in body}
    text = f"g (double[1,2,5,5] x) => (double[{dims}] {output}) {{ {body} }}"
    executor = TorchExecutor(load_model(build(text, 20, 10, "", **used)), trained=["w", "b"])
    feed = executor.feed_tensors({"x": normal(1, 2, 5, 5).astype(np.float64)})
    direction = torch.from_numpy(
        np.random.default_rng(3).standard_normal(executor(feed)[output].shape)
    )

    def loss() -> object:
        return (executor(feed)[output] * direction).sum()

    loss().backward()  # type: ignore[attr-defined]
    assert set(executor.parameters) == {"w", "b"}
    for parameter in executor.parameters.values():
        with torch.no_grad():
            step = torch.from_numpy(normal(*parameter.shape, seed=4).astype(np.float64))
            ends = []
            for sign in (1, -1):
                parameter += sign * 1e-6 * step
                ends.append(float(loss()))  # type: ignore[arg-type]
                parameter -= sign * 1e-6 * step
        slope = (ends[0] - ends[1]) / 2e-6
        assert float((parameter.grad * step).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_rounding_passes_gradients_and_saturation_does_not() -> None:
    from secateur.runtime.torch_executor import TorchExecutor

    model = build(
        """g (float[N] x) => (float[N] y) {
            h = Mul(x, w) q = QuantizeLinear(h, s, z) t = Identity(q) y = DequantizeLinear(t, s, z)
        }""",
        w=np.ones(3, np.float32),
        s=np.array(0.5, np.float32),
        z=np.array(0, np.int8),
    )
    executor = TorchExecutor(load_model(model), trained=["w"])
    y = executor(executor.feed_tensors({"x": np.array([0.6, -3.3, 100], np.float32)}))["y"]
    assert y.tolist() == [0.5, -3.5, 63.5]
    y.sum().backward()
    assert executor.parameters["w"].grad.tolist() == pytest.approx([0.6, -3.3, 0])


# -- what is refused ------------------------------------------------------------------------------


def test_an_unknown_operator_is_named() -> None:
    from secateur.runtime.torch_executor import TorchExecutor

    model = load_model(build("g (float[N,3] x) => (float[3,3] y) { y = Det(x) z = Relu(y) }"))
    with pytest.raises(UsageError, match=r"node 'y' \(Det\): .* does not know Det .*use recover"):
        TorchExecutor(model)


def test_what_is_not_asked_for_may_be_unknown() -> None:
    from secateur.runtime.torch_executor import TorchExecutor

    text = "g (float[1,2,2] x) => (float[1] y, float[1,2,2] r) { y = Det(x) r = Relu(x) }"
    executor = TorchExecutor(load_model(build(text)), wanted=["r"])
    feed = executor.feed_tensors({"x": np.array([[[-1, 2], [3, -4]]], np.float32)})
    assert executor(feed)["r"].tolist() == [[[0, 2], [3, 0]]]


def test_a_node_that_fails_is_named() -> None:
    from secateur.runtime.torch_executor import TorchExecutor

    model = build("g (float[N,M] x) => (float[N,2] y) { y = MatMul(x, w) }", w=normal(3, 2))
    executor = TorchExecutor(load_model(model))
    with pytest.raises(ModelError, match=r"node 'y' \(MatMul\): PyTorch cannot run it"):
        executor(executor.feed_tensors({"x": normal(2, 4)}))
