"""`secateur.pack_calibration` of text tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur import DataError, UsageError

from .packing_runs import IMAGE, packed, taking

VECTOR = taking(x=("FLOAT", ["N", 3]))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    x = np.random.default_rng(0).random((2, 3, 4, 6))
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
        ("1,2,3\n", {"columns": ["3"]}, UsageError, "no column '3'; number them from 0 to 2"),
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
