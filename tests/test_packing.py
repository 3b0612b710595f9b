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

from .packing_runs import IMAGE, Array, packed, taking

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

    with pytest.raises(DataError, match="give --limit"):
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


# --- tables ---


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("1,2,3\n4,5,6\n", {}, [[1, 2, 3], [4, 5, 6]]),
        ("a,b,c\n1,2,3\n\n4,5,6\n", {}, [[1, 2, 3], [4, 5, 6]]),
        ("\ufeffa,b,c\r\n1,2,3\r\n", {}, [[1, 2, 3]]),
        ("1,2,3\n4,5,6\n", {"header": True}, [[4, 5, 6]]),
        ("1;2;3\n", {"delimiter": ";"}, [[1, 2, 3]]),
        ('a,"b, c",d,e\n1,2,3,4\n', {"columns": ["e", "b, c", "a"]}, [[4, 2, 1]]),
        ("1,2,3,4\n", {"columns": ["3", "0", "1"]}, [[4, 1, 2]]),
        ("5,6\n", {"columns": ["1", "1", "0"]}, [[6, 6, 5]]),
        ("1e-1, -2 ,3.5\n", {"reshape": (3,)}, [[0.1, -2, 3.5]]),
    ],
)
def test_tables(text: str, options: dict[str, Any], expected: list[list[float]]) -> None:
    Path("in.csv").write_text(text, "utf-8")
    arrays, _ = packed("in.csv", VECTOR, **options)
    np.testing.assert_array_equal(arrays["x"], np.array(expected, np.float32))


def test_rows_take_the_shape_of_the_input() -> None:
    x = numbers(2, 3, 4, 6)
    np.savetxt("in.tsv", x.reshape(2, -1), delimiter="\t", fmt="%.17g")
    for options in ({}, {"reshape": (3, 4, 6)}):
        arrays, _ = packed("in.tsv", IMAGE, **options)
        np.testing.assert_array_equal(arrays["x"], x.astype(np.float32))
    arrays, _ = packed("in.tsv", taking(x=("FLOAT", ["N", "features"])))
    assert arrays["x"].shape == (2, 72)
    arrays, result = packed("in.tsv", taking(x=("FLOAT", [2, 36])), reshape=(2, 36))
    assert arrays["x"].shape == (2, 2, 36) and result.feeds


