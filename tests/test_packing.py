"""`secateur.pack_calibration` of arrays, tables and Python: what the file holds afterwards."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secateur
from secateur import DataError, UsageError
from secateur.runtime import packing

from .packing_runs import Array, packed, taking

VECTOR = taking(x=("FLOAT", ["N", 3]))
TWO = taking(ids=("INT64", ["N", 5]), mask=("BOOL", ["N", 5]))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def numbers(*shape: int) -> Array:
    return np.random.default_rng(0).random(shape)


# --- npz and npy ---


def test_npz_by_the_names_of_the_inputs() -> None:
    x = numbers(7, 3, 4, 6)
    np.savez("in.npz", x=x, labels=np.arange(7))
    arrays, result = packed("in.npz")
    np.testing.assert_array_equal(arrays["x"], x.astype(np.float32))
    assert (result.samples, result.feeds) == (7, False)


def test_npz_renamed_and_chosen() -> None:
    a, b = numbers(4, 3), numbers(4, 3) + 1
    np.savez("in.npz", a=a, b=b)
    for keys in ([], ["b"]):
        arrays, _ = packed("in.npz", VECTOR, rename={"b": "x"}, keys=keys)
        np.testing.assert_array_equal(arrays["x"], b.astype(np.float32))
    np.savez("in.npz", x=a, y=a)
    for options, words in (
        ({"rename": {"c": "x"}}, "holds no array 'c'"),
        ({"keys": ["z"]}, "holds no array 'z'"),
        ({"rename": {"y": "x"}}, "would both feed one input"),
    ):
        with pytest.raises(UsageError, match=words):
            packed("in.npz", VECTOR, **options)
    with pytest.raises(DataError, match=r"nothing for input 'x' \(arrays: y; inputs: x\)"):
        packed("in.npz", VECTOR, keys=["y"])
    np.savez("in.npz", a=a)
    with pytest.raises(DataError, match="use --rename FILE_NAME=INPUT"):
        packed("in.npz", VECTOR)


def test_several_inputs_from_one_file_and_from_several() -> None:
    ids, mask = np.arange(20).reshape(4, 5), np.arange(20).reshape(4, 5) % 3 == 0
    np.savez("both.npz", ids=ids.astype(np.int32), mask=mask.astype(np.uint8))
    np.save("ids.npy", ids.astype(np.float64))
    np.save("mask.npy", mask)
    for sources in ("both.npz", ["ids=ids.npy", "mask=mask.npy"]):
        arrays, _ = packed(sources, TWO)
        assert arrays["ids"].dtype == np.int64 and arrays["mask"].dtype == np.bool_
        np.testing.assert_array_equal(arrays["ids"], ids)
        np.testing.assert_array_equal(arrays["mask"], mask)
    with pytest.raises(UsageError, match=r"which input does ids\.npy feed"):
        packed(["ids.npy"], TWO)
    arrays, _ = packed(["ids.npy", "mask=mask.npy"], TWO, input="ids")
    np.testing.assert_array_equal(arrays["ids"], ids)
    with pytest.raises(DataError, match="nothing for input 'mask'"):
        packed("ids=ids.npy", TWO)
    with pytest.raises(DataError, match="two sources feed input 'ids'"):
        packed(["both.npz", "ids=ids.npy"], TWO)
    np.save("mask.npy", mask[:3])
    with pytest.raises(DataError, match=r"counts differ \(ids.npy 4, mask.npy 3\)"):
        packed(["ids=ids.npy", "mask=mask.npy"], TWO)


def test_sources_of_one_input_follow_each_other() -> None:
    x = numbers(9, 3).astype(np.float32)
    for name, part in (("a", x[:2]), ("b", x[2:3]), ("c", x[3:])):
        np.save(f"{name}.npy", part)
    arrays, _ = packed(["a.npy", "b.npy", "c.npy"], VECTOR)
    np.testing.assert_array_equal(arrays["x"], x)


def test_limit_and_shuffle() -> None:
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.savez("in.npz", x=x)
    arrays, _ = packed("in.npz", VECTOR, limit=4)
    np.testing.assert_array_equal(arrays["x"], x[:4])
    first, _ = packed("in.npz", VECTOR, shuffle=True, seed=1)
    again, _ = packed("in.npz", VECTOR, shuffle=True, seed=1)
    other, _ = packed("in.npz", VECTOR, shuffle=True, seed=2)
    few, _ = packed("in.npz", VECTOR, shuffle=True, seed=1, limit=3)
    np.testing.assert_array_equal(first["x"], again["x"])
    assert sorted(first["x"][:, 0]) == x[:, 0].tolist() != first["x"][:, 0].tolist()
    assert first["x"].tolist() != other["x"].tolist()
    np.testing.assert_array_equal(few["x"], first["x"][:3])


def test_progress() -> None:
    np.savez("in.npz", x=numbers(4, 3))
    for source, limit, expected in (
        ("in.npz", None, [0.25, 0.5, 0.75, 1.0]),
        ("in.npz", 2, [0.5, 1.0]),
        (lambda: iter(numbers(2, 3)), None, [None, None]),
    ):
        seen: list[float | None] = []
        packed(source, VECTOR, limit=limit, progress=lambda message, done, s=seen: s.append(done))
        assert seen == expected


def test_the_same_samples_give_the_same_bytes() -> None:
    np.savez("in.npz", x=numbers(4, 3))
    secateur.pack_calibration("in.npz", "a.npz", VECTOR)
    secateur.pack_calibration("in.npz", "b.npz", VECTOR)
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("evil").touch, ())


def test_nothing_is_unpickled() -> None:
    objects = np.array([Evil()], dtype=object)
    np.save("in.npy", objects, allow_pickle=True)
    np.savez("in.npz", x=objects)
    Path("raw.npy").write_bytes(pickle.dumps(Evil()))
    with zipfile.ZipFile("raw.npz", "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Evil()))
    for name in ("in.npy", "in.npz", "raw.npy", "raw.npz"):
        with pytest.raises(DataError, match=name):
            packed(name, VECTOR)
    assert not Path("evil").exists()
    assert not Path("packed.npz").exists()


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x05\x06" + b"\0" * 18, b"\x93NUMPY\x01"])
def test_files_that_are_no_arrays(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match=name) as caught:
        packed(name, VECTOR)
    assert "\n" not in str(caught.value)


# --- samples and whole feeds ---


def feeds(count: int, *shape: int) -> Array:
    return np.random.default_rng(1).random((count, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("dims", "shape", "whole", "expected"),
    [
        (["N", 3], (3,), False, (6, 3)),
        (["N", 3], (1, 3), False, (6, 3)),
        (["N", 3], (2, 3), False, (12, 3)),
        ([1, 3], (3,), False, (6, 3)),
        ([1, 3], (1, 3), False, (6, 3)),
        ([4, 3], (3,), False, (6, 3)),
        ([4, 3], (4, 3), True, (6, 4, 3)),
        ([5], (5,), True, (6, 5)),
        (["N"], (), False, (6,)),
        ([], (), True, (6,)),
    ],
)
def test_samples_and_feeds(
    dims: list[int | str], shape: tuple[int, ...], whole: bool, expected: tuple[int, ...]
) -> None:
    data = feeds(6, *shape)
    arrays, result = packed(lambda: iter(data), taking(x=("FLOAT", dims)))
    assert result.feeds == whole
    np.testing.assert_array_equal(arrays["x"], data.reshape(expected))


def test_a_sample_may_be_called_a_feed() -> None:
    data = feeds(3, 2, 4)
    arrays, result = packed(lambda: iter(data), taking(x=("FLOAT", ["T", 4])), feeds=True)
    assert result.feeds
    np.testing.assert_array_equal(arrays["x"], data)


def test_one_number_beside_the_samples_makes_feeds() -> None:
    model = taking(x=("FLOAT", ["N", 3]), scale=("FLOAT", []))
    x = feeds(4, 3)
    np.savez("in.npz", x=x, scale=np.float32(2))
    arrays, result = packed("in.npz", model)
    assert result.feeds
    np.testing.assert_array_equal(arrays["x"], x[:, None])
    np.testing.assert_array_equal(arrays["scale"], np.full(4, 2, np.float32))


def test_batches_end_at_the_limit() -> None:
    data = feeds(3, 4, 3)
    arrays, result = packed(lambda: iter(data), VECTOR, limit=6)
    assert result.samples == 6
    np.testing.assert_array_equal(arrays["x"], data.reshape(12, 3)[:6])


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("FLOAT", np.array([1.0, np.nan]), "NaN, infinity or numbers too large for float32"),
        ("FLOAT", np.array([1.0, 1e300]), "too large for float32"),
        ("FLOAT16", np.array([1.0, 1e5]), "too large for float16"),
        ("INT64", np.array([1.0, 2.5]), "numbers that int64 does not have"),
        ("UINT8", np.array([1, 256]), "numbers that uint8 does not have"),
        ("UINT8", np.array([-1, 2]), "numbers that uint8 does not have"),
        ("BOOL", np.array([0, 2]), "numbers that bool does not have"),
        ("FLOAT", np.array(["a", "b"]), "no numbers"),
        ("STRING", np.array(["a", "b"]), "is of type STRING, which cannot be packed"),
    ],
)
def test_numbers_that_the_input_cannot_hold(kind: str, values: Array, words: str) -> None:
    with pytest.raises(DataError, match=words):
        packed(lambda: iter([values]), taking(x=(kind, ["N", 2])))
    assert not Path("packed.npz").exists()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("FLOAT16", "float16"), ("BFLOAT16", "float32"), ("DOUBLE", "float64"), ("INT8", "int8")],
)
def test_element_types(kind: str, dtype: str) -> None:
    arrays, _ = packed(lambda: iter([np.array([1, 2])]), taking(x=(kind, ["N", 2])))
    assert arrays["x"].dtype == dtype and arrays["x"].tolist() == [[1, 2]]


def test_samples_of_different_sizes() -> None:
    model = taking(x=("FLOAT", ["N", "T"]))
    with pytest.raises(DataError, match=r"sample 1, input 'x' has shape \(4\), the first had"):
        packed(lambda: iter([np.zeros(3), np.zeros(4)]), model)
    with pytest.raises(DataError, match=r"has shape \(4\), but input 'x' takes \(N, 3\)"):
        packed(lambda: iter([np.zeros(4)]), VECTOR)


def test_too_much_is_refused_while_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "CALIBRATION_LIMIT", 100)
    asked = []

    def endless() -> Iterator[Array]:
        while True:
            asked.append(1)
            yield np.zeros(3)

    with pytest.raises(DataError, match="give `limit`"):
        packed(endless, VECTOR)
    assert len(asked) < 20


def test_samples_are_not_all_in_memory() -> None:
    import tracemalloc

    def many() -> Iterator[Array]:
        for _ in range(64):
            yield np.ones((1, 1 << 18), np.float32)  # 1 MiB

    model = taking(x=("FLOAT", ["N", 1 << 18]))
    secateur.pack_calibration(many, "warm.npz", model, limit=1)  # imports are no samples
    tracemalloc.start()
    secateur.pack_calibration(many, "out.npz", model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert Path("out.npz").stat().st_size > 64 << 20
    assert peak < 48 << 20


# --- shapes ---


@pytest.mark.parametrize("first", ["N", 1])
@pytest.mark.parametrize("reshape", [(1, 4, 6), (1, 1, 4, 6)])
@pytest.mark.parametrize("shape", [(4, 6), (24,), (1, 4, 6)])
def test_reshape_is_for_every_source(
    first: int | str, reshape: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    x = numbers(5, *shape).astype(np.float32)
    np.save("in.npy", x)
    np.savez("in.npz", x=x)
    for source in ("in.npy", "in.npz", lambda: iter(x)):
        arrays, _ = packed(source, taking(x=("FLOAT", [first, 1, 4, 6])), reshape=reshape)
        np.testing.assert_array_equal(arrays["x"], x.reshape(5, 1, 4, 6))


def test_reshape_makes_whole_feeds() -> None:
    np.save("in.npy", numbers(3, 8))
    arrays, result = packed("in.npy", taking(x=("FLOAT", [2, 4])), reshape=(2, 4))
    assert arrays["x"].shape == (3, 2, 4) and result.feeds


def test_reshape_with_several_inputs() -> None:
    """What has so many numbers gets the shape; the rest stays."""
    np.savez("in.npz", image=numbers(3, 24), label=numbers(3, 2))
    model = taking(image=("FLOAT", ["N", 4, 6]), label=("FLOAT", ["N", 2]))
    arrays, _ = packed("in.npz", model, reshape=(4, 6))
    assert (arrays["image"].shape, arrays["label"].shape) == ((3, 4, 6), (3, 2))
    with pytest.raises(UsageError, match="24 numbers and 2 numbers cannot be reshaped to 5"):
        packed("in.npz", model, reshape=(5,))


@pytest.mark.parametrize(
    ("dims", "shape", "how"),
    [
        (["N", 1, 28, 28], (28, 28), r"must be \(1, 28, 28\); give `reshape` 1,28,28"),
        ([1, 1, 28, 28], (28, 28), r"must be \(1, 28, 28\); give `reshape` 1,28,28"),
        (["N", 1, 28, 28], (784,), r"must be \(1, 28, 28\); give `reshape` 1,28,28"),
        (["N", 1, "h", "w"], (8, 9), r"must be \(1, h, w\); give `reshape` 1,8,9"),
        (["N", 3, 8, 8], (8, 8, 3), r"must be \(3, 8, 8\); a function"),
        (["N", 3, 8, 8], (9, 9), r"must be \(3, 8, 8\); a function"),
        ([4, 1, 8, 8], (8, 8), r"must be \(1, 8, 8\); give `reshape` 1,8,8"),
    ],
)
def test_the_shape_that_is_wanted(dims: list[int | str], shape: tuple[int, ...], how: str) -> None:
    """Another shape of the same numbers is proposed only where it leaves them in order."""
    np.save("in.npy", numbers(4, *shape))
    with pytest.raises(DataError, match=how):
        packed("in.npy", taking(x=("FLOAT", dims)))


# --- everything else ---


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        ("none.npz", {}, DataError, "none.npz: no such file or folder"),
        ("notes.txt", {}, DataError, "notes.txt is no folder, picture"),
        ("in.npz", {"input": "y"}, UsageError, "the model has no input 'y'"),
        ("in.npz", {"limit": 0}, UsageError, "`limit` must be at least 1"),
        ("in.npz", {"seed": -1, "shuffle": True}, UsageError, "`seed` must be at least 0"),
        ([], {}, UsageError, "no source"),
    ],
)
def test_wrong_uses(
    source: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    Path("notes.txt").write_text("x")
    np.savez("in.npz", x=numbers(2, 3))
    with pytest.raises(error, match=words):
        packed(source, VECTOR, **options)


def test_an_old_file_survives_a_failure() -> None:
    Path("packed.npz").write_text("old")
    np.savez("in.npz", x=numbers(2, 4))
    with pytest.raises(DataError):
        packed("in.npz", VECTOR)
    assert Path("packed.npz").read_text() == "old"
    with pytest.raises(UsageError, match="cannot write"):
        secateur.pack_calibration(lambda: iter([np.zeros(3)]), "no/packed.npz", VECTOR)
