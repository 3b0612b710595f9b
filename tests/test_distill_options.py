"""What ``distill`` says and does without PyTorch: options, data, drift, checkpoints."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as oir
import pytest

from secateur.ir.errors import DataError, SecateurError, UsageError
from secateur.ir.io import load_model
from secateur.passes.base import Pass, PassContext, PassResult
from secateur.passes.distill import Distill
from secateur.passes.distill_checkpoint import Checkpoint, State, fingerprint
from secateur.passes.manager import PassManager
from secateur.passes.pipeline import format_pipeline, parse_pipeline
from secateur.runtime.augmentation import augmented
from secateur.runtime.items import Samples
from secateur.runtime.output_drift import drift
from secateur.runtime.torch_support import require_torch

from .graph_builder import Array
from .pass_runs import build, normal

NET = "g (float[N,4] x) => (float[N,3] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"


def net() -> oir.Model:
    return load_model(build(NET, w1=normal(4, 6), w2=normal(6, 3, seed=1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0.0}, "minutes must be more than 0, not 0"),
        ({"minutes": float("inf")}, "minutes must be more than 0, not inf"),
        ({"learning_rate": -1.0}, "learning-rate must be more than 0, not -1"),
        ({"temperature": 0.0}, "temperature must be more than 0, not 0"),
        ({"weight_decay": -0.1}, "weight-decay must be at least 0, not -0.1"),
        ({"hidden": -1.0}, "hidden must be at least 0, not -1"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": 0}, "batch-size must be at least 1, not 0"),
        ({"patience": 0}, "patience must be at least 1, not 0"),
        ({"hold_out": 1.0}, "hold-out must be between 0 and 1, not 1"),
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


# -- calibration data as items --------------------------------------------------------------------


def samples(signature: str, **arrays: Array) -> Samples:
    names = [part.split()[-1] for part in signature.split(", ") if part.split()[-1]]
    body = f"{names[0]}_ = Identity({names[0]})"
    model = load_model(build(f"g ({signature}) => (float[A,B] {names[0]}_) {{ {body} }}"))
    return Samples(arrays, model, {})


def test_samples_of_a_free_batch() -> None:
    found = samples("float[N,2] x", x=np.arange(10, dtype=np.float32).reshape(5, 2))
    assert (found.count, found.size, found.loose) == (5, 1, True)
    (feed,) = found.feeds(np.array([4, 1]))
    assert feed["x"].tolist() == [[8, 9], [2, 3]]
    assert found.rows(np.array([4, 1])).tolist() == [4, 1]


def test_samples_of_a_fixed_batch() -> None:
    found = samples("float[2,2] x", x=np.arange(10, dtype=np.float32).reshape(5, 2))
    assert (found.count, found.size, found.loose) == (2, 2, False)
    feeds = found.feeds(np.array([1, 0]))
    assert [f["x"].tolist() for f in feeds] == [[[4, 5], [6, 7]], [[0, 1], [2, 3]]]
    assert found.rows(np.array([1, 0])).tolist() == [2, 3, 0, 1]


def test_samples_that_are_whole_feeds() -> None:
    found = samples("float[N,2] x", x=np.arange(12, dtype=np.float32).reshape(3, 2, 2))
    assert (found.count, found.loose) == (3, False)
    assert found.feeds(np.array([2]))[0]["x"].tolist() == [[8, 9], [10, 11]]


def test_samples_of_an_input_without_data() -> None:
    with pytest.raises(DataError, match="no array for input 'x'"):
        samples("float[N,2] x")


# -- augmentation ---------------------------------------------------------------------------------


def test_images_are_mirrored_and_moved() -> None:
    """Every result is the image itself or its mirror image, moved by up to an eighth."""
    x = np.random.default_rng(0).random((64, 2, 16, 24), np.float32)
    y = augmented({"x": x}, True, np.random.default_rng(1))["x"]
    found = set()
    for image, moved in zip(x, y, strict=True):
        places = [
            (mirror, down, right)
            for mirror in (False, True)
            for down in range(-2, 3)
            for right in range(-3, 4)
            if np.array_equal(_moved(image[..., ::-1] if mirror else image, down, right), moved)
        ]
        assert len(places) == 1
        found.add(places[0])
    assert {mirror for mirror, _, _ in found} == {False, True}
    assert len(found) > 20


def _moved(image: Array, down: int, right: int) -> Array:
    padded = np.pad(image, ((0, 0), (2, 2), (3, 3)), mode="edge")
    # Moving the window down or right is what a shift of the indices does.
    side = padded[:, 2 + down : 18 + down, 3 + right : 27 + right]
    result: Array = side
    return result


def test_only_images_are_augmented() -> None:
    feed: dict[str, Array] = {"x": normal(3, 4), "ids": np.zeros((2, 2, 2, 2), np.int64)}
    assert augmented(feed, True, np.random.default_rng(0)) == feed


# -- drift ----------------------------------------------------------------------------------------


def test_drift_is_the_largest_relative_change() -> None:
    text = "g (float[N,2] x) => (float[N,2] y, float[N,2] z, int64[N] k) {"
    text += " y = Mul(x, a) z = Mul(x, b) k = ArgMax<axis=1, keepdims=0>(y) }"
    x = np.array([[1, 2], [3, 1], [0, 5]], np.float32)

    def model(a: list[float], b: float) -> oir.Model:
        return load_model(build(text, a=np.array(a, np.float32), b=np.array(b, np.float32)))

    old = model([1, 1], 2)
    assert drift(old, old, [{"x": x}]) == 0
    moved = drift(old, model([1, 1], 2.5), [{"x": x}])
    assert moved == pytest.approx(0.25)
    chosen = drift(old, model([1, -1], 2), [{"x": x[:2]}, {"x": x[2:]}])
    assert chosen == pytest.approx(2 * np.sqrt(30 / 40))


# -- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_comes_back(tmp_path: object) -> None:
    mark = fingerprint({"w": normal(2, 3)}, {"rate": 1})
    state = State(3, 1.5, 0.25, 1.0, 2, 0.5, [(0, 1.0), (3, 0.25)], {"now/0": normal(2, 3)})
    checkpoint = Checkpoint(f"{tmp_path}/new/folder", mark)
    assert checkpoint.read([(2, 3)]) is None
    checkpoint.write(state)
    found = checkpoint.read([(2, 3)])
    assert found is not None
    np.testing.assert_array_equal(found.arrays.pop("now/0"), state.arrays.pop("now/0"))
    assert found == state
    assert [p.name for p in checkpoint.path.parent.iterdir()] == ["distill.npz"]


def test_checkpoints_of_others_are_refused(tmp_path: object) -> None:
    folder, arrays = str(tmp_path), {"w": normal(2, 3)}
    Checkpoint(folder, fingerprint(arrays, {"rate": 1})).write(State())
    for other in (fingerprint(arrays, {"rate": 2}), fingerprint({"w": normal(2, 3, seed=1)}, {})):
        with pytest.raises(UsageError, match="of another model, other data or other options"):
            Checkpoint(folder, other).read([])


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip file"])
def test_a_damaged_checkpoint_is_refused(tmp_path: object, content: bytes) -> None:
    checkpoint = Checkpoint(str(tmp_path), "mark")
    checkpoint.path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read: .*; delete it"):
        checkpoint.read([])


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path: object) -> None:
    checkpoint = Checkpoint(str(tmp_path), "mark")
    checkpoint.write(State(arrays={"now/0": normal(2, 3)}))
    for shapes in ([], [(3, 2)]):
        with pytest.raises(DataError, match="is damaged"):
            checkpoint.read(shapes)
