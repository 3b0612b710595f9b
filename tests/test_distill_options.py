"""What ``distill`` says and does without PyTorch: options, data, drift, checkpoints."""

from __future__ import annotations

import sys

import onnx_ir as oir
import pytest

from secateur.ir.errors import SecateurError, UsageError
from secateur.ir.io import load_model
from secateur.passes.base import Pass, PassContext, PassResult
from secateur.passes.distill import Distill
from secateur.passes.manager import PassManager
from secateur.passes.pipeline import format_pipeline, parse_pipeline
from secateur.runtime.torch_support import require_torch

from .pass_runs import build, normal

NET = "g (float[N,4] x) => (float[N,3] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"


def net() -> oir.Model:
    return load_model(build(NET, w1=normal(4, 6), w2=normal(6, 3, seed=1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0.0}, "`minutes` must be more than 0, not 0"),
        ({"minutes": float("inf")}, "`minutes` must be more than 0, not inf"),
        ({"learning_rate": -1.0}, "`learning_rate` must be more than 0, not -1"),
        ({"temperature": 0.0}, "`temperature` must be more than 0, not 0"),
        ({"weight_decay": -0.1}, "`weight_decay` must be at least 0, not -0.1"),
        ({"hidden": -1.0}, "`hidden` must be at least 0, not -1"),
        ({"epochs": 0}, "`epochs` must be at least 1, not 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, not 0"),
        ({"patience": 0}, "`patience` must be at least 1, not 0"),
        ({"hold_out": 1.0}, "`hold_out` must be between 0 and 1, not 1"),
    ],
)
def test_options_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Distill(**options)  # type: ignore[arg-type]


def test_options_in_a_pipeline() -> None:
    text = "distill{minutes=2.0 epochs=3 values=[a* b] augment=flip-shift}"
    (parsed,) = parse_pipeline(text)
    assert parsed == Distill(minutes=2.0, epochs=3, augment="flip-shift", values=("a*", "b"))
    assert format_pipeline([parsed]) == text


def test_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        UsageError, match=r"distill needs PyTorch: pip install 'secateur\[finetune\]'"
    ):
        PassManager([Distill()]).run(net())
    with pytest.raises(UsageError, match="the criterion taylor needs PyTorch"):
        require_torch("the criterion taylor")


class Looks(Pass):
    """Notes the context that it is given."""

    name = "looks"

    def run(self, model: oir.Model, context: PassContext) -> PassResult:
        raise SecateurError(f"original {id(context.original)}, model {id(model)}")


def test_a_pass_knows_the_original() -> None:
    model = net()
    for clone in (True, False):
        with pytest.raises(SecateurError, match="original") as error:
            PassManager([Looks()]).run(model, clone=clone)
        words = str(error.value).split()
        original, owned = words[words.index("original") + 1].strip(","), words[-1]
        assert original != owned
        assert (original == str(id(model))) == clone
        assert (owned == str(id(model))) != clone
