"""What distillation compares, and how: targets against the graph, losses against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secateur.ir.io import load_model
from secateur.passes.distill_targets import Target, output_targets

from .pass_runs import build, normal

torch = pytest.importorskip("torch")


def compared(body: str, shape: str = "N,4", kind: str = "float", opset: int = 20) -> list[Any]:
    from secateur.runtime.torch_ops import known_operators

    text = f"g (float[N,8] x) => ({kind}[{shape}] y) {{ {body} }}"
    model = load_model(build(text, opset, w=normal(8, 4)))
    return output_targets(model, known_operators().keys())


def test_outputs_are_compared_as_what_they_are_read() -> None:
    def found(*arguments: Any) -> list[tuple[str, str]]:
        return [(t.value, t.kind) for t in compared(*arguments)]

    assert found("z = MatMul(x, w) y = Softmax(z)") == [("z", "logits")]
    assert found("z = MatMul(x, w) s = LogSoftmax(z) y = Identity(s)") == [("z", "logits")]
    assert found("z = MatMul(x, w) y = Sigmoid(z)") == [("z", "binary")]
    assert found("y = MatMul(x, w)") == [("y", "either")]
    assert found("z = MatMul(x, w) y = Tanh(z)") == [("y", "values")]
    argmax = "z = MatMul(x, w) y = ArgMax<axis=1, keepdims=0>(z)"
    assert found(argmax, "N", "int64") == [("z", "logits")]
    unknown = "z = MatMul(x, w) r = Relu(z) q = Unsqueeze(r, a) y = Det(q)"
    text = f"g (float[4,8] x) => (float[K] y) {{ {unknown} }}"
    from secateur.runtime.torch_ops import known_operators

    model = load_model(build(text, 20, w=normal(8, 4), a=np.array([0], np.int64)))
    targets = output_targets(model, known_operators().keys())
    assert [(t.value, t.kind) for t in targets] == [("q", "values")]


def test_softmax_before_opset_13_joins_axes() -> None:
    (target,) = compared("z = MatMul(x, w) y = Softmax(z)", opset=11)
    assert (target.axis, target.joint) == (1, True)


def test_the_loss_of_logits_is_the_divergence() -> None:
    """Written out in numpy, at temperature 3."""
    import secateur.passes.distill_loss as module

    torch = pytest.importorskip("torch")
    s, t = normal(6, 5).astype(np.float64), normal(6, 5, seed=1).astype(np.float64)
    loss = module.Loss([Target("z", "logits")], ["v"], 3.0, 0.5, {"v": 4.0})
    values = [{"z": torch.from_numpy(a), "v": torch.from_numpy(a)} for a in (s, t)]
    p, q = (np.exp(a / 3) / np.exp(a / 3).sum(1, keepdims=True) for a in (t, s))
    divergence = 9 * (p * np.log(p / q)).sum(1).mean()
    inside = 0.5 * np.square(s - t).mean() / 4
    assert float(loss(*values)) == pytest.approx(divergence + inside, rel=1e-9)
    labels = np.array([0, 1, 2, 3, 4, 0])
    plain = np.exp(s) / np.exp(s).sum(1, keepdims=True)
    entropy = -np.log(plain[np.arange(6), labels]).mean()
    with_labels = loss(values[0], values[1], torch.from_numpy(labels))
    assert float(with_labels) == pytest.approx(divergence + inside + entropy, rel=1e-9)


@pytest.mark.parametrize("kind", ["logits", "binary"])
def test_probabilities_are_turned_into_logits(kind: Any) -> None:
    import secateur.passes.distill_loss as module

    torch = pytest.importorskip("torch")
    raw = [torch.from_numpy(normal(6, 5, seed=k).astype(np.float64)) for k in (0, 1)]
    function = torch.sigmoid if kind == "binary" else lambda z: torch.softmax(z, -1)
    transform: Any = "logit" if kind == "binary" else "log"
    losses = []
    for target, given in (
        (Target("z", kind), raw),
        (Target("z", kind, transform=transform), [function(z) for z in raw]),
    ):
        student, teacher = ({"z": g} for g in given)
        losses.append(float(module.Loss([target], [], 2.0, 0)(student, teacher)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_only_values_of_both_models_are_compared() -> None:
    """Where the value before the choice has another name in the other model, what leads to it."""
    from secateur.runtime.torch_ops import known_operators

    text = """g (float[N,8] x) => (int64[N] k) {
        z = MatMul(x, w) r = Relu(z) k = ArgMax<axis=1, keepdims=0>(r) }"""
    model = load_model(build(text, 20, w=normal(8, 4)))
    known = known_operators().keys()
    for others, value in ((None, "r"), ({"z", "r", "k"}, "r"), ({"z", "k"}, "z")):
        assert [t.value for t in output_targets(model, known, others)] == [value]