@pytest.mark.parametrize(
    ("text", "options", "error", "words"),
    [
        ("a,b,c\n1,2,x\n", {}, DataError, "line 2, column 'c': 'x' is no finite number"),
        ("1,2,3\n1,nan,3\n", {}, DataError, "line 2, column 1: 'nan' is no finite number"),
        ("1,2,3\n1,2\n", {}, DataError, "line 2 has 2 cells, not 3"),
        ("a,b,c\n", {}, DataError, "holds no rows"),
        ("", {}, DataError, "holds no rows"),
        ("1,2\n", {}, DataError, r"rows have 2 numbers, but input 'x' takes \(N, 3\)"),
        ('"1,2\n', {}, DataError, "not a readable table"),
        ("1,2,3\n", {"reshape": (2, 2)}, UsageError, "cannot be reshaped to 2x2"),
        ("a,b,c\n1,2,3\n", {"columns": ["d"]}, UsageError, "has no column 'd'"),
        ("1,2,3\n", {"columns": ["3"]}, UsageError, "no column '3'; there are 3, from 0"),
        ("a,a,c\n1,2,3\n", {"columns": ["a"]}, UsageError, "two columns 'a'"),
        ("1,2,3\n", {"delimiter": ",,"}, UsageError, "one character"),
        ("1,2,3\n", {"reshape": (0, 3)}, UsageError, "must be positive"),
        ("a,2,3\n", {"header": False}, DataError, "line 1, column 0: 'a'"),
    ],
)
def test_wrong_tables(
    text: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    Path("in.csv").write_text(text, "utf-8")
    with pytest.raises(error, match=words):
        packed("in.csv", VECTOR, **options)


def test_a_table_that_is_no_text() -> None:
    Path("in.csv").write_bytes(b"1,2,\xff\xfe\n")
    with pytest.raises(DataError, match=r"in.csv: not a readable table"):
        packed("in.csv", VECTOR)


# --- Python ---

MODULE = """
import numpy as np
READ = []
def arrays():
    for k in range(3):
        READ.append(k)
        yield np.full(3, k)
rows = [[0, 1, 2], [3, 4, 5]]
class Data:
    @staticmethod
    def pairs():
        yield np.arange(5), np.arange(5) > 2
    def __iter__(self):
        yield {"ids": [9] * 5, "mask": [True] * 5}
data = Data()
def late():
    import late_helper
    yield late_helper.row
def fails():
    yield np.zeros(3)
    raise ValueError("no more\\ndata")
def nothing():
    return []
number = 3
"""


def test_python_by_name(folder: Path) -> None:
    Path("own_samples.py").write_text(MODULE)
    arrays, _ = packed("own_samples:arrays", VECTOR)
    assert arrays["x"].tolist() == [[0] * 3, [1] * 3, [2] * 3]
    arrays, _ = packed("own_samples:rows", VECTOR)
    assert arrays["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    Path("late_helper.py").write_text("row = [7, 8, 9]")
    arrays, _ = packed("own_samples:late", VECTOR)
    assert arrays["x"].tolist() == [[7, 8, 9]]
    arrays, _ = packed("own_samples:Data.pairs", TWO)
    assert arrays["ids"].tolist() == [[0, 1, 2, 3, 4]]
    assert arrays["mask"].tolist() == [[False, False, False, True, True]]
    arrays, _ = packed("own_samples:data", TWO)
    assert arrays["ids"].tolist() == [[9] * 5]
    for source, error, words in (
        ("own_samples:none", UsageError, "cannot import own_samples:none: AttributeError"),
        ("no_such_module:f", UsageError, "cannot import no_such_module:f: ModuleNotFoundError"),
        ("own_samples:fails", DataError, "own_samples:fails failed after 1 samples: ValueError"),
        ("own_samples:nothing", DataError, "own_samples:nothing: holds no samples"),
        ("own_samples:number", DataError, "own_samples:number failed after 0 samples: TypeError"),
        ("own_samples:Data.pairs", DataError, r"item 0 has 2 arrays for 1 inputs \(x\)"),
    ):
        with pytest.raises(error, match=words) as caught:
            packed(source, VECTOR)
        assert "\n" not in str(caught.value)


def test_no_more_is_asked_for_than_is_packed() -> None:
    import sys

    Path("more_samples.py").write_text(MODULE)
    packed("more_samples:arrays", VECTOR, limit=2)
    assert sys.modules["more_samples"].READ == [0, 1]


def test_python_beside_files() -> None:
    ids = np.arange(10).reshape(2, 5)
    np.save("ids.npy", ids)

    def masks(count: int) -> Iterator[dict[str, Array]]:
        for _ in range(count):
            yield {"mask": np.ones(5, np.bool_)}

    arrays, _ = packed(["ids=ids.npy", masks(2)], TWO)
    np.testing.assert_array_equal(arrays["ids"], ids)
    assert arrays["mask"].all()
    for count, words in ((1, "ends after 1"), (3, "goes on after 2")):
        with pytest.raises(DataError, match=words):
            packed(["ids=ids.npy", masks(count)], TWO)
    with pytest.raises(UsageError, match="comes in its own order"):
        packed(["ids=ids.npy", masks(2)], TWO, shuffle=True)


def test_a_file_of_that_name_goes_before_a_module() -> None:
    Path("a:b").mkdir()
    with pytest.raises(DataError, match="a:b: holds no pictures"):
        packed("a:b")


# --- everything else ---


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        ("none.npz", {}, DataError, "none.npz: no such file or folder"),
        ("notes.txt", {}, UsageError, "notes.txt is no folder, picture"),
        ("in.npz", {"input": "y"}, UsageError, "the model has no input 'y'"),
        ("in.npz", {"limit": 0}, UsageError, "the limit must be at least 1"),
        ("in.npz", {"seed": -1, "shuffle": True}, UsageError, "cannot be negative"),
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
